"""What the composer returns: scenes, clips, and how their ground truth is read off masks.

Boxes are xyxy on the grid of pixel corners: a mask that is pixel (0, 0) alone has the box
(0, 0, 1, 1). Keypoints are pixel centres on the same grid, (0.5, 0.5) for that pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

KEYPOINTS = ("centre", "top", "bottom", "left", "right")
"""Names of an object's keypoints: centroid of its mask, and the extreme points of its strokes."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is said of an object in words.

    Args:
        name: Name of its class.
        colour: A name in ``PALETTE``.
        size: ``"small"`` or ``"large"``, its longer side below or above the middle of the range;
            empty if all objects have one size.
    """

    name: str
    colour: str
    size: str = ""

    def __str__(self) -> str:
        return " ".join(word for word in (self.size, self.colour, self.name) if word)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A composed picture and all that is known of it; objects are ordered from below to above.

    Args:
        image: In [0, 1].
        background: The same place before objects were pasted; equal to ``image`` outside all masks.
        masks: Visible pixels of each object; they are disjoint.
        boxes: Tight around the visible pixels, xyxy.
        labels: Classes.
        keypoints: x, y and visibility (1 or 0) of the points named in ``KEYPOINTS``, hidden ones
            included.
        attributes: Words for each object.
        caption: A sentence that agrees with the geometry.
    """

    image: Float32[Tensor, "3 h w"]
    background: Float32[Tensor, "3 h w"]
    masks: Bool[Tensor, "k h w"]
    boxes: Float32[Tensor, "k 4"]
    labels: Int64[Tensor, " k"]
    keypoints: Float32[Tensor, "k 5 3"]
    attributes: tuple[Attributes, ...]
    caption: str

    def semantic_mask(self) -> Int64[Tensor, "h w"]:
        """Return the class of every pixel plus one; the background is 0."""
        return (self.masks * (self.labels + 1)[:, None, None]).sum(dim=0)

    def instance_mask(self) -> Int64[Tensor, "h w"]:
        """Return the number of the object at every pixel, from 1; the background is 0."""
        number = torch.arange(1, len(self.labels) + 1)
        return (self.masks * number[:, None, None]).sum(dim=0)

    def target(self) -> dict[str, Tensor]:
        """Return torchvision's detection target; its labels start at 1, as 0 is background."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        return {
            "boxes": self.boxes,
            "labels": self.labels + 1,
            "masks": self.masks.to(torch.uint8),
            "keypoints": self.keypoints,
            "area": sides.prod(dim=1),
            "iscrowd": torch.zeros(len(self.labels), dtype=torch.int64),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A composed film: a still background and objects that move in straight lines and bounce.

    Args:
        frames: In [0, 1].
        background: The place without objects.
        masks: Visible pixels of each object in each frame; disjoint within a frame.
        boxes: Tight around the visible pixels, xyxy; zeros where an object is hidden.
        visible: Whether any pixel of an object is seen.
        labels: Classes.
        positions: Row and column of the upper left corner of each object's whole (also hidden)
            rectangle.
        flow: x and y displacement of every visible pixel to the next frame; the background is 0.
        attributes: Words for each object.
    """

    frames: Float32[Tensor, "t 3 h w"]
    background: Float32[Tensor, "3 h w"]
    masks: Bool[Tensor, "t k h w"]
    boxes: Float32[Tensor, "t k 4"]
    visible: Bool[Tensor, "t k"]
    labels: Int64[Tensor, " k"]
    positions: Int64[Tensor, "t k 2"]
    flow: Float32[Tensor, "t1 2 h w"]
    attributes: tuple[Attributes, ...]


def tight_box(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """Return the xyxy box of a mask; zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def extreme_points(mask: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "5 2"]:
    """Return x and y of the points named in ``KEYPOINTS``.

    The extreme points are pixels of the mask: the middle one of the outermost row or column.

    Args:
        mask: At least one pixel.
    """
    rows, columns = np.nonzero(mask)  # sorted by row, then by column
    ends = [
        np.flatnonzero(rows == rows[0]),
        np.flatnonzero(rows == rows[-1]),
        np.flatnonzero(columns == columns.min()),
        np.flatnonzero(columns == columns.max()),
    ]
    middle = [end[len(end) // 2] for end in ends]
    points = np.empty((5, 2), dtype=np.float32)
    points[0] = columns.mean(), rows.mean()
    points[1:, 0], points[1:, 1] = columns[middle], rows[middle]
    return points + np.float32(0.5)
