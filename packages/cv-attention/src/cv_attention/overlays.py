"""Maps drawn over images: as arrays, and as a figure that compares several explanations.

The figure is a ``matplotlib.figure.Figure`` that belongs to the caller: no window opens, and pyplot
does not know of it. Matplotlib comes with ``pip install "cv-attention[lab]"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from cv_core.checks import check_choice, check_finite, check_range, check_shape
from cv_core.optional import require
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCH = 1.9  # the side of an image in a grid
_POSITIVE, _SIGNED = "plasma", "coolwarm"
_TOP = 0.995  # beyond this quantile all is alike: a few outliers would leave the rest of a map dark


def overlay(
    image: Float[Tensor, "c h w"], heatmap: Float[Tensor, "h w"], *, strength: float = 0.75
) -> Float[np.ndarray, "h w 3"]:
    """Draw a map over its image: the stronger the evidence, the less the image shines through.

    A map without negative values is coloured from its least value (the grey image) to its greatest,
    but for the topmost half percent of the pixels, which share one colour. One with negative values
    is red where it is positive and blue where it is negative, on one scale. A constant map leaves
    the grey image.

    Args:
        image: Grey or RGB image ``(1 or 3, H, W)`` in [0, 1].
        heatmap: ``(H, W)``, not normalised.
        strength: How much of the colour covers the image at the map's greatest value, in [0, 1].

    Returns:
        RGB image ``(H, W, 3)``, float32 in [0, 1].

    Raises:
        ValueError: If the shapes do not fit, a value is not finite or the image leaves [0, 1].

    Example:
        >>> import torch
        >>> overlay(torch.rand(3, 4, 5), torch.rand(4, 5)).shape
        (4, 5, 3)
    """
    owner = "overlay"
    sizes = check_shape(owner, "image", image, "c h w")
    check_choice(owner, "the number of image channels", sizes["c"], (1, 3))
    check_shape(owner, "heatmap", heatmap, "h w", h=sizes["h"], w=sizes["w"])
    check_finite(owner, "heatmap", heatmap)
    check_range(owner, "strength", strength, low=0.0, high=1.0)
    grey = _colours(owner, image).mean(2, keepdims=True)
    values = heatmap.detach().cpu().double().numpy()
    maps = require(
        "matplotlib", package="cv-attention", extra="lab", purpose="drawing a map"
    ).colormaps
    if values.min() < 0.0:
        scaled = _scaled(values)
        coloured, weight = maps[_SIGNED]((scaled + 1.0) / 2.0), np.abs(scaled)
    else:
        weight = _scaled(values - values.min())
        coloured = maps[_POSITIVE](weight)
    cover = strength * weight[:, :, None]
    return ((1.0 - cover) * grey + cover * coloured[:, :, :3]).astype(np.float32)


def explanation_grid(
    images: Float[Tensor, "b c h w"],
    maps: Mapping[str, Float[Tensor, "b h w"]],
    *,
    titles: Sequence[str] | None = None,
) -> Figure:
    """Draw images in rows and their explanations in columns, the image itself first.

    Args:
        images: ``(B, 1 or 3, H, W)`` in [0, 1].
        maps: Maps ``(B, H, W)`` by the name of the explainer; each is coloured on its own scale.
        titles: One per image, drawn at its left, such as the class explained.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no map, or shapes or counts do not fit.
    """
    owner = "explanation_grid"
    sizes = check_shape(owner, "images", images, "b c h w")
    if not maps:
        raise ValueError(f"{owner}: maps must hold at least one explainer's; got none.")
    for name, item in maps.items():
        known = {axis: sizes[axis] for axis in "bhw"}
        check_shape(owner, f"maps[{name!r}]", item, "b h w", **known)
    if titles is not None and len(titles) != sizes["b"]:
        raise ValueError(f"{owner}: titles must be {sizes['b']}, one per image; got {len(titles)}.")
    drawn = {
        name: [overlay(image, one) for image, one in zip(images, item, strict=True)]
        for name, item in maps.items()
    }
    columns = {"image": [_colours(owner, image) for image in images], **drawn}
    module = require(
        "matplotlib.figure", package="cv-attention", extra="lab", purpose="drawing a figure"
    )
    size = (_INCH * len(columns) * sizes["w"] / sizes["h"], _INCH * sizes["b"] + 0.25)
    figure: Figure = module.Figure(figsize=size, layout="constrained")
    grid = figure.subplots(sizes["b"], len(columns), squeeze=False)
    for column, (name, pictures) in enumerate(columns.items()):
        grid[0, column].set_title(name, fontsize=9)
        for axes, picture in zip(grid[:, column], pictures, strict=True):
            axes.imshow(picture, vmin=0.0, vmax=1.0)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    for axes, title in zip(grid[:, 0], titles or (), strict=False):
        axes.set_ylabel(title, fontsize=9)
    return figure


def _scaled(values: np.ndarray) -> np.ndarray:
    """Scale to [-1, 1], 0 staying 0."""
    sizes = np.abs(values)
    top = np.quantile(sizes, _TOP) or sizes.max() or 1.0
    return np.clip(values / top, -1.0, 1.0)


def _colours(owner: str, image: Tensor) -> np.ndarray:
    """Return an RGB image ``(H, W, 3)``."""
    pixels = image.detach().cpu().float().permute(1, 2, 0).numpy()
    check_finite(owner, "image", pixels)
    if pixels.min() < 0.0 or pixels.max() > 1.0:
        raise ValueError(
            f"{owner}: image must lie in [0, 1]; got [{pixels.min():g}, {pixels.max():g}]. Draw "
            "it as it was before it was normalised."
        )
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
