"""The losses between objects: the paper's properties, loops, and what an absent object costs."""

import math

import pytest
import torch
from cv_core.losses.segmentation import binary_soft_iou_loss
from cv_segmentation.video.losses import VideoObjectLoss, balanced_bce_loss, self_iou_loss
from torch.nn import functional


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_self_iou_by_loops():
    masks = draw(3, 4, 5, 6)
    expected = []
    for frame in masks:
        total = 0.0
        for i in range(4):
            for j in range(4):
                if i != j:
                    both = (frame[i] * frame[j]).sum()
                    total += both / (frame[i] + frame[j] - frame[i] * frame[j]).sum()
        expected.append(total)
    expected = torch.stack(expected)
    found = self_iou_loss(masks, from_logits=False, reduction="none")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(self_iou_loss(masks.logit()), expected.mean())
    torch.testing.assert_close(self_iou_loss(masks.logit(), reduction="sum"), expected.sum())
    normal = self_iou_loss(masks, normalize=True, from_logits=False)
    torch.testing.assert_close(normal, expected.mean() / 12)


def test_self_iou_at_its_ends():  # property 4
    apart = torch.zeros(1, 3, 4, 6)
    for number in range(3):
        apart[0, number, :, 2 * number : 2 * number + 2] = 1.0
    assert self_iou_loss(apart, from_logits=False) == 0.0
    for count in (2, 3, 5):
        same = apart[:, :1].expand(-1, count, -1, -1)
        assert self_iou_loss(same, from_logits=False) == count * (count - 1)
        assert self_iou_loss(same, normalize=True, from_logits=False) == 1.0
    assert self_iou_loss(draw(2, 1, 4, 4), from_logits=False) == 0.0
    assert self_iou_loss(torch.zeros(2, 3, 4, 4), from_logits=False) == 0.0
    soft = draw(1, 1, 4, 4)
    with_itself = self_iou_loss(soft.expand(-1, 2, -1, -1), normalize=True, from_logits=False)
    assert float(with_itself) == pytest.approx(float((soft**2).sum() / (2 * soft - soft**2).sum()))
    assert with_itself < 1.0


def test_self_iou_does_not_know_the_order_of_objects():  # property 4
    masks = draw(2, 4, 5, 5)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        self_iou_loss(masks[:, order], from_logits=False), self_iou_loss(masks, from_logits=False)
    )


def test_self_iou_pushes_overlapping_masks_apart():
    logits = torch.zeros(1, 2, 1, 3, requires_grad=True)
    loss = self_iou_loss(logits)
    loss.backward()
    assert (logits.grad > 0).all()  # less of each where both are
    assert torch.isfinite(torch.autograd.grad(self_iou_loss(logits - 200.0), logits)[0]).all()


def test_self_iou_of_large_masks_in_half_precision():
    logits = torch.ones(1, 2, 480, 854)  # the products sum to 2e5, beyond float16
    expected = self_iou_loss(logits)
    with torch.autocast("cpu", dtype=torch.float16):
        torch.testing.assert_close(self_iou_loss(logits), expected)
        torch.testing.assert_close(self_iou_loss(logits.half()), expected, rtol=1e-3, atol=0.0)


def test_balanced_bce_by_loops():
    p, y = draw(2, 3, 4, 5), (draw(2, 3, 4, 5, seed=1) > 0.7).double()
    y[0, 0, :2, :2] = 255
    expected, count = torch.zeros_like(p), 0
    for b in range(2):
        for c in range(3):
            kept = [(i, j) for i in range(4) for j in range(5) if y[b, c, i, j] != 255]
            count += len(kept)
            r = sum(float(y[b, c, i, j]) for i, j in kept) / len(kept)
            for i, j in kept:
                yes, m = float(y[b, c, i, j]), float(p[b, c, i, j])
                price = (1 - r) * yes * math.log(m) + r * (1 - yes) * math.log(1 - m)
                expected[b, c, i, j] = -price
    options = {"ignore_index": 255, "from_logits": False}
    torch.testing.assert_close(balanced_bce_loss(p, y, reduction="none", **options), expected)
    torch.testing.assert_close(balanced_bce_loss(p, y, **options), expected.sum() / count)
    torch.testing.assert_close(
        balanced_bce_loss(p.logit(), y, ignore_index=255), expected.sum() / count
    )


def test_balanced_bce_with_even_masks_and_even_odds():  # property 6
    even = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    even[:, :, :2] = 1.0
    z = draw(2, 1, 4, 4).logit()
    plain = functional.binary_cross_entropy_with_logits(z, even)
    torch.testing.assert_close(balanced_bce_loss(z, even), 0.5 * plain)
    rare = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    rare[0, 0, 0, :3] = 1.0
    r = 3 / 16
    half = balanced_bce_loss(torch.zeros_like(rare), rare)
    assert float(half) == pytest.approx(2 * r * (1 - r) * math.log(2))


def test_an_empty_mask_is_free_to_balanced_bce_but_not_to_the_whole_loss():
    shouting = torch.full((1, 2, 1, 4, 4), 3.0, requires_grad=True)
    empty = torch.zeros_like(shouting)
    assert balanced_bce_loss(shouting[0], empty[0]) == 0.0
    loss = VideoObjectLoss()
    loss(shouting, empty).backward()
    assert (shouting.grad > 0).all()
    assert loss(torch.full_like(shouting, -50.0), empty) < 1e-6


def test_the_whole_loss_is_the_weighted_sum_of_its_terms():
    z, y = draw(2, 3, 2, 4, 4).logit(), (draw(2, 3, 2, 4, 4, seed=1) > 0.6).double()
    iou = binary_soft_iou_loss(z.view(12, 4, 4), y.view(12, 4, 4))
    bce, overlap = balanced_bce_loss(z.view(6, 2, 4, 4), y.view(6, 2, 4, 4)), 0.0
    for b in range(2):
        for t in range(3):
            overlap += self_iou_loss(z[b, t][None]) / 6
    torch.testing.assert_close(VideoObjectLoss()(z, y), iou + 2.0 * bce + 0.2 * overlap)
    torch.testing.assert_close(VideoObjectLoss(1.0, 0.0, 0.0)(z, y), iou)
    torch.testing.assert_close(VideoObjectLoss(0.0, 1.0, 0.0)(z, y), bce)
    torch.testing.assert_close(VideoObjectLoss(0.0, 0.0, 1.0)(z, y), overlap)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: self_iou_loss(z[0]), r"self_iou_loss: logits must have shape \(b, n, h, w\)"),
        (lambda z: self_iou_loss(z + 2.0, from_logits=False), "self_iou_loss: probabilities must"),
        (lambda z: self_iou_loss(z, reduction="max"), "reduction must be one of"),
        (lambda z: balanced_bce_loss(z, z), "target must hold 0 and 1 in mode 'multilabel'"),
        (lambda z: balanced_bce_loss(z, z[:, :1]), "balanced_bce_loss: target must have shape"),
        (lambda _: VideoObjectLoss(0, 0, 0), "at least one weight must be above 0"),
        (lambda _: VideoObjectLoss(-1.0), "VideoObjectLoss: iou must lie in"),
        (lambda z: VideoObjectLoss()(z, z), "VideoObjectLoss: logits must have shape"),
    ],
)
def test_bad_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(draw(2, 3, 4, 4))
