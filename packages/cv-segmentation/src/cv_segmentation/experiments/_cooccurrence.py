"""Scenes in which every class has a context of its own, with exact masks.

Real glyphs or garments of five classes stand on real textures, cut from two photographs: sky,
temple, foliage, petals, leaves. A class is on its own texture most of the time, so that a
classifier can tell it by the texture alone; a quarter of the scenes show two classes on the texture
of one of them. Objects are white and textures at half their brightness, or networks this small
would hardly see the objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from cv_core.data.kinds import ImageClassification
from cv_core.data.scenes.backgrounds import sample_photographs
from cv_core.data.scenes.compose import compose
from cv_core.data.scenes.scene import Scene
from cv_core.data.scenes.spec import Appearance, SceneSpec
from cv_core.data.sources import load
from cv_core.experiment.trial import Settings
from cv_core.random import derive_seed, numpy_generator, torch_generator
from jaxtyping import Float, Float32, Int64
from torch import Tensor

CLASSES = 5
BRIGHTNESS = 0.5  # of the textures

# Which of the sample photographs (temple, flower), rows, columns.
_REGIONS = (
    (0, slice(10, 200), slice(335, 640)),  # sky
    (0, slice(70, 340), slice(95, 330)),  # temple
    (0, slice(290, 427), slice(340, 560)),  # foliage
    (1, slice(100, 340), slice(195, 425)),  # petals
    (1, slice(40, 330), slice(0, 160)),  # leaves
)


@dataclass(frozen=True)
class Scenes:
    """Composed pictures.

    Args:
        images: In [0, 1].
        labels: 1 for each class that is shown.
        masks: Class plus one of every pixel, 0 for the background.
        textures: Which texture is the background; a class's own has its number.
    """

    images: Float32[Tensor, "n 3 s s"]
    labels: Float32[Tensor, "n c"]
    masks: Int64[Tensor, "n s s"]
    textures: Int64[Tensor, " n"]


@dataclass(frozen=True)
class Material:
    """All scenes of a seed; the parts show different glyphs.

    Args:
        general: On any texture, for weights to begin with.
        train: With labels that may be used; masks are not looked at.
        validation: On which thresholds are chosen.
        test: On which is judged.
        foreign: One object each, never on its own texture.
    """

    general: Scenes
    train: Scenes
    validation: Scenes
    test: Scenes
    foreign: Scenes


def normalised(images: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Return images in [0, 1] as networks take them, in [-2, 2]."""
    return (images - 0.5) / 0.25


@lru_cache(maxsize=2)
def material_of(source: str, seed: int, items: tuple[tuple[str, Any], ...]) -> Material:
    """Compose all scenes of a seed; its arms share them within a process."""
    settings, data = Settings(items), load(source)
    glyphs = _glyphs(data, seed)

    def made(part: str, glyphs_of: str, count: int, own: float, pairs: float) -> Scenes:
        return cooccurring_scenes(
            *glyphs[glyphs_of], count, derive_seed(seed, part), size=settings.size, own=own,
            pairs=pairs, appearance="garment" if "fashion" in source else "ink",
        )  # fmt: skip

    return Material(
        made("general", "train", settings.general, 1 / CLASSES, 0.25),
        made("train", "train", settings.train, settings.own, 0.25),
        made("validation", "validation", settings.validation, settings.own, 0.25),
        made("test", "test", settings.test, settings.own, 0.25),
        made("foreign", "test", settings.foreign, 0.0, 0.0),
    )


@lru_cache(maxsize=1)
def textures() -> tuple[Float32[np.ndarray, "3 _ _"], ...]:
    """Return one texture for each class; they are kept in memory: treat them as read-only."""
    photographs = [np.float32(BRIGHTNESS) * each for each in sample_photographs((1.0,))]
    return tuple(photographs[number][:, rows, columns] for number, rows, columns in _REGIONS)


def cooccurring_scenes(
    glyphs: Float[Tensor, "m h w"],
    classes: Int64[Tensor, " m"],
    count: int,
    seed: int,
    *,
    size: int,
    own: float = 0.9,
    pairs: float = 0.25,
    appearance: Appearance = "ink",
) -> Scenes:
    """Compose scenes whose textures go with their classes.

    Args:
        glyphs: Bright ink on black, in [0, 1].
        classes: Below ``CLASSES``, each at least once.
        count: How many scenes; scene i depends on ``seed`` and i alone.
        seed: Of all draws.
        size: Side of a scene in pixels.
        own: Share of the scenes on the texture of a class that they show. The others are on that of
            one that they do not show.
        pairs: Share of the scenes with two objects, of different classes.
        appearance: Of the glyphs.
    """
    one, two = (
        SceneSpec(
            height=size, width=size, objects=(many, many), scale=(0.45, 0.65), colours=("white",),
            appearance=appearance,
        )
        for many in (1, 2)
    )  # fmt: skip
    grounds = textures()
    rows = [(classes == label).nonzero()[:, 0].numpy() for label in range(CLASSES)]
    found: list[Scene] = []
    chosen: list[int] = []
    for number in range(count):
        rng = numpy_generator(seed, "scene", number)
        shown = rng.permutation(CLASSES)
        many = 1 + int(rng.random() < pairs)
        on_own = rng.random() < own
        # the first class shown is the one whose texture is taken, or the first that is not shown
        chosen.append(int(shown[0] if on_own else shown[many]))
        picked = torch.from_numpy(np.array([rng.choice(rows[label]) for label in shown[:many]]))
        arguments = (glyphs[picked], classes[picked], [grounds[chosen[-1]]], rng)
        scene = compose(two if many == 2 else one, *arguments)
        while len(scene.labels.unique()) < many:  # twice the same, or no room for the second
            scene = compose(two, *arguments)
        found.append(scene)
    labels = torch.zeros(count, CLASSES)
    for row, scene in zip(labels, found, strict=True):
        row[scene.labels] = 1.0
    return Scenes(
        torch.stack([scene.image for scene in found]),
        labels,
        torch.stack([scene.semantic_mask() for scene in found]),
        torch.tensor(chosen),
    )


def _glyphs(data: ImageClassification, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the glyphs of each part; a sixth of the training glyphs is for validation."""
    train, test = (y < CLASSES for y in (data.train_y, data.test_y))
    train_x, train_y = data.train_x[train].mean(1), data.train_y[train]
    order = torch.randperm(len(train_y), generator=torch_generator(seed, "glyphs"))
    held, fitted = order[: len(order) // 6], order[len(order) // 6 :]
    return {
        "train": (train_x[fitted], train_y[fitted]),
        "validation": (train_x[held], train_y[held]),
        "test": (data.test_x[test].mean(1), data.test_y[test]),
    }
