"""Classifiers with and without sub-categories and pasted objects, and with what they are tested by.

All begin with the same weights, which were learnt on scenes where contexts tell nothing (the paper
begins with ImageNet's), and take as many steps of as many pictures. Where objects are
pasted, half of a batch are copies of the other half with something pasted, as in the paper, so that
such a network sees half as many originals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from cv_core.engine.loop import fit
from cv_core.engine.task import FunctionTask
from cv_core.experiment.trial import Settings, Trial
from cv_core.nn.blocks import ConvNormAct
from cv_core.random import derive_seed, seeded, torch_generator
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from cv_segmentation.cam_classifier import CAMClassifier, evaluating
from cv_segmentation.context_decoupling import ContextDecoupling, Cut, cut_objects
from cv_segmentation.crf import dense_crf
from cv_segmentation.experiments._cooccurrence import (
    CLASSES,
    Material,
    Scenes,
    material_of,
    normalised,
)
from cv_segmentation.seeds import refine_seeds, seed_miou
from cv_segmentation.subcategories import subcategory_labels, subcategory_loss

THRESHOLDS = tuple(number / 20 for number in range(1, 19))
PLACES = 8  # where a crop of the background is looked for


@dataclass(frozen=True)
class Recipe:
    """What a classifier is trained with.

    Args:
        sub: Sub-categories: none, k-means' clusters, or random groups of the same sizes.
        paste: What is pasted: nothing, objects with their labels, or background without labels.
    """

    sub: Literal["none", "clusters", "random"] = "none"
    paste: Literal["none", "objects", "background"] = "none"

    def teacher(self) -> Recipe | None:
        """Return the classifier whose features or maps this one is made with."""
        if self.paste != "none":
            return replace(self, paste="none")
        return Recipe() if self.sub != "none" else None


@dataclass(frozen=True)
class Trained:
    """A classifier in evaluation mode, and the steps of it and its teachers."""

    model: CAMClassifier
    steps: int


def crf_of(size: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a dense CRF whose scales, usual for sides of 500 pixels, fit another side."""
    shrunk = size / 500
    return partial(
        dense_crf, position_scale=60 * shrunk, gaussian_scale=max(1.0, 3 * shrunk), stride=3
    )


def trained(trial: Trial, recipe: Recipe) -> tuple[Trained, Material]:
    """Return a classifier and its scenes; the arms of one seed share them within a process."""
    items = tuple(sorted(trial.settings.items()))
    found = _trained(trial.source, trial.seed, recipe, trial.device, items)
    return found, material_of(trial.source, trial.seed, items)


@lru_cache(maxsize=8)
def _trained(
    source: str, seed: int, recipe: Recipe, device: str, items: tuple[tuple[str, Any], ...]
) -> Trained:
    settings, material = Settings(items), material_of(source, seed, items)
    teacher = recipe.teacher()
    taught = None if teacher is None else _trained(source, seed, teacher, device, items)
    y_sub, n_sub, decouple = material.train.labels, None, None
    if recipe.sub != "none":
        root = _trained(source, seed, Recipe(), device, items)
        n_sub = settings.clusters
        y_sub = sub_labels(root.model, material, recipe.sub, n_sub, seed)
    if taught is not None and recipe.paste != "none":
        objects = objects_of(taught.model, material, y_sub, settings.objects)
        if recipe.paste == "background":
            objects = backgrounds_for(objects, material, seed)
        decouple = ContextDecoupling(objects) if objects else None  # no seeds, no objects
    with seeded(seed, "heads"):
        model = network(settings.width, n_sub)
    model.backbone.load_state_dict(_first_weights(source, seed, device, items))
    model = model.to(device).to(memory_format=torch.channels_last)
    batches = Batches(
        material.train, y_sub, n_sub or 1, decouple, labelled=recipe.paste == "objects", seed=seed
    )
    train(
        model, batches, seed, batch=settings.batch, steps=settings.steps, rate=settings.rate,
        gamma=settings.gamma,
    )  # fmt: skip
    before = settings.first_steps if taught is None else taught.steps
    return Trained(model.eval(), settings.steps + before)


@lru_cache(maxsize=2)
def _first_weights(
    source: str, seed: int, device: str, items: tuple[tuple[str, Any], ...]
) -> dict[str, Tensor]:
    """Return weights of a backbone that tells the classes on any texture, as ImageNet's would."""
    settings, scenes = Settings(items), material_of(source, seed, items).general
    with seeded(seed, "init"):
        model = network(settings.width, None)
    model = model.to(device).to(memory_format=torch.channels_last)
    batches = Batches(scenes, scenes.labels, 1, None, labelled=False, seed=seed)
    train(
        model, batches, seed, batch=settings.batch, steps=settings.first_steps,
        rate=settings.first_rate, gamma=0.0,
    )  # fmt: skip
    return model.backbone.state_dict()


def network(width: int, n_sub: int | None) -> CAMClassifier:
    """Build four convolutions that end at a quarter of the side."""
    backbone = nn.Sequential(
        ConvNormAct(3, width, stride=2),
        ConvNormAct(width, 2 * width, stride=2),
        ConvNormAct(2 * width, 2 * width),
        ConvNormAct(2 * width, 2 * width),
    )
    return CAMClassifier(backbone, CLASSES, n_sub, channels=2 * width)


class Batches:
    """Draws batches of normalised images with labels of classes and of sub-categories.

    Args:
        scenes: Where to draw from.
        y_sub: Labels of sub-categories, ``k`` for each class; those of classes where ``k`` is 1.
        k: Sub-categories of each class.
        decouple: Pastes normalised objects of sub-categories into half of a batch.
        labelled: Whether what is pasted changes the labels.
        seed: Of all draws.
    """

    def __init__(
        self,
        scenes: Scenes,
        y_sub: Float[Tensor, "n ck"],
        k: int,
        decouple: ContextDecoupling | None,
        *,
        labelled: bool,
        seed: int,
    ) -> None:
        self.images = normalised(scenes.images)
        self.labels = scenes.labels
        self.y_sub = y_sub
        self.k = k
        self.decouple = decouple
        self.labelled = labelled
        self.generator = torch_generator(seed, "pasting")

    def __call__(self, index: Int64[Tensor, " b"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, labels and sub-labels of some scenes, or of half of them twice."""
        if self.decouple is not None:
            index = index[: len(index) // 2]
        x, y, y_sub = (part[index] for part in (self.images, self.labels, self.y_sub))
        if self.decouple is not None:
            changed = [self._pasted(*row) for row in zip(x, y, y_sub, strict=True)]
            x, y, y_sub = (
                torch.cat([part, torch.stack(more)])
                for part, more in zip((x, y, y_sub), zip(*changed, strict=True), strict=True)
            )
        return x, y, y_sub

    def _pasted(self, x: Tensor, y: Tensor, y_sub: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.decouple is not None  # noqa: S101 - for the type checker
        # all sub-categories of a class that is shown count as shown
        shown = y.repeat_interleave(self.k)
        image, after, _ = self.decouple(x, shown, self.generator)
        if not self.labelled:
            return image, y, y_sub
        added = after - shown
        return image, y + added.view(len(y), self.k).sum(1), y_sub + added


def train(
    model: CAMClassifier,
    batches: Batches,
    seed: int,
    *,
    batch: int,
    steps: int,
    rate: float,
    gamma: float,
) -> None:
    """Train a classifier by Adam; every recipe draws the same scenes in the same order."""
    device = next(model.parameters()).device
    generator, count = torch_generator(seed, "batches"), len(batches.labels)
    order = [torch.randint(count, (batch,), generator=generator) for _ in range(steps)]

    def step(model: nn.Module, index: Tensor) -> dict[str, Tensor]:
        x, y, y_sub = (part.to(device) for part in batches(index.cpu()))
        outputs = model(x)
        if isinstance(outputs, tuple):
            logits, sub_logits = outputs
            return {"loss": subcategory_loss(logits, sub_logits, y, y_sub, gamma)}
        return {"loss": functional.binary_cross_entropy_with_logits(outputs, y)}

    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    fit(
        FunctionTask(model, step),
        order,
        optimizer,
        epochs=1,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    )


def sub_labels(
    model: CAMClassifier, material: Material, sub: str, clusters: int, seed: int
) -> Float[Tensor, "n ck"]:
    """Cluster the training scenes, or deal out the clusters' labels anew within each class."""
    y, device = material.train.labels, next(model.parameters()).device
    with torch.no_grad(), evaluating(model):
        parts = normalised(material.train.images).split(500)
        features = torch.cat([model.features(x.to(device)).mean((2, 3)).cpu() for x in parts])
    found = subcategory_labels(features, y, clusters, seed)
    if sub == "clusters":
        return found
    generator = torch_generator(seed, "random sub-labels")
    dealt = found.view(len(y), CLASSES, clusters).clone()
    for label in range(CLASSES):
        rows = y[:, label].nonzero()[:, 0]
        mixed = rows[torch.randperm(len(rows), generator=generator)]
        dealt[rows, label] = found.view_as(dealt)[mixed, label]
    return dealt.flatten(1)


def best_threshold(maps: Float[Tensor, "n c h w"], masks: Int64[Tensor, "n s s"]) -> float:
    """Return the threshold whose seeds are best; the lowest of several."""
    scores = seed_miou(maps, masks, THRESHOLDS).tolist()
    return THRESHOLDS[scores.index(max(scores))]


def plain_maps(model: CAMClassifier, scenes: Scenes) -> Float[Tensor, "n c h w"]:
    """Return the maps of the classes that are shown."""
    device = next(model.parameters()).device
    parts = normalised(scenes.images).split(500)
    maps = torch.cat([model.cam(part.to(device)).cpu() for part in parts])
    return maps * scenes.labels[:, :, None, None]


def objects_of(
    model: CAMClassifier, material: Material, y_sub: Float[Tensor, "n ck"], count: int
) -> dict[int, list[Cut]]:
    """Cut objects out of the first scenes that show one class, by refined seeds.

    Args:
        model: Makes the seeds; their threshold is the best one for the validation scenes.
        material: The scenes.
        y_sub: Labels under which the objects are kept: of sub-categories, or of classes.
        count: Of how many scenes.
    """
    held, train = material.validation, material.train
    threshold = best_threshold(plain_maps(model, held), held.masks)
    rows = (train.labels.sum(1) == 1).nonzero()[:count, 0]
    some = Scenes(*(part[rows] for part in vars(train).values()))
    images = some.images
    seeds = refine_seeds(plain_maps(model, some), images, threshold, crf=crf_of(images.shape[-1]))
    # one class each: its seeds are those of its sub-category
    number = y_sub[rows].argmax(1)[:, None, None] + 1
    return cut_objects(normalised(images), torch.where(seeds > 0, number, 0), y_sub[rows])


def backgrounds_for(
    objects: dict[int, list[Cut]], material: Material, seed: int
) -> dict[int, list[Cut]]:
    """Fill the objects' masks with crops of the background, which show no object.

    The true masks tell where the background is: the control gets it cleaner than seeds could.
    """
    generator = torch_generator(derive_seed(seed, "background"))
    images, masks = normalised(material.train.images), material.train.masks

    def crop(height: int, width: int) -> Tensor:
        found = []
        for _ in range(PLACES):
            image, top, left = (
                int(torch.randint(size, (), generator=generator))
                for size in (
                    len(images), images.shape[2] - height + 1, images.shape[3] - width + 1
                )
            )  # fmt: skip
            here = (image, slice(top, top + height), slice(left, left + width))
            found.append((int((masks[here] > 0).sum()), here))
        _, (image, rows, columns) = min(found, key=lambda item: item[0])
        return images[image, :, rows, columns]

    return {
        label: [(crop(*mask.shape), mask) for _, mask in cuts] for label, cuts in objects.items()
    }
