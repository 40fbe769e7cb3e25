"""Composing a film: the objects of a scene move in straight lines and bounce off the borders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cv_core.checks import check_integer, check_range
from cv_core.data.scenes.compose import Place, arrange, crop_background, render
from cv_core.data.scenes.scene import Clip, tight_box
from cv_core.data.scenes.spec import SceneSpec
from cv_core.data.scenes.sprites import Array, ArrayLike, Sprite, as_glyphs


def compose_clip(
    spec: SceneSpec,
    glyphs: ArrayLike,
    labels: ArrayLike | Sequence[int],
    backgrounds: ArrayLike | Sequence[ArrayLike],
    generator: np.random.Generator,
    *,
    frames: int = 8,
    speed: tuple[float, float] = (1.0, 4.0),
) -> Clip:
    """Compose a scene and let its objects move; later objects pass in front of earlier ones.

    The first frame keeps ``spec.max_overlap``; afterwards objects may hide each other entirely.
    Positions are rounded to whole pixels, so that the optical flow is exact.

    Args:
        spec: What the first frame may look like.
        glyphs: (N, h, w) or (N, 1, h, w), bright ink on black in [0, 1].
        labels: (N,) classes of the glyphs.
        backgrounds: Images (3, H, W) in [0, 1], each at least as large as the scene.
        generator: NumPy's; decides everything.
        frames: Number of frames, at least 1.
        speed: Least and largest speed in pixels per frame; the direction is drawn uniformly.

    Returns:
        The clip.
    """
    check_integer("compose_clip", "frames", frames, low=1)
    check_range("compose_clip", "speed[0]", speed[0], low=0.0)
    check_range("compose_clip", "speed[1]", speed[1], low=speed[0])
    images, classes = as_glyphs("compose_clip", glyphs, labels)
    background = crop_background("compose_clip", spec, backgrounds, generator)
    sprites, places = arrange(spec, images, classes, background, generator)
    positions = _positions(spec, sprites, places, generator, frames, speed)
    painted = [render(background, sprites, _places(step)) for step in positions]
    masks = np.stack([mask for _, mask in painted])
    boxes = np.array([[tight_box(mask) for mask in step] for step in masks], dtype=np.float32)
    return Clip(
        frames=torch.from_numpy(np.stack([image for image, _ in painted])),
        background=torch.from_numpy(background),
        masks=torch.from_numpy(masks),
        boxes=torch.from_numpy(boxes.reshape(frames, -1, 4)),
        visible=torch.from_numpy(masks.any(axis=(2, 3))),
        labels=torch.tensor([sprite.label for sprite in sprites], dtype=torch.int64),
        positions=torch.from_numpy(positions),
        flow=torch.from_numpy(_flow(masks, positions)),
        attributes=tuple(sprite.attributes for sprite in sprites),
    )


def bounce(position: Array, room: Array) -> Array:
    """Fold a straight path into ``[0, room]``: at a border it turns back.

    Args:
        position: Where the path would lead without borders.
        room: Largest position, at least 0.
    """
    period = np.maximum(2.0 * room, 1e-9)
    folded = np.mod(position, period)
    return np.minimum(np.minimum(folded, period - folded), room)


def _positions(
    spec: SceneSpec,
    sprites: Sequence[Sprite],
    places: Sequence[Place],
    generator: np.random.Generator,
    frames: int,
    speed: tuple[float, float],
) -> Array:
    count = len(sprites)
    pace = generator.uniform(speed[0], speed[1], size=count)
    angle = generator.uniform(0.0, 2.0 * np.pi, size=count)
    velocity = pace[:, None] * np.stack((np.sin(angle), np.cos(angle)), axis=1)
    start = np.array(places, dtype=np.float64).reshape(count, 2)
    sides = np.array([sprite.alpha.shape for sprite in sprites]).reshape(count, 2)
    straight = start + np.arange(frames)[:, None, None] * velocity
    room = np.array((spec.height, spec.width)) - sides
    return np.rint(bounce(straight, room)).astype(np.int64)


def _places(positions: Array) -> list[Place]:
    return [(int(top), int(left)) for top, left in positions]


def _flow(masks: Array, positions: Array) -> Array:
    moved = np.diff(positions, axis=0)[..., ::-1].astype(np.float32)  # x before y
    return np.einsum("tkhw,tkd->tdhw", masks[:-1].astype(np.float32), moved)
