"""Classification losses that take logits ``(B, K, ...)`` and class indices ``(B, ...)``.

Each one is a drop-in for ``torch.nn.CrossEntropyLoss``: a class, and a function of the same
arguments. All go through ``log_softmax`` and stay finite for any finite logits.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cv_core.checks import check_range
from cv_core.losses.reduction import (
    Reduction,
    check_reduction,
    reduce,
    target_log_probabilities,
)


def gce_loss(
    logits: Float[Tensor, "b k *rest"],
    target: Int[Tensor, "b *rest"],
    *,
    q: float = 0.7,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Float[Tensor, "..."]:
    r"""Generalised cross entropy of Zhang and Sabuncu, NeurIPS 2018.

    .. math:: L(p) = \frac{1 - p^q}{q}, \qquad p = \mathrm{softmax}(z)_y

    Args:
        logits: Scores ``(B, K, ...)``.
        target: Class indices ``(B, ...)``.
        q: Between 0 (cross entropy, the limit) and 1 (half the mean absolute error); 0.7.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The label that does not count.

    Returns:
        A scalar, or ``(B, ...)`` for ``reduction="none"``.

    Raises:
        TypeError: If ``logits`` is not floating or ``target`` not integer.
        ValueError: If an option or an index is out of range, or the shapes do not fit.

    Example:
        >>> gce_loss(torch.zeros(2, 4), torch.tensor([0, 3]), q=1.0)
        tensor(0.7500)
    """
    check_range("gce_loss", "q", q, low=0.0, high=1.0)
    check_reduction("gce_loss", reduction)
    log_p, valid = target_log_probabilities(logits, target, ignore_index, "gce_loss")
    # expm1 keeps the digits that 1 - p**q loses for small q and for p near 1
    values = -torch.expm1(q * log_p) / q if q > 0.0 else -log_p
    return reduce(values, valid, reduction)


def mae_loss(
    logits: Float[Tensor, "b k *rest"],
    target: Int[Tensor, "b *rest"],
    *,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Float[Tensor, "..."]:
    r"""Mean absolute error between softmax and one-hot label, of Ghosh et al., AAAI 2017.

    .. math:: L(p) = \sum_j |\mathrm{softmax}(z)_j - 1[j = y]| = 2 (1 - p)

    Args:
        logits: Scores ``(B, K, ...)``.
        target: Class indices ``(B, ...)``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The label that does not count.

    Returns:
        A scalar, or ``(B, ...)`` for ``reduction="none"``.

    Raises:
        TypeError: If ``logits`` is not floating or ``target`` not integer.
        ValueError: If an option or an index is out of range, or the shapes do not fit.
    """
    check_reduction("mae_loss", reduction)
    log_p, valid = target_log_probabilities(logits, target, ignore_index, "mae_loss")
    return reduce(-2.0 * torch.expm1(log_p), valid, reduction)


class GCELoss(nn.Module):
    """Generalised cross entropy as a module; see ``gce_loss``.

    Args:
        q: Between 0 (cross entropy) and 1 (half the mean absolute error).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The label that does not count.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self, q: float = 0.7, *, reduction: Reduction = "mean", ignore_index: int = -100
    ) -> None:
        super().__init__()
        check_range("GCELoss", "q", q, low=0.0, high=1.0)
        check_reduction("GCELoss", reduction)
        self.q = q
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index

    def extra_repr(self) -> str:
        """Show the options."""
        return f"q={self.q}, reduction={self.reduction!r}, ignore_index={self.ignore_index}"

    def forward(
        self, logits: Float[Tensor, "b k *rest"], target: Int[Tensor, "b *rest"]
    ) -> Float[Tensor, "..."]:
        """Return the loss of logits ``(B, K, ...)`` for labels ``(B, ...)``."""
        return gce_loss(
            logits, target, q=self.q, reduction=self.reduction, ignore_index=self.ignore_index
        )


class MAELoss(nn.Module):
    """Mean absolute error between softmax and label as a module; see ``mae_loss``.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The label that does not count.

    Raises:
        ValueError: If the reduction has another name.
    """

    def __init__(self, *, reduction: Reduction = "mean", ignore_index: int = -100) -> None:
        super().__init__()
        check_reduction("MAELoss", reduction)
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index

    def extra_repr(self) -> str:
        """Show the options."""
        return f"reduction={self.reduction!r}, ignore_index={self.ignore_index}"

    def forward(
        self, logits: Float[Tensor, "b k *rest"], target: Int[Tensor, "b *rest"]
    ) -> Float[Tensor, "..."]:
        """Return the loss of logits ``(B, K, ...)`` for labels ``(B, ...)``."""
        return mae_loss(logits, target, reduction=self.reduction, ignore_index=self.ignore_index)
