"""Confusion and scores against loops, scikit-learn and torchmetrics, under every convention."""

import itertools
import math

import pytest
import torch
from cv_core.metrics.segmentation import (
    ConfusionMeter,
    class_scores,
    confusion_matrix,
    mean_scores,
)
from sklearn import metrics as peer
from torchmetrics.functional.classification import (
    multiclass_jaccard_index,
    multiclass_precision,
    multiclass_recall,
)
from torchmetrics.segmentation import MeanIoU


def example(n=3, classes=5, size=(7, 9), seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (n, *size), generator=generator)
    noise = torch.randint(0, classes, (n, *size), generator=generator)
    keep = torch.rand(n, *size, generator=generator) < 0.6
    return torch.where(keep, target, noise), target


def slow_confusion(prediction, target, classes, ignore):
    counts = torch.zeros(len(target), classes, classes, dtype=torch.int64)
    for n in range(len(target)):
        for p, t in zip(
            prediction[n].flatten().tolist(), target[n].flatten().tolist(), strict=True
        ):
            if t != ignore:
                counts[n, t, p] += 1
    return counts


@pytest.mark.parametrize(
    ("dtype", "ignore"),
    [
        *itertools.product([torch.int64, torch.int32, torch.uint8], [None, 255, 0, 3]),
        (torch.int64, -100),
        (torch.int8, -1),
    ],
)
def test_confusion_equals_a_loop(dtype, ignore):
    prediction, target = example()
    if ignore is not None:
        target[:, 2:4] = ignore
    ours = confusion_matrix(prediction.to(dtype), target.to(dtype), 5, ignore_index=ignore)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, slow_confusion(prediction, target, 5, ignore))


def test_confusion_of_volumes_and_of_views():
    prediction, target = example(size=(4, 5, 6))
    before = prediction.clone(), target.clone()
    ours = confusion_matrix(prediction.transpose(1, 2), target.transpose(1, 2), 5, ignore_index=1)
    assert torch.equal(ours, slow_confusion(prediction, target, 5, 1))
    assert torch.equal(prediction, before[0])
    assert torch.equal(target, before[1])


@pytest.mark.parametrize(
    ("prediction", "target", "error", "match"),
    [
        (torch.tensor([[0, 5]]), torch.tensor([[0, 1]]), ValueError, "prediction"),
        (torch.tensor([[0, 1]]), torch.tensor([[0, -1]]), ValueError, "target"),
        (torch.tensor([[0, 1]]), torch.tensor([[0, 1, 1]]), ValueError, "same shape"),
        (torch.tensor([[0.0, 1.0]]), torch.tensor([[0, 1]]), TypeError, "class indices"),
        (
            torch.zeros(0, 4, dtype=torch.int64),
            torch.zeros(0, 4, dtype=torch.int64),
            ValueError,
            "empty",
        ),
        (torch.tensor([1]), torch.tensor([1]), ValueError, "shape"),
    ],
)
def test_refusals(prediction, target, error, match):
    with pytest.raises(error, match=match):
        confusion_matrix(prediction, target, 5, ignore_index=255)


def test_class_scores_equal_scikit_learns():
    prediction, target = example()
    scores = class_scores(confusion_matrix(prediction, target, 5).sum(0))
    flat = (target.flatten().numpy(), prediction.flatten().numpy())
    options = {"average": None, "labels": range(5), "zero_division": 0.0}
    for ours, theirs in (
        (scores.iou, peer.jaccard_score(*flat, **options)),
        (scores.dice, peer.f1_score(*flat, **options)),
        (scores.precision, peer.precision_score(*flat, **options)),
        (scores.recall, peer.recall_score(*flat, **options)),
    ):
        torch.testing.assert_close(ours, torch.tensor(theirs))


def test_one_sided_classes_score_zero_and_absent_ones_are_undefined():
    # class 1 is only predicted, class 2 only real, class 3 nowhere
    confusion = confusion_matrix(torch.tensor([[0, 1, 0]]), torch.tensor([[0, 0, 2]]), 4)[0]
    scores = class_scores(confusion)
    nan = math.nan
    expected = {
        "iou": [1 / 3, 0, 0, nan],
        "dice": [0.5, 0, 0, nan],
        "precision": [0.5, 0, 0, nan],
        "recall": [0.5, 0, 0, nan],
    }
    for name, values in expected.items():
        torch.testing.assert_close(
            getattr(scores, name), torch.tensor(values, dtype=torch.float64), equal_nan=True
        )


def slow_mean_iou(prediction, target, classes, average, absent):
    if average == "dataset":
        prediction, target = prediction.reshape(1, -1), target.reshape(1, -1)
    images = []
    for p, t in zip(prediction, target, strict=True):
        values = []
        for c in range(classes):
            union = ((p == c) | (t == c)).sum().item()
            if union:
                values.append(((p == c) & (t == c)).sum().item() / union)
            elif absent != "skip":
                values.append({"zero": 0.0, "one": 1.0}[absent])
        images.append(sum(values) / len(values))
    return sum(images) / len(images)


@pytest.mark.parametrize("average", ["dataset", "image"])
@pytest.mark.parametrize("absent", ["skip", "zero", "one"])
def test_every_convention_equals_a_loop(average, absent):
    prediction, target = example(n=4, size=(2, 4))
    prediction[0], target[0] = prediction[0].clamp(max=2), target[0].clamp(max=2)
    prediction, target = prediction % 4, target % 4  # class 4 is absent everywhere, 3 from image 0
    ours = mean_scores(confusion_matrix(prediction, target, 5), average=average, absent=absent)
    assert ours.iou == pytest.approx(slow_mean_iou(prediction, target, 5, average, absent))
    assert ours.accuracy == pytest.approx((prediction == target).double().mean().item())


def test_conventions_equal_torchmetrics():
    prediction, target = example(n=4)
    prediction, target = prediction.clamp(max=3), target.clamp(max=3)  # class 4 is absent
    confusion = confusion_matrix(prediction, target, 5)
    ours = mean_scores(confusion)
    macro = {"num_classes": 5, "average": "macro"}
    assert ours.iou == pytest.approx(float(multiclass_jaccard_index(prediction, target, **macro)))
    assert ours.precision == pytest.approx(float(multiclass_precision(prediction, target, **macro)))
    assert ours.recall == pytest.approx(float(multiclass_recall(prediction, target, **macro)))
    prediction, target = example(n=4)  # how MeanIoU takes absent classes depends on its version
    confusion = confusion_matrix(prediction, target, 5)
    assert bool((confusion.sum(dim=2) > 0).all())
    metric = MeanIoU(num_classes=5, input_format="index")
    metric.update(prediction, target)
    assert mean_scores(confusion, average="image").iou == pytest.approx(float(metric.compute()))


def test_perfect_and_ignored_images():
    _, target = example()
    assert mean_scores(confusion_matrix(target, target, 5)).iou == 1.0
    prediction, target = example(n=2)
    target[1] = 255
    both = confusion_matrix(prediction, target, 5, ignore_index=255)
    one = confusion_matrix(prediction[:1], target[:1], 5)
    assert mean_scores(both, average="image") == mean_scores(one, average="image")
    nothing = mean_scores(both[1:])
    assert math.isnan(nothing.iou)
    assert math.isnan(nothing.accuracy)


def test_meter_equals_one_call_and_can_be_reset():
    prediction, target = example(n=6)
    meter = ConfusionMeter(5)
    with pytest.raises(ValueError, match="update"):
        meter.compute()
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        meter.update(prediction[part], target[part])
    whole = confusion_matrix(prediction, target, 5)
    assert torch.equal(meter.confusion, whole)
    assert meter.compute(average="image", absent="zero") == mean_scores(
        whole, average="image", absent="zero"
    )
    meter.reset()
    meter.update(prediction[:1], target[:1])
    assert torch.equal(meter.confusion, whole[:1])


def test_bad_conventions_are_refused():
    counts = torch.ones(1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="average"):
        mean_scores(counts, average="micro")
    with pytest.raises(ValueError, match="absent"):
        mean_scores(counts, absent="nan")
    with pytest.raises(ValueError, match="confusion"):
        class_scores(torch.ones(2, 3, dtype=torch.int64))
