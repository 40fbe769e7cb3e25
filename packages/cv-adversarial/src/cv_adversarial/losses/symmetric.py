r"""Symmetric cross entropy: cross entropy plus a robust reverse term.

*Symmetric Cross Entropy for Robust Learning with Noisy Labels*, Y. Wang, X. Ma, Z. Chen, Y. Luo,
J. Yi and J. Bailey, ICCV 2019. With :math:`p` the softmax probability of the label, and
:math:`\ln 0` of the one-hot label taken as a number ``A < 0``,

.. math:: L = \alpha \underbrace{(-\ln p)}_{\text{CE}}
              + \beta \underbrace{\Big(-\sum_k p_k \ln 1[k = y]\Big)}_{\text{RCE}}
            = -\alpha \ln p - \beta A (1 - p),

so that the reverse term is :math:`-A/2` times the mean absolute error :math:`2 (1 - p)`.

Deviations from the paper: none; its code clamps the one-hot label at 1e-4 instead, which is
``A = ln 1e-4``, about -9.2.

Example:
    >>> import torch
    >>> SCELoss(alpha=0.1, beta=1.0)(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor(3.1386)
"""

from __future__ import annotations

import torch
from cv_core.checks import check_range
from cv_core.losses.reduction import Reduction, check_reduction, reduce, target_log_probabilities
from jaxtyping import Float, Int
from torch import Tensor, nn


def sce_loss(
    logits: Float[Tensor, "b k *rest"],
    target: Int[Tensor, "b *rest"],
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    A: float = -4.0,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Float[Tensor, "..."]:
    """Symmetric cross entropy (the paper and the equation are in this module's docstring).

    Args:
        logits: Scores ``(B, K, ...)``.
        target: Class indices ``(B, ...)`` in ``[0, K)``.
        alpha: Weight of the cross entropy, at least 0; the paper's 0.1 for CIFAR-10 by default,
            6 is its choice for CIFAR-100.
        beta: Weight of the reverse cross entropy, at least 0; the paper's 1 for CIFAR-10 by
            default, 0.1 is its choice for CIFAR-100.
        A: What stands for the logarithm of zero, below 0; the paper's -4 by default.
        reduction: ``"mean"`` over the labels that count, ``"sum"`` or ``"none"``.
        ignore_index: The label that does not count.

    Returns:
        A scalar, or ``(B, ...)`` for ``reduction="none"``.

    Raises:
        TypeError: If ``logits`` is not floating or ``target`` not integer.
        ValueError: If an option or an index is out of range, or the shapes do not fit.
    """
    _check_options("sce_loss", alpha, beta, A)
    check_reduction("sce_loss", reduction)
    log_p, valid = target_log_probabilities(logits, target, ignore_index, "sce_loss")
    values = -alpha * log_p + beta * A * torch.expm1(log_p)
    return reduce(values, valid, reduction)


class SCELoss(nn.Module):
    """Symmetric cross entropy as a module; see ``sce_loss``.

    Args:
        alpha: Weight of the cross entropy, at least 0; 0.1 by default.
        beta: Weight of the reverse cross entropy, at least 0; 1 by default.
        A: What stands for the logarithm of zero, below 0; -4 by default.
        reduction: ``"mean"`` over the labels that count, ``"sum"`` or ``"none"``.
        ignore_index: The label that does not count.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 1.0,
        *,
        A: float = -4.0,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        _check_options("SCELoss", alpha, beta, A)
        check_reduction("SCELoss", reduction)
        self.alpha = alpha
        self.beta = beta
        self.A = A
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index

    def extra_repr(self) -> str:
        """Show the options."""
        options = ("alpha", "beta", "A", "reduction", "ignore_index")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in options)

    def forward(
        self, logits: Float[Tensor, "b k *rest"], target: Int[Tensor, "b *rest"]
    ) -> Float[Tensor, "..."]:
        """Return the loss of logits ``(B, K, ...)`` for labels ``(B, ...)``."""
        return sce_loss(
            logits,
            target,
            alpha=self.alpha,
            beta=self.beta,
            A=self.A,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
        )


def _check_options(owner: str, alpha: float, beta: float, A: float) -> None:
    check_range(owner, "alpha", alpha, low=0.0)
    check_range(owner, "beta", beta, low=0.0)
    check_range(owner, "A", A, high=0.0, high_open=True)
