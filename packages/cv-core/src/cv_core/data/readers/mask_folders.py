"""Reader of the user's own pictures with masks: ``images`` and ``masks`` with equal file names.

A mask is a picture of class indices: grey or with a palette, of 8 or 16 bits, never JPEG, which
changes labels. ``images/a/1.jpg`` belongs to ``masks/a/1.png``. Both are turned as their EXIF data
say. Grey pictures get three equal channels, and transparency is dropped.

What a label means:

- With class names (a file ``classes.txt`` beside ``masks``, one name per line, or the option
  ``classes``), the labels are 0 to K - 1. Without, they must occur without a gap, up to 255.
- 255 is ignored, unless the option ``ignore`` names another label or says ``none``.
- Masks of only 0 and 255 are binary, 255 being class 1, unless ``ignore`` is given.

An image that is ignored whole is kept: it contributes nothing. Everything else that does not fit is
refused before anything is returned, with the file's name: all masks are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from cv_core.data.kinds import Segmentation, SegmentationSample
from cv_core.data.origin import Origin
from cv_core.data.readers.folders import SUFFIXES
from cv_core.data.readers.pictures import Decoded, decode_image
from cv_core.data.root import CorruptData
from cv_core.data.splits import stratified_split

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES, MASKS, CLASSES = "images", "masks", "classes.txt"
_VOID = 255  # ignored by default, and the foreground of binary masks
_PARTS = ("train", "test", "val")
_SHARES = (0.6, 0.2, 0.2)
_LEAST = 4  # pairs that these shares can be made of
_MOST_UNNAMED = 256
_COUNTABLE = 2**16  # counting is faster than sorting, but for huge labels
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: height and width change places

Ignore = int | Literal["auto", "none"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture and its mask, still on disk.

    Args:
        image: The picture's file.
        mask: The mask's file.
        binary: Whether 255 is class 1.
    """

    image: Path
    mask: Path
    binary: bool = False


def decode_pair(pair: Pair) -> SegmentationSample:
    """Decode a picture (3, H, W) and its labels (H, W).

    Raises:
        CorruptData: If one of them cannot be decoded.
    """
    labels = decode_labels(pair.mask)
    return decode_image(pair.image, channels="rgb"), (
        labels == _VOID
    ).long() if pair.binary else labels


def decode_labels(path: Path) -> Int64[Tensor, "h w"]:
    """Decode a mask without changing its labels.

    Raises:
        CorruptData: If it cannot be decoded or is no picture of class indices.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            _check_mask(path, picture)
            pixels = np.asarray(ImageOps.exif_transpose(picture))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptData(f"{path}: not a readable mask: {error}") from error
    return torch.from_numpy(pixels.astype(np.int64))


def _check_mask(path: Path, picture: Image) -> None:
    if picture.format == "JPEG":
        raise CorruptData(f"{path}: a mask must not be a JPEG, which changes labels; use PNG.")
    frames = getattr(picture, "n_frames", 1)
    if frames > 1:
        raise CorruptData(f"{path}: a mask must be one picture; got {frames}.")
    if picture.mode not in ("1", "L", "P", "I") and not picture.mode.startswith("I;16"):
        raise CorruptData(
            f"{path}: a mask must have one channel of class indices, grey or with a palette; got "
            f"Pillow's mode {picture.mode}."
        )


def holds_masks(path: Path) -> bool:
    """Whether a folder has this layout, itself or below ``train``."""
    return any(
        (folder / IMAGES).is_dir() and (folder / MASKS).is_dir()
        for folder in (path, path / "train")
    )


def mask_folder_files(path: Path) -> list[Path]:
    """Return the files of such a folder that are read, by names and places alone.

    What else lies there, such as a training's results, is no part of the data.
    """
    parts = [path] if (path / IMAGES).is_dir() else [path / part for part in _PARTS]
    below = [
        file
        for part in parts
        for name in (IMAGES, MASKS)
        if (part / name).is_dir()
        for file in _pictures(part / name).values()
    ]
    return [*below, *([path / CLASSES] if (path / CLASSES).is_file() else [])]


def read_mask_folder(
    path: Path, origin: Origin, *, classes: Sequence[str] = (), ignore: Ignore = "auto"
) -> Segmentation:
    """Read pictures and masks; see the module's docstring.

    Args:
        path: The folder with ``images`` and ``masks``, of which 60 % train, 20 % validate and 20 %
            test, by seed 0; or with ``train``, ``test`` and optionally ``val``, each of which holds
            the two. A ``val`` without ``test`` is the test part.
        origin: Where the data come from.
        classes: Names of the classes; by default those of ``classes.txt``, or numbers.
        ignore: The label that does not count, ``"none"``, or ``"auto"``: 255, unless the masks are
            binary.

    Raises:
        CorruptData: If the folder has not this layout, a picture and its mask have different sizes,
            one has no partner, a label is unknown, fewer than two classes occur, or a part has no
            labelled pixel; the message names the file.
    """
    given = _given_parts(path)
    groups = [_pairs(folder) for folder in given or (path,)]
    labels = {pair.mask: _look(pair) for group in groups for pair in group}
    names = tuple(classes) or _names(path)
    every = set().union(*labels.values())
    binary = ignore == "auto" and every == {0, _VOID} and len(names) in (0, 2)
    void = None if binary or ignore == "none" else _VOID if ignore == "auto" else int(ignore)
    if binary and not names:
        names = ("background", "foreground")
    elif not binary:
        names = _checked(labels, names, void)
    if len(every - {void}) < 2:
        raise CorruptData(
            f"{path}: the masks must show at least two classes; got label "
            f"{', '.join(map(str, sorted(every - {void}))) or 'none'} only"
            + (f", and the ignored {void}." if void in every else ".")
        )
    if given is None:
        groups = _split(path, groups[0], [labels[pair.mask] != {void} for pair in groups[0]])
    for group, part in zip(groups, ("training", "test", "validation"), strict=False):
        if group and all(labels[pair.mask] == {void} for pair in group):
            raise CorruptData(f"{path}: no pixel of the {part} part is labelled.")
    train, test, val = (
        Decoded([Pair(pair.image, pair.mask, binary) for pair in group], decode_pair)
        for group in (*groups, [])[:3]
    )
    return Segmentation(train, val, test, names, void, origin)


def _given_parts(path: Path) -> list[Path] | None:
    """Return the folders of training, test and perhaps validation."""
    if (path / IMAGES).is_dir() or not (path / "train").is_dir():
        return None
    others = [path / name for name in ("test", "val") if (path / name).is_dir()]
    if not others:
        raise CorruptData(f"{path}: beside train there must be test or val.")
    return [path / "train", *others]


def _pairs(folder: Path) -> list[Pair]:
    for name in (IMAGES, MASKS):
        if not (folder / name).is_dir():
            raise CorruptData(f"{folder}: expected the folders {IMAGES} and {MASKS}; no {name}.")
    images, masks = _pictures(folder / IMAGES), _pictures(folder / MASKS)
    _check_partners(images, masks, f"{MASKS} holds no mask of that name")
    _check_partners(masks, images, f"{IMAGES} holds no picture of that name")
    if not images:
        raise CorruptData(f"{folder / IMAGES}: the folder holds no picture.")
    return [Pair(images[key], masks[key]) for key in sorted(images)]


def _check_partners(files: dict[str, Path], others: dict[str, Path], complaint: str) -> None:
    alone = [files[key] for key in sorted(files) if key not in others]
    if alone:
        more = f" ({len(alone) - 1} more like it)" if len(alone) > 1 else ""
        raise CorruptData(f"{alone[0]}: {complaint}{more}.")


def _pictures(folder: Path) -> dict[str, Path]:
    """Return the pictures below a folder by their place in it, without the ending."""
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or file.suffix.lower() not in SUFFIXES or not file.is_file():
            continue
        key = inside.with_suffix("").as_posix()
        if key in found:
            raise CorruptData(f"{file}: {found[key].name} has the same name; keep one of the two.")
        found[key] = file
    return found


def _look(pair: Pair) -> set[int]:
    """Return the labels of a mask that has the size of its picture."""
    from PIL import Image

    labels = decode_labels(pair.mask)
    try:
        with Image.open(pair.image) as picture:
            width, height = picture.size
            turned = picture.getexif().get(_ORIENTATION) in _TURNED
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptData(f"{pair.image}: not a readable picture: {error}") from error
    size = (width, height) if turned else (height, width)
    if tuple(labels.shape) != size:
        upright = " (turned upright by its EXIF data)" if turned else ""
        raise CorruptData(
            f"{pair.mask}: the mask is {tuple(labels.shape)} pixels high and wide, but "
            f"{pair.image}{upright} is {size}."
        )
    few = int(labels.min()) >= 0 and int(labels.max()) < _COUNTABLE
    found = labels.flatten().bincount().nonzero() if few else labels.unique()
    return set(found.flatten().tolist())


def _names(path: Path) -> tuple[str, ...]:
    file = path / CLASSES
    if not file.is_file():
        return ()
    names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    while names and not names[-1]:
        names.pop()
    if not all(names) or len(set(names)) < len(names):
        raise CorruptData(f"{file}: expected one name per line, none empty, none twice.")
    return tuple(names)


def _checked(
    labels: dict[Path, set[int]], names: tuple[str, ...], void: int | None
) -> tuple[str, ...]:
    """Refuse labels that are no classes; return the classes' names."""
    known = range(len(names) or _MOST_UNNAMED)
    ignored = "" if void is None else f", nor the ignored {void}"
    for file, held in labels.items():
        wrong = sorted(held - {void} - set(known))
        if wrong:
            most = "without names there may be" if not names else "there are"
            raise CorruptData(
                f"{file}: label {wrong[0]} is no class: {most} {len(known)}, 0 to {known[-1]}"
                f"{ignored}."
            )
    if names:
        return names
    every = set().union(*labels.values()) - {void}
    top = max(every, default=-1)
    gaps = sorted(set(range(top)) - every - {void})
    if gaps:
        file = next(file for file, held in labels.items() if top in held)
        raise CorruptData(
            f"{file}: label {top}, but no mask holds {gaps[0]}. If the labels are class indices, "
            f"name the {top + 1} classes in {CLASSES}; if they are grey values, renumber them."
        )
    return tuple(f"class {label}" for label in range(top + 1))


def _split(path: Path, pairs: list[Pair], labelled: Iterable[bool]) -> list[list[Pair]]:
    """Return training, test and validation, each with its share of the labelled images."""
    if len(pairs) < _LEAST:
        raise CorruptData(
            f"{path}: at least {_LEAST} pictures are needed to hold some out; got {len(pairs)}. "
            "Or make the folders train and test, each with images and masks."
        )
    train, val, test = stratified_split([int(each) for each in labelled], _SHARES, seed=0)
    return [[pairs[index] for index in part] for part in (train, test, val)]
