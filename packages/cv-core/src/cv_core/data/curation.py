"""Curation of labelled collections, and audits of how evenly a classifier treats its groups.

The procedure of Chen, Liu, Ou, Wang, "FDEA: Face Dataset with Ethnicity Attribute", PRCV 2021, LNCS
13022, pp. 437-446, without images and without a classifier: groups with contradictory labels are
dropped, groups are capped, classes are balanced, recall is reported group by group. Labels come
from votes by ``cv_core.data.votes``.

*Deviations from the paper*: its per-class accuracies come from a test part of each data set's own.
``per_group_report`` leaves the test set to the user, who should keep identities and sources apart
between training and test.

Labels and groups may be arrays, tensors or sequences; results are NumPy arrays.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int64, Shaped
from torch import Tensor

from cv_core.checks import check_integer, check_shape
from cv_core.random import numpy_generator

Labels = Shaped[np.ndarray, " n"] | Shaped[Tensor, " n"] | Sequence[Any]
Indices = Int64[np.ndarray, " m"]


@dataclass(frozen=True, slots=True)
class BalanceRow:
    """How one source is composed.

    Args:
        source: Its name, or ``"all"``.
        counts: Samples of each class, in ascending order of the classes of the whole collection.
        entropy: Entropy of the class shares over its maximum: 1 if all are equal, 0 for one class.
        imbalance: Largest over smallest class; infinite if a class is missing.
    """

    source: Hashable
    counts: Mapping[Hashable, int]
    entropy: float
    imbalance: float

    @property
    def total(self) -> int:
        """Number of samples."""
        return sum(self.counts.values())

    @property
    def ratios(self) -> dict[Hashable, float]:
        """Share of each class."""
        return {label: count / self.total for label, count in self.counts.items()}


@dataclass(frozen=True, slots=True)
class GroupReport:
    """How evenly a classifier treats groups.

    Args:
        recall: Share of correct predictions in each group, in ascending order of the groups.
        counts: Samples of each group.
    """

    recall: Mapping[Hashable, float]
    counts: Mapping[Hashable, int]

    @property
    def range(self) -> float:
        """Largest minus smallest recall; 0 for a classifier that treats all groups alike."""
        return max(self.recall.values()) - min(self.recall.values())

    @property
    def worst_group(self) -> Hashable:
        """The group of the smallest recall; the first of several."""
        return min(self.recall, key=self.recall.__getitem__)

    @property
    def worst_recall(self) -> float:
        """The smallest recall."""
        return min(self.recall.values())

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the groups' recalls."""
        return sum(self.recall.values()) / len(self.recall)


def drop_conflicting_groups(labels: Labels, group_ids: Labels) -> Indices:
    """Keep the samples of groups whose labels agree; drop all others entirely.

    Args:
        labels: Class of each sample.
        group_ids: What must have one class, such as the identity of a person, per sample.

    Returns:
        Ascending indices of the samples to keep.

    Example:
        >>> drop_conflicting_groups([0, 0, 1, 2], ["a", "a", "b", "b"])
        array([0, 1])
    """
    classes = _codes("drop_conflicting_groups", "labels", labels)[1]
    names, groups = _codes("drop_conflicting_groups", "group_ids", group_ids, len(classes))
    least = np.full(len(names), np.iinfo(np.int64).max)
    largest = np.full(len(names), -1)
    np.minimum.at(least, groups, classes)
    np.maximum.at(largest, groups, classes)
    return np.flatnonzero((least == largest)[groups]).astype(np.int64)


def cap_per_group(
    indices: Int[np.ndarray, " m"] | Sequence[int], group_ids: Labels, k: int
) -> Indices:
    """Keep at most ``k`` samples of each group, the first ones in the given order.

    Args:
        indices: Samples to choose from, in order of preference.
        group_ids: Group of every sample of the collection; ``indices`` point into it.
        k: Largest number per group, at least 1.

    Returns:
        The indices kept, in the given order.

    Raises:
        TypeError: If the indices are not whole numbers; a mask is none (use ``np.flatnonzero``).
        ValueError: If there are none, or one points outside the collection.

    Example:
        >>> cap_per_group([4, 3, 2, 0], ["a", "a", "b", "a", "a"], k=2)
        array([4, 3, 2])
    """
    check_integer("cap_per_group", "k", k, low=1)
    groups = _codes("cap_per_group", "group_ids", group_ids)[1]
    chosen = np.asarray(indices)
    check_shape("cap_per_group", "indices", chosen, "m")
    if not np.issubdtype(chosen.dtype, np.integer):
        raise TypeError(
            f"cap_per_group: indices must be whole numbers; got {chosen.dtype}. Turn a mask into "
            "indices with numpy.flatnonzero."
        )
    chosen = chosen.astype(np.int64)
    for end in (int(chosen.min()), int(chosen.max())):
        check_integer("cap_per_group", "indices", end, low=0, high=len(groups) - 1)
    member = groups[chosen]
    order = np.argsort(member, kind="stable")
    # rank of a sample within its group: its place in the sorted list less the group's first place
    first = np.searchsorted(member[order], member[order])
    rank = np.empty(len(chosen), dtype=np.int64)
    rank[order] = np.arange(len(chosen)) - first
    return chosen[rank < k]


def balance_report(labels: Labels, sources: Labels | None = None) -> list[BalanceRow]:
    """Count classes per source.

    A source that holds one class only tempts a classifier to learn the source: look at each row,
    not only at the sum.

    Args:
        labels: Class of each sample.
        sources: Where each sample comes from; by default only the whole is reported.

    Returns:
        One row per source in ascending order, then one named ``"all"``.

    Example:
        >>> balance_report(["cat", "dog", "cat", "cat"])[-1].ratios
        {'cat': 0.75, 'dog': 0.25}
    """
    classes, codes = _codes("balance_report", "labels", labels)
    rows = []
    if sources is not None:
        names, origin = _codes("balance_report", "sources", sources, len(codes))
        for number, name in enumerate(names):
            rows.append(_balance_row(name, classes, codes[origin == number]))
    return [*rows, _balance_row("all", classes, codes)]


def balanced_subset(labels: Labels, per_class: int, seed: int) -> Indices:
    """Draw the same number of samples of every class, without replacement.

    Args:
        labels: Class of each sample.
        per_class: How many of each class, at least 1.
        seed: Seed of the draw.

    Returns:
        Ascending indices.

    Raises:
        ValueError: If a class has fewer samples.

    Example:
        >>> len(balanced_subset([0, 0, 0, 1, 1, 1, 1], per_class=2, seed=0))
        4
    """
    check_integer("balanced_subset", "per_class", per_class, low=1)
    classes, codes = _codes("balanced_subset", "labels", labels)
    counts = np.bincount(codes)
    if counts.min() < per_class:
        scarce = classes[int(counts.argmin())]
        raise ValueError(
            f"balanced_subset: per_class must be at most {counts.min()}, the samples of class "
            f"{scarce!r}; got {per_class}."
        )
    rng = numpy_generator(seed, "balanced subset")
    drawn = [rng.permutation(np.flatnonzero(codes == c))[:per_class] for c in range(len(classes))]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def per_group_report(y_true: Labels, y_pred: Labels, groups: Labels | None = None) -> GroupReport:
    """Report how often predictions are right in each group.

    Args:
        y_true: True class of each sample.
        y_pred: Predicted class of each sample.
        groups: Group of each sample; by default its true class, so that recall is the usual one.

    Raises:
        TypeError: If one of the two classes is text and the other a number.
        ValueError: If the lengths differ, or a label is missing.

    Example:
        >>> report = per_group_report([0, 0, 1, 1], [0, 0, 1, 0])
        >>> report.range, report.worst_group, report.balanced_accuracy
        (0.5, 1, 0.75)
    """
    true = _array("per_group_report", "y_true", y_true)
    size = len(true)
    right = _agree(true, _array("per_group_report", "y_pred", y_pred, size))
    names, codes = _codes("per_group_report", "groups", true if groups is None else groups, size)
    counts = np.bincount(codes)
    recall = np.bincount(codes, weights=right) / counts
    return GroupReport(
        dict(zip(names, recall.tolist(), strict=True)),
        dict(zip(names, counts.tolist(), strict=True)),
    )


def _balance_row(source: Hashable, classes: list[Hashable], codes: np.ndarray) -> BalanceRow:
    counts = np.bincount(codes, minlength=len(classes))
    shares = counts[counts > 0] / counts.sum()
    # one class in all has no maximum to compare with: it is as even as it can be
    entropy = 1.0
    if len(classes) > 1:
        entropy = max(0.0, float(-(shares * np.log(shares)).sum()) / math.log(len(classes)))
    imbalance = float(counts.max() / counts.min()) if counts.min() > 0 else math.inf
    named = dict(zip(classes, counts.tolist(), strict=True))
    return BalanceRow(source, named, entropy, imbalance)


def _array(owner: str, name: str, values: Labels, size: int | None = None) -> np.ndarray:
    array = np.asarray(values)
    check_shape(owner, name, array, "n", **({} if size is None else {"n": size}))
    if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
        raise ValueError(f"{owner}: {name} must not hold NaN. Drop samples without a label first.")
    return array


def _codes(
    owner: str, name: str, values: Labels, size: int | None = None
) -> tuple[list[Hashable], np.ndarray]:
    """Return the different values in ascending order and, for each sample, which it has."""
    different, codes = np.unique(_array(owner, name, values, size), return_inverse=True)
    return different.tolist(), codes.astype(np.int64)


def _agree(y_true: np.ndarray, y_pred: np.ndarray) -> Bool[np.ndarray, " n"]:
    kinds = {y_true.dtype.kind, y_pred.dtype.kind}
    if "U" in kinds and kinds & set("biuf"):
        raise TypeError(
            f"per_group_report: y_true and y_pred must be of one kind; got {y_true.dtype} and "
            f"{y_pred.dtype}, which never agree. Give both as names or both as numbers."
        )
    return y_true == y_pred
