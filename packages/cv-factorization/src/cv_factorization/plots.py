"""Pictures of factorisations: atoms, objectives, codes, reconstructions.

Every function returns a ``matplotlib.figure.Figure`` that belongs to the caller: no window opens,
and pyplot does not know of it. Save it with ``figure.savefig``; a notebook shows it by itself.
Matplotlib comes with ``pip install "cv-factorization[lab]"``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from cv_core.checks import check_finite, check_integer, check_same_shape, check_shape
from cv_core.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCH = 0.9  # the side of a small image


def components_figure(
    components: Any, shape: tuple[int, ...], *, columns: int | None = None
) -> Figure:
    """Draw atoms as a grid of images, each with grey values of its own; signed ones with 0 at grey.

    Args:
        components: (m, d) atoms as rows, array or tensor; ``(views, m, d)`` is drawn in a row.
        shape: (h, w), or (h, w, 3) for colour, with the product d.
        columns: Images per row; by default about as many as rows.

    Returns:
        The figure.

    Raises:
        ValueError: If ``shape`` has not the atoms' size, or an entry is not finite.
    """
    atoms = _array("components_figure", "components", components)
    atoms = atoms.reshape(-1, atoms.shape[-1])
    images = _images("components_figure", "components", atoms, shape)
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    check_integer("components_figure", "columns", columns, low=1)
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    figure = _figure(columns * _INCH, rows * _INCH)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image in zip(grid, images, strict=False):
        _show(axes, image, _span(image))
    return figure


def objective_figure(histories: Mapping[str, Any] | Any, *, log: bool = False) -> Figure:
    """Draw the course of an objective over the iterations, or of several for comparison.

    Args:
        histories: ``objective_`` of an estimator, or a mapping from names to such.
        log: Whether the objective's axis is logarithmic.

    Returns:
        The figure.
    """
    named = histories if isinstance(histories, Mapping) else {"": histories}
    figure = _figure(5.5, 3.2)
    axes = figure.subplots()
    for name, history in named.items():
        values = _array("objective_figure", f"histories {name}".rstrip(), history)
        check_shape("objective_figure", f"histories {name}".rstrip(), values, "n")
        marker = "o" if len(values) < 20 else ""
        axes.plot(values, label=name, marker=marker, markersize=3.5, linewidth=1.6)
    axes.set_xlabel("iteration")
    axes.set_ylabel("objective")
    if log:
        axes.set_yscale("log")
    _plain(axes)
    if isinstance(histories, Mapping):
        axes.legend(frameon=False)
    return figure


def codes_figure(codes: Any) -> Figure:
    """Draw how sparse codes are: nonzeros per sample, samples per atom, and the values.

    Args:
        codes: (n, m) codes, array or tensor.

    Returns:
        A figure of three panels.
    """
    values = _array("codes_figure", "codes", codes)
    n, m = check_shape("codes_figure", "codes", values, "n m").values()
    taken = values != 0
    figure = _figure(9.6, 2.8)
    left, middle, right = figure.subplots(1, 3)
    counts = np.bincount(taken.sum(axis=1))
    left.bar(np.arange(len(counts)), counts / n, width=0.9)
    left.set_xlabel("nonzeros of a sample")
    left.set_ylabel("share of the samples")
    middle.plot(np.arange(1, m + 1), np.sort(taken.mean(axis=0))[::-1], linewidth=1.6)
    middle.set_xlabel("atoms, the most used first")
    middle.set_ylabel("share of the samples")
    middle.set_ylim(bottom=0)
    right.hist(values[taken], bins=41)
    right.set_xlabel("values that are not zero")
    right.set_ylabel("count")
    for axes in (left, middle, right):
        _plain(axes)
    return figure


def reconstructions_figure(
    originals: Any, reconstructions: Any, shape: tuple[int, ...], *, titles: Sequence[str] = ()
) -> Figure:
    """Draw samples, what their codes stand for, and the difference, one below the other.

    A sample and its reconstruction share their grey values; differences share theirs, 0 at grey.

    Args:
        originals: (n, d) samples as rows, array or tensor.
        reconstructions: (n, d), such as ``inverse_transform(transform(X))``.
        shape: (h, w), or (h, w, 3) for colour, with the product d.
        titles: One for each sample, or none.

    Returns:
        The figure, with a column for each sample.

    Raises:
        ValueError: For shapes or numbers that do not fit, or an entry that is not finite.
    """
    owner = "reconstructions_figure"
    X = _array(owner, "originals", originals).astype(np.float64)
    back = _array(owner, "reconstructions", reconstructions).astype(np.float64)
    check_same_shape(owner, originals=X, reconstructions=back)
    if titles and len(titles) != len(X):
        raise ValueError(f"{owner}: titles must be {len(X)} or none; got {len(titles)}.")
    first = _images(owner, "originals", X, shape)
    second = _images(owner, "reconstructions", back, shape)
    most = float(np.abs(X - back).max())
    figure = _figure(max(len(X) * _INCH, 2.0) + 0.8, 3 * _INCH + 0.3)
    grid = figure.subplots(3, len(X), squeeze=False)
    for column, (x, r) in enumerate(zip(first, second, strict=True)):
        span = (float(x.min()), float(x.max()))
        _show(grid[0, column], x, span)
        _show(grid[1, column], r, span)
        _show(grid[2, column], x - r, (-most, most))
        if titles:
            grid[0, column].set_title(titles[column], fontsize=9)
    for axes in grid.ravel():
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, name in zip(grid[:, 0], ("original", "from codes", "difference"), strict=True):
        axes.set_ylabel(name, fontsize=9)
    return figure


def _figure(width: float, height: float) -> Figure:
    module = require(
        "matplotlib.figure", package="cv-factorization", extra="lab", purpose="drawing a figure"
    )
    return module.Figure(figsize=(width, height), layout="constrained")


def _array(owner: str, name: str, values: Any) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    check_finite(owner, name, array)
    return array


def _images(owner: str, name: str, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    check_shape(owner, name, rows, "n d")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3):
        raise ValueError(f"{owner}: shape must be (h, w) or (h, w, 3); got {tuple(shape)}.")
    if math.prod(shape) != rows.shape[1]:
        raise ValueError(
            f"{owner}: shape must have {rows.shape[1]} pixels as {name} has; got {tuple(shape)}."
        )
    return rows.reshape(len(rows), *shape)


def _span(image: np.ndarray) -> tuple[float, float]:
    """Return what is drawn as black and as white: symmetric if there are both signs."""
    low, high = float(image.min()), float(image.max())
    most = max(-low, high)
    return (-most, most) if low < 0 < high else (low, high)


def _show(axes: Axes, image: np.ndarray, span: tuple[float, float]) -> None:
    low, high = span
    scaled = np.clip((image - low) / (high - low), 0, 1) if high > low else np.full_like(image, 0.5)
    axes.imshow(scaled, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, linewidth=0.6, alpha=0.4)
    axes.set_axisbelow(True)
