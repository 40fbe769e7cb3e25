"""Networks that classify and networks that compare, and what they make of scenes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from cv_core.data.episodes import EpisodeSampler
from cv_core.engine.loop import fit
from cv_core.engine.task import FunctionTask
from cv_core.experiment.trial import Settings, Trial
from cv_core.nn.blocks import ConvNormAct
from cv_core.random import seeded, torch_generator
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from cv_attention.experiments._located import Material, Scenes, material_of
from cv_attention.prototypes import (
    class_prototypes,
    nearest_prototype,
    pooled,
    prototype_distances,
)

Net = Literal["softmax", "metric"]
"""Trained with cross entropy of logits, or of negative distances to the means of classes."""

LAYER = "features"


@dataclass(frozen=True)
class View:
    """What a network makes of scenes.

    Args:
        scenes: The scenes.
        maps: The last feature maps.
        references: For each scene the pooled features that represent each class.
    """

    scenes: Scenes
    maps: Float32[Tensor, "n k h w"]
    references: Float32[Tensor, "n ways k"]

    def reference(self, classes: Int64[Tensor, " n"]) -> Float32[Tensor, "n k"]:
        """Return the reference of one class for each scene."""
        return self.references[torch.arange(len(classes), device=classes.device), classes]

    def own(self, number: int) -> Float32[Tensor, "n k"]:
        """Return the references of each scene's first (0) or second object."""
        return self.reference(self.scenes.labels[:, number])


@dataclass(frozen=True)
class Bench:
    """A trained network and what it makes of all scenes; shared by the arms of a seed."""

    net: Net
    seed: int
    model: nn.Sequential
    validation: View
    test: View
    pairs: View


def prepared(trial: Trial, net: Net) -> Bench:
    """Return a network's bench; the arms of one seed share it within a process."""
    items = tuple(sorted(trial.settings.items()))
    return _prepared(trial.source, trial.seed, net, trial.device, items)


@lru_cache(maxsize=2)
def _prepared(
    source: str, seed: int, net: Net, device: str, items: tuple[tuple[str, Any], ...]
) -> Bench:
    settings, material = Settings(items), material_of(source, seed, items)
    classes = int(material.y.max()) + 1
    with seeded(seed, "init"):
        model = network(material.x.shape[1], classes if net == "softmax" else None, settings.width)
    model = model.to(device).to(memory_format=torch.channels_last)
    train(model, net, material.x.to(device), material.y.to(device), settings, seed)
    parts = (material.validation, material.test, material.pairs)
    return Bench(net, seed, model, *(view(model, material, part, device) for part in parts))


def network(channels: int, classes: int | None, width: int) -> nn.Sequential:
    """Build four convolutions that end at an eighth of the side, and a layer FC for classes."""
    features = nn.Sequential(
        nn.PixelUnshuffle(4),
        ConvNormAct(16 * channels, width),
        ConvNormAct(width, 2 * width, stride=2),
        ConvNormAct(2 * width, 2 * width),
        ConvNormAct(2 * width, 2 * width),
    )
    model = nn.Sequential()
    model.add_module(LAYER, features)
    model.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    if classes is not None:
        model.add_module("fc", nn.Linear(2 * width, classes))
    return model


def train(
    model: nn.Sequential,
    net: Net,
    x: Float32[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    settings: Settings,
    seed: int,
) -> None:
    """Train a network of either kind.

    Both see the same images in the same order, equally many of each class in a batch.
    """
    ways, half = min(settings.ways, len(y.unique())), settings.shots // 2
    sampler = EpisodeSampler(y, ways=ways, shots=half, queries=half)
    generator = torch_generator(seed, "batches")

    def batch() -> Int64[Tensor, " b"]:
        episode = sampler.sample(generator)
        parts = (episode.support.view(ways, half), episode.query.view(ways, half))
        return torch.cat(parts, dim=1).flatten()

    def step(model: nn.Module, index: Tensor) -> dict[str, Tensor]:
        outputs = model(x[index])
        if net == "softmax":
            return {"loss": functional.cross_entropy(outputs, y[index])}
        return {"loss": nearest_mean_loss(outputs.unflatten(0, (ways, 2 * half)))}

    optimizer = torch.optim.Adam(model.parameters(), lr=settings.rate, fused=True)
    fit(
        FunctionTask(model, step),
        [batch() for _ in range(settings.steps)],
        optimizer,
        epochs=1,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps),
    )
    model.eval()


def nearest_mean_loss(features: Float[Tensor, "ways n k"]) -> Float[Tensor, ""]:
    """Return the cross entropy of negative L1 distances to the classes' means.

    The mean of its own class leaves a sample out, or it would be too near.
    """
    ways, count, _ = features.shape
    total = features.sum(1)
    others = (total[:, None] - features) / (count - 1)
    own = (features - others).abs().sum(2).flatten()
    distances = prototype_distances(features.flatten(0, 1), total / count)
    label = torch.arange(ways, device=features.device).repeat_interleave(count)
    distances = distances.scatter(1, label[:, None], own[:, None])
    return functional.cross_entropy(-distances, label)


@torch.no_grad()
def view(model: nn.Sequential, material: Material, scenes: Scenes, device: str) -> View:
    """Compute feature maps, and what represents each class: support, nearest scene or mean."""

    def embedded(images: Tensor) -> Tensor:
        parts = [model.get_submodule(LAYER)(part.to(device)).cpu() for part in images.split(500)]
        return torch.cat(parts)

    maps = embedded(scenes.images)
    if scenes.support is not None:
        found = pooled(embedded(scenes.support.flatten(0, 1)))
        return View(scenes, maps, found.unflatten(0, scenes.support.shape[:2]))
    gallery, classes = pooled(embedded(material.x)), int(material.y.max()) + 1
    if not material.nearest:
        means = class_prototypes(gallery, material.y, classes)
        return View(scenes, maps, means.expand(len(maps), -1, -1))
    of_class = [gallery[material.y == label] for label in range(classes)]
    nearest = [part[nearest_prototype(pooled(maps), part)] for part in of_class]
    return View(scenes, maps, torch.stack(nearest, dim=1))
