"""Pairs of boxes that interact: where they lie, what their scores mean, how they are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from cv_core.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_indices,
    check_integer,
    check_range,
    check_same_shape,
    check_shape,
)
from cv_core.metrics.detection import box_iou
from jaxtyping import Bool, Float, Int
from torch import Tensor

Origin = Literal["union", "image"]
Interpolation = Literal["11-point", "none"]

SPATIAL_FEATURES = 16
"""How many numbers ``pair_spatial_features`` gives for a pair."""


def pair_spatial_features(
    boxes_a: Float[Tensor, "*b n 4"],
    boxes_b: Float[Tensor, "*b m 4"],
    image_size: tuple[int, int],
    *,
    origin: Origin = "union",
) -> Float[Tensor, "*b n m 16"]:
    """Describe how every box of one list lies to every box of another.

    For boxes i and j with sides w, h and areas A, and their union's bounding box u,

        x1_i / w_u, y1_i / h_u, x2_i / w_u, y2_i / h_u, the same four of j,
        A_i / A_u, A_j / A_u, A_i / A_image, A_j / A_image,
        (x1_i - x1_j) / w_j, (y1_i - y1_j) / h_j, log(w_i / w_j), log(h_i / h_j).

    Args:
        boxes_a: Boxes i, xyxy in pixels, with any number of leading axes.
        boxes_b: Boxes j, with the same leading axes.
        image_size: Height and width of the image in pixels.
        origin: From where the first eight coordinates are counted. ``"union"``: from the upper left
            corner of ``u``, so that nothing depends on where in the image the pair lies.
            ``"image"``: as the paper prints it.

    Returns:
        The 16 numbers of each pair.

    Raises:
        TypeError: If the boxes are not floating.
        ValueError: If a shape does not fit, a box has no area, or an option is out of range.

    Example:
        >>> box = torch.tensor([[2.0, 2.0, 6.0, 4.0]])
        >>> pair_spatial_features(box, box, (8, 8))[0, 0, :4]
        tensor([0., 0., 1., 1.])
    """
    owner = "pair_spatial_features"
    check_choice(owner, "origin", origin, get_args(Origin))
    for side in image_size:
        check_range(owner, "image_size", side, low=0.0, low_open=True)
    for name, boxes in (("boxes_a", boxes_a), ("boxes_b", boxes_b)):
        check_floating(owner, name, boxes)
        check_shape(owner, name, boxes, "... n 4")
        check_finite(owner, name, boxes)
        if not bool((boxes[..., 2:] > boxes[..., :2]).all()):
            raise ValueError(f"{owner}: {name} must be xyxy with left < right and top < bottom.")
    if boxes_a.shape[:-2] != boxes_b.shape[:-2]:
        raise ValueError(
            f"{owner}: boxes_a and boxes_b must have the same leading axes; got "
            f"{tuple(boxes_a.shape)} and {tuple(boxes_b.shape)}."
        )
    a, b = torch.broadcast_tensors(boxes_a[..., :, None, :], boxes_b[..., None, :, :])
    corner = torch.minimum(a[..., :2], b[..., :2])
    union = torch.maximum(a[..., 2:], b[..., 2:]) - corner
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    areas = torch.stack([size_a.prod(-1), size_b.prod(-1)], dim=-1)
    start = torch.cat([corner, corner], -1) if origin == "union" else torch.zeros_like(a)
    scale = torch.cat([union, union], -1)
    return torch.cat(
        [
            (a - start) / scale,
            (b - start) / scale,
            areas / union.prod(-1, keepdim=True),
            areas / (image_size[0] * image_size[1]),
            (a[..., :2] - b[..., :2]) / size_b,
            (size_a / size_b).log(),
        ],
        dim=-1,
    )


def interaction_scores(
    scores: Float[Tensor, "p c"],
    label_object: Int[Tensor, " c"],
    object_class: Int[Tensor, " p"],
    *,
    subject_score: Float[Tensor, " p"] | None = None,
    object_score: Float[Tensor, " p"] | None = None,
) -> Float[Tensor, "p c"]:
    """Weight pairs' scores by their detections; leave only labels of the object that was detected.

    Args:
        scores: Score of each label for each pair, such as ``MultiGranularityHead.fuse`` gives.
        label_object: Object class of each label: the second column of the triplets.
        object_class: The class that was detected in each pair.
        subject_score: Confidence of the subject's detection; 1 by default.
        object_score: Confidence of the object's detection; 1 by default.

    Returns:
        ``subject_score * object_score * scores``, and 0 where the object's class is another one.

    Raises:
        TypeError: If ``scores`` is not floating.
        ValueError: If the shapes do not fit.

    Example:
        >>> both = torch.tensor([[0.5, 0.5]])
        >>> interaction_scores(both, torch.tensor([3, 4]), torch.tensor([4]))
        tensor([[0.0000, 0.5000]])
    """
    owner = "interaction_scores"
    check_floating(owner, "scores", scores)
    sizes = check_shape(owner, "scores", scores, "p c")
    check_shape(owner, "label_object", label_object, "c", c=sizes["c"])
    check_shape(owner, "object_class", object_class, "p", p=sizes["p"])
    weighted = scores * (label_object[None] == object_class[:, None])
    for name, weight in (("subject_score", subject_score), ("object_score", object_score)):
        if weight is not None:
            check_shape(owner, name, weight, "p", p=sizes["p"])
            weighted = weighted * weight[:, None]
    return weighted


class InteractionPrecision(NamedTuple):
    """Mean average precisions in [0, 1]; NaN where no label counts.

    Args:
        full: Over all labels that are annotated somewhere.
        rare: Over those that were rare in training.
        non_rare: Over the others.
        per_label: Average precision of each label; NaN where it is not annotated.
    """

    full: float
    rare: float
    non_rare: float
    per_label: Float[Tensor, " c"]


def hoi_mean_ap(
    predictions: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    *,
    train_counts: Int[Tensor, " c"] | None = None,
    rare_below: int = 10,
    iou_threshold: float = 0.5,
    interpolation: Interpolation = "11-point",
) -> InteractionPrecision:
    """Judge detected interactions as HICO-Det does in its default setting.

    A prediction of a label takes the annotation of that label with which it overlaps most, by the
    smaller of the two boxes' intersection over union. It is right if that reaches the threshold and
    no prediction of a higher score has taken the annotation before.

    Args:
        predictions: For each image ``subject_boxes`` (p, 4), ``object_boxes`` (p, 4) and ``scores``
            (p, c), one column per label; p may be 0. A score of exactly 0 is no prediction.
        targets: For each image ``subject_boxes`` (g, 4), ``object_boxes`` (g, 4) and ``labels``
            (g,) int64, one row per annotated triplet; g may be 0.
        train_counts: How often each label occurs in training; without it no label is rare.
        rare_below: A label is rare if it occurs less often than this; HICO-Det takes 10.
        iou_threshold: Least overlap of both boxes, in (0, 1].
        interpolation: ``"11-point"``: the mean of the best precisions at a recall of at least 0,
            0.1, ..., 1, which is HICO-Det's. ``"none"``: the area under the steps.

    Returns:
        Means over all, rare and other labels, and each label's value.

    Raises:
        TypeError: If a tensor has the wrong type.
        ValueError: If the numbers of images differ, a key is missing, or a value is out of range.

    Deviations: HICO-Det counts a box's last row and column in; here boxes end where they end.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> pair = {"subject_boxes": box, "object_boxes": box + 2}
        >>> found = {**pair, "scores": torch.tensor([[0.9, 0.2]])}
        >>> hoi_mean_ap([found], [{**pair, "labels": torch.tensor([0])}]).full
        1.0
    """
    owner = "hoi_mean_ap"
    check_choice(owner, "interpolation", interpolation, get_args(Interpolation))
    check_integer(owner, "rare_below", rare_below, low=1)
    check_range(owner, "iou_threshold", iou_threshold, low=0.0, high=1.0, low_open=True)
    labels = _check_images(owner, predictions, targets)
    if train_counts is not None:
        check_shape(owner, "train_counts", train_counts, "c", c=labels)
    right = [
        _right(found, real, iou_threshold) for found, real in zip(predictions, targets, strict=True)
    ]
    hits, scores = torch.cat(right), torch.cat([item["scores"].detach() for item in predictions])
    totals = torch.cat([real["labels"] for real in targets]).bincount(minlength=labels)
    per_label = torch.full((labels,), torch.nan, dtype=torch.float64)
    for label in totals.nonzero()[:, 0].tolist():
        order = scores[:, label].argsort(descending=True, stable=True)
        order = order[: int((scores[:, label] > 0).sum())]
        per_label[label] = _average_precision(hits[order, label], int(totals[label]), interpolation)
    rare = torch.zeros(labels, dtype=torch.bool)
    if train_counts is not None:
        rare = train_counts.cpu() < rare_below
    groups = (per_label, per_label[rare], per_label[~rare])
    full, few, many = (float(group.nanmean()) for group in groups)
    return InteractionPrecision(full, few, many, per_label)


def _right(
    found: Mapping[str, Tensor], real: Mapping[str, Tensor], iou_threshold: float
) -> Bool[Tensor, "p c"]:
    """Return which predictions (pair, label) of an image are right."""
    scores = found["scores"].detach()
    hits = torch.zeros_like(scores, dtype=torch.bool)
    if not len(scores):
        return hits
    overlap = torch.minimum(
        box_iou(found["subject_boxes"], real["subject_boxes"]),
        box_iou(found["object_boxes"], real["object_boxes"]),
    )
    for label in real["labels"].unique().tolist():
        best, nearest = overlap[:, real["labels"] == label].max(1)
        taken = set()
        close = (best >= iou_threshold) & (scores[:, label] > 0)
        for pair in scores[:, label].argsort(descending=True, stable=True).tolist():
            if close[pair] and int(nearest[pair]) not in taken:
                taken.add(int(nearest[pair]))
                hits[pair, label] = True
    return hits


def _average_precision(
    right: Bool[Tensor, " p"], total: int, interpolation: Interpolation
) -> float:
    """Return the average precision of predictions in falling order of score."""
    found = right.double().cumsum(0)
    precision = found / torch.arange(1, len(found) + 1, device=found.device)
    if interpolation == "none":
        return float(precision[right].sum()) / total
    # recall >= tenth / 10 in whole numbers: 3 * 0.1 > 0.3 in floating point
    levels = [precision[10 * found >= tenth * total] for tenth in range(11)]
    return sum(float(level.amax()) for level in levels if len(level)) / 11


def _check_images(
    owner: str,
    predictions: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
) -> int:
    """Refuse malformed images; return the number of labels."""
    if len(predictions) != len(targets) or not predictions:
        raise ValueError(
            f"{owner}: predictions and targets must be of as many images, at least one; got "
            f"{len(predictions)} and {len(targets)}."
        )
    for name, items, last in (
        ("predictions", predictions, "scores"),
        ("targets", targets, "labels"),
    ):
        for index, item in enumerate(items):
            if missing := {"subject_boxes", "object_boxes", last} - set(item):
                raise ValueError(f"{owner}: {name}[{index}] must have {sorted(missing)}.")
            check_same_shape(
                owner, subject_boxes=item["subject_boxes"], object_boxes=item["object_boxes"]
            )
            if len(item[last]) != len(item["object_boxes"]):
                raise ValueError(f"{owner}: {name}[{index}][{last!r}] must have one row per pair.")
    widths = {tuple(item["scores"].shape[1:]) for item in predictions}
    if len(widths) != 1 or len(next(iter(widths))) != 1:
        raise ValueError(f"{owner}: all scores must have shape (p, c); got widths {widths}.")
    for item in predictions:
        check_floating(owner, "scores", item["scores"])
        if not bool((item["scores"] >= 0.0).all()):
            raise ValueError(f"{owner}: scores must be at least 0 and no NaN.")
    ((labels,),) = widths
    for item in targets:
        check_indices(owner, "labels", item["labels"], high=labels, ignore=None)
    return labels
