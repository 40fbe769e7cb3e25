import math

import pytest
import torch
from cv_core.losses.segmentation import (
    FocalLoss,
    binary_focal_loss,
    binary_soft_iou_loss,
    focal_loss,
    soft_dice_loss,
    soft_iou_loss,
)
from torch.nn import functional


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator)
    target = torch.randint(0, 3, (2, 4, 5), generator=generator)
    target[0, 1, 2] = -100
    return logits, target


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_focal_loss_without_gamma_is_cross_entropy(batch, reduction):
    logits, target = batch
    expected = functional.cross_entropy(logits, target, reduction=reduction)
    torch.testing.assert_close(FocalLoss(0.0, reduction=reduction)(logits, target), expected)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_by_loops(batch, gamma):
    logits, target = batch
    found = focal_loss(logits, target, gamma=gamma, reduction="none")
    for b in range(2):
        for i in range(4):
            for j in range(5):
                label = int(target[b, i, j])
                p = float(logits[b, :, i, j].softmax(0)[label]) if label >= 0 else 1.0
                expected = -((1 - p) ** gamma) * math.log(p)
                assert float(found[b, i, j]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.25, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_binary_focal_loss_is_torchvisions(gamma, alpha, reduction):
    from torchvision.ops import sigmoid_focal_loss

    logits = 3 * torch.randn(4, 6, dtype=torch.float64)
    target = torch.randint(0, 2, (4, 6)).double()
    expected = sigmoid_focal_loss(
        logits, target, alpha=-1 if alpha is None else alpha, gamma=gamma, reduction=reduction
    )
    found = binary_focal_loss(logits, target, gamma=gamma, alpha=alpha, reduction=reduction)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_certain_labels_have_finite_gradients(gamma):
    logits = torch.tensor([[1e3, -1e3], [1e3, -1e3]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 1]), gamma=gamma)
    (loss + binary_focal_loss(logits, torch.eye(2), gamma=gamma)).backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("loss", "kind"), [(soft_iou_loss, "iou"), (soft_dice_loss, "dice")])
def test_overlap_by_loops(batch, loss, kind):
    logits, target = batch
    found = loss(logits, target, smooth=0.5, reduction="none")
    assert found.shape == (2, 3)
    for b in range(2):
        for k in range(3):
            both = p_sum = y_sum = 0.0
            for i in range(4):
                for j in range(5):
                    if target[b, i, j] == -100:
                        continue
                    p = float(logits[b, :, i, j].softmax(0)[k])
                    y = float(target[b, i, j] == k)
                    both, p_sum, y_sum = both + p * y, p_sum + p, y_sum + y
            if kind == "iou":
                expected = 1 - (both + 0.5) / (p_sum + y_sum - both + 0.5)
            else:
                expected = 1 - (2 * both + 0.5) / (p_sum + y_sum + 0.5)
            assert float(found[b, k]) == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(loss(logits, target, smooth=0.5), found.mean())


@pytest.mark.parametrize("loss", [soft_iou_loss, soft_dice_loss])
def test_certain_predictions_are_worth_zero_or_nearly_one(loss):
    target = torch.tensor([[[0, 1], [1, 0]]])
    right = 1e3 * functional.one_hot(target, 3).movedim(-1, 1).float()
    # the third class is neither there nor predicted
    torch.testing.assert_close(loss(right, target, reduction="none"), torch.zeros(1, 3))
    wrong = loss(right[:, [1, 0, 2]], target, smooth=1e-6, reduction="none")
    torch.testing.assert_close(wrong, torch.tensor([[1.0, 1.0, 0.0]]), atol=1e-5, rtol=0)


def test_binary_iou_is_the_two_class_iou_of_the_foreground():
    logits = torch.randn(3, 4, 5, dtype=torch.float64)
    target = torch.randint(0, 2, (3, 4, 5))
    two = torch.stack([torch.zeros_like(logits), logits], dim=1)
    expected = soft_iou_loss(two, target, smooth=0.1, reduction="none")[:, 1]
    found = binary_soft_iou_loss(logits, target.double(), smooth=0.1, reduction="none")
    torch.testing.assert_close(found, expected)
    empty = binary_soft_iou_loss(torch.full((1, 4), -1e3), torch.zeros(1, 4))
    assert empty.item() == 0.0


def test_gradients(batch):
    logits, target = batch[0].requires_grad_(), batch[1]
    for loss in (focal_loss, soft_iou_loss, soft_dice_loss):
        assert torch.autograd.gradcheck(lambda z, loss=loss: loss(z, target), logits)
    mask = torch.rand_like(logits).round().detach()
    assert torch.autograd.gradcheck(lambda z: binary_soft_iou_loss(z, mask), logits)
    assert torch.autograd.gradcheck(lambda z: binary_focal_loss(z, mask), logits)


def test_bad_options_and_inputs_are_refused(batch):
    logits, target = batch
    with pytest.raises(ValueError, match="FocalLoss: gamma must lie in"):
        FocalLoss(-1.0)
    with pytest.raises(ValueError, match="smooth must lie in"):
        soft_iou_loss(logits, target, smooth=0.0)
    with pytest.raises(ValueError, match=r"soft_dice_loss: target must lie in \[0, 2\]; got 3"):
        soft_dice_loss(logits, torch.full_like(target, 3))
    with pytest.raises(ValueError, match="alpha must lie in"):
        binary_focal_loss(logits, logits, alpha=2.0)
    for loss in (binary_soft_iou_loss, binary_focal_loss):
        with pytest.raises(ValueError, match="same shape"):
            loss(logits, logits[:1])
        with pytest.raises(
            ValueError, match=r"target must lie in \[0, 1\]; got values from 0 to 255"
        ):
            loss(torch.zeros(1, 2), torch.tensor([[0.0, 255.0]]))
        with pytest.raises(ValueError, match="target must lie in"):
            loss(torch.zeros(1, 2), torch.full((1, 2), float("nan")))
        with pytest.raises(ValueError, match="logits is empty"):
            loss(logits[:0], logits[:0])
        with pytest.raises(TypeError, match="target must be a floating-point tensor"):
            loss(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    assert repr(FocalLoss()) == "FocalLoss(gamma=2.0, reduction='mean', ignore_index=-100)"
