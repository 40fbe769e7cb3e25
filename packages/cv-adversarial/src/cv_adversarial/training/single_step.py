r"""Adversarial training with one gradient per example: FGSM-AT, Fast-AT and Free-AT.

All are the cross entropy :math:`\ell` of adversarial images that cost one gradient, and differ in
where that gradient is taken:

.. math::

    \text{FGSM-AT:} \quad & x' = \Pi(x + \alpha \operatorname{sign} \nabla_x \ell(f(x), y)),
        \quad \alpha = \epsilon, \\
    \text{Fast-AT:} \quad & x' = \Pi(x + \eta + \alpha \operatorname{sign}
        \nabla_\eta \ell(f(x + \eta), y)), \quad \eta \sim U(-\epsilon, \epsilon)^d, \quad
        \alpha = 1.25\, \epsilon, \\
    \text{Free-AT:} \quad & x' = \Pi(x + \delta), \quad \delta \leftarrow \Pi_\epsilon(\delta +
        \epsilon \operatorname{sign} \nabla_{x'} \ell(f(x'), y)),

where :math:`\Pi` clips to the ball and the pixel range, :math:`\Pi_\epsilon` to
:math:`[-\epsilon, \epsilon]`, and Free-AT keeps :math:`\delta` from one call to the next. The first
two may collapse: within an epoch the network learns to fool the single step, and PGD finds
adversarial images everywhere (catastrophic overfitting).

Example:
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3, bias=False))
    >>> x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 2])
    >>> loss, parts = FastATLoss(eps=0.1)(model, x, y)
    >>> loss.backward()
    >>> sorted(parts)
    ['adversarial']
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from jaxtyping import Float, Int
from torch import Tensor, nn

from cv_adversarial.attacks.balls import check_ball
from cv_adversarial.attacks.base import Model, check_images
from cv_adversarial.training.base import Parts, TrainingLoss, detached


class ExamplesLoss(TrainingLoss):
    """The mean cross entropy of the adversarial examples and nothing else."""

    def forward(
        self, model: Model, x: Float[Tensor, "b *image"], y: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, ""], Parts]:
        """Return the cross entropy of the examples, also as the part ``"adversarial"``."""
        loss = F.cross_entropy(model(self.examples(model, x, y)), y)
        return loss, detached(adversarial=loss)


class FGSMATLoss(ExamplesLoss):
    """FGSM-AT: training on FGSM examples (I. Goodfellow, J. Shlens and C. Szegedy, ICLR 2015).

    Deviations from the paper: it trains on clean and adversarial images alike; as in the papers
    that compare with it, here are the adversarial ones only (``ALPLoss`` has both).

    Args:
        eps: Largest change of a pixel, in pixel units.
        alpha: Length of the step; ``eps`` by default.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    def __init__(self, eps: float, *, alpha: float | None = None) -> None:
        super().__init__(eps, alpha=alpha, pace=1.0, steps=1, random_start=False)


class FastATLoss(ExamplesLoss):
    """Fast-AT or FGSM-RS: one long step from a random point of the ball.

    *Fast is better than free: Revisiting adversarial training*, E. Wong, L. Rice and J. Z. Kolter,
    ICLR 2020.

    Deviations from the paper: the gradient of the step is taken in evaluation mode (see
    ``cv_adversarial.training.base``), the paper's code takes it in training mode.

    Args:
        eps: Largest change of a pixel, in pixel units.
        alpha: Length of the step; the paper's ``1.25 * eps`` by default.
        seed: Of the random points; one stream runs through all calls.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    def __init__(self, eps: float, *, alpha: float | None = None, seed: int = 0) -> None:
        super().__init__(eps, alpha=alpha, pace=1.25, steps=1, random_start=True, seed=seed)


class FreeATLoss(nn.Module):
    """Free-AT: one backward pass serves the weights and the perturbation, which is kept.

    *Adversarial Training for Free!*, A. Shafahi, M. Najibi, A. Ghiasi, Z. Xu, J. Dickerson,
    C. Studer, L. S. Davis, G. Taylor and T. Goldstein, NeurIPS 2019. Show every batch to it several
    times in a row; the perturbation also goes over from one batch to the next:

        for x, y in loader:
            for _ in range(replays):
                loss, parts = objective(model, x, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    The perturbation moves at the beginning of a call, by the gradient that ``loss.backward()`` of
    the call before has left. It is no part of the state dict: after a restart it begins at zero.

    Deviations from the paper: the gradient is taken at the clipped image. Through the clipping it
    would be zero at the ends of the pixel range, and pixels that are black or white would stay so.
    A gradient that overflowed, as under mixed precision, moves nothing.

    Args:
        eps: Largest change of a pixel and length of a step, in pixel units.

    Raises:
        TypeError: If ``eps`` is not a number.
        ValueError: If it is not positive.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        check_ball("FreeATLoss", "linf", eps)
        self.eps = eps
        self._kept: Tensor | None = None  # the perturbation, of the largest batch so far
        self._seen: Tensor | None = None  # the images of the last call, which take the gradient

    def reset(self) -> None:
        """Forget the perturbation, as at the beginning of a training."""
        self._kept = self._seen = None

    def extra_repr(self) -> str:
        """Show the radius."""
        return f"eps={self.eps!r}"

    def forward(
        self, model: Model, x: Float[Tensor, "b *image"], y: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, ""], Parts]:
        """Return the cross entropy of the perturbed images, also as the part ``"adversarial"``.

        Args:
            model: Maps images ``(B, ...)`` with pixels in [0, 1] to logits ``(B, K)``.
            x: Images with pixels in [0, 1], ``(B, ...)``, all of one size from call to call.
            y: Their classes, ``(B,)``.

        Raises:
            TypeError: If images are not float32 or float64.
            ValueError: If pixels leave [0, 1].
            RuntimeError: If the loss of the call before was not differentiated by ``backward``.
        """
        check_images("FreeATLoss", x)
        self._move()
        kept = self._perturbation(x)[: len(x)].to(x)
        seen = (x + kept).clamp_(0.0, 1.0).detach().requires_grad_()
        loss = F.cross_entropy(model(seen), y)
        if loss.requires_grad:
            self._seen = seen
        return loss, detached(adversarial=loss)

    def _move(self) -> None:
        """Take a step by the gradient of the last call."""
        seen, kept = self._seen, self._kept
        if seen is None or kept is None:
            return
        if seen.grad is None:
            raise RuntimeError(
                "FreeATLoss: the last loss has not been differentiated, so the perturbation cannot "
                "move. Call loss.backward() once for every call, or evaluate under torch.no_grad()."
            )
        step = self.eps * torch.nan_to_num(seen.grad, nan=0.0).sign()
        kept[: len(seen)] += step.to(kept)
        kept.clamp_(-self.eps, self.eps)
        self._seen = None

    def _perturbation(self, x: Tensor) -> Tensor:
        """Return what is kept, enlarged by zeros if the batch has more images."""
        kept = self._kept
        if kept is None or kept.shape[1:] != x.shape[1:]:
            kept = torch.zeros_like(x)
        elif len(kept) < len(x):
            kept = torch.cat([kept, torch.zeros_like(x[len(kept) :]).to(kept)])
        self._kept = kept
        return kept
