r"""Objectness regularization: a detector's objectness squashed into a band about its threshold.

*Improving Adversarial Robustness of Detector via Objectness Regularization*, Bao, Chen, Ma, Ma, Yu
and Huang, PRCV 2021, LNCS 13022, pp. 252-262.

Just before post-processing, the logit :math:`f` of each location becomes (Eqs. 4, 6 and 7)

.. math:: f' = r\, S(f) + b, \qquad r = \frac{1}{4 \tau (1 - \tau)}, \qquad
          b = \ln \frac{\tau}{1 - \tau} - \epsilon,

with the sigmoid :math:`S` and the threshold :math:`\tau` of the post-processing. It is meant
against patches that make objects vanish: with a patch :math:`p` on a mask :math:`m`, these minimise
:math:`\max o(x \odot (1 - m) + p \odot m)` over all objectness scores :math:`o` (Eqs. 2 and 3).

What the defence is, and is not:

- :math:`S(f') > \tau` holds exactly where :math:`S(f) > \epsilon / r`. Where boxes are kept by
  objectness alone, the defence *is* a lower threshold, ``equivalent_threshold``: for the defaults
  0.01 instead of 0.5. Compare it with that.
- The map is increasing, so no ranking by objectness changes, and the attack through the defence
  makes the same patch to the bit, short of saturation.
- The paper says that foreground gains on background. For :math:`\tau` between 0.067 and 0.933 it
  does not: :math:`df'/df \le r / 4 < 1`, so every gap shrinks, in logits and in probabilities.
- Where a score is objectness times class probability, the class decides the ranking, for all
  objectness lies within ``(S(b), S(b + r))``: this is the one real difference.

Deviations from the paper, and why:

- Several objects share the patches' budget in equal squares; the paper does not say how. Squares
  that would leave the image are moved inside.
- The attack keeps each image's best iterate, and lowers logits, where it lowers probabilities:
  the arg-max is the same and nothing saturates.
- The vanishing rate's rule is an overlap of at least one half, one box for one box; the paper's
  Eq. 8 leaves it open.

Example:
    >>> import torch
    >>> from cv_adversarial.methods.objectness_regularization import ObjectnessRegularization
    >>> defence = ObjectnessRegularization(tau=0.5, eps=0.01)
    >>> defence(torch.tensor([[-6.0, -3.0, 4.0]])).sigmoid()
    tensor([[0.4981, 0.5094, 0.7255]])
    >>> defence.equivalent_threshold
    0.01
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal, get_args

import torch
from cv_core.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_range,
    check_shape,
)
from cv_core.metrics.detection import match_boxes
from cv_core.nn.hooks import rewrite
from cv_core.nn.surgery import Where
from cv_core.registry import Card, Example, Reference
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cv_adversarial.attacks.balls import column
from cv_adversarial.attacks.base import check_images

Share = Literal["equal", "area"]


class ObjectnessRegularization(nn.Module):
    """Map objectness logits to logits near a threshold, as a layer in front of post-processing.

    Args:
        tau: The threshold of the post-processing, in (0, 1).
        eps: How far the least logit stays below the threshold's, in ``[0, r)``; at 0 every location
            passes, from ``r`` on none would.

    Raises:
        TypeError: If an option is not a number.
        ValueError: If an option is out of range.
    """

    def __init__(self, tau: float = 0.5, eps: float = 0.01) -> None:
        super().__init__()
        owner = "ObjectnessRegularization"
        check_range(owner, "tau", tau, low=0.0, high=1.0, low_open=True, high_open=True)
        self.scale = 1.0 / (4.0 * tau * (1.0 - tau))
        check_range(owner, "eps", eps, low=0.0, high=self.scale, high_open=True)
        self.tau = float(tau)
        self.eps = float(eps)
        self.shift = math.log(tau / (1.0 - tau)) - eps

    @property
    def equivalent_threshold(self) -> float:
        """The threshold of the raw objectness that keeps the same locations, ``eps / r``."""
        return self.eps / self.scale

    def extra_repr(self) -> str:
        """Show the options."""
        return f"tau={self.tau:g}, eps={self.eps:g}"

    def forward(self, logits: Float[Tensor, "b *rest"]) -> Float[Tensor, "b *rest"]:
        """Return the regularized logits, of the same shape.

        Args:
            logits: Objectness before the sigmoid, any shape with a batch axis.
        """
        check_floating("ObjectnessRegularization", "logits", logits)
        check_shape("ObjectnessRegularization", "logits", logits, "b ...")
        return self.scale * logits.sigmoid() + self.shift

    def attached(self, detector: nn.Module, where: Where) -> AbstractContextManager[None]:
        """Regularize what modules of a foreign detector return, while a ``with`` block runs.

        Args:
            detector: Any detector.
            where: The modules that return objectness logits and nothing else, by name or class, as
                ``"rpn.head.cls_logits"`` for torchvision's Faster R-CNN.

        Raises:
            ValueError: If ``where`` selects nothing.
        """
        return rewrite(detector, where, lambda output, *_: self(output))


def foreground_objectness(
    class_logits: Float[Tensor, "b k *rest"], *, background: int = 0
) -> Float[Tensor, "b *rest"]:
    """Return the logit of all foreground classes together, for detectors without objectness.

    Args:
        class_logits: Logits of a softmax over classes and background, ``(B, K, ...)``.
        background: The background's class.

    Returns:
        Logits whose sigmoid is the sum of the foreground's probabilities.
    """
    owner = "foreground_objectness"
    check_floating(owner, "class_logits", class_logits)
    sizes = check_shape(owner, "class_logits", class_logits, "b k ...")
    check_integer(owner, "background", background, low=0, high=sizes["k"] - 1)
    others = [index for index in range(sizes["k"]) if index != background]
    return class_logits[:, others].logsumexp(1) - class_logits[:, background]


def patch_mask(
    boxes: Sequence[Float[Tensor, "_ 4"]],
    size: tuple[int, int],
    pixels: int,
    *,
    share: Share = "equal",
) -> Bool[Tensor, "b h w"]:
    """Mark squares at the centres of boxes whose areas sum to at most a number of pixels.

    Args:
        boxes: One tensor of xyxy boxes per image, in pixels; it may be empty.
        size: Height and width of the images.
        pixels: How many pixels an image's squares may have together.
        share: Whether squares are of one size or as large as their boxes are.

    Returns:
        True on the squares, which may overlap; those that would leave the image are moved inside.
    """
    check_integer("patch_mask", "pixels", pixels, low=1)
    check_choice("patch_mask", "share", share, get_args(Share))
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, found in zip(masks, boxes, strict=True):
        check_shape("patch_mask", "boxes", found, f"{len(found)} 4")
        for left, top, side in _squares(found.detach().cpu().double(), size, pixels, share):
            mask[top : top + side, left : left + side] = True
    return masks


def _squares(
    boxes: Tensor, size: tuple[int, int], pixels: int, share: Share
) -> list[tuple[int, int, int]]:
    """Return left, top and side of each box's square; more boxes than pixels leave some without."""
    areas = torch.ones(len(boxes)).double()
    if share == "area":
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    found = []
    for box, area in zip(boxes, areas, strict=True):
        side = min(math.isqrt(int(pixels * float(area / areas.sum()) + 1e-9)), *size)
        centre = (box[:2] + box[2:]) / 2
        corner = [
            min(max(0, math.floor(float(middle) - side / 2 + 0.5)), length - side)
            for middle, length in zip(centre, (size[1], size[0]), strict=True)
        ]
        found.append((corner[0], corner[1], side))
    return found


class VanishingPatchAttack:
    """Patches at the centres of detected objects that lower the greatest objectness of all.

    To attack a defended detector, let both functions run through the defence.

    Args:
        objectness: Maps images ``(B, C, H, W)`` to objectness logits ``(B, ...)``, differentiably;
            its networks in evaluation mode.
        boxes: Maps images to the boxes found in each, xyxy in pixels.
        pixels: How many pixels the patches of an image may have together.
        steps: Number of steps.
        step_size: Length of a sign step in pixel units, before it decays.
        decay: Factor of the step's length at each milestone, in (0, 1].
        milestones: After which steps the length decays; empty for a constant one.
        share: How boxes share the pixels; see ``patch_mask``.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        objectness: Callable[[Tensor], Tensor],
        boxes: Callable[[Tensor], Sequence[Tensor]],
        *,
        pixels: int = 3000,
        steps: int = 255,
        step_size: float = 8 / 255,
        decay: float = 0.5,
        milestones: Sequence[int] = (30, 90, 190),
        share: Share = "equal",
    ) -> None:
        owner = "VanishingPatchAttack"
        check_integer(owner, "pixels", pixels, low=1)
        check_integer(owner, "steps", steps, low=1)
        check_range(owner, "step_size", step_size, low=0.0, high=1.0, low_open=True)
        check_range(owner, "decay", decay, low=0.0, high=1.0, low_open=True)
        for milestone in milestones:
            check_integer(owner, "milestones", milestone, low=1)
        check_choice(owner, "share", share, get_args(Share))
        self.objectness = objectness
        self.boxes = boxes
        self.pixels = pixels
        self.steps = steps
        self.step_size = step_size
        self.decay = decay
        self.milestones = tuple(milestones)
        self.share: Share = share

    def __call__(
        self, x: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Bool[Tensor, "b h w"]]:
        """Attack images with patches where the detector finds objects in them.

        Args:
            x: Images, pixels in [0, 1].

        Returns:
            The attacked images and where their patches are. An image without a detection, or whose
            objectness never falls, comes back as it is.
        """
        check_images("VanishingPatchAttack", x)
        check_shape("VanishingPatchAttack", "images", x, "b c h w")
        with torch.no_grad():
            found = self.boxes(x)
        size = (x.shape[-2], x.shape[-1])
        mask = patch_mask(found, size, self.pixels, share=self.share).to(x.device)
        return self.attack(x, mask), mask

    def attack(
        self, x: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Attack images with patches on a given mask.

        Args:
            x: Images, pixels in [0, 1].
            mask: Where pixels may change.

        Returns:
            The images of least greatest objectness among those of all steps, the start included.
        """
        x, where = x.detach().clone(), mask[:, None]
        z, best = x, x
        least = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        for step in range(self.steps + 1):  # the last one only judges
            gradient, greatest = self._greatest(z)
            better = greatest < least
            best = torch.where(column(better, x), z, best)
            least = torch.where(better, greatest, least)
            size = self.step_size * self.decay ** sum(step >= end for end in self.milestones)
            z = torch.where(where, (z - size * gradient.sign()).clamp(0.0, 1.0), x)
        return best

    def _greatest(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return each image's greatest objectness and its gradient."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            z = z.clone().requires_grad_()
            logits = self.objectness(z)
            check_shape("VanishingPatchAttack", "objectness", logits, "b ...", b=len(z))
            greatest = logits.flatten(1).amax(1)
            (gradient,) = torch.autograd.grad(greatest.sum(), z)
        check_finite("VanishingPatchAttack", "the objectness", greatest)
        return gradient, greatest.detach().to(z.dtype)


def vanishing_rate(
    clean_boxes: Sequence[Float[Tensor, "_ 4"]],
    adv_boxes: Sequence[Float[Tensor, "_ 4"]],
    *,
    iou: float = 0.5,
    clean_labels: Sequence[Int[Tensor, " _"]] | None = None,
    adv_labels: Sequence[Int[Tensor, " _"]] | None = None,
) -> float:
    """Return the share of boxes found in clean images that no box of the attacked ones matches.

    Args:
        clean_boxes: Boxes of each clean image, xyxy; there may be none.
        adv_boxes: Boxes of each attacked image, those of high score first, as detectors give them;
            each takes the free clean box that it overlaps most.
        iou: The least overlap of a match, in (0, 1].
        clean_labels: Classes of the clean boxes. With both labels a match needs the same class, so
            that a relabelled object counts as vanished; by default classes do not count.
        adv_labels: Classes of the attacked images' boxes.

    Returns:
        A share in [0, 1]; 0 if nothing was found in the clean images.

    Raises:
        ValueError: If the numbers of images differ, labels are given for one side only, or a box is
            malformed.
    """
    owner = "vanishing_rate"
    check_range(owner, "iou", iou, low=0.0, high=1.0, low_open=True)
    if (clean_labels is None) != (adv_labels is None):
        raise ValueError(f"{owner}: clean_labels and adv_labels must be given together.")
    if clean_labels is None or adv_labels is None:
        clean_labels = [torch.zeros(len(boxes), dtype=torch.int64) for boxes in clean_boxes]
        adv_labels = [torch.zeros(len(boxes), dtype=torch.int64) for boxes in adv_boxes]
    counts = {len(clean_boxes), len(adv_boxes), len(clean_labels), len(adv_labels)}
    if len(counts) > 1:
        raise ValueError(f"{owner}: all arguments must be of as many images; got {sorted(counts)}.")
    matched = 0
    for clean, adv, classes, adv_classes in zip(
        clean_boxes, adv_boxes, clean_labels, adv_labels, strict=True
    ):
        for label in classes.unique():
            found = adv[adv_classes == label]
            hits = match_boxes(
                found, found.new_ones(len(found)), clean[classes == label], iou_threshold=iou
            )
            matched += int((hits >= 0).sum())
    total = sum(len(boxes) for boxes in clean_boxes)
    return 1.0 - matched / total if total else 0.0


def _examples() -> list[Example]:
    def maps(generator: torch.Generator) -> tuple[Tensor]:
        return (4 * torch.randn(2, 3, 4, 5, generator=generator),)

    return [
        Example(build=ObjectnessRegularization, inputs=maps, output_shapes=((2, 3, 4, 5),)),
        Example(
            build=lambda: ObjectnessRegularization(tau=0.3, eps=0.1),
            inputs=lambda generator: (torch.randn(6, generator=generator),),
            output_shapes=((6,),),
        ),
    ]


CARD = Card(
    slug="objectness-regularization",
    title="Objectness regularization against patches that make objects vanish",
    reference=Reference(
        title="Improving Adversarial Robustness of Detector via Objectness Regularization",
        authors="Bao, Chen, Ma, Ma, Yu, Huang",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="252-262",
    ),
    kind="module",
    objects=(
        "cv_adversarial.methods.objectness_regularization.ObjectnessRegularization",
        "cv_adversarial.methods.objectness_regularization.VanishingPatchAttack",
        "cv_adversarial.methods.objectness_regularization.foreground_objectness",
        "cv_adversarial.methods.objectness_regularization.patch_mask",
        "cv_adversarial.methods.objectness_regularization.vanishing_rate",
    ),
    examples=_examples,
    properties=(
        "batch-independent",
        "deterministic",
        "parameter-free",
        "shape-preserving",
        "twice-differentiable",
    ),
)
