"""Losses of soft overlap: Tversky, and its special cases Dice and intersection over union.

The overlap of a class is measured over the whole batch (``per_image=False``, as
segmentation-models-pytorch does) or in each image (``per_image=True``, as MONAI does). A class
without a true pixel there has no overlap to improve: it contributes nothing, neither to the loss
nor to the number that the mean divides by. False alarms in such images are left to a loss of
pixels, such as cross entropy.
"""

from __future__ import annotations

from typing import Any

import torch
from cv_core.checks import check_range
from cv_core.losses.reduction import Reduction, check_reduction, reduce
from jaxtyping import Float
from torch import Tensor

from cv_segmentation.losses.labels import Mode, SegmentationLoss, probabilities, read_labels


def tversky_loss(
    logits: Float[Tensor, "n c ..."],
    target: Tensor,
    mode: Mode,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float = 0.0,
    per_image: bool = False,
    ignore_index: int | None = None,
    from_logits: bool = True,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Tversky loss of Salehi et al., MLMI 2017.

    .. math:: L = 1 - \frac{TP + s}{TP + \alpha FP + \beta FN + s}

    with the soft counts :math:`TP = \sum p y, FP = \sum p (1 - y), FN = \sum (1 - p) y`.

    Args:
        logits: Scores ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        target: Labels as the mode asks for; see ``losses.labels``.
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        alpha: Price of a false positive, at least 0.
        beta: Price of a false negative, above 0. Dice is 0.5 and 0.5, IoU is 1 and 1.
        smooth: The s above, at least 0.
        per_image: Whether every image has an overlap of its own.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"`` over the classes that are present, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, 0 where no class is present; or for ``"none"`` one value per class ``(C,)``, with
        ``per_image`` per image and class ``(N, C)``, 0 for absent ones.

    Raises:
        TypeError: If the scores are not floating, or class indices not integer.
        ValueError: If an option, a label or a shape does not fit.

    Example:
        >>> labels = torch.tensor([[[0, 1], [1, 1]]])
        >>> tversky_loss(torch.zeros(1, 1, 2, 2), labels, "binary", alpha=1.0, beta=1.0)
        tensor(0.5714)
    """
    options = (ignore_index, from_logits, reduction)
    return _tversky("tversky_loss", logits, target, mode, (alpha, beta, smooth, per_image), options)


def dice_loss(
    logits: Float[Tensor, "n c ..."],
    target: Tensor,
    mode: Mode,
    *,
    smooth: float = 0.0,
    per_image: bool = False,
    ignore_index: int | None = None,
    from_logits: bool = True,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Soft Dice loss of Milletari et al., 3DV 2016, without their squares.

    .. math:: L = 1 - \frac{\sum p y + s}{(\sum p + \sum y) / 2 + s}

    Args:
        logits: Scores ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        target: Labels as the mode asks for; see ``losses.labels``.
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        smooth: The s above, at least 0.
        per_image: Whether every image has an overlap of its own.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"`` over the classes that are present, ``"sum"`` or ``"none"``.

    Returns:
        As ``tversky_loss``.

    Raises:
        TypeError: If the scores are not floating, or class indices not integer.
        ValueError: If an option, a label or a shape does not fit.
    """
    options = (ignore_index, from_logits, reduction)
    return _tversky("dice_loss", logits, target, mode, (0.5, 0.5, smooth, per_image), options)


def soft_iou_loss(
    logits: Float[Tensor, "n c ..."],
    target: Tensor,
    mode: Mode,
    *,
    smooth: float = 0.0,
    per_image: bool = False,
    ignore_index: int | None = None,
    from_logits: bool = True,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Soft intersection over union of Rahman and Wang, ISVC 2016.

    .. math:: L = 1 - \frac{\sum p y + s}{\sum (p + y - p y) + s}

    Args:
        logits: Scores ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        target: Labels as the mode asks for; see ``losses.labels``.
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        smooth: The s above, at least 0.
        per_image: Whether every image has an overlap of its own.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"`` over the classes that are present, ``"sum"`` or ``"none"``.

    Returns:
        As ``tversky_loss``.

    Raises:
        TypeError: If the scores are not floating, or class indices not integer.
        ValueError: If an option, a label or a shape does not fit.
    """
    options = (ignore_index, from_logits, reduction)
    return _tversky("soft_iou_loss", logits, target, mode, (1.0, 1.0, smooth, per_image), options)


class DiceLoss(SegmentationLoss):
    """Soft Dice loss in three modes; see ``dice_loss``.

    Args:
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        smooth: Added above and below, at least 0.
        per_image: Whether every image has an overlap of its own.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def __init__(
        self,
        mode: Mode,
        *,
        smooth: float = 0.0,
        per_image: bool = False,
        ignore_index: int | None = None,
        from_logits: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            mode, ignore_index=ignore_index, from_logits=from_logits, reduction=reduction
        )
        _check_prices(type(self).__name__, 0.5, 0.5, smooth)
        self.smooth = smooth
        self.per_image = per_image

    def options(self) -> dict[str, Any]:
        """Return the options as the function takes them."""
        return {**super().options(), "smooth": self.smooth, "per_image": self.per_image}

    def forward(self, logits: Float[Tensor, "n c ..."], target: Tensor) -> Float[Tensor, "..."]:
        """Return the loss of scores ``(N, C, ...)`` for the mode's target."""
        return dice_loss(logits, target, self.mode, **self.options())


class SoftIoULoss(DiceLoss):
    """Soft intersection over union in three modes; see ``soft_iou_loss``.

    Args:
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        smooth: Added above and below, at least 0.
        per_image: Whether every image has an overlap of its own.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def forward(self, logits: Float[Tensor, "n c ..."], target: Tensor) -> Float[Tensor, "..."]:
        """Return the loss of scores ``(N, C, ...)`` for the mode's target."""
        return soft_iou_loss(logits, target, self.mode, **self.options())


class TverskyLoss(DiceLoss):
    """Tversky loss of Salehi et al., MLMI 2017, in three modes; see ``tversky_loss``.

    Args:
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        alpha: Price of a false positive, at least 0.
        beta: Price of a false negative, above 0.
        smooth: Added above and below, at least 0.
        per_image: Whether every image has an overlap of its own.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def __init__(
        self,
        mode: Mode,
        *,
        alpha: float = 0.5,
        beta: float = 0.5,
        smooth: float = 0.0,
        per_image: bool = False,
        ignore_index: int | None = None,
        from_logits: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            mode,
            smooth=smooth,
            per_image=per_image,
            ignore_index=ignore_index,
            from_logits=from_logits,
            reduction=reduction,
        )
        _check_prices("TverskyLoss", alpha, beta, smooth)
        self.alpha = alpha
        self.beta = beta

    def options(self) -> dict[str, Any]:
        """Return the options as the function takes them."""
        return {**super().options(), "alpha": self.alpha, "beta": self.beta}

    def forward(self, logits: Float[Tensor, "n c ..."], target: Tensor) -> Float[Tensor, "..."]:
        """Return the loss of scores ``(N, C, ...)`` for the mode's target."""
        return tversky_loss(logits, target, self.mode, **self.options())


def _check_prices(owner: str, alpha: float, beta: float, smooth: float) -> None:
    check_range(owner, "alpha", alpha, low=0.0)
    check_range(owner, "beta", beta, low=0.0, low_open=True)
    check_range(owner, "smooth", smooth, low=0.0)


def _tversky(
    owner: str,
    scores: Tensor,
    target: Tensor,
    mode: Mode,
    formula: tuple[float, float, float, bool],
    options: tuple[int | None, bool, Reduction],
) -> Tensor:
    alpha, beta, smooth, per_image = formula
    ignore_index, from_logits, reduction = options
    _check_prices(owner, alpha, beta, smooth)
    check_reduction(owner, reduction)
    truth, counts = read_labels(owner, scores, target, mode, ignore_index)
    p = probabilities(owner, scores, mode, from_logits=from_logits)
    axes = [axis for axis in range(p.ndim) if axis > 1 or (axis == 0 and not per_image)]
    hit = torch.where(truth, p, 0.0).sum(axes)
    false = torch.where(counts & ~truth, p, 0.0).sum(axes)
    missed = torch.where(truth, 1.0 - p, 0.0).sum(axes)
    present = truth.sum(axes) > 0
    # A present class has hit + beta * missed > 0; an absent one must not divide 0 by 0.
    whole = torch.where(present, hit + alpha * false + beta * missed + smooth, 1.0)
    return reduce(1.0 - (hit + smooth) / whole, present, reduction)
