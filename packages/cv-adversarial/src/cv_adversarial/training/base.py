"""What the losses of adversarial training share: the call, the examples, the modes of the model.

Each is an object that is called in the user's own loop,

    loss, parts = objective(model, x, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

with images ``x`` in [0, 1] of classes ``y``; ``parts`` holds the loss's terms, detached, to be
logged. All of them see the model in evaluation mode while they search for adversarial examples, so
that dropout does not blur the gradient and batch normalisation neither mixes the images nor learns
from the attack's steps. Then every module has its mode again, and the logits of the loss are those
of the mode that the user chose. Gradients reach the parameters through the logits, never through
the examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from cv_core.checks import check_integer, check_range
from cv_core.engine.evaluation import modes_kept
from cv_core.random import torch_generator
from jaxtyping import Float, Int
from torch import Tensor, nn

from cv_adversarial.attacks.balls import Norm, check_ball
from cv_adversarial.attacks.base import Model
from cv_adversarial.attacks.gradient import PGD

Parts = dict[str, Tensor]
"""Detached numbers by name."""


class TrainingLoss(nn.Module, ABC):
    """A loss on adversarial examples that PGD finds, or what a subclass puts in its place.

    Args:
        eps: Radius of the ball in its norm, in pixel units.
        alpha: Length of a step in that norm; ``None`` for ``pace * eps / steps``.
        steps: Number of steps.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        random_start: Whether to begin at a random point of the ball.
        pace: How many times all steps together reach the radius; with 2.5, ten steps of 2/255
            belong to a radius of 8/255, the usual choice.
        seed: Of the random points. One stream runs through all calls, and its state is saved with
            the module, so that a training goes on as if it had not been interrupted.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        eps: float,
        *,
        alpha: float | None,
        steps: int,
        norm: Norm = "linf",
        random_start: bool = True,
        pace: float = 2.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_ball(self._owner, norm, eps)
        check_integer(self._owner, "steps", steps, low=1)
        alpha = pace * eps / steps if alpha is None else alpha
        check_range(self._owner, "alpha", alpha, low=0.0, low_open=True)
        check_integer(self._owner, "seed", seed)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.norm: Norm = norm
        self.random_start = random_start
        self.generator = torch_generator(seed, self._owner)

    @abstractmethod
    def forward(
        self, model: Model, x: Float[Tensor, "b *image"], y: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, ""], Parts]:
        """Return the loss of a batch and its parts.

        Args:
            model: Maps images ``(B, ...)`` with pixels in [0, 1] to logits ``(B, K)``.
            x: Images with pixels in [0, 1], ``(B, ...)``, float32 or float64.
            y: Their classes, ``(B,)``.

        Returns:
            A scalar to be differentiated, and detached scalars to be logged.

        Raises:
            TypeError: If images are not float32 or float64, or labels not integer.
            ValueError: If pixels leave [0, 1], labels do not fit, or the model cannot be attacked.
        """

    def examples(
        self, model: Model, x: Float[Tensor, "b *image"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b *image"]:
        """Return the adversarial images on which the model is trained."""
        return self._climb(model, x, y, alpha=self.alpha, steps=self.steps)

    def _climb(self, model: Model, x: Tensor, y: Tensor, *, alpha: float, steps: int) -> Tensor:
        attack = PGD(
            model,
            self.eps,
            alpha=alpha,
            steps=steps,
            norm=self.norm,
            random_start=self.random_start,
        )
        with evaluating(model):
            return attack(x, y, generator=self.generator)

    def get_extra_state(self) -> Tensor:
        """Return the state of the stream of random numbers, for the state dict."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from a state of the stream of random numbers."""
        self.generator.set_state(state.cpu())

    def extra_repr(self) -> str:
        """Show the options."""
        options = ("eps", "alpha", "steps", "norm", "random_start")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in options)

    @property
    def _owner(self) -> str:
        return type(self).__name__


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Put a model into evaluation mode while a block runs; each module's mode comes back."""
    if not isinstance(model, nn.Module):
        yield
        return
    with modes_kept(model):
        model.eval()
        yield


def together(model: Model, *batches: Float[Tensor, "_ *image"]) -> tuple[Tensor, ...]:
    """Return the logits of several batches from one pass, in which they share statistics."""
    return model(torch.cat(batches)).split([len(batch) for batch in batches])


def detached(**numbers: Tensor) -> Parts:
    """Cut numbers off their graph, for logging."""
    return {name: value.detach() for name, value in numbers.items()}
