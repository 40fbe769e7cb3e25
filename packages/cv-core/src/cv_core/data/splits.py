"""Seeded splits: stratified parts, folds, a few shots per class, groups kept together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from cv_core.checks import check_integer, check_shape
from cv_core.random import numpy_generator

Indices = Int64[np.ndarray, " _"]  # "_": parts may have different lengths


def stratified_split(
    y: Tensor | np.ndarray | Sequence[int], fractions: Sequence[float], seed: int
) -> tuple[Indices, ...]:
    r"""Split samples at random so that every part has the classes in their proportions.

    With :math:`N` samples, :math:`c_k` of class :math:`k`, a part of :math:`n` samples gets
    :math:`c_k n / N` of class :math:`k` up to rounding, and the sizes of the parts are exact.

    Args:
        y: (N,) classes, any integers.
        fractions: Shares of the parts, each above 0, with sum 1.
        seed: Seed of the split.

    Returns:
        Ascending indices of every part; together each index occurs once.

    Raises:
        ValueError: If the fractions are wrong or a part would be empty.

    Example:
        >>> train, test = stratified_split([0, 0, 0, 0, 1, 1], (0.5, 0.5), seed=0)
        >>> len(train), len(test)
        (3, 3)
    """
    labels = _labels("stratified_split", "y", y)
    sizes = _sizes("stratified_split", len(labels), fractions)
    rng = numpy_generator(seed, "stratified split")
    # Within its class the r-th of c samples, in random order, stands at (r + 1/2) / c. Sorting all
    # samples by that place mixes the classes evenly, so that every stretch is stratified.
    place = np.empty(len(labels))
    for members in _members(labels):
        place[rng.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.lexsort((rng.random(len(labels)), place))
    cuts = np.cumsum(sizes)[:-1]
    return tuple(np.sort(part).astype(np.int64) for part in np.split(order, cuts))


def k_fold(
    y: Tensor | np.ndarray | Sequence[int], folds: int, seed: int
) -> tuple[tuple[Indices, Indices], ...]:
    """Split samples into stratified folds, each of which is the test part once.

    Args:
        y: (N,) classes, any integers.
        folds: Number of folds, 2 to N.
        seed: Seed of the split.

    Returns:
        For every fold the ascending indices of the training and of the test part. Test parts are
        disjoint, cover everything, and differ by one sample at most, in size and in every class.

    Raises:
        ValueError: If ``folds`` is out of range.
    """
    labels = _labels("k_fold", "y", y)
    check_integer("k_fold", "folds", folds, low=2, high=len(labels))
    rng = numpy_generator(seed, "k fold")
    fold = np.empty(len(labels), dtype=np.int64)
    dealt = 0
    for members in _members(labels):
        fold[rng.permutation(members)] = (dealt + np.arange(len(members))) % folds
        dealt += len(members)
    return tuple((np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(folds))


def few_shot_split(
    y: Tensor | np.ndarray | Sequence[int], shots: int, seed: int
) -> tuple[Indices, Indices]:
    """Take the same number of samples of every class at random.

    Args:
        y: (N,) classes, any integers; samples with a negative class are left out of both parts.
        shots: Samples per class.
        seed: Seed of the split.

    Returns:
        Ascending indices of the samples taken and of the others.

    Raises:
        ValueError: If a class has fewer than ``shots`` samples; the message names it.
    """
    labels = _labels("few_shot_split", "y", y)
    check_integer("few_shot_split", "shots", shots, low=1)
    rng = numpy_generator(seed, "few shot split")
    taken = np.zeros(len(labels), dtype=bool)
    for members in _members(labels):
        label = int(labels[members[0]])
        if label < 0:
            continue
        if len(members) < shots:
            raise ValueError(
                f"few_shot_split: class {label} must have at least {shots} samples; "
                f"got {len(members)}."
            )
        taken[rng.permutation(members)[:shots]] = True
    return np.flatnonzero(taken), np.flatnonzero(~taken & (labels >= 0))


def group_split(
    groups: Tensor | np.ndarray | Sequence[int], fractions: Sequence[float], seed: int
) -> tuple[Indices, ...]:
    """Split samples so that all samples of a group (a person, a slide, a scene) stay together.

    Groups are dealt in random order, each to the part that lacks most of its share.

    Args:
        groups: (N,) group of every sample, any integers.
        fractions: Shares of the parts, each above 0, with sum 1.
        seed: Seed of the split.

    Returns:
        Ascending indices of every part. Sizes meet the fractions as well as whole groups allow.

    Raises:
        ValueError: If the fractions are wrong or there are fewer groups than parts.
    """
    owner = "group_split"
    labels = _labels(owner, "groups", groups)
    sizes = _sizes(owner, len(labels), fractions)
    members = _members(labels)
    if len(members) < len(sizes):
        raise ValueError(
            f"{owner}: groups must hold at least {len(sizes)} groups; got {len(members)}."
        )
    rng = numpy_generator(seed, "group split")
    lacking = sizes.astype(float)
    part_of = np.empty(len(labels), dtype=np.int64)
    empty = set(range(len(sizes)))
    for dealt, choice in enumerate(rng.permutation(len(members))):
        must_fill = len(members) - dealt == len(empty)  # no group left over: fill empty parts first
        allowed = sorted(empty) if must_fill else list(range(len(sizes)))
        part = max(allowed, key=lambda index: lacking[index])
        part_of[members[choice]] = part
        lacking[part] -= len(members[choice])
        empty.discard(part)
    return tuple(np.flatnonzero(part_of == part) for part in range(len(sizes)))


def _labels(owner: str, name: str, values: Tensor | np.ndarray | Sequence[int]) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    check_shape(owner, name, array, "n")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{owner}: {name} must hold whole numbers; got {array.dtype}.")
    return array.astype(np.int64)


def _members(labels: np.ndarray) -> list[np.ndarray]:
    """Return the ascending indices of every class, classes in ascending order."""
    order = np.argsort(labels, kind="stable")
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    return np.split(order, cuts)


def _sizes(owner: str, total: int, fractions: Sequence[float]) -> np.ndarray:
    """Round the shares to whole numbers that add up, the largest remainders upwards."""
    shares = np.asarray(fractions, dtype=float)
    if shares.ndim != 1 or not len(shares) or not (shares > 0).all():
        raise ValueError(f"{owner}: fractions must all be above 0; got {tuple(fractions)}.")
    if abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"{owner}: fractions must have sum 1; got {shares.sum():g}.")
    exact = shares * total
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    short = total - int(sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[:short]] += 1
    if not sizes.all():
        raise ValueError(
            f"{owner}: fractions {tuple(fractions)} leave a part of {total} samples empty."
        )
    return sizes
