"""Cross entropy and intersection over union in which pixels near a boundary count more."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from cv_core.checks import check_choice, check_odd, check_range, check_shape
from cv_core.losses.reduction import Reduction, check_reduction, reduce
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from cv_segmentation.losses.labels import SegmentationLoss, logits_of, read_labels

Normalizer = Literal["weights", "importance"]


def pixel_importance(
    mask: Shaped[Tensor, "*n h w"], window: int = 31, *, ignore_index: int | None = None
) -> Float[Tensor, "*n h w"]:
    r"""Return how much each pixel of a mask differs from the pixels around it.

    .. math:: \alpha_{ij} = \left| \frac{1}{|A_{ij}|} \sum_{A_{ij}} g_{mn} - g_{ij} \right|

    with :math:`A_{ij}` the pixels of the image in a square around (i, j). It is 0 far from any
    boundary and largest on thin structures.

    Args:
        mask: Masks of 0 and 1, of any type and with any leading axes.
        window: Side of the square in pixels, odd; the usual 31 belongs to images of about 350.
        ignore_index: Pixels of this value belong to no square and get 0; None if all count.

    Returns:
        Values in [0, 1) of the mask's shape, in its type if that is floating, else float32.

    Raises:
        ValueError: If the window is even, an axis is missing or the mask has other values.

    Example:
        >>> pixel_importance(torch.tensor([[0, 0, 1, 0, 0]]), window=3)
        tensor([[0.0000, 0.3333, 0.6667, 0.3333, 0.0000]])
    """
    owner = "pixel_importance"
    check_odd(owner, "window", window)
    check_shape(owner, "mask", mask, "... h w")
    counts = torch.ones_like(mask, dtype=torch.bool)
    if ignore_index is not None:
        counts = (mask if mask.is_floating_point() else mask.long()) != ignore_index
    wrong = counts & (mask != 0) & (mask != 1)
    if not torch.compiler.is_compiling() and bool(wrong.any()):
        raise ValueError(f"{owner}: mask must hold 0 and 1; got {mask[wrong][0].item():g}.")
    dtype = mask.dtype if mask.is_floating_point() else torch.float32
    return _importance((mask == 1) & counts, counts, window, dtype)


def weighted_bce_iou_terms(
    logits: Float[Tensor, "n 1 h w"],
    target: Tensor,
    *,
    gamma: float = 5.0,
    window: int = 31,
    normalizer: Normalizer = "weights",
    smooth: float = 1.0,
    ignore_index: int | None = None,
    from_logits: bool = True,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the two terms of ``weighted_bce_iou_loss`` for each image.

    Args:
        logits: Scores ``(N, 1, H, W)``.
        target: Masks of 0 and 1, ``(N, H, W)`` or ``(N, 1, H, W)``.
        gamma: How much more a boundary counts, at least 0.
        window: Side of the square of ``pixel_importance`` in pixels, odd.
        normalizer: What the cross entropy is divided by, see ``weighted_bce_iou_loss``.
        smooth: Added above and below in the IoU, at least 0.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.

    Returns:
        The weighted cross entropy and the weighted IoU loss, ``(N,)`` each.

    Raises:
        TypeError: If the scores are not floating.
        ValueError: If an option, a label or a shape does not fit.
    """
    owner = "weighted_bce_iou_terms"
    formula = (gamma, window, normalizer, smooth)
    bce, iou, _ = _terms(owner, logits, target, formula, ignore_index, from_logits=from_logits)
    return bce, iou


def weighted_bce_iou_loss(
    logits: Float[Tensor, "n 1 h w"],
    target: Tensor,
    *,
    gamma: float = 5.0,
    window: int = 31,
    normalizer: Normalizer = "weights",
    smooth: float = 1.0,
    ignore_index: int | None = None,
    from_logits: bool = True,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Boundary-weighted cross entropy and IoU, of each image and added up.

    As in Liu et al., PRCV 2021 (their Eq. 5 to 8), after Wei, Wang and Huang, *F3Net*, AAAI 2020.
    With :math:`\alpha` from ``pixel_importance``, :math:`w = 1 + \gamma \alpha`, and p the
    probability of label 1,

    .. math::
        L = \frac{\sum w \, \mathrm{BCE}(p, g)}{\sum w} +
            1 - \frac{\sum w p g + s}{\sum w (p + g - p g) + s}

    Args:
        logits: Scores ``(N, 1, H, W)``.
        target: Masks of 0 and 1, ``(N, H, W)`` or ``(N, 1, H, W)``.
        gamma: How much more a boundary counts, at least 0.
        window: Side of the square of ``pixel_importance`` in pixels, odd.
        normalizer: What the cross entropy is divided by. ``"weights"`` is written above.
            ``"importance"`` is Eq. 5 as printed, :math:`\sum \gamma \alpha`: larger by a factor
            that depends on the mask alone. It is 0 where a mask is constant; the weights' sum takes
            its place there.
        smooth: The s above, at least 0. With 0 (Eq. 7 as printed) an image without label 1 has the
            constant loss 1, and no false alarm in it is ever corrected by this term.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"`` over the images, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or ``(N,)`` for ``"none"``; 0 for an image in which no label counts. For a
        network with several outputs, add up their losses (Eq. 8).

    Raises:
        TypeError: If the scores are not floating.
        ValueError: If an option, a label or a shape does not fit.

    Example:
        >>> mask = torch.tensor([[[0, 1], [1, 1]]])
        >>> weighted_bce_iou_loss(torch.zeros(1, 1, 2, 2), mask, gamma=0.0, smooth=0.0)
        tensor(1.2646)
    """
    owner = "weighted_bce_iou_loss"
    check_reduction(owner, reduction)
    formula = (gamma, window, normalizer, smooth)
    bce, iou, valid = _terms(owner, logits, target, formula, ignore_index, from_logits=from_logits)
    return reduce(bce + iou, valid, reduction)


class WeightedBCEIoULoss(SegmentationLoss):
    """Boundary-weighted cross entropy and IoU; see ``weighted_bce_iou_loss``.

    Args:
        gamma: How much more a boundary counts, at least 0.
        window: Side of the square that is a pixel's surroundings, odd.
        normalizer: ``"weights"`` or ``"importance"``.
        smooth: Added above and below in the IoU, at least 0.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"`` over the images, ``"sum"`` or ``"none"``.
    """

    def __init__(
        self,
        gamma: float = 5.0,
        window: int = 31,
        *,
        normalizer: Normalizer = "weights",
        smooth: float = 1.0,
        ignore_index: int | None = None,
        from_logits: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            "binary", ignore_index=ignore_index, from_logits=from_logits, reduction=reduction
        )
        _check_options("WeightedBCEIoULoss", gamma, window, normalizer, smooth)
        self.gamma = gamma
        self.window = window
        self.normalizer: Normalizer = normalizer
        self.smooth = smooth

    def options(self) -> dict[str, Any]:
        """Return the options as the function takes them."""
        own = {name: getattr(self, name) for name in ("gamma", "window", "normalizer", "smooth")}
        return {**own, **super().options()}

    def forward(self, logits: Float[Tensor, "n 1 h w"], target: Tensor) -> Float[Tensor, "..."]:
        """Return the loss of scores ``(N, 1, H, W)`` for masks of 0 and 1."""
        return weighted_bce_iou_loss(logits, target, **self.options())


def _check_options(owner: str, gamma: float, window: int, normalizer: str, smooth: float) -> None:
    check_range(owner, "gamma", gamma, low=0.0)
    check_odd(owner, "window", window)
    check_choice(owner, "normalizer", normalizer, get_args(Normalizer))
    check_range(owner, "smooth", smooth, low=0.0)


def _terms(
    owner: str,
    scores: Tensor,
    target: Tensor,
    formula: tuple[float, int, Normalizer, float],
    ignore_index: int | None,
    *,
    from_logits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return both terms of each image, and in which images a label counts."""
    gamma, window, normalizer, smooth = formula
    _check_options(owner, gamma, window, normalizer, smooth)
    check_shape(owner, "logits", scores, "n 1 h w")
    truth, counts = read_labels(owner, scores, target, "binary", ignore_index)
    logits = logits_of(owner, scores, "binary", from_logits=from_logits)
    importance = gamma * _importance(truth, counts, window, logits.dtype)
    weights = torch.where(counts, 1.0 + importance, 0.0)
    g, p = truth.to(logits.dtype), logits.sigmoid()

    def total(values: Tensor) -> Tensor:
        return values.sum((1, 2, 3))

    tiny = torch.finfo(logits.dtype).tiny
    entropy = functional.binary_cross_entropy_with_logits(logits, g, reduction="none")
    whole = total(weights)
    if normalizer == "importance":
        printed = total(importance)
        whole = torch.where(printed > 0.0, printed, whole)
    common = total(weights * p * g) + smooth
    united = total(weights * (p + g - p * g)) + smooth
    bce = total(weights * entropy) / whole.clamp(min=tiny)
    return bce, 1.0 - common / united.clamp(min=tiny), counts.flatten(1).any(1)


def _importance(truth: Tensor, counts: Tensor, window: int, dtype: torch.dtype) -> Tensor:
    g, c = truth.to(dtype), counts.to(dtype)
    around = _window_mean(g, window) / _window_mean(c, window).clamp(min=torch.finfo(dtype).tiny)
    return torch.where(counts, (around - g).abs(), 0.0)


def _window_mean(values: Tensor, window: int) -> Tensor:
    """Average over squares with zeros beyond the image, first down, then across."""
    planes = values.flatten(0, -3) if values.ndim > 2 else values.unsqueeze(0)
    half = window // 2
    planes = functional.avg_pool2d(planes.unsqueeze(1), (window, 1), 1, (half, 0))
    return functional.avg_pool2d(planes, (1, window), 1, (0, half)).view(values.shape)
