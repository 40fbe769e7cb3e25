"""What holds for every loss: modes, ignored labels, absent classes, half precision, refusals."""

import copy

import pytest
import torch
from cv_segmentation.losses.boundary import BoundaryLoss, boundary_loss
from cv_segmentation.losses.labels import logits_of, probabilities, read_labels
from cv_segmentation.losses.lovasz import LovaszLoss, lovasz_loss
from cv_segmentation.losses.overlap import (
    DiceLoss,
    SoftIoULoss,
    TverskyLoss,
    dice_loss,
    soft_iou_loss,
    tversky_loss,
)
from cv_segmentation.losses.pixelwise import (
    CrossEntropyLoss,
    FocalLoss,
    cross_entropy_loss,
    focal_loss,
)

PAIRS = [
    (CrossEntropyLoss, cross_entropy_loss),
    (FocalLoss, focal_loss),
    (DiceLoss, dice_loss),
    (SoftIoULoss, soft_iou_loss),
    (TverskyLoss, tversky_loss),
    (LovaszLoss, lovasz_loss),
    (BoundaryLoss, boundary_loss),
]
LOSSES = [function for _, function in PAIRS]
MODES = ["binary", "multiclass", "multilabel"]
IGNORED = 255


def draw(mode, sides=(6, 7), count=2, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    channels = 1 if mode == "binary" else 3
    logits = 2 * torch.randn(count, channels, *sides, generator=rng, dtype=dtype)
    shape = (count, *logits.shape[1:]) if mode == "multilabel" else (count, *sides)
    return logits, torch.randint(0, max(2, channels if mode == "multiclass" else 2), shape,
                                 generator=rng)  # fmt: skip


every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
every_mode = pytest.mark.parametrize("mode", MODES)


@pytest.mark.parametrize(("kind", "function"), PAIRS, ids=lambda item: item.__name__)
@every_mode
@pytest.mark.parametrize("sides", [(6, 7), (3, 4, 5)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_module_and_function_agree_on_images_and_volumes(kind, function, mode, sides, reduction):
    logits, target = draw(mode, sides)
    target.view(-1)[:3] = IGNORED
    module = kind(mode, ignore_index=IGNORED, reduction=reduction)
    assert repr(mode) in repr(module)
    expected = function(logits, target, mode, ignore_index=IGNORED, reduction=reduction)
    found = copy.deepcopy(module)(logits, target)
    assert torch.equal(found, expected)
    assert bool(found.isfinite().all())


@every_loss
@every_mode
def test_a_volume_of_one_slice_is_an_image(loss, mode):
    logits, target = draw(mode)
    axis = 2 if mode == "multilabel" else 1
    flat = loss(logits, target, mode)
    torch.testing.assert_close(loss(logits.unsqueeze(2), target.unsqueeze(axis), mode), flat)


@every_loss
@every_mode
def test_sum_is_the_sum_of_none(loss, mode):
    logits, target = draw(mode)
    each = loss(logits, target, mode, reduction="none")
    torch.testing.assert_close(loss(logits, target, mode, reduction="sum"), each.sum())
    torch.testing.assert_close(loss(logits, target, mode), each.mean())  # all classes are present


@every_loss
@every_mode
def test_an_ignored_label_has_no_say_and_no_gradient(loss, mode):
    logits, target = draw(mode)
    target.view(-1)[::3] = IGNORED
    ignored = target == IGNORED
    if mode != "multilabel":
        ignored = ignored.unsqueeze(1).expand_as(logits)
    other = torch.where(ignored, logits.flip(0) + 3.0, logits)
    logits.requires_grad_()
    value = loss(logits, target, mode, ignore_index=IGNORED)
    torch.testing.assert_close(loss(other, target, mode, ignore_index=IGNORED), value)
    value.backward()
    assert not bool(logits.grad[ignored].any())
    assert bool(logits.grad[~ignored].any())


@every_loss
@every_mode
def test_an_image_without_a_label_that_counts_contributes_nothing(loss, mode):
    logits, target = draw(mode)
    alone = loss(logits[:1], target[:1], mode, ignore_index=IGNORED)
    target[1] = IGNORED
    torch.testing.assert_close(loss(logits, target, mode, ignore_index=IGNORED), alone)


@every_loss
@every_mode
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_that_counts_is_zero_with_a_gradient_of_zero(loss, mode, reduction):
    logits, target = draw(mode)
    logits.requires_grad_()
    value = loss(logits, torch.full_like(target, IGNORED), mode, ignore_index=IGNORED,
                 reduction=reduction)  # fmt: skip
    assert not bool(value.detach().any())
    value.sum().backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("loss", LOSSES[2:], ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
def test_an_absent_class_contributes_nothing(loss, mode):
    logits, target = draw(mode)
    if mode == "multiclass":
        target[target == 2] = 0
    else:
        target[:, 2] = 0
    logits.requires_grad_()
    each = loss(logits, target, mode, reduction="none")
    channels = each.movedim(1, 0) if each.ndim > 1 else each
    assert not bool(channels[2].detach().any())
    value = loss(logits, target, mode)
    torch.testing.assert_close(value, channels[:2].mean())
    value.backward()
    assert bool(logits.grad.isfinite().all())
    if mode == "multilabel":
        assert not bool(logits.grad[:, 2].any())


@pytest.mark.parametrize("loss", LOSSES[2:], ids=lambda loss: loss.__name__)
def test_an_empty_mask_contributes_nothing(loss):
    logits, target = draw("binary")
    logits.requires_grad_()
    value = loss(logits, torch.zeros_like(target), "binary")
    value.backward()
    assert float(value.detach()) == 0.0
    assert not bool(logits.grad.any())


@every_loss
@every_mode
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(loss, mode, dtype):
    # More than 65504 pixels: a sum in float16 would be infinite.
    logits, target = draw(mode, (260, 260), count=1, dtype=torch.float32)
    half = logits.to(dtype).requires_grad_()
    value = loss(half, target, mode)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(half.detach().float(), target, mode))
    value.backward()
    assert half.grad.dtype == dtype
    assert bool(half.grad.isfinite().all())


@every_loss
@every_mode
def test_extreme_logits_stay_finite(loss, mode):
    logits, target = draw(mode)
    for dtype, size in ((torch.float16, 6e4), (torch.float32, 1e4)):
        hard = (logits.sign() * size).to(dtype).requires_grad_()
        value = loss(hard, target, mode)
        value.backward()
        assert bool(value.detach().isfinite())
        assert bool(hard.grad.isfinite().all())


@every_loss
@every_mode
def test_probabilities_stand_for_their_logits(loss, mode):
    logits, target = draw(mode)
    p = logits.softmax(1) if mode == "multiclass" else logits.sigmoid()
    expected = loss(logits, target, mode)
    torch.testing.assert_close(loss(p, target, mode, from_logits=False), expected)


@every_loss
@every_mode
def test_certain_probabilities_give_finite_gradients(loss, mode):
    logits, target = draw(mode)
    p = (logits == logits.amax(1, keepdim=True)) if mode == "multiclass" else (logits > 0)
    p = p.double().requires_grad_()
    value = loss(p, target, mode, from_logits=False)
    value.backward()
    assert bool(value.detach().isfinite())
    assert bool(p.grad.isfinite().all())


def test_overlap_of_probabilities_sees_a_certain_miss():
    p = torch.tensor([[[[0.0, 1.0]]]], requires_grad=True)
    dice_loss(p, torch.ones(1, 1, 2), "binary", from_logits=False).backward()
    assert float(p.grad[0, 0, 0, 0]) < 0.0


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_gradients_are_those_of_finite_differences(loss):
    for mode in MODES:
        logits, target = draw(mode, (3, 4))
        target.view(-1)[0] = IGNORED
        logits.requires_grad_()
        call = lambda z, y=target, m=mode: loss(z, y, m, ignore_index=IGNORED)  # noqa: E731
        assert torch.autograd.gradcheck(call, (logits,))


@every_loss
def test_types_of_binary_targets_are_alike(loss):
    logits, target = draw("binary")
    expected = loss(logits, target, "binary")
    for like in (target.bool(), target.float(), target.to(torch.uint8), target.unsqueeze(1)):
        assert torch.equal(loss(logits, like, "binary"), expected)


def test_unsigned_targets_do_not_wrap_around():
    target = torch.full((1, 2), 156, dtype=torch.uint8)  # -100 in uint8
    with pytest.raises(ValueError, match=r"lie in \[0, 2\]; got 156"):
        dice_loss(torch.zeros(1, 3, 2), target, "multiclass", ignore_index=-100)
    with pytest.raises(ValueError, match="hold 0 and 1 in mode 'binary'; got 156"):
        dice_loss(torch.zeros(1, 1, 2), target, "binary", ignore_index=-100)


def test_label_zero_can_be_ignored():
    logits, target = draw("binary")
    found = cross_entropy_loss(logits, target, "binary", ignore_index=0, reduction="none")
    assert not bool(found[:, 0][target == 0].any())
    assert bool(found[:, 0][target == 1].all())


@every_loss
def test_what_does_not_fit_is_refused_in_the_losss_name(loss):
    name = loss.__name__
    logits, target = draw("multiclass")
    with pytest.raises(ValueError, match=f"{name}: mode must be one of"):
        loss(logits, target, "multi")
    with pytest.raises(ValueError, match=f"{name}: reduction|reduction must be one of"):
        loss(logits, target, "multiclass", reduction="avg")
    with pytest.raises(TypeError, match=f"{name}: logits must be a floating"):
        loss(logits.long(), target, "multiclass")
    with pytest.raises(ValueError, match=f"{name}: target must lie"):
        loss(logits, target + 1, "multiclass")
    with pytest.raises(TypeError, match=f"{name}: target must hold class indices"):
        loss(logits, target.double(), "multiclass")
    with pytest.raises(ValueError, match=f"{name}: target must have shape"):
        loss(logits, target[:, 1:], "multiclass")
    with pytest.raises(ValueError, match=f"{name}: logits must have one channel"):
        loss(logits, target, "binary")
    with pytest.raises(ValueError, match=f"{name}: logits must have at least two"):
        loss(logits[:, :1], target, "multiclass")
    with pytest.raises(ValueError, match=f"{name}: probabilities must lie"):
        loss(logits, target, "multiclass", from_logits=False)
    with pytest.raises(ValueError, match=f"{name}: logits (is|are) empty"):
        loss(logits[:, :, :0], target[:, :0], "multiclass")


@pytest.mark.parametrize("kind", [kind for kind, _ in PAIRS], ids=lambda kind: kind.__name__)
def test_modules_refuse_at_construction(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__}: mode"):
        kind("multi")
    with pytest.raises(ValueError, match=f"{kind.__name__}: reduction"):
        kind("binary", reduction="avg")


def test_truth_and_counts_pixel_by_pixel():
    _, target = draw("multiclass")
    target[0, 0, :3] = IGNORED
    truth, counts = read_labels("t", torch.zeros(2, 3, 6, 7), target, "multiclass", IGNORED)
    for n in range(2):
        for c in range(3):
            for i in range(6):
                for j in range(7):
                    label = int(target[n, i, j])
                    assert bool(truth[n, c, i, j]) == (label == c)
                    assert bool(counts[n, c, i, j]) == (label != IGNORED)


@every_mode
def test_both_forms_of_scores_go_into_each_other(mode):
    logits, _ = draw(mode)
    p = probabilities("t", logits, mode, from_logits=True)
    back = logits_of("t", p, mode, from_logits=False)
    torch.testing.assert_close(probabilities("t", back, mode, from_logits=True), p)
