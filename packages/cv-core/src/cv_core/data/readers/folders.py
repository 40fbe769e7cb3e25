"""Readers of the user's own pictures: in one folder per class, or in one folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cv_core.data.kinds import ImageClassification, ImageSet
from cv_core.data.origin import Origin
from cv_core.data.readers.pictures import Decoded, decode_image
from cv_core.data.root import CorruptData
from cv_core.data.splits import stratified_split

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_SHARES = (0.8, 0.2)

Labelled = list[tuple[Path, int]]


def read_folder(path: Path, origin: Origin, *, size: int | None = None) -> ImageClassification:
    """Read one sub-folder of pictures per class.

    Args:
        path: The folder. If it holds ``train`` and ``test`` (or ``val``), these hold the classes;
            else 80 % of every class train and 20 % test, by seed 0.
        origin: Where the data come from.
        size: Side in pixels to which all pictures are resized; needed if their sizes differ.

    Raises:
        CorruptData: If the folder has not this layout, a picture cannot be decoded, or sizes
            differ; the message names the folder or file.
    """
    parts = _given_parts(path)
    if parts is None:
        names = _classes(path)
        found = _pictures(path, names)
        labels = [label for _, label in found]
        train, test = stratified_split(labels, _SHARES, seed=0)
        parts_found = [[found[index] for index in part] for part in (train, test)]
    else:
        names = _classes(parts[0])
        for part in parts[1:]:
            if _classes(part) != names:
                raise CorruptData(f"{part}: its classes differ from those in {parts[0]}.")
        parts_found = [_pictures(part, names) for part in parts]
    pictures = [_decode(labelled, size) for labelled in parts_found]
    train_x, test_x = _stacked([path for part in parts_found for path, _ in part], pictures)
    train_y, test_y = (torch.tensor([label for _, label in part]) for part in parts_found)
    return ImageClassification(train_x, train_y, test_x, test_y, names, origin)


def holds_classes(path: Path) -> bool:
    """Whether a folder has sub-folders, hidden ones aside: then these are its classes."""
    return any(item.is_dir() and not item.name.startswith(".") for item in path.iterdir())


def read_pictures(path: Path, origin: Origin) -> ImageSet:
    """Read the pictures that lie in one folder, by name; they are decoded when asked for.

    Args:
        path: The folder.
        origin: Where the data come from.

    Raises:
        CorruptData: If the folder holds no picture; a damaged one is named when it is asked for.
    """
    files = sorted(file for file in path.iterdir() if _is_picture(file))
    if not files:
        raise CorruptData(
            f"{path}: expected pictures, or one sub-folder of pictures per class; got none."
        )
    return ImageSet(Decoded(files, decode_image), tuple(file.stem for file in files), origin)


def _given_parts(path: Path) -> tuple[Path, Path] | None:
    for test in ("test", "val"):
        if (path / "train").is_dir() and (path / test).is_dir():
            return path / "train", path / test
    return None


def _classes(path: Path) -> tuple[str, ...]:
    names = sorted(
        item.name for item in path.iterdir() if item.is_dir() and not item.name.startswith(".")
    )
    if len(names) < 2:
        raise CorruptData(
            f"{path}: expected one sub-folder of pictures per class, at least two; "
            f"got {', '.join(names) or 'none'}."
        )
    return tuple(names)


def _pictures(path: Path, names: Iterable[str]) -> Labelled:
    found: Labelled = []
    for label, name in enumerate(names):
        files = sorted(file for file in (path / name).rglob("*") if _is_picture(file))
        if not files:
            raise CorruptData(f"{path / name}: the class holds no picture.")
        found.extend((file, label) for file in files)
    return found


def _is_picture(file: Path) -> bool:
    return file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def _decode(labelled: Labelled, size: int | None) -> list[Tensor]:
    pictures = []
    for file, _ in labelled:
        image = decode_image(file)
        if size is not None:
            image = interpolate(image[None], (size, size), mode="bilinear", antialias=True)[0]
            image = image.clamp(0, 1)
        pictures.append(image)
    return pictures


def _stacked(files: list[Path], parts: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack pictures of one size; grey ones get three channels if any other has them."""
    pictures = [picture for part in parts for picture in part]
    first = pictures[0].shape[1:]
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape[1:] != first:
            raise CorruptData(
                f"{file}: the picture is {tuple(picture.shape[1:])} pixels high and wide, but "
                f"{files[0]} is {tuple(first)}; give a common size as folder:PATH?size=64."
            )
    channels = max(len(picture) for picture in pictures)
    train, test = (
        torch.stack([picture.expand(channels, -1, -1) for picture in part]) for part in parts
    )
    return train, test
