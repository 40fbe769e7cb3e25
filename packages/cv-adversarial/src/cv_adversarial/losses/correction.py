r"""Forward correction: the network learns clean classes through a matrix of label noise.

*Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach*, G. Patrini,
A. Rozza, A. K. Menon, R. Nock and L. Qu, CVPR 2017. If a label of true class ``i`` is given as
class ``j`` with probability :math:`T_{ij}`, the loss of a given label ``y`` is (their Theorem 2)

.. math:: L = -\ln \sum_i T_{iy}\, p_i = -\ln (T^\top p)_y, \qquad p = \mathrm{softmax}(z).

Its expectation over noisy labels is smallest where :math:`p` is the distribution of the clean
classes, if ``T`` is invertible. The identity gives cross entropy.

Deviations from the paper: none; the sum is taken over logarithms, so that it stays finite for all
finite logits.

Example:
    >>> import torch
    >>> T = torch.tensor([[0.8, 0.2], [0.0, 1.0]])  # a fifth of class 0 is labelled as class 1
    >>> ForwardCorrectionLoss(T)(torch.tensor([[9.0, -9.0]]), torch.tensor([1]))
    tensor(1.6094)
"""

from __future__ import annotations

import torch
from cv_core.checks import check_finite, check_floating, check_shape
from cv_core.losses.reduction import Reduction, check_reduction, reduce, target_log_probabilities
from jaxtyping import Float, Int
from torch import Tensor, nn

_ROUNDING = 1e-4  # how far a row's sum may be from 1


def forward_correction_loss(
    logits: Float[Tensor, "b k *rest"],
    target: Int[Tensor, "b *rest"],
    T: Float[Tensor, "k k"],
    *,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Float[Tensor, "..."]:
    """Cross entropy of noisy labels (the paper and the equation are in this module's docstring).

    Args:
        logits: Scores ``(B, K, ...)`` of the clean classes.
        target: Given, noisy labels ``(B, ...)`` in ``[0, K)``.
        T: Row ``i`` holds the probabilities ``(K, K)`` of the labels of class ``i``.
        reduction: ``"mean"`` over the labels that count, ``"sum"`` or ``"none"``.
        ignore_index: The label that does not count.

    Returns:
        A scalar, or ``(B, ...)`` for ``reduction="none"``.

    Raises:
        TypeError: If ``logits`` or ``T`` is not floating or ``target`` not integer.
        ValueError: If ``T`` holds no probabilities or gives a label none, an index is out of range,
            or the shapes do not fit.
    """
    owner = "forward_correction_loss"
    check_reduction(owner, reduction)
    _check_transition(owner, T)
    return _corrected(owner, logits, target, T.log(), reduction, ignore_index)


class ForwardCorrectionLoss(nn.Module):
    """Forward correction as a module; see ``forward_correction_loss``.

    Args:
        T: Row ``i`` holds the probabilities ``(K, K)`` of the labels of class ``i``.
        reduction: ``"mean"`` over the labels that count, ``"sum"`` or ``"none"``.
        ignore_index: The label that does not count.

    Raises:
        TypeError: If ``T`` is not floating.
        ValueError: If ``T`` holds no probabilities or gives a label none, or the reduction has
            another name.
    """

    log_transition: Tensor

    def __init__(
        self,
        T: Float[Tensor, "k k"],
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        check_reduction("ForwardCorrectionLoss", reduction)
        _check_transition("ForwardCorrectionLoss", T)
        self.register_buffer("log_transition", T.detach().log())
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index

    def extra_repr(self) -> str:
        """Show the options."""
        classes = len(self.log_transition)
        return f"{classes} classes, reduction={self.reduction!r}, ignore_index={self.ignore_index}"

    def forward(
        self, logits: Float[Tensor, "b k *rest"], target: Int[Tensor, "b *rest"]
    ) -> Float[Tensor, "..."]:
        """Return the loss of logits ``(B, K, ...)`` for noisy labels ``(B, ...)``."""
        return _corrected(
            "ForwardCorrectionLoss",
            logits,
            target,
            self.log_transition,
            self.reduction,
            self.ignore_index,
        )


def _corrected(
    owner: str,
    logits: Tensor,
    target: Tensor,
    log_transition: Tensor,
    reduction: Reduction,
    ignore_index: int,
) -> Tensor:
    _, valid = target_log_probabilities(logits, target, ignore_index, owner)
    check_shape(owner, "T", log_transition, "k k", k=logits.shape[1])
    label = torch.where(valid, target, 0).long()
    weights = log_transition.to(logits.dtype).T[label].movedim(-1, 1)  # ln T_iy of every class i
    values = logits.logsumexp(1) - (logits + weights).logsumexp(1)
    return reduce(values, valid, reduction)


def _check_transition(owner: str, T: Tensor) -> None:
    check_floating(owner, "T", T)
    check_shape(owner, "T", T, "k k")
    check_finite(owner, "T", T)
    if bool((T < 0).any()) or bool(((T.sum(1) - 1.0).abs() > _ROUNDING).any()):
        raise ValueError(
            f"{owner}: T must hold probabilities whose rows sum to 1: row i those of the labels of "
            "class i. Transpose it if its columns do."
        )
    if not bool(T.any(0).all()):
        raise ValueError(
            f"{owner}: every column of T must have an entry above 0; otherwise that label cannot "
            "occur and its loss is infinite."
        )
