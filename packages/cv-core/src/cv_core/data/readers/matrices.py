"""Readers of image sets as matrices whose rows are samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cv_core.data.kinds import FeatureMatrix
from cv_core.data.origin import Origin
from cv_core.data.readers.images import DIGITS


def digits_matrix(origin: Origin) -> FeatureMatrix:
    """Read scikit-learn's digits as (1797, 64) in [0, 1]."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    y = bunch.target.astype(np.int64)
    return FeatureMatrix(bunch.data / 16.0, y, origin, (8, 8), DIGITS)


def columns(
    origin: Origin,
    paths: Sequence[Path],
    *,
    image_shape: Sequence[int],
    top: float = 1.0,
    key: str = "X",
    class_names: Sequence[str] = (),
) -> FeatureMatrix:
    """Read a MATLAB file with one image per column, its pixels column by column.

    Args:
        origin: Where the data come from.
        paths: The file.
        image_shape: Height and width.
        top: The value of white, which becomes 1.
        key: The matrix in the file; ``gnd`` holds labels from 1, if there are any.
        class_names: Name of every class; numbers by default.
    """
    from scipy.io import loadmat

    content = loadmat(str(paths[0]))
    height, width = image_shape
    pixels = content[key].astype(np.float64).reshape(height, width, -1, order="F")
    X = np.ascontiguousarray(pixels.transpose(2, 0, 1).reshape(-1, height * width)) / top
    if "gnd" not in content:
        return FeatureMatrix(X, None, origin, (height, width))
    y = content["gnd"].ravel().astype(np.int64) - 1
    return FeatureMatrix(X, y, origin, (height, width), _names(class_names, y))


def yale(origin: Origin, paths: Sequence[Path]) -> FeatureMatrix:
    """Read Yale: 165 upright images of 50 x 50."""
    with np.load(paths[0], allow_pickle=False) as archive:
        X = archive["images"].reshape(165, 2500) / 255.0
        y = archive["labels"].astype(np.int64)
    return FeatureMatrix(X, y, origin, (50, 50), _names((), y))


def _names(given: Sequence[str], y: np.ndarray) -> tuple[str, ...]:
    return tuple(given) if given else tuple(str(label) for label in range(int(y.max()) + 1))
