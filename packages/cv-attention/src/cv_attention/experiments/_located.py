"""Scenes in which the place of every object is known.

A canvas of 64 x 64 pixels holds fragments of other images, 8 x 8 pixels each; on it stand one or
two whole objects of different classes. What a network compares an object with depends on the task:
the mean of its class, the nearest scene of its class in a gallery, or one support scene.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from cv_core.data.kinds import Characters, ImageClassification
from cv_core.data.scenes.dataset import SceneDataset
from cv_core.data.scenes.scene import Scene
from cv_core.data.scenes.spec import SceneSpec
from cv_core.data.sources import load
from cv_core.experiment.trial import Settings
from cv_core.random import derive_seed, torch_generator
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional

SIDE, FRAGMENT = 64, 8


@dataclass(frozen=True)
class Scenes:
    """Canvases and what stands on them.

    Args:
        images: In [0, 1].
        labels: Class of every object, for few shots its number in the episode.
        boxes: Around every object.
        absent: For every object a class that is not in its scene.
        support: For few shots, one scene of each class of the episode.
    """

    images: Float32[Tensor, "n c s s"]
    labels: Int64[Tensor, "n m"]
    boxes: Float32[Tensor, "n m 4"]
    absent: Int64[Tensor, "n m"]
    support: Float32[Tensor, "n ways c s s"] | None = None


@dataclass(frozen=True)
class Material:
    """All images of a task.

    Args:
        x: Training scenes.
        y: Their classes.
        nearest: Whether a class is represented by its training scene nearest to the query; if not,
            by the mean of its training scenes.
        validation: Scenes of one object, on which thresholds are chosen.
        test: Scenes of one object.
        pairs: Scenes of two objects.
    """

    x: Float32[Tensor, "n c h w"]
    y: Int64[Tensor, " n"]
    nearest: bool
    validation: Scenes
    test: Scenes
    pairs: Scenes


@lru_cache(maxsize=2)
def material_of(source: str, seed: int, items: tuple[tuple[str, Any], ...]) -> Material:
    """Compose all scenes of a seed; its arms share them within a process."""
    settings, data = Settings(items), load(source)
    if isinstance(data, Characters):
        return few_shots(data, settings, seed)
    if settings.retrieval:
        return retrieval(data, settings, seed)
    return classification(data, settings, seed, garments="fashion" in source)


def classification(
    data: ImageClassification, settings: Settings, seed: int, *, garments: bool
) -> Material:
    """Compose scenes of glyphs; a class is represented by the mean of its training scenes."""
    order = torch.randperm(len(data.train_y), generator=torch_generator(seed, "split"))
    held, fitted = order[: len(order) // 6], order[len(order) // 6 :]
    train_x, test_x = (x.mean(1, keepdim=True) for x in (data.train_x, data.test_x))
    glyphs = {
        "train": (train_x[fitted], data.train_y[fitted]),
        "validation": (train_x[held], data.train_y[held]),
        "test": (test_x, data.test_y),
    }

    def made(part: str, count: int, objects: int) -> Scenes:
        return glyph_scenes(
            *glyphs[part], count, objects, data.num_classes, derive_seed(seed, part, objects),
            share=settings.clutter, garments=garments,
        )  # fmt: skip

    train = made("train", settings.train, 1)
    return Material(
        train.images, train.labels[:, 0], nearest=False,
        validation=made("validation", settings.validation, 1),
        test=made("test", settings.test, 1),
        pairs=made("test", settings.test, 2),
    )  # fmt: skip


def retrieval(data: ImageClassification, settings: Settings, seed: int) -> Material:
    """Put photographs on canvases; a class is represented by its nearest training scene."""
    order = torch.randperm(len(data.train_y), generator=torch_generator(seed, "split"))
    held, fitted = order[: len(order) // 6], order[len(order) // 6 :]

    def made(part: str, x: Tensor, y: Tensor, count: int, objects: int) -> Scenes:
        stream = derive_seed(seed, part, objects)
        return tile_scenes(x, y, count, objects, data.num_classes, stream, share=settings.clutter)

    train = made("train", data.train_x[fitted], data.train_y[fitted], settings.train, 1)
    held_x, held_y = data.train_x[held], data.train_y[held]
    return Material(
        train.images, train.labels[:, 0], nearest=True,
        validation=made("validation", held_x, held_y, settings.validation, 1),
        test=made("test", data.test_x, data.test_y, settings.test, 1),
        pairs=made("test", data.test_x, data.test_y, settings.test, 2),
    )  # fmt: skip


def few_shots(data: Characters, settings: Settings, seed: int) -> Material:
    """Compose scenes of characters; those of the test are neither trained on nor validated."""
    kinds = torch.randperm(int(data.character.max()) + 1, generator=torch_generator(seed, "split"))
    novel = settings.novel
    test, held, base = kinds.split([novel, novel, len(kinds) - 2 * novel])
    base = base[: settings.base]
    train = glyph_scenes(
        *drawn(data, base), settings.train, 1, len(base), derive_seed(seed, "train"),
        share=settings.clutter,
    )  # fmt: skip

    def made(part: str, kinds: Tensor, count: int, objects: int) -> Scenes:
        return episodes(data, kinds, settings, count, objects, derive_seed(seed, part, objects))

    return Material(
        train.images, train.labels[:, 0], nearest=False,
        validation=made("validation", held, settings.validation, 1),
        test=made("test", test, settings.test, 1),
        pairs=made("test", test, settings.test, 2),
    )  # fmt: skip


def episodes(
    data: Characters,
    kinds: Int64[Tensor, " k"],
    settings: Settings,
    count: int,
    objects: int,
    seed: int,
) -> Scenes:
    """Compose scenes, each with one support scene of every class of its episode.

    An episode holds the classes of the scene and others. Supports show other drawings.
    """
    glyphs, labels = drawn(data, kinds)
    asked = torch.arange(len(labels)) % 2 == 0
    scenes = glyph_scenes(
        glyphs[asked], labels[asked], count, objects, len(kinds), seed, share=settings.clutter
    )
    supports = [
        glyph_scenes(
            glyphs[of], labels[of], settings.supports, 1, len(kinds), derive_seed(seed, number),
            share=settings.clutter,
        ).images
        for number in range(len(kinds))
        for of in [~asked & (labels == number)]
    ]  # fmt: skip
    generator = torch_generator(seed, "episodes")
    chance = torch.rand(count, len(kinds), generator=generator).scatter(1, scenes.labels, 2.0)
    classes = chance.topk(settings.test_ways, dim=1).indices  # the scene's own come first
    drawing = torch.randint(settings.supports, classes.shape, generator=generator)
    return Scenes(
        scenes.images,
        labels=(classes[:, None] == scenes.labels[:, :, None]).int().argmax(2),
        boxes=scenes.boxes,
        absent=torch.randint(objects, classes.shape[1], (count, objects), generator=generator),
        support=torch.stack(supports)[classes, drawing],
    )


def drawn(data: Characters, kinds: Int64[Tensor, " k"]) -> tuple[Tensor, Tensor]:
    """Decode all drawings of some characters, 28 x 28, with labels in the order given."""
    label = {int(kind): number for number, kind in enumerate(kinds)}
    rows = [row for row, kind in enumerate(data.character.tolist()) if kind in label]
    whole = torch.stack([data.images[row] for row in rows])
    small = functional.interpolate(whole, size=(28, 28), mode="area")
    return small, torch.tensor([label[int(data.character[row])] for row in rows])


def glyph_scenes(
    glyphs: Float[Tensor, "n 1 h w"],
    labels: Int64[Tensor, " n"],
    count: int,
    objects: int,
    classes: int,
    seed: int,
    *,
    share: float,
    garments: bool = False,
) -> Scenes:
    """Compose white glyphs on fragments of the same glyphs, which fill a share of the canvas."""
    factor = max(1, round(24 / glyphs.shape[-1]))
    large = functional.interpolate(glyphs, scale_factor=factor, mode="bilinear")
    generator = torch_generator(seed, "clutter")
    canvases = clutter(large, min(count, 400), share, generator).expand(-1, 3, -1, -1)
    spec = SceneSpec(
        height=SIDE, width=SIDE, objects=(objects, objects), scale=(0.4, 0.5), max_overlap=0.0,
        colours=("white",), appearance="garment" if garments else "ink",
    )  # fmt: skip
    # more than enough: what lacks an object or shows a class twice is left out
    made = SceneDataset(spec, glyphs, labels, list(canvases), length=50 * count, seed=seed)
    found = list(islice(complete(made, objects), count))
    shown = torch.stack([scene.labels for scene in found])
    return Scenes(
        torch.stack([scene.image[:1] for scene in found]),
        shown,
        torch.stack([scene.boxes for scene in found]),
        absent_classes(shown, classes, generator),
    )


def complete(scenes: SceneDataset, objects: int) -> Iterable[Scene]:
    """Yield the scenes that hold so many objects, of different classes."""
    for number in range(len(scenes)):
        scene = scenes[number]
        if len(scene.labels.unique()) == objects:
            yield scene


def tile_scenes(
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    count: int,
    objects: int,
    classes: int,
    seed: int,
    *,
    share: float,
) -> Scenes:
    """Put whole images of 32 x 32 pixels into different quadrants of canvases."""
    generator = torch_generator(seed, "tiles")
    canvases = clutter(x, count, share, generator)
    rows = torch.randint(len(y), (count, objects), generator=generator)
    while bool((again := y[rows][:, :1] == y[rows][:, 1:]).any()):  # the same class twice
        where = again.any(1)
        rows[where] = torch.randint(len(y), (int(where.sum()), objects), generator=generator)
    place = torch.rand(count, 4, generator=generator).argsort(1)[:, :objects]
    half = SIDE // 2
    corner = torch.stack([place % 2, place // 2], dim=2) * half  # x, y
    for number in range(count):
        for row, (left, top) in zip(rows[number], corner[number].tolist(), strict=True):
            canvases[number, :, top : top + half, left : left + half] = x[row]
    boxes = torch.cat([corner, corner + half], dim=2).float()
    return Scenes(canvases, y[rows], boxes, absent_classes(y[rows], classes, generator))


def clutter(
    images: Float[Tensor, "n c h w"], count: int, share: float, generator: torch.Generator
) -> Float[Tensor, "count c s s"]:
    """Fill a share of black canvases with fragments, each from a random place of a random image."""
    cells, fragments = SIDE // FRAGMENT, images.unfold(2, FRAGMENT, 1).unfold(3, FRAGMENT, 1)
    shape = (count, cells, cells)
    image, top, left = (
        torch.randint(size, shape, generator=generator) for size in
        (len(images), fragments.shape[2], fragments.shape[3])
    )  # fmt: skip
    chosen = fragments[image, :, top, left]  # count, cells down, cells across, channels, rows, ...
    kept = torch.rand(shape, generator=generator) < share
    chosen = chosen * kept[..., None, None, None]
    return chosen.permute(0, 3, 1, 4, 2, 5).reshape(count, -1, SIDE, SIDE)


def absent_classes(
    labels: Int64[Tensor, "n m"], classes: int, generator: torch.Generator
) -> Int64[Tensor, "n m"]:
    """Draw for every object a class that its scene does not show."""
    open_to = torch.ones(len(labels), classes).scatter(1, labels, 0.0)
    return open_to.multinomial(labels.shape[1], replacement=True, generator=generator)
