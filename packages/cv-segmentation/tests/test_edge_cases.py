"""Objects of one pixel, images that are ignored whole and absent classes, from loss to score."""

import json
import math

import pytest
import torch
from cv_core.engine.loop import evaluate
from cv_core.metrics.segmentation import ConfusionMeter
from cv_core.metrics.surface import average_surface_distance, hausdorff_distance, surface_dice
from cv_segmentation.inference import sliding_window, test_time_augmentation
from cv_segmentation.losses.boundary import boundary_loss
from cv_segmentation.losses.lovasz import lovasz_loss
from cv_segmentation.losses.overlap import dice_loss, soft_iou_loss, tversky_loss
from cv_segmentation.losses.pixelwise import cross_entropy_loss, focal_loss
from cv_segmentation.model import build_model
from cv_segmentation.training import SegmentationTask, Singly, summary

IGNORED = 255
LOSSES = [
    cross_entropy_loss,
    focal_loss,
    dice_loss,
    soft_iou_loss,
    tversky_loss,
    lovasz_loss,
    boundary_loss,
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
SIDES = (5, 6)


def hard_masks():
    """One pixel of class 2; nothing labelled but one pixel of class 1; nothing at all; class 0."""
    masks = torch.zeros(4, *SIDES, dtype=torch.int64)
    masks[0, 2, 3] = 2
    masks[1:3] = IGNORED
    masks[1, 0, 0] = 1
    return masks


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_of_hard_masks_are_finite(loss, reduction):
    rng = torch.Generator().manual_seed(0)
    for masks in (hard_masks(), *hard_masks().split(1)):
        logits = torch.randn(len(masks), 4, *SIDES, generator=rng).requires_grad_()
        value = loss(logits, masks, "multiclass", ignore_index=IGNORED, reduction=reduction)
        assert value.isfinite().all()
        value.sum().backward()
        assert logits.grad.isfinite().all()
        assert not logits.grad.movedim(1, -1)[masks == IGNORED].any()


@every_loss
@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_a_step_does_not_lose_an_object_of_one_pixel(loss, mode):
    """Every loss but that of contours, whose distance is 0 there, raises the pixel's score."""
    mask = torch.zeros(1, *SIDES, dtype=torch.int64)
    mask[0, 2, 3] = 1
    channels = 1 if mode == "binary" else 2
    logits = torch.zeros(1, channels, *SIDES, dtype=torch.float64, requires_grad=True)
    target = torch.stack([1 - mask, mask], dim=1) if mode == "multilabel" else mask
    loss(logits, target, mode).backward()
    pull = -float(logits.grad[0, -1, 2, 3])
    assert pull >= 0.0
    assert pull > 0.0 or loss is boundary_loss
    assert float(logits.grad[0, -1, 0, 0]) >= 0.0  # and nothing calls for more of it elsewhere


def test_scores_of_hard_masks_are_finite():
    """By hand: image 0 misses its pixel, image 1 is right, image 2 does not count, 3 is right."""
    masks = hard_masks()
    said = torch.zeros_like(masks)
    said[1] = 1
    meter = ConfusionMeter(4, ignore_index=IGNORED)
    meter.update(said, masks)
    zero = (29 + 30) / (30 + 30)
    expected = {
        ("dataset", "skip"): (zero + 1 + 0) / 3,
        ("dataset", "zero"): (zero + 1 + 0 + 0) / 4,
        ("dataset", "one"): (zero + 1 + 0 + 1) / 4,
        ("image", "skip"): ((29 / 30 + 0) / 2 + 1 + 1) / 3,
        ("image", "zero"): ((29 / 30) / 4 + 1 / 4 + 1 / 4) / 3,
        ("image", "one"): ((29 / 30 + 2) / 4 + 1 + 1) / 3,
    }
    for (average, absent), value in expected.items():
        scores = meter.compute(average=average, absent=absent)
        assert scores.iou == pytest.approx(value)
        assert all(math.isfinite(each) for each in vars(scores).values())


def test_training_and_evaluation_on_hard_masks():
    masks = hard_masks()
    images = torch.rand(4, 3, *SIDES)
    task = SegmentationTask(build_model(classes=4, depth=2), 4, ignore_index=IGNORED)
    for rows in ([0, 1, 2, 3], [0, 1], [2, 2]):
        task.zero_grad()
        loss = task.step((images[rows], masks[rows]))["loss"]
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in task.parameters())
    assert float(loss.detach()) == 0.0  # nothing was labelled
    found = evaluate(task, Singly(list(zip(images, masks, strict=True))))
    assert all(math.isfinite(value) for value in found.values())


def test_a_summary_of_hard_masks_holds_no_nan():
    meter = ConfusionMeter(4, ignore_index=IGNORED)
    meter.update(torch.zeros_like(hard_masks()), hard_masks())
    text = json.dumps(summary(meter.confusion, ("a", "b", "c", "d")), allow_nan=False)
    assert json.loads(text)["classes"]["d"]["IoU"] is None


def test_distances_of_single_pixels():
    first, second = torch.zeros(2, 3, 9, 9, dtype=torch.bool)
    first[:, 1, 1] = True
    second[0, 1, 1] = second[1, 4, 5] = True
    second[2, 1, 1] = second[2, 1, 2] = True
    for percentile in (95, 100):
        far = hausdorff_distance(first, second, percentile=percentile)
        assert far.tolist() == pytest.approx([0.0, 5.0, percentile / 100])
    assert average_surface_distance(first, second).tolist() == pytest.approx([0.0, 5.0, 1 / 3])
    assert surface_dice(first, second, tolerance=0.5).tolist() == pytest.approx([1.0, 0.0, 2 / 3])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2)])
def test_tiny_images_are_segmented(size):
    model = build_model(classes=3, depth=4).eval()
    x = torch.rand(1, 3, *size)
    for scores in (
        sliding_window(model, x, 64),
        sliding_window(model, x, 2),
        test_time_augmentation(model, x),
    ):
        assert scores.shape == (1, 3, *size)
        assert scores.isfinite().all()
