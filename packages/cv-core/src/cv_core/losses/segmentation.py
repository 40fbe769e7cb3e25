"""Losses for dense or unbalanced classification: focal loss, soft IoU and soft Dice."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from cv_core.checks import check_range
from cv_core.losses.reduction import (
    Reduction,
    check_pair,
    check_reduction,
    reduce,
    reduce_all,
    target_log_probabilities,
)

Overlap = Literal["iou", "dice"]


def focal_loss(
    logits: Float[Tensor, "b k *rest"],
    target: Int[Tensor, "b *rest"],
    *,
    gamma: float = 2.0,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Float[Tensor, "..."]:
    r"""Focal loss of Lin et al., ICCV 2017, for classes that exclude each other.

    .. math:: L = -(1 - p)^\gamma \log p, \qquad p = \mathrm{softmax}(z)_y

    Args:
        logits: Scores ``(B, K, ...)``.
        target: Class indices ``(B, ...)``.
        gamma: How strongly easy examples are weighted down; 0 is cross entropy.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The label that does not count.

    Returns:
        A scalar, or ``(B, ...)`` for ``reduction="none"``.

    Raises:
        TypeError: If ``logits`` is not floating or ``target`` not integer.
        ValueError: If an option or an index is out of range, or the shapes do not fit.
    """
    check_range("focal_loss", "gamma", gamma, low=0.0)
    check_reduction("focal_loss", reduction)
    log_p, valid = target_log_probabilities(logits, target, ignore_index, "focal_loss")
    if gamma == 0.0:
        return reduce(-log_p, valid, reduction)
    return reduce(-_power(-torch.expm1(log_p), gamma) * log_p, valid, reduction)


def _power(base: Tensor, exponent: float) -> Tensor:
    """Return ``base**exponent`` with a finite slope at 0, also for exponents below 1."""
    return base.clamp(min=torch.finfo(base.dtype).tiny) ** exponent


def binary_focal_loss(
    logits: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Focal loss of Lin et al., ICCV 2017, for independent yes-or-no labels.

    .. math:: L = -\alpha_t (1 - p_t)^\gamma \log p_t

    with :math:`p_t = \sigma(z)` and :math:`\alpha_t = \alpha` where the label is 1, and one minus
    these where it is 0.

    Args:
        logits: Scores of any shape.
        target: Labels in [0, 1] of the same shape.
        gamma: How strongly easy examples are weighted down; 0 leaves (weighted) cross entropy.
        alpha: Weight of the positive labels against the negative; None for none.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the shape of ``logits`` for ``reduction="none"``.

    Raises:
        TypeError: If ``logits`` or ``target`` is not floating.
        ValueError: If the shapes differ, the batch is empty, or a label or an option is out of
            range.
    """
    check_range("binary_focal_loss", "gamma", gamma, low=0.0)
    if alpha is not None:
        check_range("binary_focal_loss", "alpha", alpha, low=0.0, high=1.0)
    check_reduction("binary_focal_loss", reduction)
    check_pair("binary_focal_loss", logits=logits, target=target, unit="target")
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = logits.sigmoid()
    wrong = p * (1.0 - target) + (1.0 - p) * target
    values = entropy if gamma == 0.0 else _power(wrong, gamma) * entropy
    if alpha is not None:
        values = (alpha * target + (1.0 - alpha) * (1.0 - target)) * values
    return reduce_all(values, reduction)


class FocalLoss(nn.Module):
    """Focal loss for classes that exclude each other, as a module; see ``focal_loss``.

    Args:
        gamma: How strongly easy examples are weighted down; 0 is cross entropy.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The label that does not count.
    """

    def __init__(
        self, gamma: float = 2.0, *, reduction: Reduction = "mean", ignore_index: int = -100
    ) -> None:
        super().__init__()
        check_range("FocalLoss", "gamma", gamma, low=0.0)
        check_reduction("FocalLoss", reduction)
        self.gamma = gamma
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index

    def extra_repr(self) -> str:
        """Show the options."""
        return f"gamma={self.gamma}, reduction={self.reduction!r}, ignore_index={self.ignore_index}"

    def forward(
        self, logits: Float[Tensor, "b k *rest"], target: Int[Tensor, "b *rest"]
    ) -> Float[Tensor, "..."]:
        """Return the loss of logits ``(B, K, ...)`` for labels ``(B, ...)``."""
        return focal_loss(
            logits,
            target,
            gamma=self.gamma,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
        )


def _overlap(kind: Overlap, p: Tensor, y: Tensor, smooth: float) -> Tensor:
    """Return one minus the overlap of soft sets ``(B, K, N)``, per image and class."""
    both, sizes = (p * y).sum(-1), (p + y).sum(-1)
    if kind == "iou":
        return 1.0 - (both + smooth) / (sizes - both + smooth)
    return 1.0 - (2.0 * both + smooth) / (sizes + smooth)


def _class_overlap(
    kind: Overlap, logits: Tensor, target: Tensor, smooth: float, ignore_index: int
) -> Tensor:
    owner = f"soft_{kind}_loss"
    check_range(owner, "smooth", smooth, low=0.0, low_open=True)
    _, valid = target_log_probabilities(logits, target, ignore_index, owner)
    labels = torch.where(valid, target, 0).long()
    one_hot = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    counts = valid.unsqueeze(1)
    p, y = logits.softmax(1) * counts, one_hot * counts
    return _overlap(kind, p.reshape(*p.shape[:2], -1), y.reshape(*y.shape[:2], -1), smooth)


def soft_iou_loss(
    logits: Float[Tensor, "b k *rest"],
    target: Int[Tensor, "b *rest"],
    *,
    smooth: float = 1.0,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Float[Tensor, "..."]:
    r"""One minus the soft intersection over union of each image and class.

    .. math:: L = 1 - \frac{\sum p y + s}{\sum (p + y - p y) + s}

    Args:
        logits: Scores ``(B, K, ...)``.
        target: Class indices ``(B, ...)``.
        smooth: The s above; a class neither present nor predicted costs nothing.
        reduction: Over images and classes: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The label that does not count.

    Returns:
        A scalar, or ``(B, K)`` for ``reduction="none"``.

    Raises:
        TypeError: If ``logits`` is not floating or ``target`` not integer.
        ValueError: If an option or an index is out of range, or the shapes do not fit.
    """
    check_reduction("soft_iou_loss", reduction)
    values = _class_overlap("iou", logits, target, smooth, ignore_index)
    return reduce_all(values, reduction)


def soft_dice_loss(
    logits: Float[Tensor, "b k *rest"],
    target: Int[Tensor, "b *rest"],
    *,
    smooth: float = 1.0,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Float[Tensor, "..."]:
    r"""One minus the soft Dice coefficient of each image and class.

    .. math:: L = 1 - \frac{2 \sum p y + s}{\sum p + \sum y + s}

    Args:
        logits: Scores ``(B, K, ...)``.
        target: Class indices ``(B, ...)``.
        smooth: The s above; a class neither present nor predicted costs nothing.
        reduction: Over images and classes: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The label that does not count.

    Returns:
        A scalar, or ``(B, K)`` for ``reduction="none"``.

    Raises:
        TypeError: If ``logits`` is not floating or ``target`` not integer.
        ValueError: If an option or an index is out of range, or the shapes do not fit.
    """
    check_reduction("soft_dice_loss", reduction)
    values = _class_overlap("dice", logits, target, smooth, ignore_index)
    return reduce_all(values, reduction)


def binary_soft_iou_loss(
    logits: Float[Tensor, "b *rest"],
    target: Float[Tensor, "b *rest"],
    *,
    smooth: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """One minus the soft intersection over union of each image's foreground.

    Args:
        logits: Scores of the foreground ``(B, ...)``.
        target: Masks in [0, 1] of the same shape.
        smooth: Added above and below; an empty mask met by an empty prediction costs nothing.
        reduction: Over the images: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or ``(B,)`` for ``reduction="none"``.

    Raises:
        TypeError: If ``logits`` or ``target`` is not floating.
        ValueError: If the shapes differ, the batch is empty, or a label or an option is out of
            range.
    """
    check_pair("binary_soft_iou_loss", logits=logits, target=target, unit="target")
    check_range("binary_soft_iou_loss", "smooth", smooth, low=0.0, low_open=True)
    check_reduction("binary_soft_iou_loss", reduction)
    values = _overlap("iou", logits.sigmoid().flatten(1), target.flatten(1), smooth)
    return reduce_all(values, reduction)
