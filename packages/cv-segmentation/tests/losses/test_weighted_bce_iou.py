"""The boundary-weighted loss against loops over pixels and in the cases that have a closed form."""

import math

import pytest
import torch
from cv_segmentation.losses.overlap import soft_iou_loss
from cv_segmentation.losses.weighted_bce_iou import (
    WeightedBCEIoULoss,
    pixel_importance,
    weighted_bce_iou_loss,
    weighted_bce_iou_terms,
)
from torch.nn import functional


def draw(height=6, width=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, 1, height, width, generator=rng, dtype=torch.float64)
    return logits, (torch.rand(3, height, width, generator=rng) < 0.4).long()


def slow_importance(mask, window, ignored=None):
    height, width = mask.shape
    found = torch.zeros(height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            if mask[i, j] == ignored:
                continue
            values = [
                float(mask[m, n])
                for m in range(max(0, i - window // 2), min(height, i + window // 2 + 1))
                for n in range(max(0, j - window // 2), min(width, j + window // 2 + 1))
                if mask[m, n] != ignored
            ]
            found[i, j] = abs(sum(values) / len(values) - float(mask[i, j]))
    return found


def slow_terms(logits, mask, gamma, window, normalizer, smooth, ignored=None):
    alpha = slow_importance(mask, window, ignored)
    entropy = weights = printed = common = united = 0.0
    for i in range(mask.shape[0]):
        for j in range(mask.shape[1]):
            if mask[i, j] == ignored:
                continue
            g, p = float(mask[i, j]), 1 / (1 + math.exp(-float(logits[0, i, j])))
            w = 1 + gamma * float(alpha[i, j])
            entropy -= w * (g * math.log(p) + (1 - g) * math.log(1 - p))
            weights, printed = weights + w, printed + gamma * float(alpha[i, j])
            common, united = common + w * p * g, united + w * (p + g - p * g)
    whole = printed if normalizer == "importance" else weights
    return entropy / whole, 1 - (common + smooth) / (united + smooth)


@pytest.mark.parametrize("window", [1, 3, 7, 31])
def test_importance_equals_a_loop(window):
    _, masks = draw()
    found = pixel_importance(masks.double(), window)
    for n in range(3):
        torch.testing.assert_close(found[n], slow_importance(masks[n], window))
    assert torch.equal(pixel_importance(masks.double().unsqueeze(1), window)[:, 0], found)
    assert torch.equal(pixel_importance(masks[0].double(), window), found[0])


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("window", [3, 31])
def test_importance_of_a_constant_mask_is_zero_up_to_the_corners(value, window):
    mask = torch.full((2, 40, 33), value)
    assert torch.equal(pixel_importance(mask, window), torch.zeros(2, 40, 33))


def test_importance_is_bounded_and_largest_on_thin_structures():
    _, masks = draw(30, 30, seed=3)
    alpha = pixel_importance(masks, 7)
    assert bool(((alpha >= 0) & (alpha < 1)).all())
    mask = torch.zeros(41, 41)
    mask[:, 5] = 1  # a line, an area of which 14 columns lie deep enough, and the ground between
    mask[:, 20:] = 1
    alpha = pixel_importance(mask, 7)
    assert bool((alpha[:, 5] == alpha.max()).all())
    torch.testing.assert_close(alpha[20, 5], torch.tensor(6 / 7))
    assert alpha[20, 20] > alpha[20, 22] > alpha[20, 23] == 0 == alpha[20, 12]
    torch.testing.assert_close(alpha[20, 20], torch.tensor(3 / 7))


def test_ignored_pixels_are_not_there():
    logits, masks = draw()
    masks[0, 2:4, 1:5] = 255
    masks[1] = 255
    alpha = pixel_importance(masks, 5, ignore_index=255)
    for n in range(3):
        expected = slow_importance(masks[n], 5, ignored=255).float()
        torch.testing.assert_close(alpha[n], expected)
    options = {"gamma": 3.0, "window": 5, "ignore_index": 255}
    logits.requires_grad_()
    found = weighted_bce_iou_loss(logits, masks, reduction="none", **options)
    for n in (0, 2):
        slow = slow_terms(logits[n].detach(), masks[n], 3.0, 5, "weights", 1.0, ignored=255)
        assert float(found[n].detach()) == pytest.approx(sum(slow), rel=1e-12)
    assert not found[1].any()
    mean = weighted_bce_iou_loss(logits, masks, **options)
    torch.testing.assert_close(mean, (found[0] + found[2]) / 2)
    mean.backward()
    assert bool((logits.grad[masks.unsqueeze(1) == 255] == 0).all())


@pytest.mark.parametrize("normalizer", ["weights", "importance"])
@pytest.mark.parametrize(("gamma", "smooth"), [(5.0, 1.0), (0.5, 0.0)])
def test_terms_equal_a_loop(normalizer, gamma, smooth):
    logits, masks = draw()
    options = {"gamma": gamma, "window": 5, "normalizer": normalizer, "smooth": smooth}
    bce, iou = weighted_bce_iou_terms(logits, masks, **options)
    for n in range(3):
        slow = slow_terms(logits[n], masks[n], gamma, 5, normalizer, smooth)
        assert (float(bce[n]), float(iou[n])) == pytest.approx(slow, rel=1e-12)
    each = weighted_bce_iou_loss(logits, masks, reduction="none", **options)
    torch.testing.assert_close(each, bce + iou)
    for name, reduced in (("mean", each.mean()), ("sum", each.sum())):
        loss = WeightedBCEIoULoss(**options, reduction=name)
        torch.testing.assert_close(loss(logits, masks.unsqueeze(1)), reduced)


def test_without_gamma_it_is_cross_entropy_and_soft_iou():
    logits, masks = draw()
    found = weighted_bce_iou_loss(logits, masks, gamma=0.0, smooth=0.0, reduction="none")
    target = masks.unsqueeze(1).double()
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    overlap = soft_iou_loss(logits, masks, "binary", per_image=True, reduction="none")
    torch.testing.assert_close(found, entropy.mean((1, 2, 3)) + overlap[:, 0])


def test_a_perfect_prediction_costs_nothing_and_a_disjoint_one_has_no_overlap():
    _, masks = draw()
    sure = 40 * (2 * masks.unsqueeze(1).double() - 1)
    bce, iou = weighted_bce_iou_terms(sure, masks, smooth=0.0)
    for term in (bce, iou):
        torch.testing.assert_close(term, torch.zeros(3).double(), atol=1e-12, rtol=0)
    _, iou = weighted_bce_iou_terms(-sure, masks, smooth=0.0)
    torch.testing.assert_close(iou, torch.ones(3).double())


def test_the_printed_normaliser_is_a_factor_of_the_mask():
    _, masks = draw()
    alpha = 5 * pixel_importance(masks.double(), 31).sum((1, 2))
    factor = (alpha + masks[0].numel()) / alpha
    for seed in range(3):
        logits = draw(seed=seed)[0]
        ours, same_iou = weighted_bce_iou_terms(logits, masks)
        printed, iou = weighted_bce_iou_terms(logits, masks, normalizer="importance")
        torch.testing.assert_close(printed, factor * ours)
        assert torch.equal(iou, same_iou)


def test_an_image_without_an_object():
    logits = draw()[0].requires_grad_()
    empty = torch.zeros(3, 6, 8, dtype=torch.long)
    _, iou = weighted_bce_iou_terms(logits, empty, smooth=0.0)
    assert torch.equal(iou, torch.ones_like(iou))  # as printed: whatever is predicted
    (gradient,) = torch.autograd.grad(iou.sum(), logits)
    assert not gradient.any()
    _, iou = weighted_bce_iou_terms(logits, empty)
    torch.testing.assert_close(iou, 1 - 1 / (1 + logits.sigmoid().sum((1, 2, 3))))
    (gradient,) = torch.autograd.grad(iou.sum(), logits)
    assert bool((gradient > 0).all())
    printed, _ = weighted_bce_iou_terms(logits, empty, normalizer="importance")
    mean = functional.softplus(logits).mean((1, 2, 3))
    torch.testing.assert_close(printed, mean)
    nothing = torch.full((1, 1, 4, 4), -2000.0)  # p is 0 in floating point
    assert bool(weighted_bce_iou_loss(nothing, empty[:1, :4, :4], smooth=0.0).isfinite())


def test_a_boundary_counts_more():
    mask = torch.zeros(1, 15, 15, dtype=torch.long)
    mask[:, :, 7:] = 1
    wrong = torch.full((2, 1, 15, 15), -4.0, dtype=torch.float64)
    wrong[:, :, :, 7:] = 4.0
    wrong[0, 0, 7, 7], wrong[1, 0, 7, 14] = -4.0, -4.0
    bce, iou = weighted_bce_iou_terms(wrong, mask.expand(2, -1, -1), window=7)
    assert bce[0] > bce[1]
    assert iou[0] > iou[1]


def test_gradient_probabilities_and_half_precision():
    logits, masks = draw()
    loss = WeightedBCEIoULoss(window=5)
    assert torch.autograd.gradcheck(lambda z: loss(z, masks), logits.requires_grad_())
    from_p = WeightedBCEIoULoss(window=5, from_logits=False)
    torch.testing.assert_close(from_p(logits.sigmoid(), masks), loss(logits, masks))
    half = loss(logits.detach().half(), masks)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(logits, masks).float(), atol=1e-3, rtol=0)
    assert not loss.state_dict()


def test_bad_input_is_refused():
    logits, masks = draw()
    for options in ({"gamma": -1.0}, {"window": 4}, {"normalizer": "ga"}, {"smooth": -1.0}):
        with pytest.raises(ValueError, match="WeightedBCEIoULoss"):
            WeightedBCEIoULoss(**options)
        with pytest.raises(ValueError, match="weighted_bce_iou_loss"):
            weighted_bce_iou_loss(logits, masks, **options)
    with pytest.raises(ValueError, match="n, 1, h, w"):
        weighted_bce_iou_loss(logits.expand(-1, 2, -1, -1), masks)
    with pytest.raises(ValueError, match="0 and 1"):
        weighted_bce_iou_loss(logits, 3 * masks)
    with pytest.raises(ValueError, match="0 and 1; got 2"):
        pixel_importance(2 * masks)
    with pytest.raises(ValueError, match="odd"):
        pixel_importance(masks, 8)
    with pytest.raises(ValueError, match="h, w"):
        pixel_importance(masks[0, 0])
