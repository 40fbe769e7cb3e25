"""Boundary loss: probabilities weighed by their distance to the true boundary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from cv_core.checks import check_range
from cv_core.losses.reduction import Reduction, check_reduction, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from cv_segmentation.losses.labels import Mode, SegmentationLoss, probabilities, read_labels

Spacing = float | Sequence[float]


def boundary_loss(
    logits: Float[Tensor, "n c ..."],
    target: Tensor,
    mode: Mode,
    *,
    spacing: Spacing = 1.0,
    ignore_index: int | None = None,
    from_logits: bool = True,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Boundary loss of Kervadec et al., MIDL 2019.

    .. math:: L = \frac{1}{|\Omega|} \sum_{q \in \Omega} \phi_G(q) \, p(q)

    with :math:`\phi_G` the signed distance to the boundary of the true region, negative inside;
    see ``signed_distance``. It may be negative, and its minimum is the true mask. The authors add
    it to an overlap loss with a weight that grows, because alone it is content with an empty
    prediction of a small region.

    A class that has no boundary in an image (absent, or all of it) contributes nothing there. The
    distances are computed by SciPy on the CPU, once per image and class.

    Args:
        logits: Scores ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        target: Labels as the mode asks for; see ``losses.labels``.
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        spacing: Size of a pixel: one number, or one per dimension in the order of the axes.
        ignore_index: The label that contributes nothing, or None. Ignored pixels belong to no
            region: the distance is that to the nearest pixel that is known to be on the other side.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"`` over the pixels and classes that count, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, 0 where nothing counts, or ``(N, C, ...)`` for ``"none"``.

    Raises:
        TypeError: If the scores are not floating, or class indices not integer.
        ValueError: If an option, a label or a shape does not fit.

    Example:
        >>> labels = torch.tensor([[[1, 1, 1, 0, 0]]])
        >>> boundary_loss(torch.full((1, 1, 1, 5), 50.0), labels, "binary", reduction="none")
        tensor([[[[-2., -1.,  0.,  1.,  2.]]]])
    """
    owner = "boundary_loss"
    check_reduction(owner, reduction)
    truth, counts = read_labels(owner, logits, target, mode, ignore_index)
    p = probabilities(owner, logits, mode, from_logits=from_logits)
    distance = signed_distance(truth.flatten(0, 1), counts.flatten(0, 1), spacing=spacing)
    other = (counts & ~truth).flatten(2).any(2) & truth.flatten(2).any(2)
    counted = counts & other.view(*other.shape, *[1] * (p.ndim - 2))
    return reduce(p * distance.view(p.shape).to(p.dtype), counted, reduction)


class BoundaryLoss(SegmentationLoss):
    """Boundary loss of Kervadec et al., MIDL 2019; see ``boundary_loss``.

    Args:
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        spacing: Size of a pixel: one number, or one per dimension in the order of the axes.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def __init__(
        self,
        mode: Mode,
        *,
        spacing: Spacing = 1.0,
        ignore_index: int | None = None,
        from_logits: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            mode, ignore_index=ignore_index, from_logits=from_logits, reduction=reduction
        )
        _check_spacing("BoundaryLoss", spacing)
        self.spacing = spacing

    def options(self) -> dict[str, Any]:
        """Return the options as the function takes them."""
        return {**super().options(), "spacing": self.spacing}

    def forward(self, logits: Float[Tensor, "n c ..."], target: Tensor) -> Float[Tensor, "..."]:
        """Return the loss of scores ``(N, C, ...)`` for the mode's target."""
        return boundary_loss(logits, target, self.mode, **self.options())


def signed_distance(
    mask: Bool[Tensor, "n ..."],
    known: Bool[Tensor, "n ..."] | None = None,
    *,
    spacing: Spacing = 1.0,
) -> Float[Tensor, "n ..."]:
    """Return every pixel's distance to the boundary of its mask, negative inside.

    As in the authors' code the boundary is the outermost layer of the mask, whose distance is 0
    (the next pixels inside have -1, the first outside 1, for pixels of size 1).

    Args:
        mask: Boolean masks ``(N, H, W)`` or ``(N, D, H, W)``.
        known: Pixels that are known to be in or out; all by default.
        spacing: Size of a pixel: one number, or one per dimension in the order of the axes.

    Returns:
        Distances, float32, on the masks' device; 0 where a pixel is unknown, and all over a mask
        without any known pixel inside or outside.

    Raises:
        TypeError: If a mask is not boolean.
        ValueError: If shapes differ or a spacing is not above 0.
    """
    owner = "signed_distance"
    scale = _check_spacing(owner, spacing)
    if scale.shape not in ((), (mask.ndim - 1,)):
        raise ValueError(
            f"{owner}: spacing must be one number or {mask.ndim - 1}; got {spacing!r}."
        )
    known = torch.ones_like(mask) if known is None else known
    if mask.dtype != torch.bool or known.dtype != torch.bool:
        raise TypeError(
            f"{owner}: mask and known must be boolean; got {mask.dtype}, {known.dtype}."
        )
    if mask.shape != known.shape:
        raise ValueError(
            f"{owner}: mask and known must have one shape; got {tuple(mask.shape)} and "
            f"{tuple(known.shape)}."
        )
    sides = np.broadcast_to(scale, mask.ndim - 1)
    insides, outsides = (mask & known).cpu().numpy(), (~mask & known).cpu().numpy()
    found = np.zeros(mask.shape, np.float32)
    for place, pair in enumerate(zip(insides, outsides, strict=True)):
        found[place] = _distance(*pair, sides)
    return torch.from_numpy(found).to(mask.device)


def _distance(inside: np.ndarray, outside: np.ndarray, sides: np.ndarray) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt

    result = np.zeros(inside.shape, dtype=np.float32)
    if inside.any() and outside.any():
        result[outside] = distance_transform_edt(~inside, sampling=sides)[outside]
        depth = distance_transform_edt(~outside, sampling=sides)[inside]
        result[inside] = sides.min() - depth
    return result


def _check_spacing(owner: str, spacing: Spacing) -> np.ndarray:
    scale = np.asarray(spacing, dtype=np.float64)
    for value in scale.ravel():
        check_range(owner, "spacing", value, low=0.0, low_open=True)
    return scale
