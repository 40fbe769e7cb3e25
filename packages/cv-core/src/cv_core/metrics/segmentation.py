"""Scores of label maps, all from one confusion tensor and under conventions that have names.

Two choices decide what "the mean IoU" is, and they are never silent here:

- ``average="dataset"`` sums the confusion over all images first, then scores each class and
  averages over classes; ``average="image"`` scores the classes of each image, averages over its
  classes, then over images.
- ``absent`` says what a class counts that occurs neither in the prediction nor in the target:
  ``"skip"`` leaves it out, ``"zero"`` and ``"one"`` count it as 0 or 1.

A class that occurs in one of the two only has IoU, Dice, precision and recall 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from cv_core.checks import check_choice, check_indices, check_integer, check_same_shape, check_shape

Average = Literal["dataset", "image"]
Absent = Literal["skip", "zero", "one"]


_MOST_CLASSES = 2**15  # pairs of classes are counted as int32


def confusion_matrix(
    prediction: Integer[Tensor, "n ..."],
    target: Integer[Tensor, "n ..."],
    num_classes: int,
    *,
    ignore_index: int | None = None,
) -> Int[Tensor, "n c c"]:
    """Count, for each image, the pixels of every (target, prediction) pair of classes.

    Args:
        prediction: Class indices of N images or volumes, such as ``logits.argmax(1)``.
        target: True class indices, same shape.
        num_classes: C, from 1 to 32768.
        ignore_index: Pixels whose target has this value do not count.

    Returns:
        int64 counts; rows are target classes, columns predicted ones.

    Raises:
        TypeError: If an input does not hold integers.
        ValueError: If shapes differ or an index lies outside ``[0, num_classes)``.

    Example:
        >>> confusion_matrix(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 1]]), 2)
        tensor([[[1, 1],
                 [0, 1]]])
    """
    owner = "confusion_matrix"
    check_integer(owner, "num_classes", num_classes, low=1, high=_MOST_CLASSES)
    check_same_shape(owner, prediction=prediction, target=target)
    if prediction.ndim < 2 or prediction.numel() == 0:
        check_shape(owner, "prediction", prediction, "n pixels")
    counts = [
        _count(owner, p, t, num_classes, ignore_index)
        for p, t in zip(prediction, target, strict=True)
    ]
    return torch.stack(counts).view(-1, num_classes, num_classes)


def _count(
    owner: str, prediction: Tensor, target: Tensor, classes: int, ignore_index: int | None
) -> Tensor:
    for name, labels in (("prediction", prediction), ("target", target)):
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            check_indices(owner, name, labels, high=classes, ignore=None)
    said, real = prediction.flatten().long(), target.flatten().long()
    ignored = None if ignore_index is None else real == ignore_index
    if ignored is not None:
        real = real.masked_fill(ignored, 0)
    # The extremes take one pass, a check of every pixel takes several.
    if not (_within(said, classes) and _within(real, classes)):
        check_indices(owner, "prediction", prediction, high=classes, ignore=None)
        check_indices(owner, "target", target, high=classes, ignore=ignore_index)
    size = classes * classes + 1  # the last counts what is ignored
    if said.device.type != "cpu":
        pairs = real * classes + said
        if ignored is not None:
            pairs.masked_fill_(ignored, size - 1)
        return torch.bincount(pairs, minlength=size)[:-1]
    # On a CPU, NumPy counts several times faster than torch; int32 saves memory traffic.
    array = np.multiply(real.numpy(), classes, dtype=np.int32, casting="unsafe")
    array += said.numpy().astype(np.int32)
    if ignored is not None:
        array[ignored.numpy()] = size - 1
    return torch.from_numpy(np.bincount(array, minlength=size)[:-1])


def _within(labels: Tensor, classes: int) -> bool:
    if labels.device.type == "cpu":
        # Seen as unsigned, a negative index is a huge one: one pass instead of two.
        return int(labels.numpy().view(np.uint64).max()) < classes
    low, high = labels.aminmax()
    return int(low) >= 0 and int(high) < classes


@dataclass(frozen=True)
class ClassScores:
    """Scores of each class, in [0, 1]; NaN where the class is absent from both sides.

    Args:
        iou: Intersection over union, TP / (TP + FP + FN).
        dice: Dice score or F1, 2 TP / (2 TP + FP + FN).
        precision: TP / (TP + FP); 0 for a class that is never predicted but occurs.
        recall: TP / (TP + FN); 0 for a class that does not occur but is predicted.
    """

    iou: Float[Tensor, "... c"]
    dice: Float[Tensor, "... c"]
    precision: Float[Tensor, "... c"]
    recall: Float[Tensor, "... c"]


@dataclass(frozen=True)
class MeanScores:
    """Means over classes (and images) of ``ClassScores``, and the share of right pixels.

    Args:
        iou: Mean IoU.
        dice: Mean Dice score.
        precision: Mean precision.
        recall: Mean recall; with ``average="dataset"`` also known as mean class accuracy.
        accuracy: Share of right pixels, of the data set or averaged over images.
    """

    iou: float
    dice: float
    precision: float
    recall: float
    accuracy: float


def class_scores(confusion: Int[Tensor, "... c c"]) -> ClassScores:
    """Score every class, for each matrix of a confusion tensor.

    Sum over the images first (``confusion.sum(0)``) for the scores of a data set.

    Args:
        confusion: Counts; rows are target classes, columns predicted ones.

    Returns:
        Scores in float64.
    """
    classes = confusion.shape[-1] if confusion.ndim else 0
    check_shape("class_scores", "confusion", confusion, "... c c", c=classes)
    counts = confusion.double()
    right = counts.diagonal(dim1=-2, dim2=-1)
    real, said = counts.sum(-1), counts.sum(-2)
    absent = real + said == 0.0

    def share(part: Tensor, whole: Tensor) -> Tensor:
        return (part / whole.clamp(min=1.0)).masked_fill(absent, float("nan"))

    return ClassScores(
        iou=share(right, real + said - right),
        dice=share(2.0 * right, real + said),
        precision=share(right, said),
        recall=share(right, real),
    )


def mean_scores(
    confusion: Int[Tensor, "n c c"], *, average: Average = "dataset", absent: Absent = "skip"
) -> MeanScores:
    """Average the class-wise scores under named conventions; see the module's docstring.

    Args:
        confusion: Counts of each image, from ``confusion_matrix``.
        average: ``"dataset"`` or ``"image"``. Images without a counted pixel are left out.
        absent: ``"skip"``, ``"zero"`` or ``"one"``.

    Returns:
        Five numbers; NaN if nothing was counted.
    """
    check_choice("mean_scores", "average", average, get_args(Average))
    check_choice("mean_scores", "absent", absent, get_args(Absent))
    check_shape("mean_scores", "confusion", confusion, "n c c")
    groups = confusion.sum(0, keepdim=True) if average == "dataset" else confusion
    groups = groups[groups.sum((-2, -1)) > 0]
    scores = class_scores(groups)

    def mean(values: Tensor) -> float:
        if absent != "skip":
            values = values.nan_to_num(nan=0.0 if absent == "zero" else 1.0)
        return float(values.nanmean(-1).mean())

    right = groups.diagonal(dim1=-2, dim2=-1).sum(-1).double()
    return MeanScores(
        iou=mean(scores.iou),
        dice=mean(scores.dice),
        precision=mean(scores.precision),
        recall=mean(scores.recall),
        accuracy=float((right / groups.sum((-2, -1))).mean()),
    )


class ConfusionMeter:
    """Collect the confusion of batch after batch.

    Args:
        num_classes: Number of classes.
        ignore_index: Pixels whose target has this value do not count.
    """

    def __init__(self, num_classes: int, *, ignore_index: int | None = None) -> None:
        check_integer("ConfusionMeter", "num_classes", num_classes, low=1)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._batches: list[Tensor] = []

    def update(
        self, prediction: Integer[Tensor, "n ..."], target: Integer[Tensor, "n ..."]
    ) -> None:
        """Add a batch of class indices; see ``confusion_matrix``."""
        counts = confusion_matrix(
            prediction, target, self.num_classes, ignore_index=self.ignore_index
        )
        self._batches.append(counts.cpu())

    @property
    def confusion(self) -> Int[Tensor, "n c c"]:
        """The counts of every image so far."""
        if not self._batches:
            raise ValueError("ConfusionMeter: nothing to score; call update first.")
        return torch.cat(self._batches)

    def compute(self, *, average: Average = "dataset", absent: Absent = "skip") -> MeanScores:
        """Score everything so far; see ``mean_scores``."""
        return mean_scores(self.confusion, average=average, absent=absent)
