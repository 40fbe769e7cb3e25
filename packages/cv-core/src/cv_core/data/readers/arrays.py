"""Reader of the user's own arrays in an npz file.

The keys decide what the file is:

- ``view0``, ``view1``, ... (n, d_v) and ``y``: several views;
- ``x`` (n, d), ``edge_index`` (2, e), ``y`` and, if wanted, ``train_mask``, ``val_mask``,
  ``test_mask``: a graph; ``hyperedge_index`` (2, nnz) instead: a hypergraph;
- ``train_x``, ``train_y``, ``test_x``, ``test_y``: images with their split;
- ``x`` (n, h, w), (n, c, h, w) or (n, h, w, c) with 1 or 3 channels, and ``y``: images;
- ``x`` (n, d) and, if wanted, ``y``: a feature matrix.

Images are bytes, or floating-point numbers in [0, 1]. ``class_names`` may name the classes.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cv_core.data.kinds import FeatureMatrix, Graph, Hypergraph, ImageClassification, MultiView
from cv_core.data.origin import Origin
from cv_core.data.root import CorruptData
from cv_core.data.splits import stratified_split

_PARTS = ("train_x", "train_y", "test_x", "test_y")
_CHANNELS = (1, 3)
_SPLITS = 10

Arrays = Mapping[str, np.ndarray]


def read_npz(
    path: Path, origin: Origin
) -> ImageClassification | FeatureMatrix | MultiView | Graph | Hypergraph:
    """Read an npz file; see the module for the keys.

    Args:
        path: The file.
        origin: Where the data come from.

    Raises:
        CorruptData: If the file cannot be read, needs a pickle, or holds arrays that do not fit;
            the message names file and key.
    """
    arrays = _arrays(path)
    if any(key.startswith("view") for key in arrays):
        return _views(path, origin, arrays)
    if "edge_index" in arrays or "hyperedge_index" in arrays:
        return _graph(path, origin, arrays)
    if all(key in arrays for key in _PARTS):
        train_x, test_x = (_images(path, key, arrays) for key in ("train_x", "test_x"))
        train_y = _labels(path, "train_y", arrays, len(train_x))
        test_y = _labels(path, "test_y", arrays, len(test_x))
        if train_x.shape[1:] != test_x.shape[1:]:
            raise CorruptData(f"{path}: train_x and test_x must hold images of one size.")
        names = _names(path, arrays, torch.cat([train_y, test_y]))
        return ImageClassification(train_x, train_y, test_x, test_y, names, origin)
    if "x" not in arrays:
        raise CorruptData(
            f"{path}: expected the keys x and y, or {', '.join(_PARTS)}; got "
            f"{', '.join(arrays) or 'none'}."
        )
    if arrays["x"].ndim == 2:
        return _matrix(path, origin, arrays)
    x = _images(path, "x", arrays)
    y = _labels(path, "y", arrays, len(x))
    train, test = stratified_split(y, (0.8, 0.2), seed=0)
    return ImageClassification(
        x[train], y[train], x[test], y[test], _names(path, arrays, y), origin
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptData(f"{path}: not a readable npz file of plain arrays: {error}") from error


def _images(path: Path, key: str, arrays: Arrays) -> Tensor:
    x = arrays[key]
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim == 4 and x.shape[1] not in _CHANNELS and x.shape[3] in _CHANNELS:
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in _CHANNELS or not x.size:
        raise CorruptData(
            f"{path}: {key} must be (n, h, w), (n, c, h, w) or (n, h, w, c) with 1 or 3 channels; "
            f"got {arrays[key].shape}."
        )
    if x.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32) / np.float32(255))
    if x.dtype.kind != "f" or not (x.min() >= 0 and x.max() <= 1):  # NaN fails the comparison
        raise CorruptData(
            f"{path}: {key} must hold bytes, or floating-point numbers in [0, 1]; got {x.dtype} "
            f"from {x.min():g} to {x.max():g}."
        )
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def _labels(path: Path, key: str, arrays: Arrays, count: int, low: int = 0) -> Tensor:
    if key not in arrays:
        raise CorruptData(f"{path}: the key {key} is missing; got {', '.join(arrays)}.")
    y = arrays[key]
    if y.shape != (count,) or y.dtype.kind not in "iu":
        raise CorruptData(
            f"{path}: {key} must hold {count} whole numbers; got {y.dtype} of shape {y.shape}."
        )
    if y.min() < low:
        raise CorruptData(f"{path}: {key} must count classes from 0; got {y.min()}.")
    return torch.from_numpy(y.astype(np.int64))


def _names(path: Path, arrays: Arrays, y: Tensor | np.ndarray) -> tuple[str, ...]:
    count = int(y.max()) + 1
    if "class_names" not in arrays:
        return tuple(str(label) for label in range(count))
    names = tuple(str(name) for name in arrays["class_names"].ravel())
    if len(names) < count:
        raise CorruptData(f"{path}: class_names must name {count} classes; got {len(names)}.")
    return names


def _features(path: Path, key: str, arrays: Arrays) -> np.ndarray:
    x = arrays.get(key)
    if x is None or x.ndim != 2 or not x.size or x.dtype.kind not in "fiub":
        got = "nothing" if x is None else f"{x.dtype} of shape {x.shape}"
        raise CorruptData(f"{path}: {key} must hold numbers of shape (n, d); got {got}.")
    numbers = x.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise CorruptData(f"{path}: {key} must be finite.")
    return numbers


def _matrix(path: Path, origin: Origin, arrays: Arrays) -> FeatureMatrix:
    X = _features(path, "x", arrays)
    if "y" not in arrays:
        return FeatureMatrix(X, None, origin)
    y = _labels(path, "y", arrays, len(X)).numpy()
    return FeatureMatrix(X, y, origin, class_names=_names(path, arrays, y))


def _views(path: Path, origin: Origin, arrays: Arrays) -> MultiView:
    keys = sorted(
        (key for key in arrays if key.startswith("view")), key=lambda key: (len(key), key)
    )
    views = tuple(_features(path, key, arrays) for key in keys)
    y = _labels(path, "y", arrays, len(views[0])).numpy()
    for key, view in zip(keys, views, strict=True):
        if len(view) != len(y):
            raise CorruptData(f"{path}: {key} must have {len(y)} rows; got {len(view)}.")
    return MultiView(views, y, tuple(keys), _names(path, arrays, y), origin)


def _graph(path: Path, origin: Origin, arrays: Arrays) -> Graph | Hypergraph:
    x = torch.from_numpy(_features(path, "x", arrays).astype(np.float32))
    y = _labels(path, "y", arrays, len(x), low=-1)
    names = _names(path, arrays, y)
    key = "edge_index" if "edge_index" in arrays else "hyperedge_index"
    index = arrays[key]
    rows = index[:1] if key == "hyperedge_index" else index  # only row 0 holds nodes there
    if index.ndim != 2 or len(index) != 2 or index.dtype.kind not in "iu":
        raise CorruptData(f"{path}: {key} must hold whole numbers of shape (2, e).")
    if index.size and (index.min() < 0 or rows.max() >= len(x)):
        raise CorruptData(f"{path}: {key} names a node that does not exist.")
    tensor = torch.from_numpy(index.astype(np.int64))
    known = np.flatnonzero(y.numpy() >= 0)
    if key == "hyperedge_index":
        halves = [stratified_split(y[known], (0.5, 0.5), seed) for seed in range(_SPLITS)]
        splits = tuple(
            (torch.from_numpy(known[train]), torch.from_numpy(known[test]))
            for train, test in halves
        )
        return Hypergraph(x, tensor, y, splits, names, origin)
    return Graph(x, tensor, y, *_masks(path, arrays, y, known), names, origin)


def _masks(
    path: Path, arrays: Arrays, y: Tensor, known: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    keys = ("train_mask", "val_mask", "test_mask")
    if all(key in arrays for key in keys):
        given = [arrays[key] for key in keys]
        if any(mask.shape != (len(y),) or mask.dtype != np.bool_ for mask in given):
            raise CorruptData(f"{path}: masks must hold {len(y)} truth values.")
        train, val, test = (torch.from_numpy(mask) for mask in given)
        return train, val, test
    train, val, test = (
        torch.zeros(len(y), dtype=torch.bool).index_fill_(
            0, torch.from_numpy(known[part]), value=True
        )
        for part in stratified_split(y[known], (0.6, 0.2, 0.2), seed=0)
    )
    return train, val, test
