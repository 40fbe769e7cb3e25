"""Images whose shape and texture are chosen apart: silhouettes of glyphs, filled with gratings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from cv_core.checks import check_integer, check_range
from cv_core.data.scenes.sprites import as_glyphs, opacity
from jaxtyping import Float32, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class CueConflict:
    """Images with two labels each.

    Args:
        images: In [0, 1].
        shape: Class of the glyph.
        texture: Class of the grating.
    """

    images: Float32[Tensor, "n 1 h w"]
    shape: Int64[Tensor, " n"]
    texture: Int64[Tensor, " n"]


def cue_conflict(
    glyphs: Float32[Tensor, "n 1 _ _"],
    labels: Int64[Tensor, " n"],
    *,
    n_textures: int = 10,
    correlation: float = 0.0,
    size: int = 24,
    generator: torch.Generator,
) -> CueConflict:
    """Fill the silhouettes of glyphs with gratings of chosen classes.

    Classes of gratings take turns between a short and a long period, and every second one turns to
    the next direction; the phase is random. The ground is mid-grey, which is also every grating's
    mean: brightness tells neither label.

    Args:
        glyphs: Bright ink on black, in [0, 1].
        labels: Their classes, from 0.
        n_textures: How many gratings, from 2 to 24.
        correlation: Share of the images whose grating is given by the glyph (its class, counted
            around ``n_textures``), in [0, 1]; the others draw theirs.
        size: Side of the images in pixels, at least 8.
        generator: Source of all draws.

    Returns:
        The images with both labels.

    Example:
        >>> from cv_core.data.sources import load
        >>> digits = load("digits")
        >>> source = torch.Generator().manual_seed(0)
        >>> cue_conflict(digits.test_x[:4], digits.test_y[:4], generator=source).images.shape
        torch.Size([4, 1, 24, 24])
    """
    check_integer("cue_conflict", "n_textures", n_textures, low=2, high=24)
    check_range("cue_conflict", "correlation", correlation, low=0.0, high=1.0)
    check_integer("cue_conflict", "size", size, low=8)
    inks, classes = as_glyphs("cue_conflict", glyphs, labels)
    count = len(classes)
    shape = torch.as_tensor(classes, dtype=torch.int64)
    drawn = torch.randint(n_textures, (count,), generator=generator)
    tied = torch.rand(count, generator=generator) < correlation
    texture = torch.where(tied, shape % n_textures, drawn)
    phase = 2.0 * math.pi * torch.rand(count, generator=generator)
    filled = gratings(texture, phase, n_textures=n_textures, size=size) - 0.5
    masks = torch.stack([_silhouette(ink, size) for ink in inks])
    return CueConflict((0.5 + masks * filled)[:, None], shape, texture)


def gratings(
    texture: Int64[Tensor, " n"], phase: Float32[Tensor, " n"], *, n_textures: int, size: int
) -> Float32[Tensor, "n size size"]:
    """Draw sinusoidal gratings in [0, 1].

    Args:
        texture: Classes; see ``cue_conflict``.
        phase: In radians.
        n_textures: How many classes there are.
        size: Side in pixels.
    """
    period = torch.where(texture % 2 == 0, 3.0, 5.0)
    angle = math.pi * (texture // 2) / math.ceil(n_textures / 2)
    place = torch.arange(size, dtype=torch.float32)
    along = angle.cos()[:, None, None] * place + angle.sin()[:, None, None] * place[:, None]
    turns = 2.0 * math.pi * along / period[:, None, None] + phase[:, None, None]
    return 0.5 + 0.5 * turns.sin()


def _silhouette(ink: object, size: int) -> Tensor:
    alpha = torch.from_numpy(opacity(ink, size - 2)[0])  # type: ignore[arg-type] # from as_glyphs
    height, width = alpha.shape
    square = torch.zeros(size, size)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = alpha
    return square
