"""Data of one style to learn from, the same in styles never seen, and another recording's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from cv_core.data.kinds import Segmentation, SegmentationSample
from cv_core.data.readers.pictures import Decoded
from cv_core.data.scenes.backgrounds import sample_photographs
from cv_core.data.scenes.dataset import SceneDataset, segmentation_batch
from cv_core.data.scenes.spec import SceneSpec
from cv_core.data.sources import load
from cv_core.imaging.colour import hsv_to_rgb, rgb_to_gray
from cv_core.imaging.filtering import filter2d
from cv_core.imaging.kernels import disk_kernel
from cv_core.imaging.noise import add_gaussian_noise, add_poisson_noise
from cv_core.imaging.styles import add_fog, adjust_gamma, rotate_hue, sepia
from cv_core.random import numpy_generator
from torch import Tensor
from torch.nn import functional

from cv_segmentation.experiments._camvid import IGNORED, camvid

Style = Callable[[Tensor, torch.Generator], Tensor]
Pair = tuple[Tensor, Tensor]
"""Images (n, 3, h, w) in [0, 1] and masks (n, h, w)."""

_DUSK = "0001TP"  # the drive of CamVid that was filmed at dusk; the others are by day


def in_fog(images: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001 - one signature
    """Add fog that is thicker towards the top, where a street is farther away."""
    height = images.shape[2]
    depth = torch.linspace(2.0, 0.2, height, device=images.device)[:, None]
    return add_fog(images, 0.8, depth=depth.expand(len(images), 1, height, images.shape[3]))


def with_sensor_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Count few photons, add the read-out's noise, and clip."""
    counted = add_poisson_noise(images, 40.0, generator)
    return add_gaussian_noise(counted, 0.04, generator).clamp(0.0, 1.0)


STYLES: dict[str, Style] = {
    "gamma": lambda images, _: adjust_gamma(images, 2.5),
    "hue": lambda images, _: rotate_hue(images, 0.5),
    "sepia": lambda images, _: sepia(images),
    "fog": in_fog,
    "sensor noise": with_sensor_noise,
    "defocus": lambda images, _: filter2d(images, disk_kernel(2.0)),
}
"""The styles never seen in training; ``StyleJitter``, with a hue of at most 0.3, makes none."""


@dataclass(frozen=True)
class Domains:
    """What a trial learns from and what it is judged on.

    Args:
        train: Of the source.
        source: Of the same recording, or of one like it.
        other: Of another camera, light or place; None if there is none.
        classes: Number of classes.
        thin: Whether all classes but the background are thin and rare.
    """

    train: Pair
    source: Pair
    other: Pair | None
    classes: int
    thin: bool


@lru_cache(maxsize=1)
def streets(source: str, size: tuple[int, int], judged: int) -> Domains:
    """Take CamVid: train and test by day, the other recording is at dusk.

    Args:
        source: The data set's name; one without drives at dusk has no other recording.
        size: Height and width.
        judged: Greatest number of images of each set that is judged on.
    """
    data: Segmentation = load(source)
    small = camvid(size, source)
    train_dusk, test_dusk = _at_dusk(data.train), _at_dusk(data.test)
    train = (small.train_images[~train_dusk], small.train_masks[~train_dusk])
    test = (small.test_images[~test_dusk], small.test_masks[~test_dusk])
    dusk = (
        torch.cat([small.train_images[train_dusk], small.test_images[test_dusk]]),
        torch.cat([small.train_masks[train_dusk], small.test_masks[test_dusk]]),
    )
    other = thinned(dusk, judged) if len(dusk[0]) else None
    return Domains(train, thinned(test, judged), other, small.num_classes, thin=False)


def _at_dusk(samples: Sequence[SegmentationSample]) -> Tensor:
    names = [item.name for item in samples.items] if isinstance(samples, Decoded) else []
    return torch.tensor([_DUSK in name for name in names] or [False] * len(samples))


def thinned(pair: Pair, most: int) -> Pair:
    """Take at most so many, at equal distances: neighbours in a video are alike."""
    step = -(-len(pair[0]) // most)
    return pair[0][::step], pair[1][::step]


@lru_cache(maxsize=1)
def vessels(size: int, tile: int, judged: int) -> Domains:
    """Take retinas: train and test on DRIVE; the other recording is CHASE_DB1, another camera's.

    Args:
        size: Height and width that every image is reduced to.
        tile: Height and width of the tiles that it is cut into.
        judged: Greatest number of tiles of each set that is judged on.
    """
    drive, chase = load("drive"), load("chasedb1")
    both = [*chase.train, *chase.test]
    train, source, other = (_tiles(part, size, tile) for part in (drive.train, drive.test, both))
    source, other = thinned(source, judged), thinned(other, judged)
    return Domains(train, source, other, drive.num_classes, thin=True)


def _tiles(samples: Sequence[SegmentationSample], size: int, tile: int) -> Pair:
    images = torch.empty(len(samples), 3, size, size)
    masks = torch.empty(len(samples), 1, size, size, dtype=torch.int64)
    for place in range(len(samples)):
        image, mask = samples[place]
        shape = (size, size)
        images[place] = functional.interpolate(image[None], size=shape, mode="area")[0]
        vessel = functional.interpolate((mask == 1).float()[None, None], size=shape, mode="area")
        masks[place] = (vessel[0] > 0.5).long()
    masks[rgb_to_gray(images) < 0.06] = IGNORED  # outside the round field of view
    cut = [item.unfold(2, tile, tile).unfold(3, tile, tile) for item in (images, masks)]
    images, masks = (item.permute(0, 2, 3, 1, 4, 5).flatten(0, 2) for item in cut)
    masks = masks[:, 0]
    inside = (masks != IGNORED).float().mean((1, 2)) > 0.3
    return images[inside], masks[inside]


@lru_cache(maxsize=1)
def scenes(
    source: str, seed: int, side: int, count: int, judged: int, *, told_apart: bool
) -> Domains:
    """Paste glyphs on a photograph; the other recording has another photograph behind them.

    Args:
        source: Name of the data set of glyphs.
        seed: Of the scenes.
        side: Height and width.
        count: Scenes to train on.
        judged: Scenes of each set that is judged on.
        told_apart: Whether each kind of glyph is a class, or all of them are one.
    """
    data = load(source)
    classes = data.num_classes + 1 if told_apart else 2
    photographs = sample_photographs()  # two motifs in turn, at three scales
    spec = SceneSpec(height=side, width=side, objects=(2, 4), scale=(0.4, 0.6), contrast=0.6)

    def part(name: str, x: Tensor, y: Tensor, motif: int, length: int) -> Pair:
        stream = int(numpy_generator(seed, "scenes", name).integers(2**31))
        backgrounds: list[np.ndarray] = list(photographs[motif::2])
        made = SceneDataset(
            spec, x.mean(1).numpy(), y.numpy(), backgrounds, length=length, seed=stream
        )
        images, masks = segmentation_batch([made[index] for index in range(length)])
        return images, masks.clamp_max(classes - 1)

    return Domains(
        part("train", data.train_x, data.train_y, 0, count),
        part("source", data.test_x, data.test_y, 0, judged),
        part("other", data.test_x, data.test_y, 1, judged),
        classes,
        thin=True,
    )


def pictured(rows: Sequence[tuple[Tensor, Tensor, Tensor]], classes: int) -> np.ndarray:
    """Draw images, true classes and answers side by side, twice as large.

    Args:
        rows: (3, h, w), (h, w) and (h, w) each, all of one size.
        classes: Number of classes; each has a colour, what is ignored is black.
    """
    turns = torch.arange(classes) / classes
    hsv = torch.stack([turns, torch.full_like(turns, 0.7), torch.full_like(turns, 0.9)])
    colours = torch.zeros(IGNORED + 1, 3)
    colours[:classes] = hsv_to_rgb(hsv[None, :, :, None])[0, :, :, 0].T
    lines = [
        torch.cat([image.permute(1, 2, 0).cpu(), colours[truth.cpu()], colours[answer.cpu()]], 1)
        for image, truth, answer in rows
    ]
    return torch.cat(lines).repeat_interleave(2, 0).repeat_interleave(2, 1).numpy()
