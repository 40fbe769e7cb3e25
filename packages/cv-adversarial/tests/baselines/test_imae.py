"""IMAE: its gradient is what its publication states."""

import pytest
import torch
from cv_adversarial.baselines.imae import IMAELoss
from cv_adversarial.methods.icce import gradient_weight


@pytest.mark.parametrize("T", [0.0, 2.0, 8.0])
def test_gradient_has_the_stated_size_and_direction(T):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(4, (9,), generator=generator)
    loss = IMAELoss(T=T, reduction="sum")(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    softmax = logits.softmax(1).detach()
    p = softmax.gather(1, target[:, None])
    direction = softmax - torch.nn.functional.one_hot(target, 4)
    torch.testing.assert_close(gradient, torch.exp(T * p * (1 - p)) / (2 * (1 - p)) * direction)
    torch.testing.assert_close(gradient.abs().sum(1), torch.exp(T * p * (1 - p)).squeeze(1))


def test_order_of_examples_is_maes():
    """The whole gradient size grows with p(1 - p), as MAE's 4 p (1 - p) does."""
    p = torch.linspace(0.01, 0.49, 49, dtype=torch.float64)
    sizes = 2 * gradient_weight(IMAELoss(), p)  # two classes: both logits get the same size
    assert bool((sizes.diff() > 0).all())


def test_certain_label_stays_finite():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    loss = IMAELoss()(logits, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(gradient.isfinite().all())
