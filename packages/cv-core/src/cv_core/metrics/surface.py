"""Distances between the boundaries of masks, with anisotropic spacing.

A boundary is the mask's pixels that have a neighbour (along an axis) outside the mask or the image.
Distances are exact, in the unit of ``spacing``. A k-d tree over the boundary's pixels finds them:
it gives the values of a Euclidean distance transform without visiting every pixel.

Empty masks: two empty masks have no distance (NaN; leave them out or count them as agreement, but
say so); if one of the two is empty, distances are infinite and the surface Dice score is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cv_core.checks import check_range, check_same_shape, check_shape

Spacing = float | Sequence[float]


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances of every boundary pixel of one mask to the other mask's boundary.

    Args:
        of_prediction: From the prediction's boundary to the target's.
        of_target: From the target's boundary to the prediction's.
    """

    of_prediction: np.ndarray
    of_target: np.ndarray

    def hausdorff(self, percentile: float = 100.0) -> float:
        """Return the larger of the two directions' percentile (linearly interpolated)."""
        sides = [side for side in (self.of_prediction, self.of_target) if side.size]
        if not sides or np.isinf(sides[0]).any():
            return float("inf") if sides else float("nan")
        return max(float(np.percentile(side, percentile)) for side in sides)

    def average(self) -> float:
        """Return the mean over all pixels of both boundaries (ASSD)."""
        both = np.concatenate([self.of_prediction, self.of_target])
        return float(both.mean()) if both.size else float("nan")

    def dice(self, tolerance: float) -> float:
        """Return the share of both boundaries that lies within a tolerance of the other (NSD)."""
        both = np.concatenate([self.of_prediction, self.of_target])
        return float((both <= tolerance).mean()) if both.size else float("nan")


def surface_distances(
    prediction: Bool[Tensor, "n ..."], target: Bool[Tensor, "n ..."], *, spacing: Spacing = 1.0
) -> list[SurfaceDistances]:
    """Measure the boundaries of N pairs of masks; from it all scores below follow.

    Args:
        prediction: Boolean masks in two or three dimensions.
        target: Boolean masks of the same shape.
        spacing: Size of a pixel: one number, or one per dimension in the order of the axes.

    Returns:
        One item per pair.

    Raises:
        TypeError: If a mask is not boolean.
        ValueError: If shapes differ or a spacing is not above 0.
    """
    scale = _check("surface_distances", prediction, target, spacing)
    pairs = zip(prediction.cpu().numpy(), target.cpu().numpy(), strict=True)
    return [_measure(p, t, scale) for p, t in pairs]


def hausdorff_distance(
    prediction: Bool[Tensor, "n ..."],
    target: Bool[Tensor, "n ..."],
    *,
    percentile: float = 100.0,
    spacing: Spacing = 1.0,
) -> Float[Tensor, " n"]:
    """Return the Hausdorff distance of each pair of masks; ``percentile=95`` for HD95.

    Args:
        prediction: Boolean masks in two or three dimensions.
        target: Boolean masks of the same shape.
        percentile: In [0, 100]; taken in each direction, then the larger one counts.
        spacing: Size of a pixel: one number, or one per dimension.

    Returns:
        Distances in float64.
    """
    check_range("hausdorff_distance", "percentile", percentile, low=0.0, high=100.0)
    items = surface_distances(prediction, target, spacing=spacing)
    return torch.tensor([item.hausdorff(percentile) for item in items], dtype=torch.float64)


def average_surface_distance(
    prediction: Bool[Tensor, "n ..."], target: Bool[Tensor, "n ..."], *, spacing: Spacing = 1.0
) -> Float[Tensor, " n"]:
    """Return the average symmetric surface distance (ASSD) of each pair of masks.

    Args:
        prediction: Boolean masks in two or three dimensions.
        target: Boolean masks of the same shape.
        spacing: Size of a pixel: one number, or one per dimension.

    Returns:
        Distances in float64.
    """
    items = surface_distances(prediction, target, spacing=spacing)
    return torch.tensor([item.average() for item in items], dtype=torch.float64)


def surface_dice(
    prediction: Bool[Tensor, "n ..."],
    target: Bool[Tensor, "n ..."],
    *,
    tolerance: float,
    spacing: Spacing = 1.0,
) -> Float[Tensor, " n"]:
    """Return the normalised surface Dice score (NSD) of each pair of masks.

    Args:
        prediction: Boolean masks in two or three dimensions.
        target: Boolean masks of the same shape.
        tolerance: Distance up to which boundaries agree, at least 0, in the unit of ``spacing``.
        spacing: Size of a pixel: one number, or one per dimension.

    Returns:
        Scores in [0, 1], float64.
    """
    check_range("surface_dice", "tolerance", tolerance, low=0.0)
    items = surface_distances(prediction, target, spacing=spacing)
    return torch.tensor([item.dice(tolerance) for item in items], dtype=torch.float64)


def _measure(prediction: np.ndarray, target: np.ndarray, scale: np.ndarray) -> SurfaceDistances:
    first, second = _boundary(prediction) * scale, _boundary(target) * scale
    return SurfaceDistances(_nearest(first, second), _nearest(second, first))


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Return the coordinates of the boundary's pixels, one per row."""
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis in range(mask.ndim):
        for shift in (0, 2):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = slice(shift, shift + mask.shape[axis])
            inside &= padded[tuple(window)]
    return np.argwhere(mask & ~inside)


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    from scipy.spatial import KDTree

    if len(points) == 0 or len(others) == 0:
        return np.full(len(points), np.inf)
    # Wide leaves: the tree is asked once, so that building it costs as much as asking.
    distances, _ = KDTree(others, leafsize=32).query(points)
    return np.asarray(distances)


def _check(owner: str, prediction: Tensor, target: Tensor, spacing: Spacing) -> np.ndarray:
    for name, mask in (("prediction", prediction), ("target", target)):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(
                f"{owner}: {name} must be a boolean tensor, such as mask > 0; got {came}."
            )
    check_same_shape(owner, prediction=prediction, target=target)
    check_shape(owner, "prediction", prediction, "n h w" if prediction.ndim < 4 else "n d h w")
    scale = np.asarray(spacing, dtype=np.float64)
    if scale.shape not in ((), (prediction.ndim - 1,)):
        raise ValueError(
            f"{owner}: spacing must be one number or {prediction.ndim - 1}; got {spacing!r}."
        )
    for value in scale.ravel():
        check_range(owner, "spacing", value, low=0.0, low_open=True)
    return scale
