"""Readers of multi-view feature sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cv_core.data.kinds import MultiLabelViews, MultiView
from cv_core.data.origin import Origin
from cv_core.data.readers.images import DIGITS
from cv_core.data.root import CorruptData

_EMOTIONS = (
    "amazed-surprised", "happy-pleased", "relaxing-calm", "quiet-still", "sad-lonely",
    "angry-aggressive",
)  # fmt: skip


def matlab_views(
    origin: Origin,
    paths: Sequence[Path],
    *,
    views: str,
    labels: str,
    samples: str = "rows",
    view_names: Sequence[str] = (),
    class_names: Sequence[str] = (),
) -> MultiView:
    """Read a MATLAB file with one cell per view.

    Args:
        origin: Where the data come from.
        paths: The file.
        views: The variable that holds the views.
        labels: The variable that holds the classes, counted from 0 or 1; a cell repeats them.
        samples: Whether samples are ``rows`` or ``columns``.
        view_names: Name of every view; numbers by default.
        class_names: Name of every class; numbers by default.

    Raises:
        CorruptData: If views and labels differ in length.
    """
    from scipy.io import loadmat

    content = loadmat(str(paths[0]))
    arrays = tuple(_dense(view, samples) for view in content[views].ravel())
    y = _labels(content[labels])
    if any(len(view) != len(y) for view in arrays):
        raise CorruptData(f"{paths[0]}: views and labels differ in length.")
    return MultiView(
        views=arrays,
        y=y,
        view_names=tuple(view_names) or tuple(str(view) for view in range(len(arrays))),
        class_names=tuple(class_names) or tuple(str(label) for label in range(int(y.max()) + 1)),
        origin=origin,
    )


def emotions(origin: Origin, paths: Sequence[Path]) -> MultiLabelViews:
    """Read the emotions of songs: views of timbre and rhythm, six labels."""
    from scipy.io import loadmat

    content = loadmat(str(paths[0]))
    arrays = tuple(_dense(view, "rows") for view in content["data"].ravel())
    Y = np.ascontiguousarray(content["target"].T, dtype=np.int64)
    return MultiLabelViews(arrays, Y, ("timbre", "rhythm"), _EMOTIONS, origin)


def digits_views(origin: Origin) -> MultiView:
    """Compute three views of scikit-learn's digits.

    Pixels (64); sums along rows, columns and both kinds of diagonals (46); magnitudes of the
    two-dimensional Fourier transform (40 after its symmetry).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images / 16.0
    offsets = range(-7, 8)
    profiles = [images.sum(1), images.sum(2)]
    for turned in (images, images[:, :, ::-1]):
        sums = [turned.diagonal(offset, axis1=1, axis2=2).sum(1) for offset in offsets]
        profiles.append(np.stack(sums, axis=1))
    spectra = np.abs(np.fft.rfft2(images)).reshape(len(images), -1)
    return MultiView(
        views=(images.reshape(len(images), -1), np.concatenate(profiles, axis=1), spectra),
        y=bunch.target.astype(np.int64),
        view_names=("pixels", "profiles", "Fourier magnitudes"),
        class_names=DIGITS,
        origin=origin,
    )


def _dense(view: Any, samples: str) -> np.ndarray:
    array = view.toarray() if hasattr(view, "toarray") else view
    rows = array.T if samples == "columns" else array
    return np.ascontiguousarray(rows, dtype=np.float64)


def _labels(content: np.ndarray) -> np.ndarray:
    first = content.ravel()[0] if content.dtype == object else content
    y = np.asarray(first).ravel().astype(np.int64)
    return y - y.min()
