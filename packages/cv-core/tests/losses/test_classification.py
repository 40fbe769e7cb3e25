import copy
import pickle

import pytest
import torch
from cv_core.losses.classification import GCELoss, MAELoss, gce_loss, mae_loss
from torch.nn import functional


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, 3, dtype=torch.float64, generator=generator).requires_grad_()
    return logits, torch.randint(0, 4, (5, 3), generator=generator)


def test_values_by_loops(batch):
    logits, target = batch[0].detach(), batch[1]
    gce = gce_loss(logits, target, q=0.7, reduction="none")
    mae = mae_loss(logits, target, reduction="none")
    for b in range(5):
        for i in range(3):
            p = logits[b, :, i].softmax(0)
            one_hot = functional.one_hot(target[b, i], 4)
            label = float(p[target[b, i]])
            assert float(gce[b, i]) == pytest.approx((1 - label**0.7) / 0.7, rel=1e-12)
            assert float(mae[b, i]) == pytest.approx(float((p - one_hot).abs().sum()), rel=1e-12)


def test_gce_is_cross_entropy_at_zero_and_half_the_mae_at_one(batch):
    logits, target = batch
    entropy = functional.cross_entropy(logits, target)
    torch.testing.assert_close(gce_loss(logits, target, q=0.0), entropy)
    torch.testing.assert_close(gce_loss(logits, target, q=1.0), mae_loss(logits, target) / 2)
    # the error against the limit is of first order in q: q/2 * mean (log p)^2
    log_p = functional.cross_entropy(logits, target, reduction="none")
    for q in (1e-4, 1e-6, 1e-9):
        expected = entropy - q / 2 * log_p.square().mean()
        torch.testing.assert_close(
            gce_loss(logits, target, q=q), expected, rtol=0, atol=10 * q * q + 1e-14
        )


def test_the_gradient_weights_examples_by_the_power_of_p(batch):
    logits, target = batch
    (gradient,) = torch.autograd.grad(gce_loss(logits, target, q=0.7, reduction="sum"), logits)
    p = logits.softmax(1)
    one_hot = functional.one_hot(target, 4).movedim(-1, 1)
    label = p.gather(1, target[:, None])
    torch.testing.assert_close(gradient, label**0.7 * (p - one_hot))


@pytest.mark.parametrize("loss", [GCELoss(0.7), GCELoss(0.0), GCELoss(1.0), MAELoss()])
def test_gradcheck_twice(loss, batch):
    logits, target = batch
    target[0, 0] = loss.ignore_index
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits)
    assert torch.autograd.gradgradcheck(lambda z: loss(z, target), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_certain_and_impossible_labels_stay_finite(dtype):
    for loss, worst in ((GCELoss(0.7), 1 / 0.7), (GCELoss(0.0), 2e4), (MAELoss(), 2.0)):
        logits = torch.tensor([[1e4, -1e4], [1e4, -1e4]], dtype=dtype, requires_grad=True)
        value = loss(logits, torch.tensor([0, 1]))
        value.backward()
        torch.testing.assert_close(value, torch.tensor(worst / 2, dtype=dtype), rtol=1e-2, atol=0)
        assert torch.isfinite(logits.grad).all()


def test_modules_repeat_the_functions_and_hold_no_state(batch):
    logits, target = batch
    for reduction in ("mean", "sum", "none"):
        gce = GCELoss(0.5, reduction=reduction, ignore_index=2)
        expected = gce_loss(logits, target, q=0.5, reduction=reduction, ignore_index=2)
        assert torch.equal(gce(logits, target), expected)
        assert torch.equal(copy.deepcopy(gce)(logits, target), expected)
        assert torch.equal(pickle.loads(pickle.dumps(gce))(logits, target), expected)  # noqa: S301
        assert not gce.state_dict()
        mae = MAELoss(reduction=reduction, ignore_index=2)
        expected = mae_loss(logits, target, reduction=reduction, ignore_index=2)
        assert torch.equal(mae(logits, target), expected)
    assert repr(GCELoss()) == "GCELoss(q=0.7, reduction='mean', ignore_index=-100)"
    assert repr(MAELoss()) == "MAELoss(reduction='mean', ignore_index=-100)"


def test_bad_options_are_refused_at_construction():
    with pytest.raises(ValueError, match=r"GCELoss: q must lie in \[0, 1\]; got 1\.5"):
        GCELoss(1.5)
    with pytest.raises(ValueError, match="MAELoss: reduction must be one of"):
        MAELoss(reduction="average")
    with pytest.raises(ValueError, match="gce_loss: target must lie in"):
        GCELoss()(torch.zeros(1, 2), torch.tensor([2]))
