"""Colour views with known depth: Middlebury's, or planes planted into photographs.

A depth of 1 is where Middlebury's disparity is 20 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from cv_core.data.kinds import ImageSet, StereoPairs
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_UNIT_DISPARITY = 20.0


class View(NamedTuple):
    """A colour image in [0, 1] and its depth, 0 where it is not known."""

    image: Float[Tensor, "3 h w"]
    depth: Float[Tensor, "h w"]


def views_of(
    data: StereoPairs | ImageSet, size: tuple[int, int], generator: torch.Generator
) -> list[View]:
    """Return Middlebury's left views, or one scene of planes per photograph, of the given size.

    The right views show the same objects shifted, across any border between training and test.
    """
    if isinstance(data, StereoPairs):
        return [
            View(pair.left, torch.where(known, _UNIT_DISPARITY / pair.left_disparity, 0.0))
            for pair in data.pairs.values()
            for known in [pair.left_disparity > 0]
        ]
    return [planted_planes(list(data.images)[:2], size, generator) for _ in range(2)]


def planted_planes(
    photographs: Sequence[Tensor], size: tuple[int, int], generator: torch.Generator
) -> View:
    """Compose slanted planes, seen in perspective, with photographs on them.

    Along a plane the inverse depth is linear in the pixel's place, and a photograph shrinks with
    the depth; where planes overlap, the nearer one is seen.

    Args:
        photographs: Textures, taken in turn, ``(3, H, W)`` in [0, 1].
        size: Height and width of the view.
        generator: Draws the planes.
    """
    height, width = size
    rows = torch.linspace(-1.0, 1.0, height)[:, None].expand(size)
    columns = torch.linspace(-1.0, 1.0, width).expand(size) * (width / height)

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    image, inverse = torch.zeros(3, height, width), torch.zeros(size)
    for number in range(12):
        behind = number == 0
        x, y = draw(-1.0, 1.0) * width / height, draw(-1.0, 1.0)
        nearness = draw(0.45, 0.55) if behind else draw(0.7, 1.6)
        slopes = draw(-0.1, 0.1) * (columns - x) + draw(-0.1, 0.1) * (rows - y)
        plane = (nearness + slopes).clamp_min(0.1)
        inside = ((columns - x).abs() < draw(0.2, 0.5)) & ((rows - y).abs() < draw(0.2, 0.5))
        seen = (plane > inverse) & (inside | behind)
        place = torch.stack([columns, rows], dim=2) / (2.0 * plane[:, :, None])
        place = place + torch.tensor([draw(-1.0, 1.0), draw(-1.0, 1.0)])
        texture = functional.grid_sample(
            photographs[number % len(photographs)][None], place[None],
            padding_mode="reflection", align_corners=False,
        )[0]  # fmt: skip
        image = torch.where(seen, texture, image)
        inverse = torch.where(seen, plane, inverse)
    return View(image, 1.0 / inverse)


def cut(view: View, top: int, left: int, height: int, width: int) -> View:
    """Cut a rectangle out of a view."""
    part = (..., slice(top, top + height), slice(left, left + width))
    return View(view.image[part], view.depth[part])


def left_and_right(view: View, share: float = 0.6) -> tuple[View, View]:
    """Split a view at a column: the left share is for training, the rest for tests."""
    height, width = view.depth.shape
    border = round(width * share)
    return cut(view, 0, 0, height, border), cut(view, 0, border, height, width - border)


def random_crops(
    views: Sequence[View], count: int, side: int, generator: torch.Generator
) -> tuple[Float[Tensor, "n 3 s s"], Float[Tensor, "n 1 s s"]]:
    """Cut square crops at random places, from all views alike."""
    found = []
    for number in range(count):
        view = views[number % len(views)]
        height, width = view.depth.shape
        top = int(torch.randint(height - side + 1, (), generator=generator))
        left = int(torch.randint(width - side + 1, (), generator=generator))
        found.append(cut(view, top, left, side, side))
    return _stacked(found)


def grid_of_crops(
    views: Sequence[View], grid: tuple[int, int], side: int
) -> tuple[Float[Tensor, "n 3 s s"], Float[Tensor, "n 1 s s"]]:
    """Cut rows and columns of squares, evenly spread up to all borders of every view."""
    found = []
    for view in views:
        height, width = view.depth.shape
        for top in torch.linspace(0, height - side, grid[0]).long().tolist():
            for left in torch.linspace(0, width - side, grid[1]).long().tolist():
                found.append(cut(view, top, left, side, side))
    return _stacked(found)


def _stacked(found: Sequence[View]) -> tuple[Tensor, Tensor]:
    images = torch.stack([view.image for view in found])
    return images, torch.stack([view.depth for view in found])[:, None]


def with_sparse_depth(
    images: Float[Tensor, "b 3 h w"],
    depth: Float[Tensor, "b 1 h w"],
    share: float,
    generator: torch.Generator,
) -> Float[Tensor, "b 4 h w"]:
    """Join images with the depth at a random share of the pixels where it is known, else 0."""
    drawn = torch.rand(depth.shape, generator=generator, device=depth.device) < share
    return torch.cat([images - 0.5, torch.where(drawn, depth, 0.0)], dim=1)
