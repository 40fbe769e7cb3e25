"""Readers of image classification sets."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cv_core.data.archives import read_members
from cv_core.data.kinds import ImageClassification
from cv_core.data.origin import Origin
from cv_core.data.root import CorruptData
from cv_core.data.splits import stratified_split

DIGITS = tuple(str(digit) for digit in range(10))
FASHION = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip
CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_IDX_UNSIGNED_BYTE = 8
_PARTS = ("train", "test")
_CIFAR_RECORDS, _CIFAR_RECORD = 10_000, 1 + 3 * 32 * 32
_CIFAR10N = {
    "aggre": "aggre_label",
    "worse": "worse_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
}


def digits(origin: Origin) -> ImageClassification:
    """Read scikit-learn's digits: 1,200 training and 597 test images of 8 x 8, split by seed 0."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy((bunch.images / 16.0).astype(np.float32))[:, None]
    y = torch.from_numpy(bunch.target.astype(np.int64))
    train, test = stratified_split(y, (1200 / 1797, 597 / 1797), seed=0)
    return ImageClassification(x[train], y[train], x[test], y[test], DIGITS, origin)


def mnist(
    origin: Origin, paths: Sequence[Path], *, class_names: tuple[str, ...] = DIGITS
) -> ImageClassification:
    """Read the four gzipped idx files of MNIST or of a set in its format.

    Args:
        origin: Where the data come from.
        paths: Training images, training labels, test images, test labels.
        class_names: Name of every class.

    Raises:
        CorruptData: If a file is not in idx format, or numbers of images and labels differ.
    """
    train_x, train_y, test_x, test_y = (read_idx(path) for path in paths)
    for images, labels, path in ((train_x, train_y, paths[0]), (test_x, test_y, paths[2])):
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise CorruptData(f"{path}: images {images.shape} do not fit labels {labels.shape}.")
    return ImageClassification(
        unit(train_x[:, None]),
        classes(train_y),
        unit(test_x[:, None]),
        classes(test_y),
        class_names,
        origin,
    )


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes.

    Raises:
        CorruptData: If it is not one.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise CorruptData(f"{path}: not a gzip file: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _IDX_UNSIGNED_BYTE:
        raise CorruptData(f"{path}: not an idx file of unsigned bytes.")
    ndim = content[3]
    start = 4 + 4 * ndim
    shape = struct.unpack(f">{ndim}I", content[4:start]) if len(content) >= start else ()
    if not shape or len(content) - start != int(np.prod(shape)):
        raise CorruptData(f"{path}: the idx header announces {shape}, which the file is not.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def fashion_mnist(origin: Origin, paths: Sequence[Path]) -> ImageClassification:
    """Read the full Fashion-MNIST, which has MNIST's format."""
    return mnist(origin, paths, class_names=FASHION)


def fashion_mnist_900(origin: Origin, paths: Sequence[Path]) -> ImageClassification:
    """Read the sample of Fashion-MNIST: 600 training and 300 test images, split by seed 0."""
    with np.load(paths[0], allow_pickle=False) as archive:
        x, y = unit(archive["images"][:, None]), classes(archive["labels"])
    train, test = stratified_split(y, (2 / 3, 1 / 3), seed=0)
    return ImageClassification(x[train], y[train], x[test], y[test], FASHION, origin)


def cifar10(origin: Origin, paths: Sequence[Path]) -> ImageClassification:
    """Read the CIFAR-10 subset: 10,000 training and 2,000 test images.

    Args:
        origin: Where the data come from.
        paths: The subset, then any of the CIFAR-10N labels (which become ``noisy_labels``) and the
            CIFAR-10H counts (which become ``soft_labels["human"]``).
    """
    noisy: dict[str, Tensor] = {}
    soft: dict[str, Tensor] = {}
    subset = _cifar10_subset(paths[0])
    train_index, test_index = subset["train_index"], subset["test_index"]
    train_x, test_x = (unit(subset[f"x_{part}"].transpose(0, 3, 1, 2)) for part in _PARTS)
    train_y, test_y = (classes(subset[f"y_{part}"]) for part in _PARTS)
    for path in paths[1:]:
        with np.load(path, allow_pickle=False) as archive:
            counts = archive["counts"] if "counts" in archive.files else None
        if counts is None:
            noisy = _cifar10n(path, train_index)
        else:
            shares = counts[test_index].astype(np.float32)
            soft["human"] = torch.from_numpy(shares / shares.sum(1, keepdims=True))
    return ImageClassification(
        train_x, train_y, test_x, test_y, CIFAR10, origin, noisy_labels=noisy, soft_labels=soft
    )


@lru_cache(maxsize=1)  # three data sets share it, and unpacking it takes seconds
def _cifar10_subset(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def cifar10_full(origin: Origin, paths: Sequence[Path]) -> ImageClassification:
    """Read the binary version of CIFAR-10: 50,000 training and 10,000 test images.

    Args:
        origin: Where the data come from.
        paths: The archive, then the CIFAR-10N labels, if wanted (they become ``noisy_labels``).

    Raises:
        CorruptData: If a batch has another size than 10,000 records.
    """
    members = read_members(paths[0], suffixes=(".bin",))
    train = [_cifar_batch(members, f"data_batch_{number}", paths[0]) for number in range(1, 6)]
    train_x, train_y = _cifar_tensors(np.concatenate(train))  # bytes are joined, not floats
    test_x, test_y = _cifar_tensors(_cifar_batch(members, "test_batch", paths[0]))
    return ImageClassification(
        train_x,
        train_y,
        test_x,
        test_y,
        CIFAR10,
        origin,
        noisy_labels=_cifar10n(paths[1], np.arange(50_000)) if len(paths) > 1 else {},
    )


def _cifar_batch(members: Mapping[str, bytes], name: str, path: Path) -> np.ndarray:
    content = members.get(f"cifar-10-batches-bin/{name}.bin", b"")
    if len(content) != _CIFAR_RECORDS * _CIFAR_RECORD:
        raise CorruptData(f"{path}: {name}.bin must hold {_CIFAR_RECORDS} records.")
    return np.frombuffer(content, np.uint8).reshape(_CIFAR_RECORDS, _CIFAR_RECORD)


def _cifar_tensors(records: np.ndarray) -> tuple[Tensor, Tensor]:
    return unit(records[:, 1:].reshape(-1, 3, 32, 32)), classes(records[:, 0])


def _cifar10n(path: Path, index: np.ndarray) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: classes(archive[key][index]) for name, key in _CIFAR10N.items()}


def unit(pixels: np.ndarray) -> Tensor:
    """Turn bytes into float32 in [0, 1]."""
    floats = np.ascontiguousarray(pixels, dtype=np.float32)
    floats /= 255.0
    return torch.from_numpy(floats)


def classes(labels: np.ndarray) -> Tensor:
    """Turn whole numbers of any type into an int64 tensor."""
    return torch.from_numpy(labels.astype(np.int64))
