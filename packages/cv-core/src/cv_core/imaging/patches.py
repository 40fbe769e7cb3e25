"""Patches: regular grids, quad-trees, and blending that gives the image back.

A patch may be padded, that is, reach beyond its region to all sides; the image is reflected there.
Blending divides by the sum of the windows, so that patches cut from one image return that image,
corners included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from cv_core.checks import check_choice, check_floating, check_integer, check_shape
from cv_core.imaging.filtering import pad_image

Window = Literal["uniform", "hann", "blackman"]

# Windows end at (almost) zero: without a floor the border would be divided by rounding errors. It
# lies on each window, because a floor on their sum would darken the corners.
_FLOOR = 1e-6


@dataclass(frozen=True, order=True)
class Region:
    """A rectangle of whole pixels.

    Args:
        top: First row.
        left: First column.
        height: Number of rows, at least 1.
        width: Number of columns, at least 1.
    """

    top: int
    left: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for name, low in (("top", 0), ("left", 0), ("height", 1), ("width", 1)):
            check_integer("Region", name, getattr(self, name), low=low)

    @property
    def bottom(self) -> int:
        """The row after the last one."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The column after the last one."""
        return self.left + self.width

    def quarters(self) -> tuple[Region, Region, Region, Region]:
        """Split into four that tile the region; an odd side gives its middle to the first half."""
        up, left = (self.height + 1) // 2, (self.width + 1) // 2
        down, right = self.height - up, self.width - left
        return (
            Region(self.top, self.left, up, left),
            Region(self.top, self.left + left, up, right),
            Region(self.top + up, self.left, down, left),
            Region(self.top + up, self.left + left, down, right),
        )


def grid_regions(
    height: int, width: int, size: int | tuple[int, int], stride: int | tuple[int, int]
) -> list[Region]:
    """Cover an image by equal regions; the last of a row or column is flush with the border.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        size: Side(s) of a region in pixels, at most the image's.
        stride: Step(s) between regions, from 1 to ``size`` (otherwise gaps would remain).

    Returns:
        The regions, row by row. Every pixel lies in at least one.

    Raises:
        ValueError: If a region does not fit or the stride leaves gaps.
    """
    rows, columns = _pair(size), _pair(stride)
    tops = _starts("height", height, rows[0], columns[0])
    lefts = _starts("width", width, rows[1], columns[1])
    return [Region(top, left, rows[0], rows[1]) for top in tops for left in lefts]


def quadtree(
    height: int, width: int, split: Callable[[Region], bool], *, min_size: int
) -> list[Region]:
    """Split an image into quarters as long as a test asks for it.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        split: Told a region, says whether to split it. Called from the whole image downwards.
        min_size: No side becomes smaller than this many pixels, at least 1.

    Returns:
        The leaves, which tile the image without overlap.
    """
    check_integer("quadtree", "min_size", min_size, low=1)
    leaves: list[Region] = []
    waiting = [Region(0, 0, height, width)]
    while waiting:
        region = waiting.pop()
        # the smaller half of a side decides: 5 pixels split into 3 and 2
        fits = min(region.height, region.width) // 2 >= min_size
        if fits and split(region):
            waiting.extend(reversed(region.quarters()))
        else:
            leaves.append(region)
    return leaves


def extract_patches(
    image: Float[Tensor, "b c h w"], regions: Sequence[Region], *, pad: int = 0
) -> list[Float[Tensor, "b c _ _"]]:
    """Cut regions out of a batch of images.

    Args:
        image: A batch of images.
        regions: What to cut; sizes may differ.
        pad: How far each patch reaches beyond its region; the image is reflected at its border.

    Returns:
        One tensor (B, C, height + 2 pad, width + 2 pad) per region. Equal ones can be stacked.

    Raises:
        ValueError: If a region leaves the image.
    """
    sizes = check_shape("extract_patches", "image", image, "b c h w")
    _check_inside("extract_patches", regions, sizes["h"], sizes["w"])
    wide = pad_image(image, pad, pad) if pad else image
    return [
        wide[..., r.top : r.bottom + 2 * pad, r.left : r.right + 2 * pad].clone() for r in regions
    ]


def blend_patches(
    patches: Sequence[Float[Tensor, "b c _ _"]],
    regions: Sequence[Region],
    height: int,
    width: int,
    *,
    pad: int = 0,
    window: Window = "blackman",
) -> Float[Tensor, "b c h w"]:
    r"""Put patches together by a weighted mean: :math:`\sum_t w_t R_t / \sum_t w_t`.

    Args:
        patches: As ``extract_patches`` returns them, after whatever was done to them.
        regions: Where they belong; together they must cover the image.
        height: Rows of the image.
        width: Columns of the image.
        pad: How far each patch reaches beyond its region.
        window: Weights inside a patch, floored at 1e-6: ``uniform`` is the plain mean.

    Returns:
        The image; patches cut from one image return it to rounding.

    Raises:
        ValueError: If a patch does not fit its region or a pixel is not covered.
    """
    owner = "blend_patches"
    check_choice(owner, "window", window, get_args(Window))
    check_integer(owner, "pad", pad, low=0)
    if not patches or len(patches) != len(regions):
        raise ValueError(
            f"{owner}: patches and regions must be equally many and at least one; got "
            f"{len(patches)} and {len(regions)}."
        )
    _check_inside(owner, regions, height, width)
    first = patches[0]
    check_floating(owner, "patches[0]", first)
    canvas = first.new_zeros(*first.shape[:2], height + 2 * pad, width + 2 * pad)
    weight = first.new_zeros(height + 2 * pad, width + 2 * pad)
    for index, (patch, region) in enumerate(zip(patches, regions, strict=True)):
        tall, wide = region.height + 2 * pad, region.width + 2 * pad
        check_shape(owner, f"patches[{index}]", patch, "b c h w", h=tall, w=wide)
        taper = torch.outer(_taper(tall, window, first), _taper(wide, window, first))
        taper = taper.clamp_min(_FLOOR)
        rows = slice(region.top, region.top + tall)
        columns = slice(region.left, region.left + wide)
        canvas[..., rows, columns] += taper * patch
        weight[rows, columns] += taper
    inside = (slice(pad, pad + height), slice(pad, pad + width))
    if bool((weight[inside] == 0).any()):
        missing = int((weight[inside] == 0).sum())
        raise ValueError(f"{owner}: regions must cover the image; {missing} pixels are in none.")
    return canvas[(..., *inside)] / weight[inside]


def _taper(length: int, window: Window, like: Tensor) -> Tensor:
    if window == "uniform" or length < 3:  # shorter windows consist of their zeros only
        return like.new_ones(length)
    maker = torch.hann_window if window == "hann" else torch.blackman_window
    return maker(length, periodic=False, dtype=like.dtype, device=like.device)


def _starts(name: str, length: int, size: int, stride: int) -> list[int]:
    check_integer("grid_regions", name, length, low=1)
    check_integer("grid_regions", f"size along {name}", size, low=1, high=length)
    check_integer("grid_regions", f"stride along {name}", stride, low=1, high=size)
    starts = list(range(0, length - size + 1, stride))
    if starts[-1] + size < length:
        starts.append(length - size)
    return starts


def _check_inside(owner: str, regions: Sequence[Region], height: int, width: int) -> None:
    for region in regions:
        if region.bottom > height or region.right > width:
            raise ValueError(f"{owner}: {region} leaves the image ({height}, {width}).")


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
