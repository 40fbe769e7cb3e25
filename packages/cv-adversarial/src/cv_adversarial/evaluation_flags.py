"""Checks of an evaluation's assumptions, printed beside every robust accuracy.

An attack that fails says nothing of a model whose gradients are hidden, whose answers are drawn
anew or depend on the other images of a batch. Each check here is a function of a ``Probe``, a few
images and the model, and returns a ``Flag`` that says what was found and what to look for. The
checks are those of *On Evaluating Adversarial Robustness*, N. Carlini et al., 2019, Section 4, and
of AutoAttack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from cv_core.checks import check_finite
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cv_adversarial.attacks.apgd import APGD
from cv_adversarial.attacks.balls import Norm, lengths
from cv_adversarial.attacks.base import Attack, Goal, Model, Oracle
from cv_adversarial.attacks.gradient import PGD
from cv_adversarial.attacks.objectives import cross_entropy
from cv_adversarial.attacks.square import Square

_STEPS = 20
_QUERIES = 200
_PGD_STEPS = (1, 5, 20)
_CHANCE = 0.02  # share of the images that may differ by chance


@dataclass(frozen=True)
class Flag:
    """What a check came to.

    Args:
        name: What the check looks at.
        raised: Whether something is wrong; ``None`` if it could not be checked.
        message: What was found, and for a raised flag what to look for.
    """

    name: str
    raised: bool | None
    message: str

    @classmethod
    def fine(cls, name: str, message: str) -> Flag:
        """Return a flag that is not raised."""
        return cls(name, raised=False, message=message)

    @classmethod
    def bad(cls, name: str, message: str) -> Flag:
        """Return a raised flag."""
        return cls(name, raised=True, message=message)

    @classmethod
    def unknown(cls, name: str, message: str) -> Flag:
        """Return the flag of a check that cannot be made."""
        return cls(name, raised=None, message=message)

    def __str__(self) -> str:
        mark = {True: "FLAG", False: "ok", None: "-"}[self.raised]
        return f"{mark:<5} {self.name:<26} {self.message}"


class Logits(Attack):
    """No attack at all: notes the logits, with an attack's refusals and an attack's care."""

    logits: Tensor

    def _perturb(self, x: Tensor, goal: Goal, oracle: Oracle, generator: torch.Generator) -> Tensor:
        del goal, generator
        self.logits = oracle.query(x)
        return x


class Gradients(Attack):
    """No attack either: notes the cross entropy's gradient, or why there is none."""

    gradient: Tensor | None = None
    obstacle: str = ""

    def _perturb(self, x: Tensor, goal: Goal, oracle: Oracle, generator: torch.Generator) -> Tensor:
        del generator
        z = x.clone().requires_grad_()
        try:
            loss = cross_entropy(oracle.logits(z), goal).sum()
        except RuntimeError as error:  # numpy() and in-place changes of the images
            if "requires grad" not in str(error):
                raise
            self.obstacle = f"the forward pass fails on images that ask for gradients ({error})"
            return x
        if loss.requires_grad:
            (self.gradient,) = torch.autograd.grad(loss, z, allow_unused=True)
        if self.gradient is None:
            self.obstacle = "no gradient comes back to the images"
        else:
            check_finite(self._owner, "the model's gradient", self.gradient)
        return x


@dataclass(frozen=True)
class Probe:
    """The few images that the checks look at.

    Args:
        model: The model.
        norm: The threat's norm.
        eps: The threat's radius.
        images: Pixels in [0, 1].
        labels: Their classes.
        right: Which of them the model gets right, as the evaluation found.
        logits: Of the images.
        gradient: Of the cross entropy with respect to the images, ``None`` if there is none.
        obstacle: Why there is none.
        seed: Of the checks' attacks.
    """

    model: Model
    norm: Norm
    eps: float
    images: Float[Tensor, "b *image"]
    labels: Int[Tensor, " b"]
    right: Bool[Tensor, " b"]
    logits: Float[Tensor, "b k"]
    gradient: Float[Tensor, "b *image"] | None
    obstacle: str
    seed: int

    @classmethod
    def look(
        cls,
        model: Model,
        norm: Norm,
        eps: float,
        images: Tensor,
        labels: Tensor,
        right: Tensor,
        *,
        seed: int = 0,
    ) -> Probe:
        """Take the logits and the gradients that the checks share."""
        clean, slopes = Logits(model), Gradients(model)
        clean(images, labels)
        slopes(images, labels)
        return cls(
            model,
            norm,
            eps,
            images,
            labels,
            right,
            clean.logits,
            slopes.gradient,
            slopes.obstacle,
            seed,
        )

    @property
    def chance(self) -> float:
        """How many images may differ without a flag."""
        return max(1.0, _CHANCE * int(self.right.sum()))

    @property
    def no_gradients(self) -> str:
        """Why attacks by gradients cannot be tried, empty if they can."""
        if self.gradient is None:
            return "not checked: the model is not differentiable"
        return "" if bool(self.right.any()) else "not checked: no image is classified rightly"

    def fooled(self, attack: Attack) -> Tensor:
        """Tell which of the rightly classified images an attack changes the class of."""
        return attack.run(self.images[self.right], self.labels[self.right]).success


def randomised(probe: Probe) -> Flag:
    """Compare the logits of two forward passes."""
    again = Logits(probe.model)
    again(probe.images, probe.labels)
    gap = float((again.logits - probe.logits).abs().max())
    if gap <= 1e-4 * max(1.0, float(probe.logits.abs().max())):
        return Flag.fine("randomised model", "two forward passes agree")
    return Flag.bad(
        "randomised model",
        f"two forward passes differ by up to {gap:.2g}: an attack counts a lucky draw as a success "
        "and follows noise. Look for dropout in training mode, noise layers and random resizing; "
        "attack the expectation over draws instead",
    )


def softmax_output(probe: Probe) -> Flag:
    """See whether the outputs are probabilities."""
    sums = probe.logits.sum(1)
    if bool((probe.logits < 0).any()) or bool(((sums - 1.0).abs() > 1e-3).any()):
        return Flag.fine("softmax output", "the outputs are no probabilities")
    return Flag.bad(
        "softmax output",
        "the outputs are not negative and sum to one: a second softmax in the attack's loss "
        "flattens gradients. Look for a softmax at the end of the model and leave it out",
    )


def not_differentiable(probe: Probe) -> Flag:
    """See whether a gradient reaches the images."""
    if probe.gradient is not None:
        return Flag.fine("not differentiable", "gradients reach the images")
    return Flag.bad(
        "not differentiable",
        f"{probe.obstacle}: only black-box attacks can be run, and the robust accuracy is too "
        "high. Look for detach(), no_grad(), rounding and NumPy; replace them by a "
        "differentiable stand-in (BPDA)",
    )


def zero_gradients(probe: Probe) -> Flag:
    """Count the rightly classified images at which the gradient is exactly zero."""
    name = "zero gradients"
    if probe.gradient is None or probe.no_gradients:
        return Flag.unknown(name, probe.no_gradients)
    zero = (lengths("linf", probe.gradient) == 0)[probe.right]
    count = int(zero.sum())
    if count == 0:
        return Flag.fine(name, "no image has a zero gradient")
    return Flag.bad(
        name,
        f"{count} of {len(zero)} images have a gradient of exactly zero: attacks by gradients "
        "cannot move them. Look for quantisation, step functions, saturated activations, and "
        "logits so far apart that the softmax is exactly one",
    )


def forward_optimises(probe: Probe) -> Flag:
    """Run the model where no graph can be built, which fails if its forward pass differentiates."""
    name = "optimisation in forward"
    try:
        with torch.inference_mode():
            probe.model(probe.images)
    except RuntimeError as error:
        return Flag.bad(
            name,
            f"the forward pass fails in inference mode ({str(error).splitlines()[0]}): it seems to "
            "take gradients itself. Look for purification or adaptation at test time; attack "
            "through the whole loop",
        )
    return Flag.fine(name, "the forward pass takes no gradients")


def zero_radius(probe: Probe) -> Flag:
    """Compare the classes of unchanged images, in other batches, with the clean ones."""
    name = "eps = 0 equals clean"
    attack, changed = Logits(probe.model), 0
    for part in (slice(0, None, 2), slice(1, None, 2)):
        if len(images := probe.images[part]):
            wrong = attack.run(images, probe.labels[part]).success
            changed += int((wrong == probe.right[part]).sum())
    if changed == 0:
        return Flag.fine(name, "unchanged images keep their class")
    return Flag.bad(
        name,
        f"{changed} of {len(probe.labels)} unchanged images are right once and wrong once: an "
        "attack need do nothing. Look for layers that mix the images of a batch, randomness, and "
        "state that a forward pass changes",
    )


def huge_radius(probe: Probe) -> Flag:
    """Attack in a ball that holds every image: next to nothing may survive."""
    name = "a huge ball leaves nothing"
    if probe.no_gradients:
        return Flag.unknown(name, probe.no_gradients)
    pixels = probe.images[0].numel()
    sizes: dict[Norm, float] = {"linf": 1.0, "l2": pixels**0.5, "l1": float(pixels)}
    eps = sizes[probe.norm]
    fooled = probe.fooled(_white_box(probe, eps))
    left = int((~fooled).sum())
    if left <= probe.chance:
        return Flag.fine(name, f"{left} of {len(fooled)} images survive eps = {eps:g}")
    return Flag.bad(
        name,
        f"{left} of {len(fooled)} images survive eps = {eps:g}, where any image is in reach: "
        "the attack fails, not the images. Look for masked gradients or a model that always "
        "answers the same",
    )


def black_box_wins(probe: Probe) -> Flag:
    """Let random search try the images that ascent by gradients leaves."""
    name = "black box beats white box"
    if probe.no_gradients:
        return Flag.unknown(name, probe.no_gradients)
    if not has_black_box(probe.norm, probe.images):
        return Flag.unknown(name, "not checked: Square needs (B, C, H, W) images and linf or l2")
    left = ~probe.fooled(_white_box(probe, probe.eps))
    rows = torch.nonzero(probe.right).squeeze(1)[left]
    count = 0
    if len(rows):
        attack = Square(probe.model, probe.eps, steps=_QUERIES, norm=probe.norm, seed=probe.seed)
        count = int(attack.run(probe.images[rows], probe.labels[rows]).success.sum())
    found = f"Square succeeds on {count} of {len(rows)} images that APGD leaves"
    if count <= probe.chance:
        return Flag.fine(name, found)
    return Flag.bad(
        name,
        f"{found}: gradients mislead. Look for quantisation, saturation, a large or small "
        "temperature, and gradients that a layer rewrites",
    )


def more_steps_worse(probe: Probe) -> Flag:
    """Count what PGD fools with more and more steps."""
    name = "more steps are worse"
    if probe.no_gradients:
        return Flag.unknown(name, probe.no_gradients)
    counts = []
    for steps in _PGD_STEPS:
        alpha = probe.eps if steps == 1 else 2.5 * probe.eps / steps
        attack = PGD(
            probe.model, probe.eps, alpha=alpha, steps=steps, norm=probe.norm, random_start=False
        )
        counts.append(int(probe.fooled(attack).sum()))
    said = ", ".join(f"{count} in {steps}" for steps, count in zip(_PGD_STEPS, counts, strict=True))
    found = f"images that PGD fools, by steps: {said}"
    drop = max(a - b for i, a in enumerate(counts) for b in counts[i:])
    if drop <= probe.chance:
        return Flag.fine(name, found)
    return Flag.bad(
        name,
        f"{found}: the loss is rugged or its gradient wrong. Look for masked gradients, "
        "randomness, and layers whose backward pass is not that of their forward pass",
    )


Check = Callable[[Probe], Flag]

CHECKS: tuple[Check, ...] = (
    randomised,
    softmax_output,
    not_differentiable,
    forward_optimises,
    zero_gradients,
    zero_radius,
    huge_radius,
    black_box_wins,
    more_steps_worse,
)


def has_black_box(norm: Norm, images: Tensor) -> bool:
    """Tell whether Square can attack these images in this norm."""
    return images.ndim == 4 and norm != "l1"


def _white_box(probe: Probe, eps: float) -> Attack:
    if probe.norm == "l1":
        alpha = 2.5 * eps / _STEPS
        return PGD(probe.model, eps, alpha=alpha, steps=_STEPS, norm="l1", seed=probe.seed)
    return APGD(probe.model, eps, steps=_STEPS, norm=probe.norm, seed=probe.seed)
