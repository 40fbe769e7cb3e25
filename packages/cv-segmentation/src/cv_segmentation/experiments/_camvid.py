"""CamVid, or other images with a class per pixel, decoded once and reduced to one small size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from cv_core.data.kinds import Segmentation, SegmentationSample
from cv_core.data.sources import load
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional

IGNORED = 255
"""The mask's value where nothing counts: CamVid's class "void"."""


@dataclass(frozen=True)
class CamVid:
    """Images in [0, 1] and masks of one size; all of CamVid's parts, in the video's order.

    Args:
        train_images: 367 frames.
        train_masks: Their classes, or ``IGNORED``.
        val_images: 101 frames, for selection.
        val_masks: Their classes, or ``IGNORED``.
        test_images: 233 frames of other drives.
        test_masks: Their classes, or ``IGNORED``.
        class_names: Name of every class.
    """

    train_images: Float32[Tensor, "n 3 h w"]
    train_masks: Int64[Tensor, "n h w"]
    val_images: Float32[Tensor, "v 3 h w"]
    val_masks: Int64[Tensor, "v h w"]
    test_images: Float32[Tensor, "t 3 h w"]
    test_masks: Int64[Tensor, "t h w"]
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes, without void."""
        return len(self.class_names)


@lru_cache(maxsize=1)
def camvid(size: tuple[int, int] = (60, 80), source: str = "camvid") -> CamVid:
    """Load and reduce CamVid. It is kept in memory: treat it as read-only.

    Args:
        size: Height and width, at most the originals' 180 and 240.
        source: Another data set of the same kind (``cv_core.data.kinds.Segmentation``).

    Returns:
        Images reduced by averaging areas, masks by taking each area's central pixel.
    """
    data: Segmentation = load(source)
    train, val, test = (
        _reduced(part, size, data.ignore_index) for part in (data.train, data.val, data.test)
    )
    return CamVid(*train, *val, *test, data.class_names)


def _reduced(
    samples: Sequence[SegmentationSample], size: tuple[int, int], ignored: int | None
) -> tuple[Tensor, Tensor]:
    images = torch.empty(len(samples), 3, *size)
    masks = torch.empty(len(samples), *size, dtype=torch.int64)
    for place in range(len(samples)):  # decoded one at a time: the originals are large
        image, mask = samples[place]
        images[place] = functional.interpolate(image[None], size=size, mode="area")[0]
        whole = functional.interpolate(mask[None, None].double(), size=size, mode="nearest-exact")
        masks[place] = whole[0, 0].long()
    if ignored is not None:
        masks[masks == ignored] = IGNORED
    return images, masks
