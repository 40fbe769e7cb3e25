"""Cluttered digits: one whole glyph among fragments of others.

The task of Mnih, Heess, Graves, Kavukcuoglu, "Recurrent Models of Visual Attention", NIPS 2014:
a classifier has to find the digit before it can read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from cv_core import random
from cv_core.checks import check_integer, check_range
from cv_core.data.scenes.scene import tight_box
from cv_core.data.scenes.sprites import Array, ArrayLike, as_glyphs, opacity


class ClutteredDigits(NamedTuple):
    """Pictures with one digit each, and where it is.

    Args:
        images: Grey, in [0, 1].
        labels: Class of the whole digit.
        masks: Its pixels.
        boxes: Tight around them, xyxy.
    """

    images: Float32[Tensor, "n 1 s s"]
    labels: Int64[Tensor, " n"]
    masks: Bool[Tensor, "n s s"]
    boxes: Float32[Tensor, "n 4"]


def cluttered_digits(
    n: int,
    seed: int,
    size: int = 64,
    *,
    glyphs: ArrayLike | None = None,
    labels: ArrayLike | Sequence[int] | None = None,
    scale: tuple[float, float] = (0.35, 0.5),
    fragments: int = 8,
    fragment: int = 8,
) -> ClutteredDigits:
    """Paste one whole digit over square fragments of other digits, all in white on black.

    Training and test sets need different seeds and, for a fair test, different ``glyphs``.

    Args:
        n: Number of pictures; picture i depends on ``seed`` and i alone.
        seed: A whole number.
        size: Side of a picture in pixels, at least 16.
        glyphs: (N, h, w) or (N, 1, h, w) in [0, 1]; scikit-learn's digits by default.
        labels: (N,) their classes; required with ``glyphs``.
        scale: Least and largest longer side of the digit, as a share of ``size``.
        fragments: Number of fragments, at least 0.
        fragment: Side of a fragment in pixels.

    Returns:
        Images, labels, masks and boxes.

    Raises:
        ValueError: If only one of ``glyphs`` and ``labels`` is given, or a value is out of range.
    """
    owner = "cluttered_digits"
    check_integer(owner, "n", n, low=0)
    check_integer(owner, "size", size, low=16)
    check_integer(owner, "fragments", fragments, low=0)
    check_integer(owner, "fragment", fragment, low=1, high=size)
    check_range(owner, "scale[0]", scale[0], low=0.0, low_open=True)
    check_range(owner, "scale[1]", scale[1], low=scale[0], high=0.9)
    if (glyphs is None) != (labels is None):
        raise ValueError(f"{owner}: glyphs and labels must be given together.")
    if glyphs is None or labels is None:
        glyphs, labels = _sklearn_digits()
    inks, classes = as_glyphs(owner, glyphs, labels)
    images = np.zeros((n, size, size), dtype=np.float32)
    masks = np.zeros((n, size, size), dtype=bool)
    chosen = np.zeros(n, dtype=np.int64)
    for i in range(n):
        generator = random.numpy_generator(seed, "clutter", i)
        index = int(generator.integers(len(inks)))
        for _ in range(fragments):
            _scatter(images[i], _draw_ink(inks, scale, size, generator), fragment, generator)
        alpha = _enlarged(inks[index], scale, size, generator)
        rows, columns = _anywhere(size, alpha.shape, generator)
        # the digit lies on top: its strokes are whole, clutter remains between them
        images[i, rows, columns] = alpha + (1 - alpha) * images[i, rows, columns]
        masks[i, rows, columns] = alpha > 0.0
        chosen[i] = classes[index]
    boxes = np.array([tight_box(mask) for mask in masks], dtype=np.float32).reshape(n, 4)
    return ClutteredDigits(
        torch.from_numpy(images)[:, None],
        torch.from_numpy(chosen),
        torch.from_numpy(masks),
        torch.from_numpy(boxes),
    )


def _draw_ink(
    inks: Array, scale: tuple[float, float], size: int, generator: np.random.Generator
) -> Array:
    return _enlarged(inks[int(generator.integers(len(inks)))], scale, size, generator)


def _enlarged(
    ink: Array, scale: tuple[float, float], size: int, generator: np.random.Generator
) -> Array:
    least, largest = max(3, round(scale[0] * size)), max(3, round(scale[1] * size))
    return opacity(ink, int(generator.integers(least, largest + 1)))[0][:size, :size]


def _scatter(canvas: Array, ink: Array, side: int, generator: np.random.Generator) -> None:
    """Put a random square of ink at a random place; where strokes meet, the brighter one stays."""
    height, width = min(side, ink.shape[0]), min(side, ink.shape[1])
    top = int(generator.integers(ink.shape[0] - height + 1))
    left = int(generator.integers(ink.shape[1] - width + 1))
    rows, columns = _anywhere(len(canvas), (height, width), generator)
    np.maximum(
        canvas[rows, columns],
        ink[top : top + height, left : left + width],
        out=canvas[rows, columns],
    )


def _anywhere(
    size: int, shape: tuple[int, ...], generator: np.random.Generator
) -> tuple[slice, slice]:
    top = int(generator.integers(size - shape[0] + 1))
    left = int(generator.integers(size - shape[1] + 1))
    return slice(top, top + shape[0]), slice(left, left + shape[1])


def _sklearn_digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images / 16.0).astype(np.float32), digits.target
