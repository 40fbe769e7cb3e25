"""Short films of digits that run into each other, and windows of one long clip, with exact masks.

A composed object heads for the next one's place, give or take 30 degrees, so that objects meet and
hide each other. The number of an object says nothing of its depth. ``cv_core.data.scenes.clips``
composes films whose objects go their own ways, and keeps what is visible of them only.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from cv_core.data.kinds import Clip
from cv_core.data.scenes.backgrounds import sample_photographs
from cv_core.data.scenes.clips import bounce
from cv_core.data.scenes.compose import arrange, crop_background, render
from cv_core.data.scenes.spec import SceneSpec
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from torch.nn import functional

OBJECTS = 2


class Clips(NamedTuple):
    """Clips of one size and length; an object that is not there has empty masks.

    Args:
        frames: In [0, 1].
        visible: 1 on what is seen of an object, else 0; disjoint.
        whole: 1 on all of an object, what others hide included.
    """

    frames: Float32[Tensor, "n t 3 h w"]
    visible: Float32[Tensor, "n t k h w"]
    whole: Float32[Tensor, "n t k h w"]


class Film(NamedTuple):
    """One long clip of one object."""

    frames: Float32[Tensor, "t 3 h w"]
    masks: Float32[Tensor, "t h w"]


def compose_clips(
    count: int,
    glyphs: Float32[np.ndarray, "n h w"],
    labels: Int64[np.ndarray, " n"],
    rng: np.random.Generator,
    *,
    side: int,
    frames: int,
    speed: tuple[float, float],
) -> Clips:
    """Compose clips of two digits on photographs.

    Args:
        count: Number of clips.
        glyphs: The digits to choose from.
        labels: Their classes.
        rng: Decides everything.
        side: Height and width.
        frames: Frames of a clip.
        speed: Least and largest speed in pixels per frame.
    """
    spec = SceneSpec(
        height=side, width=side, objects=(OBJECTS,) * 2, max_overlap=0.0,
        scale=(0.34, 0.42),  # the longer side of a digit is 16 to 20 pixels of 48
    )  # fmt: skip
    made = [_film(spec, glyphs, labels, rng, frames, speed) for _ in range(count)]
    images, visible, whole = (np.stack(part) for part in zip(*made, strict=True))
    masks = (torch.from_numpy(part).float() for part in (visible, whole))
    return Clips(torch.from_numpy(images), *masks)


def compose_film(
    glyphs: Float32[np.ndarray, "n h w"],
    labels: Int64[np.ndarray, " n"],
    rng: np.random.Generator,
    *,
    side: int,
    frames: int,
) -> Film:
    """Compose one long wide clip of a large digit: for runs whose data are not a clip."""
    spec = SceneSpec(height=side, width=side * 16 // 9, objects=(1, 1), scale=(0.5, 0.6))
    images, visible, _ = _film(spec, glyphs, labels, rng, frames, speed=(1.0, 2.0))
    return Film(torch.from_numpy(images), torch.from_numpy(visible[:, 0]).float())


def shrink(clip: Clip, side: int) -> Film:
    """Bring a clip to a height, its proportions kept; a pixel is the object's if half of it is."""
    size = (side, round(clip.frames.shape[3] * side / clip.frames.shape[2]))
    frames = functional.interpolate(clip.frames, size=size, mode="area")
    masks = functional.interpolate(clip.masks[:, None].float(), size=size, mode="area")
    return Film(frames.expand(-1, 3, -1, -1), (masks[:, 0] > 0.5).float())


def windows(film: Film, count: int, rng: np.random.Generator, *, frames: int) -> Clips:
    """Cut square clips out of a long one, every frame or every second, around the object.

    Args:
        film: The long clip.
        count: Number of clips.
        rng: Decides where, and which of the two objects is the film's; the other one is absent.
        frames: Frames of a clip.
    """
    length, side, width = film.masks.shape
    images = torch.empty(count, frames, 3, side, side)
    masks = torch.zeros(count, frames, OBJECTS, side, side)
    for number in range(count):
        step = int(rng.integers(1, max(1, (length - 1) // (frames - 1)), endpoint=True))
        step = min(step, 2)
        start = int(rng.integers(length - step * (frames - 1)))
        chosen = slice(start, start + step * (frames - 1) + 1, step)
        columns = film.masks[start].any(0).nonzero()
        centre = float(columns.float().mean()) if len(columns) else width / 2
        left = int(np.clip(centre - side / 2 + rng.uniform(-0.25, 0.25) * side, 0, width - side))
        images[number] = film.frames[chosen, :, :, left : left + side]
        masks[number, :, int(rng.integers(OBJECTS))] = film.masks[chosen, :, left : left + side]
    return Clips(images, masks, masks)


@cache
def _photographs() -> tuple[np.ndarray, ...]:
    return tuple(sample_photographs())


def _film(
    spec: SceneSpec,
    glyphs: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    frames: int,
    speed: tuple[float, float],
) -> tuple[
    Float32[np.ndarray, "t 3 h w"], Bool[np.ndarray, "t k h w"], Bool[np.ndarray, "t k h w"]
]:
    background = crop_background("compose_clips", spec, _photographs(), rng)
    sprites, places = arrange(spec, glyphs, labels, background, rng)
    sides = np.array([sprite.alpha.shape for sprite in sprites]).reshape(-1, 2)
    start = np.array(places, dtype=np.float64).reshape(-1, 2)
    heading = np.roll(start, -1, axis=0) - start
    angle = np.arctan2(heading[:, 0], heading[:, 1]) + rng.uniform(
        -np.pi / 6, np.pi / 6, len(start)
    )
    if len(start) == 1:  # nobody to run into
        angle = rng.uniform(0.0, 2.0 * np.pi, 1)
    pace = rng.uniform(*speed, len(start))
    velocity = pace[:, None] * np.stack((np.sin(angle), np.cos(angle)), axis=1)
    straight = start + np.arange(frames)[:, None, None] * velocity
    room = np.array((spec.height, spec.width)) - sides
    positions = np.rint(bounce(straight, room)).astype(np.int64)

    order = rng.permutation(spec.objects[1])[: len(sprites)]
    images = np.empty((frames, *background.shape), dtype=np.float32)
    visible = np.zeros((frames, spec.objects[1], spec.height, spec.width), dtype=bool)
    whole = np.zeros_like(visible)
    for t, step in enumerate(positions):
        images[t], visible[t, order] = render(
            background, sprites, [(r, c) for r, c in step.tolist()]
        )
        for number, (sprite, (top, left)) in enumerate(zip(sprites, step, strict=True)):
            height, width = sprite.mask.shape
            whole[t, order[number], top : top + height, left : left + width] = sprite.mask
    return images, visible, whole
