"""Masks drawn over images: as arrays, and as a figure that compares several segmentations.

The figure is a ``matplotlib.figure.Figure`` that belongs to the caller: no window opens, and pyplot
does not know of it. Matplotlib comes with ``pip install "cv-segmentation[lab]"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from cv_core.checks import check_choice, check_finite, check_indices, check_range, check_shape
from cv_core.optional import require
from jaxtyping import Float, Integer
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Palette = Sequence[tuple[float, float, float] | None]
"""A colour (red, green, blue in [0, 1]) for each class, or None to leave the image bare."""

_INCH = 1.9  # the side of an image in a grid

# The colours of Okabe and Ito, which colour-blind people can tell apart; the background is bare.
OKABE_ITO: Palette = (
    None,
    (0.90, 0.62, 0.00),
    (0.34, 0.71, 0.91),
    (0.00, 0.62, 0.45),
    (0.94, 0.89, 0.26),
    (0.00, 0.45, 0.70),
    (0.84, 0.37, 0.00),
    (0.80, 0.47, 0.65),
)


def overlay_mask(
    image: Float[Tensor, "c h w"],
    mask: Integer[Tensor, "h w"],
    palette: Palette = OKABE_ITO,
    *,
    strength: float = 0.5,
    ignore_index: int | None = None,
) -> Float[np.ndarray, "h w 3"]:
    """Colour an image by the classes of its pixels; the rims of regions are drawn in full colour.

    Args:
        image: Grey or RGB image ``(1 or 3, H, W)`` in [0, 1].
        mask: Class indices ``(H, W)``.
        palette: A colour per class, or None for a class that leaves the image as it is.
        strength: How much of the colour covers the inside of a region, in [0, 1].
        ignore_index: The label that leaves the image as it is, or None.

    Returns:
        RGB image ``(H, W, 3)``, float32 in [0, 1].

    Raises:
        TypeError: If the mask does not hold integers.
        ValueError: If shapes do not fit, a class has no colour, or the image leaves [0, 1].

    Example:
        >>> import torch
        >>> overlay_mask(torch.zeros(1, 4, 5), torch.ones(4, 5, dtype=torch.int64))[0, 0]
        array([0.9 , 0.62, 0.  ], dtype=float32)
    """
    owner = "overlay_mask"
    sizes = check_shape(owner, "image", image, "c h w")
    check_choice(owner, "the number of image channels", sizes["c"], (1, 3))
    check_shape(owner, "mask", mask, "h w", h=sizes["h"], w=sizes["w"])
    check_indices(owner, "mask", mask, high=len(palette), ignore=ignore_index)
    check_range(owner, "strength", strength, low=0.0, high=1.0)
    labels = mask.detach().cpu().long().numpy()
    if ignore_index is not None:
        labels = np.where(labels == ignore_index, len(palette), labels)
    bare = np.array([colour is None for colour in (*palette, None)])
    colours = np.array([colour or (0.0, 0.0, 0.0) for colour in (*palette, None)])
    cover = np.where(bare[labels], 0.0, np.where(_rims(labels), 1.0, strength))[:, :, None]
    return ((1.0 - cover) * _pixels(owner, image) + cover * colours[labels]).astype(np.float32)


def mask_grid(
    images: Float[Tensor, "b c h w"],
    masks: Mapping[str, Integer[Tensor, "b h w"]],
    palette: Palette = OKABE_ITO,
    *,
    classes: Sequence[str] | None = None,
    strength: float = 0.5,
    ignore_index: int | None = None,
) -> Figure:
    """Draw images in rows and their segmentations in columns, the image itself first.

    Args:
        images: ``(B, 1 or 3, H, W)`` in [0, 1].
        masks: Class indices ``(B, H, W)`` by name, such as "truth" and "prediction".
        palette: A colour per class; see ``overlay_mask``.
        classes: Names of the classes, for a legend of those that have a colour; none by default.
        strength: How much of the colour covers the inside of a region, in [0, 1].
        ignore_index: The label that leaves the image as it is, or None.

    Returns:
        The figure.

    Raises:
        TypeError: If a mask does not hold integers.
        ValueError: If there is no mask, or shapes or counts do not fit.
    """
    owner = "mask_grid"
    sizes = check_shape(owner, "images", images, "b c h w")
    if not masks:
        raise ValueError(f"{owner}: masks must hold at least one segmentation; got none.")
    for name, item in masks.items():
        check_shape(owner, f"masks[{name!r}]", item, "b h w", **{k: sizes[k] for k in "bhw"})
    if classes is not None and len(classes) > len(palette):
        raise ValueError(
            f"{owner}: palette must have a colour for each of {len(classes)} classes; got "
            f"{len(palette)}."
        )
    columns = {"image": [_pixels(owner, image) for image in images]}
    for name, item in masks.items():
        columns[name] = [
            overlay_mask(image, mask, palette, strength=strength, ignore_index=ignore_index)
            for image, mask in zip(images, item, strict=True)
        ]
    figure = _figure(columns, sizes["w"] / sizes["h"])
    if classes is not None:
        patches = require(
            "matplotlib.patches", package="cv-segmentation", extra="lab", purpose="drawing a figure"
        )
        keys = [
            patches.Patch(color=colour, label=label)
            for label, colour in zip(classes, palette, strict=False)
            if colour is not None
        ]
        figure.legend(handles=keys, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _figure(columns: Mapping[str, Sequence[np.ndarray]], aspect: float) -> Figure:
    module = require(
        "matplotlib.figure", package="cv-segmentation", extra="lab", purpose="drawing a figure"
    )
    count = len(columns["image"])
    size = (_INCH * len(columns) * aspect, _INCH * count + 0.25)
    figure: Figure = module.Figure(figsize=size, layout="constrained")
    grid = figure.subplots(count, len(columns), squeeze=False)
    for column, (name, pictures) in enumerate(columns.items()):
        grid[0, column].set_title(name, fontsize=9)
        for axes, picture in zip(grid[:, column], pictures, strict=True):
            axes.imshow(picture, vmin=0.0, vmax=1.0)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    return figure


def _rims(labels: np.ndarray) -> np.ndarray:
    """Return which pixels have a neighbour (along an axis) of another label, or none."""
    padded = np.pad(labels, 1, constant_values=-1)
    rims = np.zeros(labels.shape, dtype=bool)
    for rows, columns in ((0, 1), (2, 1), (1, 0), (1, 2)):
        height, width = labels.shape
        rims |= padded[rows : rows + height, columns : columns + width] != labels
    return rims


def _pixels(owner: str, image: Tensor) -> np.ndarray:
    """Return an RGB image ``(H, W, 3)``."""
    pixels = image.detach().cpu().float().permute(1, 2, 0).numpy()
    check_finite(owner, "image", pixels)
    if pixels.min() < 0.0 or pixels.max() > 1.0:
        raise ValueError(
            f"{owner}: image must lie in [0, 1]; got [{pixels.min():g}, {pixels.max():g}]. Draw "
            "it as it was before it was normalised."
        )
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
