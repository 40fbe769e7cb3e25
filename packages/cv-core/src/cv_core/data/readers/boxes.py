"""Readers of the user's own boxes, in the formats of COCO and of Pascal VOC."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cv_core.data.kinds import Detection, DetectionSample
from cv_core.data.origin import Origin
from cv_core.data.readers.detection import BoxedImage, decode_boxed, parse_voc
from cv_core.data.readers.pictures import Decoded
from cv_core.data.root import CorruptData
from cv_core.data.splits import stratified_split

_SHARES = (0.7, 0.15, 0.15)
_FEWEST = 3

Parts = Sequence[Sequence[DetectionSample]]


def read_coco(path: Path, origin: Origin, *, images: Path) -> Detection:
    """Read boxes in COCO's format; 70 % of the images train, 15 % validate, 15 % test, by seed 0.

    Labels are the places of the categories in ascending order of their numbers. Boxes of crowds and
    boxes without area are left out, as is usual in training.

    Args:
        path: The JSON file.
        origin: Where the data come from.
        images: The folder of the pictures.

    Raises:
        CorruptData: If the file has another format, names what does not exist, or holds an
            impossible box; the message names file and annotation.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = sorted(content["categories"], key=lambda category: category["id"])
        pictures = {image["id"]: str(image["file_name"]) for image in content["images"]}
        boxes = _coco_boxes(path, content["annotations"], pictures, categories)
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CorruptData(f"{path}: not a COCO annotation: {error!r}") from error
    items = []
    for number, file_name in sorted(pictures.items(), key=lambda item: item[1]):
        picture = _inside(images, file_name, path)
        found = boxes.get(number, [])
        ends = np.array([box for _, box in found], dtype=np.float32).reshape(-1, 4)
        labels = np.array([label for label, _ in found], dtype=np.int64)
        items.append(BoxedImage(picture, ends, labels, str(picture)))
    names = tuple(str(category["name"]) for category in categories)
    return _detection(_split(path, items), names, origin)


def _coco_boxes(
    path: Path,
    annotations: Sequence[Mapping[str, Any]],
    pictures: Mapping[Any, str],
    categories: Sequence[Mapping[str, Any]],
) -> dict[Any, list[tuple[int, list[float]]]]:
    labels = {category["id"]: label for label, category in enumerate(categories)}
    found: dict[Any, list[tuple[int, list[float]]]] = defaultdict(list)
    for annotation in annotations:
        number = annotation.get("id")
        if annotation["image_id"] not in pictures or annotation["category_id"] not in labels:
            raise CorruptData(f"{path}: annotation {number} names an unknown image or category.")
        box = [float(value) for value in annotation["bbox"]]
        if len(box) != 4 or not np.isfinite(box).all() or min(box[2:]) < 0:
            raise CorruptData(f"{path}: annotation {number} has an impossible box {box}.")
        left, top, width, height = box
        if annotation.get("iscrowd") or width == 0 or height == 0:
            continue
        label = labels[annotation["category_id"]]
        found[annotation["image_id"]].append((label, [left, top, left + width, top + height]))
    return found


def _inside(folder: Path, file_name: str, path: Path) -> Path:
    picture = folder / file_name
    if not picture.resolve().is_relative_to(folder.resolve()):
        raise CorruptData(f"{path}: the picture {file_name!r} lies outside {folder}.")
    if not picture.is_file():
        raise CorruptData(
            f"{path}: the picture {picture} does not exist; name its folder as "
            "coco:JSON?images=FOLDER."
        )
    return picture


def read_voc(path: Path, origin: Origin) -> Detection:
    """Read a folder in Pascal VOC's layout.

    ``ImageSets/Main`` with train, val and test decides the parts; where only two of them exist, the
    second is the test part. Without them 70 % of the images train, 15 % validate and 15 % test, by
    seed 0.

    Args:
        path: The folder with ``Annotations`` and ``JPEGImages``.
        origin: Where the data come from.

    Raises:
        CorruptData: If the folder has not this layout, or an annotation cannot be used; the
            message names it.
    """
    annotations = sorted((path / "Annotations").glob("*.xml"))
    if not annotations:
        raise CorruptData(f"{path}: Annotations holds no .xml file.")
    parsed = {file.stem: parse_voc(file.read_bytes(), str(file)) for file in annotations}
    names = tuple(sorted({label for labels, _ in parsed.values() for label in labels}))
    numbers = {name: number for number, name in enumerate(names)}
    pictures = {file.stem: file for file in sorted((path / "JPEGImages").glob("*"))}
    items = {}
    for stem, (labels, boxes) in parsed.items():
        if stem not in pictures:
            raise CorruptData(f"{path}: JPEGImages holds no picture for {stem}.xml.")
        found = np.array([numbers[label] for label in labels], dtype=np.int64)
        items[stem] = BoxedImage(pictures[stem], boxes, found, str(pictures[stem]))
    lists = path / "ImageSets" / "Main"
    given = [
        _listed(lists / f"{part}.txt", items)
        for part in ("train", "val", "test")
        if (lists / f"{part}.txt").is_file()
    ]
    if len(given) == 3:
        return _detection(given, names, origin)
    if len(given) == 2:
        return _detection([given[0], (), given[1]], names, origin)
    return _detection(_split(path, list(items.values())), names, origin)


def _listed(file: Path, items: Mapping[str, BoxedImage]) -> Sequence[DetectionSample]:
    stems = file.read_text(encoding="utf-8").split()
    unknown = [stem for stem in stems if stem not in items]
    if unknown:
        raise CorruptData(f"{file}: {unknown[0]} has no annotation.")
    return Decoded([items[stem] for stem in stems], decode_boxed)


def _split(path: Path, items: Sequence[BoxedImage]) -> Parts:
    if len(items) < _FEWEST:
        raise CorruptData(f"{path}: expected at least {_FEWEST} images; got {len(items)}.")
    whole = Decoded(items, decode_boxed)
    shares = _SHARES if len(items) >= 7 else (1 / 3, 1 / 3, 1 / 3)  # fewer would leave one empty
    return [whole.select(part) for part in stratified_split([0] * len(items), shares, seed=0)]


def _detection(parts: Parts, names: tuple[str, ...], origin: Origin) -> Detection:
    return Detection(parts[0], parts[1], parts[2], names, origin)
