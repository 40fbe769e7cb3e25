r"""IMAE: mean absolute error with a sharper preference among examples.

X. Wang, Y. Hua, E. Kodirov and N. M. Robertson, "IMAE for Noise-Robust Learning: Mean Absolute
Error Does Not Treat Examples Equally and Gradient Magnitude's Variance Matters", 2019.
"""

from __future__ import annotations

import torch
from cv_core.checks import check_range
from cv_core.losses.reduction import Reduction, check_reduction, reduce, target_log_probabilities
from jaxtyping import Float, Int
from torch import Tensor, nn

_CLAMP = 1e-6


class IMAELoss(nn.Module):
    r"""Improved mean absolute error, defined by its gradient.

    MAE's whole gradient size :math:`4 p (1 - p)` is replaced by :math:`e^{T p (1 - p)}`, which
    keeps MAE's order of examples:

    .. math:: \frac{\partial L}{\partial z} = \frac{e^{T p (1 - p)}}{2 (1 - p)}
              (\mathrm{softmax}(z) - \mathrm{onehot}(y)).

    The value returned is cross entropy times that weight, taken as a constant: it is no potential
    of the gradient, so only its gradient means something. ``1 - p`` is clamped at 1e-6.

    Args:
        T: Sharpness; 8 in the publication.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The label that does not count.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self, T: float = 8.0, *, reduction: Reduction = "mean", ignore_index: int = -100
    ) -> None:
        super().__init__()
        check_range("IMAELoss", "T", T, low=0.0)
        check_reduction("IMAELoss", reduction)
        self.T = float(T)
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index

    def extra_repr(self) -> str:
        """Show the options."""
        return f"T={self.T:g}, reduction={self.reduction!r}, ignore_index={self.ignore_index}"

    def forward(
        self, logits: Float[Tensor, "b k *rest"], target: Int[Tensor, "b *rest"]
    ) -> Float[Tensor, "..."]:
        """Return the weighted cross entropy of logits ``(B, K, ...)`` for labels ``(B, ...)``."""
        log_p, valid = target_log_probabilities(logits, target, self.ignore_index, "IMAELoss")
        p = log_p.detach().exp()
        rest = -torch.expm1(log_p.detach())
        weight = torch.exp(self.T * p * rest) / (2.0 * rest.clamp(min=_CLAMP))
        return reduce(-weight * log_p, valid, self.reduction)
