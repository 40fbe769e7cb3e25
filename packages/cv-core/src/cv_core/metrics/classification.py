"""Scores of class predictions: accuracy, top-k, recall by class, gaps between groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from cv_core.checks import (
    check_finite,
    check_floating,
    check_indices,
    check_integer,
    check_same_shape,
    check_shape,
)


def accuracy(prediction: Integer[Tensor, "..."], target: Integer[Tensor, "..."]) -> float:
    """Return the share of right predictions.

    Args:
        prediction: Class indices, such as ``logits.argmax(1)``; any shape.
        target: True class indices, same shape.

    Returns:
        A share in [0, 1].

    Example:
        >>> accuracy(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2]))
        0.75
    """
    check_same_shape("accuracy", prediction=prediction, target=target)
    if target.numel() == 0:
        raise ValueError("accuracy: target is empty.")
    return float((prediction == target).double().mean())


def top_k_accuracy(logits: Float[Tensor, "n c"], target: Integer[Tensor, " n"], k: int) -> float:
    """Return the share of samples whose class is among the k with the highest scores.

    A class that ties with the k-th counts only if fewer than k classes score as high as or higher
    than it: a constant prediction has no top class.

    Args:
        logits: Scores of every class.
        target: True class indices.
        k: From 1 to the number of classes.

    Returns:
        A share in [0, 1].
    """
    owner = "top_k_accuracy"
    check_floating(owner, "logits", logits)
    check_finite(owner, "logits", logits)
    shape = check_shape(owner, "logits", logits, "n c")
    check_shape(owner, "target", target, "n", n=shape["n"])
    check_indices(owner, "target", target, high=shape["c"], ignore=None)
    check_integer(owner, "k", k, low=1, high=shape["c"])
    own = logits.gather(1, target[:, None].long())
    rivals = (logits >= own).sum(1) - 1
    return float((rivals < k).double().mean())


def class_recall(
    prediction: Integer[Tensor, " n"], target: Integer[Tensor, " n"], num_classes: int
) -> Float[Tensor, " c"]:
    """Return, for each class, the share of its samples that were recognised.

    Args:
        prediction: Class indices.
        target: True class indices.
        num_classes: Number of classes.

    Returns:
        Shares in float64; NaN for a class without samples.
    """
    owner = "class_recall"
    check_integer(owner, "num_classes", num_classes, low=1)
    size = check_shape(owner, "target", target, "n")["n"]
    check_shape(owner, "prediction", prediction, "n", n=size)
    check_indices(owner, "prediction", prediction, high=num_classes, ignore=None)
    check_indices(owner, "target", target, high=num_classes, ignore=None)
    counts = torch.bincount(target, minlength=num_classes)
    right = torch.bincount(target[prediction == target], minlength=num_classes)
    return right.double() / counts  # 0 / 0 is NaN


def balanced_accuracy(
    prediction: Integer[Tensor, " n"], target: Integer[Tensor, " n"], num_classes: int
) -> float:
    """Return the mean recall of the classes that have samples.

    Args:
        prediction: Class indices.
        target: True class indices.
        num_classes: Number of classes.

    Returns:
        A share in [0, 1].
    """
    return float(class_recall(prediction, target, num_classes).nanmean())


@dataclass(frozen=True)
class GroupGap:
    """A score compared between groups.

    Args:
        means: Mean of each group, NaN for a group without samples.
        worst: The lowest mean.
        gap: The highest less the lowest mean.
    """

    means: Float[Tensor, " g"]
    worst: float
    gap: float


def group_gap(
    values: Float[Tensor, " n"], groups: Integer[Tensor, " n"], num_groups: int
) -> GroupGap:
    """Compare the mean of a per-sample score between groups.

    Args:
        values: A score of each sample, higher is better: ``(prediction == target).float()``.
        groups: The group of each sample.
        num_groups: Number of groups.

    Returns:
        Means, the worst of them and the gap.
    """
    owner = "group_gap"
    check_integer(owner, "num_groups", num_groups, low=1)
    check_floating(owner, "values", values)
    size = check_shape(owner, "values", values, "n")["n"]
    check_finite(owner, "values", values)
    check_shape(owner, "groups", groups, "n", n=size)
    check_indices(owner, "groups", groups, high=num_groups, ignore=None)
    counts = torch.bincount(groups, minlength=num_groups)
    means = torch.bincount(groups, weights=values.double(), minlength=num_groups) / counts
    present = means[counts > 0]
    return GroupGap(means, float(present.min()), float(present.max() - present.min()))
