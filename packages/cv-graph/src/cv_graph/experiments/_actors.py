"""Scenes of actors for ``sarg``: glyphs in the unit square, of which two, close together, decide.

The key actors are two glyphs of different key classes within ``mu`` of each other, and the pair of
their classes is the scene's group. Two more pairs are as close, and all else is farther apart than
``mu``, so that place alone does not tell the key actors. Without lookalikes only they are of key
classes, so that appearance alone does; with lookalikes, glyphs of key classes stand by themselves
and beside strangers, and nothing but appearance and place together does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from cv_core.data.kinds import ImageClassification
from cv_core.experiment.trial import Trial
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

KEY_CLASSES = 4
GROUPS = tuple(combinations(range(KEY_CLASSES), 2))
PAIRS, LONE = 3, 6  # the first pair is that of the key actors
ACTORS = 2 * PAIRS + LONE

_LOWEST, _HIGHEST = np.array([0.15, 0.25, 0.9]), np.array([1.0, 0.9, 0.1])

Draws = np.random.Generator


@dataclass(frozen=True)
class Scenes:
    """Scenes with everything known about them; training must not use ``keys``.

    Args:
        glyphs: Pixels of every actor in [0, 1].
        centers: Their places in the unit square.
        group: Class of every scene, index into ``GROUPS``.
        classes: Class of every actor.
        keys: True for the two key actors.
    """

    glyphs: Float[Tensor, "s n p"]
    centers: Float[Tensor, "s n 2"]
    group: Int64[Tensor, " s"]
    classes: Int64[Tensor, "s n"]
    keys: Bool[Tensor, "s n"]


def make_scenes(trial: Trial, part: str) -> Scenes:
    """Make a part's scenes, ``train`` or ``test``, of the glyphs of that part of the data."""
    settings, data, rng = trial.settings, trial.data, trial.rng("scenes", part)
    if data.num_classes < KEY_CLASSES + 2:
        trial.skip(f"the scenes need at least {KEY_CLASSES + 2} classes; {data.num_classes} came.")
    count = round(settings.share * settings.train) if part == "train" else settings.test
    group = rng.integers(len(GROUPS), size=count)
    classes = cast(rng, group, data.num_classes, lookalikes=settings.lookalikes)
    centers = place(rng, count, settings.mu)
    order = rng.permuted(np.tile(np.arange(ACTORS), (count, 1)), axis=1)  # the list tells nothing
    classes, centers = (
        np.take_along_axis(classes, order, 1), np.take_along_axis(centers, order[..., None], 1)
    )  # fmt: skip
    return Scenes(
        draw_glyphs(rng, data, part, classes, settings.side),
        torch.from_numpy(centers).float(),
        torch.from_numpy(group),
        torch.from_numpy(classes),
        torch.from_numpy(order < 2),
    )


def cast(rng: Draws, group: np.ndarray, num_classes: int, *, lookalikes: bool) -> np.ndarray:
    """Draw every actor's class, (scenes, actors): pairs first, those of the key actors first.

    With lookalikes one actor of the last pair and two of the lone ones are of key classes.
    """
    count = len(group)
    classes = rng.integers(KEY_CLASSES, num_classes, size=(count, ACTORS))
    turned = rng.random(count) < 0.5
    keys = np.array(GROUPS)[group]
    classes[:, :2] = np.where(turned[:, None], keys[:, ::-1], keys)
    if lookalikes:
        among = [2 * PAIRS - 1, 2 * PAIRS, 2 * PAIRS + 1]
        classes[:, among] = rng.integers(KEY_CLASSES, size=(count, len(among)))
    return classes


def place(rng: Draws, count: int, mu: float) -> np.ndarray:
    """Draw places (count, actors, 2) in the unit square: partners within mu, all else beyond it.

    Scene by scene this is rejection sampling; all scenes go on at once, and those that find no
    place for a next actor begin again.
    """
    places = np.full((count, ACTORS, 2), np.inf)
    todo = np.arange(count)
    while len(todo):
        places[todo] = np.inf
        for first in [*range(0, 2 * PAIRS, 2), *range(2 * PAIRS, ACTORS)]:
            size = 2 if first < 2 * PAIRS else 1
            missing = todo
            for _ in range(50):
                found = _draw(rng, len(missing), size, mu)
                apart = np.linalg.norm(found[:, :, None] - places[missing][:, None], axis=3)
                fits = (apart > 1.05 * mu).all((1, 2)) & ((found >= 0) & (found <= 1)).all((1, 2))
                places[missing[fits], first : first + size] = found[fits]
                missing = missing[~fits]
        todo = np.flatnonzero(np.isinf(places).any((1, 2)))
    return places


def _draw(rng: Draws, count: int, size: int, mu: float) -> np.ndarray:
    """Draw one place, or two of partners."""
    one = rng.random((count, 1, 2))
    if size == 1:
        return one
    radius, angle = rng.uniform(0.6 * mu, 0.95 * mu, count), rng.uniform(0, 2 * np.pi, count)
    step = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([one, one + step[:, None]], axis=1)


def draw_glyphs(
    rng: Draws, data: ImageClassification, part: str, classes: np.ndarray, side: int
) -> Float[Tensor, "s n p"]:
    """Draw an image of every actor's class, grey and reduced to a side, as a vector."""
    images, labels = (data.train_x, data.train_y) if part == "train" else (data.test_x, data.test_y)
    rows = np.empty(classes.shape, dtype=np.int64)
    for label in np.unique(classes):
        wanted = classes == label
        rows[wanted] = rng.choice(np.flatnonzero(labels.numpy() == label), size=wanted.sum())
    chosen, place_of = np.unique(rows, return_inverse=True)
    grey = images[torch.from_numpy(chosen)].mean(1, keepdim=True)
    small = functional.adaptive_avg_pool2d(grey, min(side, grey.shape[-1])).flatten(1)
    return small[torch.from_numpy(place_of.reshape(classes.shape))]


def draw_scene(
    scenes: Scenes, number: int, scores: Float[Tensor, " n"], side: int = 240
) -> Float[np.ndarray, "h w 3"]:
    """Draw a scene: frames from blue (lowest score) to yellow (highest), keys underlined."""
    canvas = np.full((side, side, 3), 0.08)
    glyph, frame, bar = 18, 3, 4
    tile = glyph + 2 * frame
    corners = (scenes.centers[number] * (side - tile - 2 * bar)).int().tolist()
    pixels = round(scenes.glyphs.shape[2] ** 0.5)
    images = scenes.glyphs[number].view(-1, 1, pixels, pixels)
    grey = functional.interpolate(images, size=(glyph, glyph), mode="area").permute(0, 2, 3, 1)
    rank = scores.argsort().argsort().numpy() / (len(scores) - 1)
    for actor, (left, top) in enumerate(corners):
        here = canvas[top : top + tile, left : left + tile]
        here[:] = (1 - rank[actor]) * _LOWEST + rank[actor] * _HIGHEST
        here[frame:-frame, frame:-frame] = grey[actor].numpy()
    for actor in scenes.keys[number].nonzero().flatten().tolist():  # above what overlaps
        left, top = corners[actor]
        canvas[top + tile : top + tile + bar, left : left + tile] = 1.0
    return canvas
