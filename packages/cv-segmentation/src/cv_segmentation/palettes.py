"""Colours for any number of classes, and masks as pictures with a palette."""

from __future__ import annotations

import colorsys
import io
from pathlib import Path

import numpy as np
from cv_core.checks import check_indices, check_integer, check_shape
from cv_core.files import write_atomically
from jaxtyping import Integer
from torch import Tensor

from cv_segmentation.overlays import OKABE_ITO, Palette

_GOLDEN = 0.618034  # turns of the colour circle: neighbours in the list are far apart on it
_BYTE = 256


def class_palette(classes: int, *, bare_first: bool = True) -> Palette:
    """Return a colour for every class: those of Okabe and Ito, then hues that differ.

    Args:
        classes: How many.
        bare_first: Whether class 0 is a background, which overlays leave as it is.

    Example:
        >>> class_palette(3)
        [None, (0.9, 0.62, 0.0), (0.34, 0.71, 0.91)]
    """
    check_integer("class_palette", "classes", classes, low=1)
    first = [colour for colour in OKABE_ITO if colour is not None]
    colours: list[tuple[float, float, float] | None] = [None] if bare_first else []
    while len(colours) < classes:
        number = len(colours) - bare_first
        if number < len(first):
            colours.append(first[number])
        else:
            value = (1.0, 0.7, 0.85)[number % 3]
            colours.append(colorsys.hsv_to_rgb(number * _GOLDEN % 1.0, 0.7, value))
    return colours


def write_mask(path: Path | str, mask: Integer[Tensor, "h w"], palette: Palette) -> Path:
    """Write a mask as a PNG whose values are the class indices, whole or not at all.

    Up to 256 classes get a palette, so that viewers show colours (a class without one is black);
    more make a grey picture of 16 bits.

    Args:
        path: The file, ending in ``.png``.
        mask: Class indices.
        palette: A colour for every class.

    Returns:
        The file.

    Raises:
        TypeError: If the mask does not hold integers.
        ValueError: If a class has no colour, or there are more than 65536.
    """
    from PIL import Image

    check_shape("write_mask", "mask", mask, "h w")
    check_integer("write_mask", "the number of classes", len(palette), low=1, high=_BYTE**2)
    check_indices("write_mask", "mask", mask, high=len(palette), ignore=None)
    deep = len(palette) > _BYTE
    pixels = mask.detach().cpu().numpy().astype(np.uint16 if deep else np.uint8)
    picture = Image.fromarray(pixels)
    if not deep:
        values = [round(255 * part) for colour in palette for part in colour or (0.0, 0.0, 0.0)]
        picture.putpalette(values)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return write_atomically(Path(path), content.getvalue())
