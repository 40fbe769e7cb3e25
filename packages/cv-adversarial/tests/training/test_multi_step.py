"""PGD-AT, TRADES and MART: degenerate cases, and loops over images and classes."""

import copy
import math

import pytest
import torch
from cv_adversarial.attacks.gradient import PGD
from cv_adversarial.training.multi_step import (
    MARTLoss,
    PGDATLoss,
    TRADESLoss,
    boosted_cross_entropy,
    divergence,
)
from cv_adversarial.training.single_step import FastATLoss
from torch.nn.functional import cross_entropy

EPS = 0.2


def probabilities(model, x):
    with torch.no_grad():
        return model(x).softmax(1).tolist()


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_pgd_at_is_the_cross_entropy_of_pgd_examples(mlp, batch):
    x, y = batch
    objective = PGDATLoss(EPS, steps=4)
    generator = torch.Generator().set_state(objective.get_extra_state())
    adv = PGD(mlp, EPS, alpha=2.5 * EPS / 4, steps=4)(x, y, generator=generator)
    loss, parts = objective(mlp, x, y)
    torch.testing.assert_close(loss, cross_entropy(mlp(adv), y))
    assert torch.equal(parts["adversarial"], loss.detach())


def test_one_step_of_pgd_at_is_fast_at(mlp, batch):
    """From one stream of random points, with one length of the step."""
    single, several = FastATLoss(EPS, alpha=0.25), PGDATLoss(EPS, alpha=0.25, steps=1)
    several.load_state_dict(single.state_dict())
    torch.testing.assert_close(single(mlp, *batch)[0], several(mlp, *batch)[0])


def test_trades_without_beta_is_clean_training(cnn, batch):
    x, y = batch
    twin = copy.deepcopy(cnn)
    loss, parts = TRADESLoss(EPS, beta=0.0)(cnn, x, y)
    expected = cross_entropy(twin(x), y)
    assert torch.equal(loss, expected)
    assert float(parts["divergence"]) == 0.0
    loss.backward()
    expected.backward()
    for one, other in zip(cnn.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_trades_by_loops(mlp, batch):
    x, y = batch
    objective = TRADESLoss(EPS, beta=3.0, steps=4)
    twin = copy.deepcopy(objective)
    p, q = probabilities(mlp, x), probabilities(mlp, twin.examples(mlp, x, y))
    rows = range(len(x))
    expected = sum(-math.log(p[i][y[i]]) + 3.0 * kl(p[i], q[i]) for i in rows) / len(x)
    loss, parts = objective(mlp, x, y)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9)
    assert float(parts["clean"] + 3.0 * parts["divergence"]) == pytest.approx(expected, rel=1e-9)


def test_trades_examples_are_its_loop_and_do_not_ask_for_the_label(mlp, batch):
    x, y = batch
    objective = TRADESLoss(EPS, steps=3, alpha=0.05)
    state = objective.get_extra_state()
    adv = objective.examples(mlp, x, y)
    generator = torch.Generator().set_state(state)
    z = x + 1e-3 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    z = z.clamp(0, 1)
    p = mlp(x).softmax(1).detach()
    for _ in range(3):
        z.requires_grad_()
        (gradient,) = torch.autograd.grad(-(p * mlp(z).log_softmax(1)).sum(), z)
        z = z.detach() + 0.05 * gradient.sign()
        z = torch.minimum(torch.maximum(z, x - EPS), x + EPS).clamp(0, 1)
    torch.testing.assert_close(adv, z)
    objective.set_extra_state(state)
    assert torch.equal(objective.examples(mlp, x, (y + 1) % 10), adv)


def test_trades_examples_raise_the_divergence(mlp, batch):
    x, y = batch
    noise = EPS * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign().double()
    adv = TRADESLoss(EPS, steps=10).examples(mlp, x, y)
    found = divergence(mlp(x), mlp(adv)).detach()
    by_chance = divergence(mlp(x), mlp((x + noise).clamp(0, 1))).detach()
    assert bool((found > 2 * by_chance).all())


def test_mart_by_loops(mlp, batch):
    x, y = batch
    objective = MARTLoss(EPS, lam=5.0, steps=4)
    twin = copy.deepcopy(objective)
    p, q = probabilities(mlp, x), probabilities(mlp, twin.examples(mlp, x, y))
    total = 0.0
    for i, label in enumerate(y.tolist()):
        rival = max(q[i][k] for k in range(10) if k != label)
        total += -math.log(q[i][label]) - math.log(1 - rival)
        total += 5.0 * kl(p[i], q[i]) * (1 - p[i][label])
    loss, _ = objective(mlp, x, y)
    assert float(loss.detach()) == pytest.approx(total / len(x), rel=1e-9)


def test_mart_and_trades_pass_gradients_through_both_logits(mlp, batch):
    """Finite differences of the loss with the examples held fixed, in one weight."""
    x, y = batch
    for objective in (TRADESLoss(EPS, steps=2), MARTLoss(EPS, steps=2)):
        adv = copy.deepcopy(objective).examples(mlp, x, y)
        objective.examples = lambda *_, adv=adv: adv
        mlp.zero_grad()
        objective(mlp, x, y)[0].backward()
        values = []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                mlp.fc.weight[3, 4] += step
                values.append(float(objective(mlp, x, y)[0]))
        slope = (values[0] - values[1]) / 2e-5
        assert float(mlp.fc.weight.grad[3, 4]) == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_divergence_is_zero_for_equal_distributions_only():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(divergence(a, a + 3.0), torch.zeros(5, dtype=torch.float64))
    expected = [kl(p, q) for p, q in zip(a.softmax(1).tolist(), b.softmax(1).tolist(), strict=True)]
    torch.testing.assert_close(divergence(a, b), torch.tensor(expected, dtype=torch.float64))
    assert bool((divergence(a, b) > 0).all())


def test_boosted_cross_entropy_stays_finite_where_a_class_is_certain():
    logits = torch.tensor([[40.0, 0.0, 0.0], [0.0, 40.0, 0.0]], requires_grad=True)
    loss = boosted_cross_entropy(logits, torch.tensor([0, 0]))
    # right and certain: nothing; wrong and certain: 40 for the label, 40 - ln 2 for the rival
    torch.testing.assert_close(loss, torch.tensor([0.0, 80.0 - math.log(2)]))
    loss.sum().backward()
    assert bool(logits.grad.isfinite().all())


def test_boosted_cross_entropy_of_two_classes_is_twice_the_cross_entropy():
    logits = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 1, 1, 0])
    expected = 2 * cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(boosted_cross_entropy(logits, y), expected)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_balls(norm, mlp, batch):
    x, y = batch
    order = {"l2": 2, "l1": 1}[norm]
    for build in (PGDATLoss, TRADESLoss, MARTLoss):
        delta = build(0.5, steps=3, norm=norm).examples(mlp, x, y) - x
        lengths = torch.linalg.vector_norm(delta.flatten(1), order, dim=1)
        assert bool((lengths <= 0.5).all())
        assert bool((lengths > 0.1).all())
