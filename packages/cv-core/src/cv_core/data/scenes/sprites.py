"""From a glyph to something that can be pasted: opacity, colour, exact mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from cv_core.checks import check_shape
from cv_core.data.scenes.scene import Attributes
from cv_core.data.scenes.spec import Appearance

Array = np.ndarray
ArrayLike = Array | Tensor

# Opacity rises from 0 to 1 between these shares of the brightest ink: what is fainter is not part
# of the object, so that the mask is exactly where the picture changed.
_FAINT, _FULL = 0.2, 0.7
_SHADE = 0.35  # brightness of a garment's darkest cloth


@dataclass(frozen=True, slots=True, eq=False)
class Sprite:
    """An object without a place.

    Args:
        alpha: Opacity in [0, 1], trimmed: its first and last rows and columns are not all 0.
        mask: Where ``alpha`` is above 0.
        colour: RGB of every pixel, or of all.
        label: Its class.
        attributes: Words for it.
    """

    alpha: Float32[Array, "h w"]
    mask: Bool[Array, "h w"]
    colour: Float32[Array, "3 _ _"]
    label: int
    attributes: Attributes


def as_glyphs(
    owner: str, glyphs: ArrayLike, labels: ArrayLike | Sequence[int]
) -> tuple[Array, Array]:
    """Return glyphs as (N, h, w) and labels as (N,), without a copy where possible.

    Raises:
        TypeError: If the glyphs are not floating or the labels not whole numbers.
        ValueError: If shapes do not fit.
    """
    images, classes = np.asarray(glyphs), np.asarray(labels)
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    sizes = check_shape(owner, "glyphs", images, "n h w")
    check_shape(owner, "labels", classes, "n", n=sizes["n"])
    if not np.issubdtype(images.dtype, np.floating):
        raise TypeError(
            f"{owner}: glyphs must be floating-point images in [0, 1]; got {images.dtype}. "
            "Divide uint8 images by 255."
        )
    if not np.issubdtype(classes.dtype, np.integer):
        raise TypeError(f"{owner}: labels must be whole numbers; got {classes.dtype}.")
    return images, classes


def opacity(
    glyph: Float[Array, "h w"], side: int, appearance: Appearance = "ink"
) -> tuple[Float32[Array, "h2 w2"], Float32[Array, "h2 w2"]]:
    """Enlarge a glyph's ink to a longer side and tell object from paper.

    Args:
        glyph: Bright ink on black, in [0, 1].
        side: Longer side of the ink in pixels, at least 3.
        appearance: Whether intensity is opacity (ink) or shading (garment).

    Returns:
        Opacity and shading, both in [0, 1] and of one size, trimmed to where opacity is not 0.

    Raises:
        ValueError: If the glyph holds no ink, a value outside [0, 1] or NaN.
    """
    brightest = float(glyph.max())
    if not (brightest <= 1.0 and float(glyph.min()) >= 0.0):
        raise ValueError("opacity: glyph must lie in [0, 1]; this one does not, or holds NaN.")
    if brightest == 0.0:
        raise ValueError("opacity: glyph must hold ink; this one is black all over.")
    ink = np.asarray(glyph, dtype=np.float32) / np.float32(brightest)
    ink = _trim(ink, ink > _FAINT)
    solid = ink if appearance == "ink" else _silhouette(ink)
    # a rim of paper lets the outline fade instead of being cut off
    opaque = _enlarge(np.pad(solid, 1), side)
    alpha = np.clip((opaque - _FAINT) / (_FULL - _FAINT), 0.0, 1.0)
    shade = alpha if appearance == "ink" else _enlarge(np.pad(ink, 1, mode="edge"), side)
    inside = alpha > 0.0
    return _trim(alpha, inside), _trim(shade, inside)


def paint(
    alpha: Float32[Array, "h w"],
    shade: Float32[Array, "h w"],
    rgb: tuple[float, float, float],
    label: int,
    attributes: Attributes,
    appearance: Appearance,
) -> Sprite:
    """Give a glyph its colour.

    Args:
        alpha: Opacity.
        shade: Brightness of the cloth; not used for ink.
        rgb: The colour, in [0, 1].
        label: Its class.
        attributes: Words for it.
        appearance: Flat colour (ink) or shaded colour (garment).
    """
    colour = np.asarray(rgb, dtype=np.float32)[:, None, None]
    if appearance == "garment":
        colour = colour * (np.float32(_SHADE) + np.float32(1.0 - _SHADE) * shade)
    return Sprite(alpha, alpha > 0.0, colour, label, attributes)


def _trim(array: Array, inside: Array) -> Array:
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return array[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _silhouette(ink: Array) -> Array:
    from scipy import ndimage

    # a low threshold: dark prints inside a garment are cloth, and so are holes that it surrounds
    return ndimage.binary_fill_holes(ink > 0.05).astype(np.float32)


def _enlarge(padded: Array, side: int) -> Array:
    """Resample so that what lies inside the rim of one pixel gets the longer side."""
    height, width = padded.shape
    factor = side / (max(height, width) - 2)
    down = _resampling(height, max(3, round(height * factor)))
    right = _resampling(width, max(3, round(width * factor)))
    return np.clip(down @ padded @ right.T, 0.0, 1.0)


@lru_cache(maxsize=4096)
def _resampling(source: int, target: int) -> Array:
    """Matrix (target, source) of cubic interpolation, widened when it shrinks (no aliasing)."""
    step = source / target
    centre = (np.arange(target) + 0.5) * step - 0.5
    distance = np.abs(centre[:, None] - np.arange(source)[None, :]) / max(1.0, step)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1.0
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4.0 * distance + 2.0
    weight = np.where(distance < 1.0, near, np.where(distance < 2.0, far, 0.0))
    matrix = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    matrix.setflags(write=False)  # shared by all callers
    return matrix
