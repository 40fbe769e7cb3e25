"""The smallest detector that finds and names objects: one scale, one box per cell, no anchors.

A cell of 8 x 8 pixels is responsible for the objects whose centre it holds. It gives an objectness
logit, class logits, and a box: the centre's offset from the cell's in cells, and the logarithms of
the sides over four cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from cv_core.checks import check_choice, check_integer, check_shape
from cv_core.nn.blocks import ConvNormAct
from cv_core.optional import require
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 8
_UNIT = 4.0 * STRIDE  # the side, in pixels, whose logarithm is 0

Score = Literal["objectness", "product"]
"""What a box is kept and ranked by: its objectness, or that times its class probability."""


class GridMaps(NamedTuple):
    """What the detector says of every cell, in rows.

    Args:
        objectness: Logits.
        classes: Logits.
        offsets: Centre and logarithmic sides, as ``encode`` makes them.
    """

    objectness: Float[Tensor, "b n"]
    classes: Float[Tensor, "b n k"]
    offsets: Float[Tensor, "b n 4"]


class GridDetector(nn.Module):
    """Five convolutions and three heads, named ``objectness``, ``classes`` and ``offsets``.

    Args:
        num_classes: Number of classes, without background.
        width: Channels of the first convolution; the last ones have four times as many.
    """

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        check_integer("GridDetector", "num_classes", num_classes, low=1)
        check_integer("GridDetector", "width", width, low=1)
        self.features = nn.Sequential(
            ConvNormAct(3, width, stride=2),
            ConvNormAct(width, 2 * width, stride=2),
            ConvNormAct(2 * width, 4 * width, stride=2),
            ConvNormAct(4 * width, 4 * width),
            ConvNormAct(4 * width, 4 * width),
        )
        self.objectness = nn.Conv2d(4 * width, 1, 1)
        self.classes = nn.Conv2d(4 * width, num_classes, 1)
        self.offsets = nn.Conv2d(4 * width, 4, 1)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> GridMaps:
        """Map images, with sides divisible by 8, to what is said of each cell."""
        sizes = check_shape("GridDetector", "x", x, "b 3 h w")
        if sizes["h"] % STRIDE or sizes["w"] % STRIDE:
            raise ValueError(f"GridDetector: x must have sides divisible by 8; got {x.shape}.")
        features = self.features(x)
        heads = (self.objectness, self.classes, self.offsets)
        objectness, classes, offsets = (head(features).flatten(2).mT for head in heads)
        return GridMaps(objectness.squeeze(2), classes, offsets)


def cell_centres(height: int, width: int) -> Float[Tensor, "n 2"]:
    """Return x and y of the cells' centres in an image, in rows."""
    y, x = torch.meshgrid(
        torch.arange(height // STRIDE), torch.arange(width // STRIDE), indexing="ij"
    )
    return (torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5) * STRIDE


def encode(boxes: Float[Tensor, "*m 4"], centres: Float[Tensor, "*m 2"]) -> Float[Tensor, "*m 4"]:
    """Return boxes xyxy as offsets from cells."""
    middle, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    return torch.cat([(middle - centres) / STRIDE, (sides / _UNIT).log()], dim=-1)


def decode(
    offsets: Float[Tensor, "*#m 4"], centres: Float[Tensor, "*#m 2"]
) -> Float[Tensor, "... 4"]:
    """Return the boxes xyxy of offsets from cells; sides are at most 20 cells."""
    middle = centres + STRIDE * offsets[..., :2]
    half = _UNIT * offsets[..., 2:].clamp(max=1.6).exp() / 2
    return torch.cat([middle - half, middle + half], dim=-1)


def cell_targets(
    boxes: Float[Tensor, "m 4"], labels: Int[Tensor, " m"], size: tuple[int, int]
) -> tuple[Int[Tensor, " n"], Float[Tensor, "n 4"]]:
    """Assign objects to the cells that hold their centres; the last of several takes a cell.

    Returns:
        The class of every cell, -1 without an object, and its offsets.
    """
    centres = cell_centres(*size)
    columns = size[1] // STRIDE
    middle = ((boxes[:, :2] + boxes[:, 2:]) / (2 * STRIDE)).long()
    cells = middle[:, 1].clamp(0, size[0] // STRIDE - 1) * columns
    cells = cells + middle[:, 0].clamp(0, columns - 1)
    classes, offsets = torch.full((len(centres),), -1), torch.zeros(len(centres), 4)
    for cell, label, box in zip(cells.tolist(), labels.tolist(), boxes, strict=True):
        classes[cell], offsets[cell] = label, encode(box, centres[cell])
    return classes, offsets


def grid_loss(
    maps: GridMaps, classes: Int[Tensor, "b n"], offsets: Float[Tensor, "b n 4"]
) -> Float[Tensor, ""]:
    """Return the sum of the three heads' losses, per object."""
    held = classes >= 0
    count = held.sum().clamp(min=1)
    objectness = functional.binary_cross_entropy_with_logits(
        maps.objectness, held.to(maps.objectness), reduction="sum"
    )
    named = functional.cross_entropy(maps.classes[held], classes[held], reduction="sum")
    placed = functional.smooth_l1_loss(maps.offsets[held], offsets[held], reduction="sum", beta=0.1)
    return (objectness + named + placed) / count


def detections(
    maps: GridMaps, size: tuple[int, int], *, threshold: float, score: Score = "objectness"
) -> list[Mapping[str, Tensor]]:
    """Keep boxes above a threshold, and of those of one class that overlap by half the best.

    Args:
        maps: The detector's output.
        size: Height and width of the images.
        threshold: Boxes are kept whose score is above it.
        score: What a box is kept and ranked by.

    Returns:
        For each image ``boxes`` (n, 4), ``scores`` (n,) and ``labels`` (n,), best first.
    """
    check_choice("detections", "score", score, ("objectness", "product"))
    ops = require("torchvision.ops", package="cv-adversarial", extra="lab", purpose="detections")
    probability, labels = maps.classes.softmax(-1).max(-1)
    scores = maps.objectness.sigmoid()
    if score == "product":
        scores = scores * probability
    boxes = decode(maps.offsets, cell_centres(*size).to(maps.offsets))
    found: list[Mapping[str, Tensor]] = []
    for box, value, label in zip(boxes, scores, labels, strict=True):
        kept = value > threshold
        box, value, label = box[kept], value[kept], label[kept]  # noqa: PLW2901 - what is left
        best = ops.batched_nms(box, value, label, 0.5)
        found.append({"boxes": box[best], "scores": value[best], "labels": label[best]})
    return found


def stacked_targets(
    boxes: Sequence[Tensor], labels: Sequence[Tensor], size: tuple[int, int]
) -> tuple[Int[Tensor, "b n"], Float[Tensor, "b n 4"]]:
    """Return ``cell_targets`` of many images as two tensors."""
    made = [cell_targets(box, label, size) for box, label in zip(boxes, labels, strict=True)]
    return torch.stack([item[0] for item in made]), torch.stack([item[1] for item in made])
