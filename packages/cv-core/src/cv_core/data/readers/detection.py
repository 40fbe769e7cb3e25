"""Readers of detection sets: Pascal VOC's layout."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cv_core.data.archives import read_members
from cv_core.data.kinds import Detection, DetectionSample
from cv_core.data.origin import Origin
from cv_core.data.readers.pictures import Decoded, decode_image
from cv_core.data.root import CorruptData

CELLS = ("RBC", "WBC", "Platelets")


@dataclass(frozen=True, slots=True)
class BoxedImage:
    """A picture that is still encoded, with its boxes.

    Args:
        picture: Content or path of the picture's file.
        boxes: (K, 4) float32 xyxy.
        labels: (K,) int64.
        name: What to call it in an error.
    """

    picture: bytes | Path
    boxes: np.ndarray
    labels: np.ndarray
    name: str


def decode_boxed(item: BoxedImage) -> DetectionSample:
    """Decode a picture with boxes; every sample has tensors of its own."""
    target = {"boxes": torch.tensor(item.boxes), "labels": torch.tensor(item.labels)}
    return decode_image(item.picture, name=item.name, channels="rgb"), target


def bccd(origin: Origin, paths: Sequence[Path]) -> Detection:
    """Read BCCD: 205 training, 87 validation and 72 test images."""
    members = read_members(paths[0])
    parts = []
    for part in ("train", "val", "test"):
        names = members[f"BCCD/ImageSets/Main/{part}.txt"].decode().split()
        items = [_boxed(members, name) for name in names]
        parts.append(Decoded(items, decode_boxed))
    return Detection(parts[0], parts[1], parts[2], CELLS, origin)


def _boxed(members: Mapping[str, bytes], name: str) -> BoxedImage:
    found, boxes = parse_voc(members[f"BCCD/Annotations/{name}.xml"], name)
    labels = np.array([CELLS.index(label) for label in found], dtype=np.int64)
    return BoxedImage(members[f"BCCD/JPEGImages/{name}.jpg"], boxes, labels, name)


def parse_voc(content: bytes, name: str) -> tuple[list[str], np.ndarray]:
    """Parse a Pascal VOC annotation.

    VOC counts pixels from 1 and includes both ends, so a box xmin, xmax covers [xmin - 1, xmax).

    Args:
        content: The XML file.
        name: What to call it in an error.

    Returns:
        Class names, and boxes (K, 4) float32 xyxy with the origin at 0.

    Raises:
        CorruptData: If it is not such a file, or a box is inverted or not finite.
    """
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # entities can blow up without bound
        raise CorruptData(f"{name}: an annotation must not declare entities.")
    try:
        root = ET.fromstring(content)  # noqa: S314 - entities were refused above
        objects = list(root.iter("object"))
        names = [_text(item, "name") for item in objects]
        sides = ("bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")
        ends = [[float(_text(item, side)) for side in sides] for item in objects]
    except (ET.ParseError, ValueError) as error:
        raise CorruptData(f"{name}: not a Pascal VOC annotation: {error}") from error
    boxes = np.array(ends, dtype=np.float32).reshape(-1, 4)
    boxes[:, :2] = np.maximum(boxes[:, :2] - 1, 0)
    if not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
        raise CorruptData(f"{name}: a box is empty, inverted or not finite.")
    return names, boxes


def _text(item: ET.Element, path: str) -> str:
    text = item.findtext(path)
    if text is None:
        raise ValueError(f"an object has no {path}")
    return text.strip()
