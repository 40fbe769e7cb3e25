"""Matching of boxes and mean average precision. Boxes are xyxy in pixels; there may be none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cv_core.checks import check_finite, check_floating, check_range
from cv_core.optional import require


def box_iou(boxes_a: Float[Tensor, "n 4"], boxes_b: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """Return the intersection over union of every pair of boxes.

    Args:
        boxes_a: Boxes as (left, top, right, bottom).
        boxes_b: Boxes as (left, top, right, bottom).

    Returns:
        Shares in [0, 1]; 0 for two boxes without area.
    """
    _check_boxes("box_iou", "boxes_a", boxes_a)
    _check_boxes("box_iou", "boxes_b", boxes_b)
    corner = torch.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])
    other = torch.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    common = (other - corner).clamp(min=0.0).prod(-1)
    area_a = (boxes_a[:, 2:] - boxes_a[:, :2]).prod(-1)
    area_b = (boxes_b[:, 2:] - boxes_b[:, :2]).prod(-1)
    union = area_a[:, None] + area_b[None] - common
    return torch.where(union > 0.0, common / union, 0.0)


def match_boxes(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    target: Float[Tensor, "m 4"],
    *,
    iou_threshold: float = 0.5,
) -> Int[Tensor, " n"]:
    """Match predicted boxes to true ones, the highest score first.

    Each box takes the free true box with which it overlaps most, if by at least the threshold.
    Match one class at a time.

    Args:
        boxes: Predicted boxes; may be empty.
        scores: Their scores; equal ones keep their order.
        target: True boxes; may be empty.
        iou_threshold: Least overlap, in (0, 1].

    Returns:
        For each predicted box the index of its true box, or -1.
    """
    owner = "match_boxes"
    check_range(owner, "iou_threshold", iou_threshold, low=0.0, high=1.0, low_open=True)
    if scores.shape != boxes.shape[:1]:
        raise ValueError(
            f"{owner}: scores must have one entry per box; got {tuple(scores.shape)} for boxes "
            f"{tuple(boxes.shape)}."
        )
    check_finite(owner, "scores", scores)
    overlap = box_iou(boxes, target).cpu()
    matches = torch.full((len(boxes),), -1)
    if len(target) > 0:
        for index in scores.argsort(descending=True, stable=True).tolist():
            best, truth = overlap[index].max(0)
            if float(best) >= iou_threshold:
                matches[index] = truth
                overlap[:, truth] = -1.0
    return matches.to(boxes.device)


def mean_average_precision(
    predictions: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
) -> dict[str, float]:
    """Return COCO's average precision and recall over a data set.

    Computed by torchmetrics with faster-coco-eval, which are imported here.

    Args:
        predictions: For each image ``boxes`` (n, 4), ``scores`` (n,) and ``labels`` (n,) int64, as
            torchvision's detectors return them; n may be 0.
        targets: For each image ``boxes`` (m, 4) and ``labels`` (m,); m may be 0.

    Returns:
        Numbers by torchmetrics' names: ``map``, ``map_50``, ``map_75``, ``map_small``, ``mar_100``
        and so on; -1 where there is nothing to judge.

    Raises:
        ImportError: With the install line, if the libraries are missing.
        ValueError: If the numbers of images differ, a key is missing or a box is malformed.
    """
    owner = "mean_average_precision"
    if len(predictions) != len(targets):
        raise ValueError(
            f"{owner}: predictions and targets must be of as many images; got {len(predictions)} "
            f"and {len(targets)}."
        )
    for name, items, keys in (
        ("predictions", predictions, ("boxes", "scores", "labels")),
        ("targets", targets, ("boxes", "labels")),
    ):
        for index, item in enumerate(items):
            missing = [key for key in keys if key not in item]
            if missing:
                raise ValueError(f"{owner}: {name}[{index}] must have {missing}.")
            _check_boxes(owner, f"{name}[{index}]['boxes']", item["boxes"])
    metric = _torchmetrics().MeanAveragePrecision(backend="faster_coco_eval")
    metric.warn_on_many_detections = False
    metric.update([dict(item) for item in predictions], [dict(item) for item in targets])
    scores = metric.compute()
    # what is left out is by class, and empty unless asked for
    return {
        name: float(scores[name])
        for name in scores
        if name.startswith(("map", "mar")) and "class" not in name
    }


def _torchmetrics() -> ModuleType:
    for module in ("faster_coco_eval", "torchvision"):  # named here, as torchmetrics would not
        _require(module)
    return _require("torchmetrics.detection")


def _require(module: str) -> ModuleType:
    return require(module, package="cv-core", extra="lab", purpose="mean average precision")


def _check_boxes(owner: str, name: str, boxes: Tensor) -> None:
    check_floating(owner, name, boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"{owner}: {name} must have shape (n, 4), (0, 4) for none; got {tuple(boxes.shape)}."
        )
    check_finite(owner, name, boxes)
    if bool((boxes[:, 2:] < boxes[:, :2]).any()):
        raise ValueError(f"{owner}: {name} must be xyxy with left <= right and top <= bottom.")
