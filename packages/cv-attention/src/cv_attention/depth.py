"""Errors of depth maps where the depth is known, one value per image.

As KITTI's depth completion prints them: RMSE and MAE in millimetres, and of the inverse depths in
1/km. Here they come in the unit of the maps, and its inverse; for maps in metres, multiply all four
by 1000. An image without a known depth gives NaN; average with ``nanmean``.
"""

from __future__ import annotations

import torch
from cv_core.checks import check_floating, check_range, check_same_shape, check_shape
from jaxtyping import Bool, Float
from torch import Tensor


def rmse(
    pred: Float[Tensor, "b *size"], gt: Float[Tensor, "b *size"], valid: Bool[Tensor, "b *size"]
) -> Float[Tensor, " b"]:
    """Return the root of the mean squared error of each image.

    Args:
        pred: Predicted depth, ``(B, 1, H, W)`` or ``(B, H, W)``.
        gt: True depth; any value where it is not known.
        valid: True where it is known.

    Returns:
        One value per image; NaN without a known depth.

    Raises:
        TypeError: If a map is not floating or ``valid`` not boolean.
        ValueError: If the shapes differ or the batch is empty.

    Example:
        >>> pred, gt = torch.tensor([[[1.0, 5.0, 9.0]]]), torch.tensor([[[1.0, 1.0, 0.0]]])
        >>> rmse(pred, gt, gt > 0)
        tensor([2.8284])
    """
    check_depth("rmse", pred, gt, valid)
    return _undefined_if_none(root_mean_square(pred, gt, valid), valid)


def mae(
    pred: Float[Tensor, "b *size"], gt: Float[Tensor, "b *size"], valid: Bool[Tensor, "b *size"]
) -> Float[Tensor, " b"]:
    """Return the mean absolute error of each image.

    Args:
        pred: Predicted depth, ``(B, 1, H, W)`` or ``(B, H, W)``.
        gt: True depth; any value where it is not known.
        valid: True where it is known.

    Returns:
        One value per image; NaN without a known depth.

    Raises:
        TypeError: If a map is not floating or ``valid`` not boolean.
        ValueError: If the shapes differ or the batch is empty.
    """
    check_depth("mae", pred, gt, valid)
    return _undefined_if_none(mean_absolute(pred, gt, valid), valid)


def irmse(
    pred: Float[Tensor, "b *size"],
    gt: Float[Tensor, "b *size"],
    valid: Bool[Tensor, "b *size"],
    *,
    min_depth: float = 1e-3,
) -> Float[Tensor, " b"]:
    """Return the root of the mean squared error of the inverse depths of each image.

    Args:
        pred: Predicted depth, ``(B, 1, H, W)`` or ``(B, H, W)``.
        gt: True depth, above 0 where it is known.
        valid: True where it is known.
        min_depth: Smaller predictions, negative ones too, count as this; 1 mm in metres.

    Returns:
        One value per image; NaN without a known depth.

    Raises:
        TypeError: If a map is not floating or ``valid`` not boolean.
        ValueError: If the shapes differ, the batch is empty, ``min_depth`` is not above 0, or a
            known depth is not.
    """
    inverse = _inverses("irmse", pred, gt, valid, min_depth)
    return _undefined_if_none(root_mean_square(*inverse, valid), valid)


def imae(
    pred: Float[Tensor, "b *size"],
    gt: Float[Tensor, "b *size"],
    valid: Bool[Tensor, "b *size"],
    *,
    min_depth: float = 1e-3,
) -> Float[Tensor, " b"]:
    """Return the mean absolute error of the inverse depths of each image.

    Args:
        pred: Predicted depth, ``(B, 1, H, W)`` or ``(B, H, W)``.
        gt: True depth, above 0 where it is known.
        valid: True where it is known.
        min_depth: Smaller predictions, negative ones too, count as this; 1 mm in metres.

    Returns:
        One value per image; NaN without a known depth.

    Raises:
        TypeError: If a map is not floating or ``valid`` not boolean.
        ValueError: If the shapes differ, the batch is empty, ``min_depth`` is not above 0, or a
            known depth is not.
    """
    inverse = _inverses("imae", pred, gt, valid, min_depth)
    return _undefined_if_none(mean_absolute(*inverse, valid), valid)


def check_depth(owner: str, pred: Tensor, gt: Tensor, valid: Tensor) -> None:
    """Refuse maps that do not belong together; ``owner`` is who asks."""
    check_floating(owner, "pred", pred)
    check_floating(owner, "gt", gt)
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        came = valid.dtype if isinstance(valid, Tensor) else type(valid).__name__
        raise TypeError(f"{owner}: valid must be a boolean tensor, such as gt > 0; got {came}.")
    sizes = check_shape(owner, "pred", pred, "b ...")
    check_same_shape(owner, pred=pred, gt=gt, valid=valid)
    if pred.numel() == 0:
        raise ValueError(f"{owner}: pred is empty: {sizes['b']} images, {tuple(pred.shape)}.")


def root_mean_square(pred: Tensor, gt: Tensor, valid: Tensor) -> Tensor:
    """Return RMSE of each image, 0 without a known depth; the slope at no error is 0, not NaN."""
    norm = torch.linalg.vector_norm(_errors(pred, gt, valid), dim=1)
    return norm / _counts(valid).to(norm.dtype).sqrt()


def mean_absolute(pred: Tensor, gt: Tensor, valid: Tensor) -> Tensor:
    """Return MAE of each image, 0 without a known depth."""
    return _errors(pred, gt, valid).abs().sum(1) / _counts(valid)


def _errors(pred: Tensor, gt: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, pred - gt, 0.0).flatten(1)  # whatever stands where nothing is known


def _counts(valid: Tensor) -> Tensor:
    return valid.flatten(1).sum(1).clamp_min(1)


def _undefined_if_none(values: Tensor, valid: Tensor) -> Tensor:
    return values.masked_fill(~valid.flatten(1).any(1), float("nan"))


def _inverses(
    owner: str, pred: Tensor, gt: Tensor, valid: Tensor, min_depth: float
) -> tuple[Tensor, Tensor]:
    check_range(owner, "min_depth", min_depth, low=0.0, low_open=True)
    check_depth(owner, pred, gt, valid)
    if bool((gt[valid] <= 0).any()):
        raise ValueError(f"{owner}: gt must be above 0 where valid; mask the others out.")
    return 1.0 / pred.clamp_min(min_depth), 1.0 / torch.where(valid, gt, 1.0)
