"""Constructed interactions: two real glyphs whose relation a predicate names, and their features.

A scene holds a subject and an object, two glyphs on 64 x 64 pixels, in one of six spatial
relations. A predicate is a name for a relation, and which one depends on the object, its group or
neither: that is a ``Meaning``. Triplets follow Zipf's law in training and are equally frequent in
the test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from cv_core.data.kinds import ImageClassification
from cv_core.data.scenes.sprites import opacity
from cv_core.data.sources import load
from cv_core.engine.loader import TensorLoader
from cv_core.engine.loop import fit
from cv_core.engine.task import SupervisedTask
from cv_core.experiment.trial import Settings
from cv_core.models.small import SmallCNN
from cv_core.optional import require
from cv_core.random import numpy_generator, seeded, torch_generator
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from cv_graph.interactions import pair_spatial_features
from cv_graph.label_merging import object_embedding

Meaning = Literal["group", "none", "object"]

RELATIONS = ("above", "below", "left of", "right of", "on", "inside")
PREDICATES = "ABCDEF"
SIDE = 64
_CROP = 16
_DIRECTIONS = {"above": -90.0, "below": 90.0, "left of": 180.0, "right of": 0.0}
_SPREAD = 25.0  # degrees, one standard deviation

_GROUPS = {
    "digits": ((0, 6, 8, 9), (1, 4, 7), (2, 3, 5)),  # with loops, strokes, open curves
    "fashion": ((0, 2, 4, 6), (5, 7, 9), (1, 3, 8)),  # tops, shoes, trousers with dress and bag
}


@dataclass(frozen=True)
class World:
    """What can be said, and what it means.

    Args:
        triplets: Predicate and object class of each label.
        relation: Index into ``RELATIONS`` of each label.
        groups: True group of each object class.
        frequency: Share of each label in training.
    """

    triplets: Int64[Tensor, "c 2"]
    relation: Int64[Tensor, " c"]
    groups: Int64[Tensor, " n"]
    frequency: Float[np.ndarray, " c"]

    @property
    def functions(self) -> Float[Tensor, "n p"]:
        """Which predicates each object class is defined with."""
        defined = torch.zeros(len(self.groups), len(PREDICATES))
        defined[self.triplets[:, 1], self.triplets[:, 0]] = 1.0
        return defined


def make_world(meaning: Meaning, groups: Sequence[int], rng: np.random.Generator) -> World:
    """Say which triplets there are, how frequent they are and what they mean.

    The triplets and their frequencies are the same for all three meanings. Each group lacks one
    predicate, so that a class's predicates tell something of its group.
    """
    names = len(PREDICATES)
    triplets = [
        (p, o) for p in range(names) for o, group in enumerate(groups) if p != 2 * group % names
    ]
    rank = rng.permutation(len(triplets)) + 1.0
    of_object = [rng.permutation(names) for _ in groups]
    relation = [
        {"none": p, "group": (p + 2 * groups[o]) % names, "object": int(of_object[o][p])}[meaning]
        for p, o in triplets
    ]
    return World(
        torch.tensor(triplets), torch.tensor(relation), torch.tensor(groups),
        (1.0 / rank) / (1.0 / rank).sum(),
    )  # fmt: skip


def groups_of(source: str, classes: int) -> list[int]:
    """Return the group of each class: by shape for digits, by kind for garments, else by number."""
    members = _GROUPS["fashion" if "fashion" in source else "digits"]
    if classes != sum(map(len, members)):
        return [number % 3 for number in range(classes)]
    return [next(g for g, some in enumerate(members) if c in some) for c in range(classes)]


@dataclass(frozen=True)
class Scenes:
    """Composed images with the boxes of subject and object and what is true of them."""

    images: Float32[Tensor, "n 1 h w"]
    boxes: Float32[Tensor, "n 2 4"]
    classes: Int64[Tensor, "n 2"]
    label: Int64[Tensor, " n"]


def compose_scenes(
    glyphs: Float32[Tensor, "g 1 h w"],
    classes: Int64[Tensor, " g"],
    objects: Sequence[int],
    relations: Sequence[int],
    label: Int64[Tensor, " n"],
    rng: np.random.Generator,
    *,
    garments: bool,
) -> Scenes:
    """Paste a glyph of each object class and any glyph as its subject, in the relation given."""
    ink = glyphs[:, 0].numpy()
    members = [(classes == c).nonzero()[:, 0].numpy() for c in range(int(classes.max()) + 1)]
    canvas = np.zeros((len(objects), SIDE, SIDE), dtype=np.float32)
    boxes = np.zeros((len(objects), 2, 4), dtype=np.float32)
    chosen = np.zeros((len(objects), 2), dtype=np.int64)
    for index, (target, relation) in enumerate(zip(objects, relations, strict=True)):
        chosen[index] = rng.integers(len(ink)), rng.choice(members[target])
        sides, offset = _geometry(RELATIONS[relation], rng)
        sprites = [
            opacity(ink[which], side, "garment" if garments else "ink")
            for which, side in zip(chosen[index], sides, strict=True)
        ]
        sizes = np.array([alpha.shape[::-1] for alpha, _ in sprites], dtype=float)  # width, height
        corners = _corners(sizes, offset, rng)
        for who, tone in ((1, 0.6), (0, 1.0)):  # the subject lies on top
            alpha, shade = sprites[who]
            (left, top), (height, width) = corners[who], alpha.shape
            part = canvas[index, top : top + height, left : left + width]
            value = tone * (0.35 + 0.65 * shade) if garments else tone
            part += alpha * (value - part)
            boxes[index, who] = left, top, left + width, top + height
    return Scenes(
        torch.from_numpy(canvas)[:, None], torch.from_numpy(boxes), classes[chosen], label
    )


def _geometry(
    relation: str, rng: np.random.Generator
) -> tuple[tuple[int, int], Float[np.ndarray, " 2"]]:
    """Return the longer sides of subject and object, and the way from object to subject."""
    if relation == "inside":
        subject, target = int(rng.integers(9, 13)), int(rng.integers(26, 33))
        angle, distance = rng.uniform(0, 360), rng.uniform(0, 0.3) * target / 2
    else:
        subject, target = int(rng.integers(14, 23)), int(rng.integers(18, 27))
        angle, near = rng.uniform(0, 360), rng.uniform(0, 0.4)
        if relation in _DIRECTIONS:
            angle, near = rng.normal(_DIRECTIONS[relation], _SPREAD), rng.uniform(0.6, 1.0)
        distance = near * (subject + target) / 2
    radians = np.deg2rad(angle)
    return (subject, target), distance * np.array([np.cos(radians), np.sin(radians)])


def _corners(
    sizes: Float[np.ndarray, "2 2"], offset: Float[np.ndarray, " 2"], rng: np.random.Generator
) -> list[list[int]]:
    """Return upper left corners of subject and object: anywhere, as long as both are inside."""
    away = np.stack([offset, np.zeros(2)])  # from the object's centre
    low = (sizes / 2 - away).max(0)
    high = (SIDE - sizes / 2 - away).min(0)
    corners = rng.uniform(low, high) + away - sizes / 2
    return np.clip(corners.round(), 0, SIDE - sizes).astype(int).tolist()


@dataclass(frozen=True)
class Part:
    """Graphs of subject, object and whole image, their labels and what was detected."""

    scenes: Scenes
    nodes: Float32[Tensor, "n 3 d"]
    spatial: Float32[Tensor, "n 3 3 16"]
    object_class: Int64[Tensor, " n"]
    object_score: Float32[Tensor, " n"]


@dataclass(frozen=True)
class Bench:
    """What all arms of one seed and meaning share."""

    world: World
    embedding: Float[Tensor, "n d"]
    train: Part
    test: Part

    @property
    def counts(self) -> Int64[Tensor, " c"]:
        """How often each label occurs in training."""
        return self.train.scenes.label.bincount(minlength=len(self.world.triplets))


SHARED = ("train", "per_triplet", "detector_scenes", "detector_steps", "width")


@lru_cache(maxsize=2)
def prepare(source: str, seed: int, meaning: Meaning, items: tuple[tuple[str, Any], ...]) -> Bench:
    """Compose scenes and compute their graphs; the arms of one seed share them in a process."""
    settings, data = Settings(items), load(source)
    groups = groups_of(source, data.num_classes)
    world = make_world(meaning, groups, numpy_generator(seed, "world"))
    detector = trained_detector(source, seed, items)
    copies = np.maximum(1, (settings.train * world.frequency).round()).astype(int)
    labels = torch.arange(len(copies))
    scenes = [
        _scenes_of(data, part, source, world, label, numpy_generator(seed, part, meaning))
        for part, label in (
            ("train", labels.repeat_interleave(torch.from_numpy(copies))),
            ("test", labels.repeat_interleave(settings.per_triplet)),
        )
    ]
    found = [detect(detector, part) for part in scenes]
    features = [item[0] for item in found]
    mean = features[0].mean((0, 1))
    scale = features[0].std((0, 1)).clamp(min=1e-3)
    train, test = (
        Part(part, (nodes - mean) / scale, spatial_features(part), target, score)
        for part, (nodes, target, score) in zip(scenes, found, strict=True)
    )
    embedding = object_embedding(detector.fc.weight.detach(), world.functions)
    return Bench(world, embedding, train, test)


def _scenes_of(
    data: ImageClassification,
    part: str,
    source: str,
    world: World,
    label: Int64[Tensor, " n"],
    rng: np.random.Generator,
) -> Scenes:
    glyphs, classes = (
        (data.train_x, data.train_y) if part == "train" else (data.test_x, data.test_y)
    )
    return compose_scenes(
        glyphs, classes, world.triplets[label, 1].tolist(), world.relation[label].tolist(), label,
        rng, garments="fashion" in source,
    )  # fmt: skip


@lru_cache(maxsize=8)
def trained_detector(source: str, seed: int, items: tuple[tuple[str, Any], ...]) -> SmallCNN:
    """Train a classifier of boxes on scenes of its own, in any relation: no predicate is seen."""
    settings, data = Settings(items), load(source)
    rng = numpy_generator(seed, "detector")
    count = settings.detector_scenes
    scenes = compose_scenes(
        data.train_x, data.train_y, rng.integers(data.num_classes, size=count).tolist(),
        rng.integers(len(RELATIONS), size=count).tolist(), torch.zeros(count, dtype=torch.long),
        rng, garments="fashion" in source,
    )  # fmt: skip
    with seeded(seed, "detector"):
        model = SmallCNN(1, data.num_classes, settings.width)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    loader = TensorLoader(
        crops(scenes.images, scenes.boxes), scenes.classes.flatten(), batch_size=64, shuffle=True,
        seed=torch_generator(seed, "detector's order"),
    )  # fmt: skip
    steps = settings.detector_steps
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    fit(SupervisedTask(model), loader, optimizer, max_steps=steps, scheduler=schedule)
    return model.eval()


def crops(
    images: Float32[Tensor, "n 1 h w"], boxes: Float32[Tensor, "n m 4"]
) -> Float32[Tensor, "nm 1 s s"]:
    """Cut boxes out of images and bring them to one size."""
    ops = require("torchvision.ops", package="cv-graph", extra="lab", purpose="cutting out boxes")
    found: Tensor = ops.roi_align(images, list(boxes), _CROP, sampling_ratio=2, aligned=True)
    return found


def with_image(boxes: Float32[Tensor, "n 2 4"]) -> Float32[Tensor, "n 3 4"]:
    """Add the whole image as a third box."""
    whole = torch.tensor([0.0, 0.0, SIDE, SIDE]).expand(len(boxes), 1, 4)
    return torch.cat([boxes, whole], dim=1)


def detect(
    detector: SmallCNN, scenes: Scenes
) -> tuple[Float32[Tensor, "n 3 d"], Int64[Tensor, " n"], Float32[Tensor, " n"]]:
    """Return features of subject, object and image, and the object's class and confidence."""
    features = nn.Sequential(*list(detector.children())[:-1], nn.Flatten())
    with torch.no_grad():
        nodes = features(crops(scenes.images, with_image(scenes.boxes))).unflatten(0, (-1, 3))
        score, target = detector.fc(nodes[:, 1]).softmax(1).max(1)
    return nodes, target, score


def spatial_features(scenes: Scenes) -> Float32[Tensor, "n 3 3 16"]:
    """Return the spatial features of all pairs of subject, object and image."""
    boxes = with_image(scenes.boxes)
    return pair_spatial_features(boxes, boxes, (SIDE, SIDE))
