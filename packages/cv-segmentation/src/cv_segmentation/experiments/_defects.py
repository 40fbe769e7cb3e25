"""Patches with and without small defects: of labelled surfaces, or composed on photographs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from cv_core.data.kinds import ImageSet, Segmentation
from cv_core.data.sources import load
from cv_core.experiment.trial import Trial
from cv_core.random import torch_generator
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional

SMALL = 0.03
"""The largest share of a labelled surface that small defects cover."""

Surface = tuple[Tensor, Tensor]
"""A grey image (H, W) and its mask (H, W), 1 on defects."""


@dataclass(frozen=True)
class Patches:
    """Grey patches in [0, 1] and their masks, 1 on defects.

    Args:
        train_x: To learn from, three of four with a defect.
        train_g: Their masks.
        test_x: Patches of other surfaces, each with a defect.
        test_g: Their masks.
        clean_x: Patches of these other surfaces without any defect.
    """

    train_x: Float32[Tensor, "n 1 s s"]
    train_g: Int64[Tensor, "n s s"]
    test_x: Float32[Tensor, "m 1 s s"]
    test_g: Int64[Tensor, "m s s"]
    clean_x: Float32[Tensor, "k 1 s s"]


def patches_of(trial: Trial) -> Patches:
    """Cut the patches of a trial; all arms of a seed get the same ones."""
    settings, generator = trial.settings, trial.generator("patches")
    train, test = surfaces(trial)
    side, count = settings.side, settings.patches
    sources = ((train, count * 3 // 4, True), (train, count - count * 3 // 4, False),
               (test, settings.judged, True), (test, settings.judged // 2, False))  # fmt: skip
    found = [cut_patches(part, number, side, generator, defect=d) for part, number, d in sources]
    (x1, g1), (x0, g0), (test_x, test_g), (clean_x, _) = found
    return Patches(torch.cat([x1, x0]), torch.cat([g1, g0]), test_x, test_g, clean_x)


def surfaces(trial: Trial) -> tuple[list[Surface], list[Surface]]:
    """Return surfaces to learn from and others to judge on; read-only.

    A data set of masks has these parts, and one for selection. On photographs, defects are
    composed: on their left 60 % to learn from, on their right 30 % to judge on.
    """
    if isinstance(trial.data, Segmentation):
        return labelled(trial.source, trial.settings.judged_on)
    return composed(trial.source, trial.seed)


@lru_cache(maxsize=2)
def labelled(source: str, judged_on: str) -> tuple[list[Surface], list[Surface]]:
    """Decode the training part of a data set and that to judge on, without what is no small defect.

    Any class but 0 is a defect. Surfaces of which defects cover more than ``SMALL`` are left out.
    """
    data: Segmentation = load(source)
    train, test = (
        [
            (image.mean(0), (mask > 0).long())
            for image, mask in part
            if float((mask > 0).float().mean()) <= SMALL
        ]
        for part in (data.train, data.val if judged_on == "val" else data.test)
    )
    return train, test


@lru_cache(maxsize=2)
def composed(source: str, seed: int) -> tuple[list[Surface], list[Surface]]:
    """Compose defects on the parts of photographs."""
    data: ImageSet = load(source)
    generator = torch_generator(seed, "defects")
    train, test = [], []
    for image in data.images:
        grey = image.mean(0)
        width = grey.shape[1]
        train.append(with_defects(grey[:, : width * 6 // 10], generator))
        test.append(with_defects(grey[:, width * 7 // 10 :], generator))
    return train, test


def cut_patches(
    parts: Sequence[Surface], count: int, side: int, generator: torch.Generator, *, defect: bool
) -> tuple[Tensor, Tensor]:
    """Cut squares at random, surface after surface in a random order.

    Args:
        parts: Surfaces; one smaller than the square is continued by its border.
        count: How many to cut.
        side: Of a square.
        generator: Decides where.
        defect: Whether a square has a random pixel of a defect in its middle half, or none at all.

    Returns:
        Images ``(count, 1, side, side)`` and masks ``(count, side, side)``.

    Raises:
        ValueError: If no surface allows it.
    """
    images: list[Tensor] = []
    masks: list[Tensor] = []
    while len(images) < count:
        before = len(images)
        for index in torch.randperm(len(parts), generator=generator).tolist():
            image, mask = (extended(item, side) for item in parts[index])
            corner = _corner(mask, side, generator, defect=defect)
            if corner is None or len(images) == count:
                continue
            window = tuple(slice(at, at + side) for at in corner)
            images.append(image[window])
            masks.append(mask[window])
        if len(images) == before:
            raise ValueError(f"no patch of {side} pixels has {'a' if defect else 'no'} defect.")
    return torch.stack(images).unsqueeze(1), torch.stack(masks)


def _corner(
    mask: Tensor, side: int, generator: torch.Generator, *, defect: bool
) -> tuple[int, int] | None:
    rooms = [size - side for size in mask.shape]
    places = mask.nonzero()
    if defect:
        if len(places) == 0:
            return None
        place = places[int(torch.randint(len(places), (), generator=generator))].tolist()
        shift = torch.randint(side // 4, side - side // 4, (2,), generator=generator).tolist()
        row, column = (
            min(max(at - off, 0), room) for at, off, room in zip(place, shift, rooms, strict=True)
        )
        return row, column
    for _ in range(20):
        row, column = (int(torch.randint(room + 1, (), generator=generator)) for room in rooms)
        if not mask[row : row + side, column : column + side].any():
            return row, column
    return None


def extended(image: Tensor, side: int) -> Tensor:
    """Repeat the last row and column until an image (H, W) holds a square."""
    if min(image.shape) >= side:
        return image
    rows, columns = (torch.arange(max(size, side)).clamp(max=size - 1) for size in image.shape)
    return image[rows][:, columns]


def with_defects(image: Tensor, generator: torch.Generator, *, every: int = 48) -> Surface:
    """Compose faint defects on an image (H, W): scratches, spots and strokes of digits.

    Args:
        image: In [0, 1].
        generator: Decides everything.
        every: About one defect for each square of this side, so that parts stay clean.
    """
    image, mask = image.clone(), torch.zeros_like(image, dtype=torch.int64)
    glyphs = load("digits").train_x
    for _ in range(image.numel() // every**2):
        shape = _shape(glyphs, generator)
        height, width = shape.shape
        if height > image.shape[0] or width > image.shape[1]:
            continue
        top, left = (
            int(torch.randint(size - part + 1, (), generator=generator))
            for size, part in zip(image.shape, (height, width), strict=True)
        )
        window = (slice(top, top + height), slice(left, left + width))
        sign = 1.0 if float(torch.rand((), generator=generator)) < 0.5 else -1.0
        contrast = sign * (0.1 + 0.2 * torch.rand((), generator=generator))
        image[window] = torch.where(shape, image[window] + contrast, image[window]).clamp(0, 1)
        mask[window] = mask[window] | shape.long()
    return image, mask


def _shape(glyphs: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a defect's pixels, at most 24 x 24."""
    kind = int(torch.randint(3, (), generator=generator))
    size = int(torch.randint(10, 25, (), generator=generator))
    if kind == 0:  # strokes of a digit
        glyph = glyphs[int(torch.randint(len(glyphs), (), generator=generator))][None]
        ink = functional.interpolate(glyph, size=(size, size), mode="bilinear")[0, 0]
        return ink > 0.6
    angle = math.pi * float(torch.rand((), generator=generator))
    x = torch.arange(size) - (size - 1) / 2
    along = math.cos(angle) * x + math.sin(angle) * x[:, None]
    across = math.cos(angle) * x[:, None] - math.sin(angle) * x
    thickness = 1.0 if kind == 1 else size / 6  # a scratch or a spot
    return (2 * along / size).square() + (across / thickness).square() <= 1.0
