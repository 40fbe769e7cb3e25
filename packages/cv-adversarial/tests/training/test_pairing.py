"""Logit pairing: the distance, and ALP in its degenerate cases and by loops."""

import copy

import pytest
import torch
from cv_adversarial.training.multi_step import PGDATLoss
from cv_adversarial.training.pairing import ALPLoss, logit_distance
from torch.nn.functional import cross_entropy

EPS = 0.2


def logits(count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 5, 4, generator=generator, dtype=torch.float64)


def test_distance_by_loops():
    a, b = logits()
    squares = [
        sum((p - q) ** 2 for p, q in zip(r, s, strict=True))
        for r, s in zip(a.tolist(), b.tolist(), strict=True)
    ]
    expected = torch.tensor(squares, dtype=torch.float64)
    torch.testing.assert_close(logit_distance(a, b, distance="l2sq"), expected)
    torch.testing.assert_close(logit_distance(a, b), expected.sqrt())


@pytest.mark.parametrize("distance", ["l2", "l2sq"])
def test_distance_is_symmetric_and_invariant_to_a_common_shift(distance):
    """Property 5 of FGSMPR's."""
    a, b, shift = logits(3)
    expected = logit_distance(a, b, distance=distance)
    torch.testing.assert_close(logit_distance(b, a, distance=distance), expected)
    torch.testing.assert_close(logit_distance(a + shift, b + shift, distance=distance), expected)


def test_gradient_of_the_norm_is_zero_where_logits_are_equal():
    a = logits(1)[0].requires_grad_()
    logit_distance(a, a.detach()).sum().backward()
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_shapes_have_to_agree():
    with pytest.raises(ValueError, match="first and second must have the same shape"):
        logit_distance(torch.zeros(2, 3), torch.zeros(2, 4))


def test_alp_without_pairing_is_pgd_at(cnn, batch):
    """With no share for the clean images; they still go through the network, so use eval mode."""
    cnn.eval()
    objective, plain = ALPLoss(EPS, lam=0.0, clean_share=0.0, steps=3), PGDATLoss(EPS, steps=3)
    objective.load_state_dict(plain.state_dict())
    got, expected = objective(cnn, *batch)[0], plain(cnn, *batch)[0]
    torch.testing.assert_close(got, expected)
    ours = torch.autograd.grad(got, cnn.conv1.weight)
    theirs = torch.autograd.grad(expected, cnn.conv1.weight)
    torch.testing.assert_close(ours, theirs)


def test_alp_by_its_equation(mlp, batch):
    x, y = batch
    objective = ALPLoss(EPS, lam=0.7, clean_share=0.3, steps=3)
    adv = copy.deepcopy(objective).examples(mlp, x, y)
    gap = ((mlp(x) - mlp(adv)) ** 2).sum(1).mean()
    expected = 0.7 * cross_entropy(mlp(adv), y) + 0.3 * cross_entropy(mlp(x), y) + 0.7 * gap
    loss, parts = objective(mlp, x, y)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(parts["pairing"], gap.detach())


def test_clean_and_adversarial_images_share_their_statistics(cnn, batch):
    x, y = batch
    objective = ALPLoss(EPS, steps=2)
    adv = copy.deepcopy(objective).examples(cnn, x, y)
    twin = copy.deepcopy(cnn)
    objective(cnn, x, y)
    twin(torch.cat([x, adv]))
    assert int(cnn.bn1.num_batches_tracked) == 1
    torch.testing.assert_close(cnn.bn1.running_mean, twin.bn1.running_mean)
