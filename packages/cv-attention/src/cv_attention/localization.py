"""From a heatmap to a box, and whether the box finds the object."""

from __future__ import annotations

import torch
from cv_core.checks import (
    check_finite,
    check_floating,
    check_range,
    check_same_shape,
    check_shape,
)
from cv_core.metrics.detection import box_iou
from jaxtyping import Bool, Float
from torch import Tensor


def heatmap_to_box(
    heat: Float[Tensor, "b h w"], threshold: float = 0.2, *, largest_component: bool = True
) -> Float[Tensor, "b 4"]:
    """Draw a box around the strong responses of each map.

    Args:
        heat: Maps ``(B, H, W)``; only their shape counts, not their range.
        threshold: Strong is what reaches this share of the way from a map's minimum to its maximum,
            in [0, 1]. A fifth is usual for class activation maps.
        largest_component: Whether the box holds only the largest connected part (pixels touch at
            sides and corners; of equal parts the first in reading order), or everything strong.

    Returns:
        float32 boxes ``(B, 4)``, xyxy in pixels, right and bottom exclusive. A constant map has
        the box of the whole image.

    Raises:
        TypeError: If the maps are not floating.
        ValueError: If a shape does not fit, a map is not finite, or the threshold is out of range.

    Example:
        >>> heat = torch.zeros(1, 4, 6)
        >>> heat[0, 1:3, 2:5] = 1.0
        >>> heatmap_to_box(heat)
        tensor([[2., 1., 5., 3.]])
    """
    owner = "heatmap_to_box"
    check_range(owner, "threshold", threshold, low=0.0, high=1.0)
    check_floating(owner, "heat", heat)
    check_shape(owner, "heat", heat, "b h w")
    check_finite(owner, "heat", heat)
    from scipy import ndimage

    above = heat - heat.amin((1, 2), keepdim=True)
    strong = (above >= threshold * above.amax((1, 2), keepdim=True)).cpu().numpy()
    # parts connect within an image, not from one image of the batch to the next
    touching = torch.zeros(3, 3, 3, dtype=torch.bool).index_fill(0, torch.tensor(1), 1).numpy()
    labels, _ = ndimage.label(strong, touching)
    if not largest_component:
        labels = strong * torch.arange(1, len(heat) + 1)[:, None, None].numpy()
    boxes = torch.zeros(len(heat), 4)
    largest = [0] * len(heat)
    sizes = torch.from_numpy(labels).flatten().bincount().tolist()
    for (image, rows, columns), size in zip(ndimage.find_objects(labels), sizes[1:], strict=True):
        if size > largest[image.start]:
            largest[image.start] = size
            corners = (columns.start, rows.start, columns.stop, rows.stop)
            boxes[image.start] = torch.tensor(corners, dtype=torch.float32)
    return boxes.to(heat.device)


def localization_error(
    boxes: Float[Tensor, "b 4"],
    target: Float[Tensor, "b 4"],
    *,
    iou: float = 0.5,
    correct: Bool[Tensor, " b"] | None = None,
) -> Float[Tensor, " b"]:
    """Say of each box whether it misses its true box; the mean is the localisation error.

    Args:
        boxes: Found boxes ``(B, 4)``, xyxy.
        target: True boxes ``(B, 4)``.
        iou: The overlap below which a box misses, in (0, 1].
        correct: Whether each image's class is right ``(B,)``: a wrong class misses too, as in the
            top-1 error of ILSVRC. By default the class is taken as known.

    Returns:
        ``(B,)``: 1 for a miss, else 0.

    Raises:
        TypeError: If the boxes are not floating or ``correct`` is not boolean.
        ValueError: If a shape does not fit, a box is malformed, or ``iou`` is out of range.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 1.0]])
        >>> localization_error(boxes, boxes[[0, 0]])
        tensor([0., 1.])
    """
    owner = "localization_error"
    check_range(owner, "iou", iou, low=0.0, high=1.0, low_open=True)
    check_shape(owner, "boxes", boxes, "b 4")
    check_same_shape(owner, boxes=boxes, target=target)
    # box_iou compares all with all: small parts, so that the comparisons stay few
    parts = zip(boxes.split(64), target.split(64), strict=True)
    overlap = torch.cat([box_iou(one, other).diagonal() for one, other in parts])
    missed = overlap < iou
    if correct is not None:
        check_shape(owner, "correct", correct, "b", b=len(boxes))
        if correct.dtype != torch.bool:
            raise TypeError(f"{owner}: correct must be of type bool; got {correct.dtype}.")
        missed = missed | ~correct
    return missed.to(boxes.dtype)
