"""What all attacks share: the call, the record of a run, the refusals, the access to the model.

An attack is built on a model that maps images with pixels in [0, 1] to logits; normalisation is a
layer in front of the model, never a matter of the attack. ``attack(images, labels)`` returns the
adversarial images, ``attack.run(images, labels)`` the whole record, and ``target=`` at either call
makes it a targeted attack. Nothing of the model changes: parameters are frozen for the length of
the call, gradients are taken with respect to the images only, and what was, is again afterwards,
exceptions included.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from cv_core.checks import check_finite, check_floating, check_indices, check_integer, check_shape
from cv_core.random import torch_generator
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from cv_adversarial.attacks.balls import Norm, distance

Model = Callable[[Tensor], Tensor]
"""Maps images ``(B, ...)`` with pixels in [0, 1] to logits ``(B, K)``."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class AttackResult:
    """What came of an attack on a batch.

    Args:
        adv: The adversarial images, of the images' shape and type.
        success: Which of them are classified as the attack wants: not as the label, or as the
            target. An image that the model gets wrong to begin with is a success.
        norm: Length of each perturbation in the attack's norm, in float64.
        forwards: How many images went through the model: a call on ``b`` images counts ``b``.
            The one pass that finds ``success`` does not count.
        backwards: How many images gradients were taken for, counted likewise.
    """

    adv: Float[Tensor, "b *image"]
    success: Bool[Tensor, " b"]
    norm: Float64[Tensor, " b"]
    forwards: int
    backwards: int


@dataclass(frozen=True)
class Goal:
    """What an attack wants of each image: any class but ``labels``, or exactly ``target``."""

    labels: Tensor
    target: Tensor | None = None

    def rows(self, index: Tensor) -> Goal:
        """Return the goal of some of the images."""
        return Goal(self.labels[index], None if self.target is None else self.target[index])

    def reached(self, logits: Tensor) -> Tensor:
        """Tell for which images the logits are as wanted."""
        found = logits.argmax(1)
        return found != self.labels if self.target is None else found == self.target


Objective = Callable[[Tensor, Goal], Tensor]
"""One number per image from logits and goal, the larger the nearer the goal."""


class Oracle:
    """The model as an attack sees it: it checks what comes out and counts what goes in.

    Args:
        owner: The attack's name, for messages.
        model: The model.
        goal: Its labels are checked against the number of classes at the first call.
    """

    def __init__(self, owner: str, model: Model, goal: Goal) -> None:
        self.owner = owner
        self.forwards = 0
        self.backwards = 0
        self._model = model
        self._goal = goal
        self._classes: int | None = None

    def logits(self, z: Tensor) -> Tensor:
        """Return the logits of images, with their graph where ``z`` asks for gradients."""
        self.forwards += len(z)
        logits = self._model(z)
        known = {} if self._classes is None else {"k": self._classes}
        check_floating(self.owner, "the model's output", logits)
        sizes = check_shape(self.owner, "the model's output", logits, "b k", b=len(z), **known)
        if self._classes is None:
            self._accept(logits, sizes["k"])
        return logits

    def query(self, z: Tensor) -> Tensor:
        """Return the logits without a graph."""
        with torch.no_grad():
            return self.logits(z)

    def reached(self, z: Tensor, goal: Goal) -> Tensor:
        """Tell which images fulfil the goal."""
        return goal.reached(self.query(z))

    def differentiate(self, values: Tensor, z: Tensor, *, again: bool = False) -> Tensor:
        """Return the gradient of the values' sum with respect to the images.

        Args:
            values: One number per image, from logits of ``z``.
            z: The images, which require gradients.
            again: Whether the same graph will be differentiated once more.
        """
        gradient = None
        if values.requires_grad:
            (gradient,) = torch.autograd.grad(
                values.sum(), z, retain_graph=again, allow_unused=True
            )
        if gradient is None:
            raise ValueError(
                f"{self.owner}: the model is not differentiable: its output carries no gradient "
                "back to the images. Look for detach(), no_grad() or NumPy in it, or use Square."
            )
        if self.backwards == 0:  # looking at every gradient would hold up a GPU
            check_finite(self.owner, "the model's gradient", gradient)
        self.backwards += len(z)
        return gradient

    def ascend(self, z: Tensor, goal: Goal, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """Return the objective's gradient, its values and the logits."""
        z = z.detach().requires_grad_()
        logits = self.logits(z)
        values = objective(logits, goal)
        return self.differentiate(values, z), values.detach(), logits.detach()

    def _accept(self, logits: Tensor, classes: int) -> None:
        if classes < 2:
            raise ValueError(f"{self.owner}: the model must return logits of 2 classes or more.")
        check_finite(self.owner, "the model's output", logits)
        check_indices(self.owner, "labels", self._goal.labels, high=classes, ignore=None)
        if self._goal.target is not None:
            check_indices(self.owner, "target", self._goal.target, high=classes, ignore=None)
        self._classes = classes


class Attack(ABC):
    """Base of all attacks; a subclass gives ``_perturb`` and ``norm``.

    Args:
        model: Maps images ``(B, ...)`` with pixels in [0, 1] to logits ``(B, K)``.
        seed: Where an attack's random numbers start; two calls of one attack draw the same.
    """

    norm: Norm = "linf"

    def __init__(self, model: Model, *, seed: int = 0) -> None:
        if not callable(model):
            raise TypeError(f"{self._owner}: model must be callable; got {type(model).__name__}.")
        check_integer(self._owner, "seed", seed)
        self.model = model
        self.seed = seed

    def __repr__(self) -> str:
        options = (f"{key}={value!r}" for key, value in vars(self).items() if key != "model")
        return f"{self._owner}({', '.join(options)})"

    def __call__(
        self,
        images: Float[Tensor, "b *image"],
        labels: Int[Tensor, " b"],
        *,
        target: Int[Tensor, " b"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b *image"]:
        """Attack a batch.

        Args:
            images: Pixels in [0, 1], ``(B, ...)``, float32 or float64.
            labels: The true classes, ``(B,)``.
            target: The classes to be mistaken for, ``(B,)``; by default any wrong one will do.
            generator: Where random numbers come from instead of ``seed``, such as one generator
                over all batches of a training run.

        Returns:
            The adversarial images, of the images' shape and type, pixels in [0, 1].

        Raises:
            TypeError: If images are not float32 or float64, or labels not integer.
            ValueError: If pixels leave [0, 1], labels do not fit, or the model cannot be attacked.
        """
        return self._with_model(images, labels, target, generator, lambda adv, *_: adv)

    def run(
        self,
        images: Float[Tensor, "b *image"],
        labels: Int[Tensor, " b"],
        *,
        target: Int[Tensor, " b"] | None = None,
        generator: torch.Generator | None = None,
    ) -> AttackResult:
        """Attack a batch as a call does, and return the whole record."""

        def record(adv: Tensor, x: Tensor, goal: Goal, oracle: Oracle) -> AttackResult:
            counts = oracle.forwards, oracle.backwards
            success = oracle.reached(adv, goal)
            return AttackResult(adv, success, distance(self.norm, adv, x), *counts)

        return self._with_model(images, labels, target, generator, record)

    @property
    def _owner(self) -> str:
        return type(self).__name__

    def _with_model(
        self,
        images: Tensor,
        labels: Tensor,
        target: Tensor | None,
        generator: torch.Generator | None,
        finish: Callable[[Tensor, Tensor, Goal, Oracle], _Result],
    ) -> _Result:
        check_images(self._owner, images)
        generator = generator or torch_generator(self.seed, self._owner)
        with _frozen(self._owner, self.model):
            goal = _goal(self._owner, images, labels, target)
            x = images.detach().clone()  # can be differentiated, even if made in inference mode
            oracle = Oracle(self._owner, self.model, goal)
            adv = self._perturb(x, goal, oracle, generator)
            check_finite(self._owner, "the result", adv)
            return finish(adv, x, goal, oracle)

    @abstractmethod
    def _perturb(self, x: Tensor, goal: Goal, oracle: Oracle, generator: torch.Generator) -> Tensor:
        """Return the adversarial images, in the ball where the attack has one."""


def check_images(owner: str, images: Tensor) -> None:
    """Refuse what is no batch of images with pixels in [0, 1].

    Raises:
        TypeError: If they are not of type float32 or float64.
        ValueError: If they are empty, or a pixel is NaN or leaves [0, 1].
    """
    check_floating(owner, "images", images)
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{owner}: images must be float32 or float64; got {images.dtype}. For speed, run the "
            "model under torch.autocast instead."
        )
    check_shape(owner, "images", images, "b ...")
    if images[0].numel() == 0:
        raise ValueError(f"{owner}: images are empty: shape {tuple(images.shape)}.")
    low, high = (float(end) for end in images.detach().aminmax())
    if not (low >= 0.0 and high <= 1.0):  # false for NaN, too
        raise ValueError(
            f"{owner}: images must have pixels in [0, 1]; they span [{low:g}, {high:g}]. Give the "
            "model a normalising first layer instead of normalised images."
        )


def _goal(owner: str, images: Tensor, labels: Tensor, target: Tensor | None) -> Goal:
    given = {"labels": labels} if target is None else {"labels": labels, "target": target}
    for name, classes in given.items():
        check_shape(owner, name, classes, "b", b=len(images))
        check_indices(owner, name, classes, high=1 << 31, ignore=None)
    moved = [classes.to(images.device, torch.int64, copy=True) for classes in given.values()]
    if target is not None and bool((moved[0] == moved[1]).any()):
        raise ValueError(f"{owner}: target must differ from labels for every image.")
    return Goal(*moved)


@contextmanager
def _frozen(owner: str, model: Any) -> Iterator[None]:
    """Keep a model's parameters out of the graphs, and gradients on, while a block runs."""
    asking = []
    if isinstance(model, nn.Module):
        _check_evaluating(owner, model)
        asking = [item for item in model.parameters() if item.requires_grad]
    try:
        for item in asking:
            item.requires_grad = False
        with torch.inference_mode(mode=False), torch.enable_grad():
            yield
    finally:
        for item in asking:
            item.requires_grad = True


def _check_evaluating(owner: str, model: nn.Module) -> None:
    for name, part in model.named_modules():
        mixes = isinstance(part, _BatchNorm)
        learns = isinstance(part, _NormBase) and part.track_running_stats
        if part.training and (mixes or learns):
            raise ValueError(
                f"{owner}: {name or 'the model'} is a {type(part).__name__} in training mode: the "
                "attack would change its running statistics and mix the images of a batch. Call "
                "model.eval() before the attack and model.train() after it."
            )
