"""FGSM and PGD: optimal on linear models, equal where they should be, better with more steps."""

import pytest
import torch
from cv_adversarial.attacks.gradient import FGSM, PGD
from cv_core.models.small import MLP
from torch.nn.functional import cross_entropy

NORMS = {"linf": (1, 0.1), "l2": (2, 0.3), "l1": (float("inf"), 0.4)}


def linear(entries=200):
    return MLP(entries, [], 2).double()


def margin(model, x):
    logits = model(x)
    return (logits[:, 0] - logits[:, 1]).detach()


def test_fgsm_is_optimal_on_a_linear_binary_model():
    """The margin falls by eps times the dual norm of the weights' difference."""
    model = linear()
    x = torch.rand(5, 200, dtype=torch.float64) * 0.6 + 0.2
    weight = (model.fc.weight[0] - model.fc.weight[1]).detach()
    adv = FGSM(model, eps=0.1)(x, torch.zeros(5, dtype=torch.int64))
    fall = margin(model, x) - margin(model, adv)
    torch.testing.assert_close(fall, (0.1 * weight.abs().sum()).expand(5))


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_finds_the_optimum_of_a_linear_binary_model(norm):
    dual, eps = NORMS[norm]
    model = linear()
    x = torch.rand(5, 200, dtype=torch.float64) * 0.1 + 0.45
    weight = (model.fc.weight[0] - model.fc.weight[1]).detach()
    attack = PGD(model, eps=eps, alpha=eps / 4, steps=40, norm=norm)
    fall = margin(model, x) - margin(model, attack(x, torch.zeros(5, dtype=torch.int64)))
    best = eps * weight.norm(dual)
    assert bool((fall <= best + 1e-9).all())
    assert bool((fall >= 0.99 * best).all()) or norm == "l1"
    assert bool((fall >= 0.9 * best).all()), "an l1 step shares its length among two entries"


def test_l1_uses_other_pixels_where_the_best_are_at_their_ends():
    """With no room in the heaviest pixels, the optimum lies in the next ones."""
    model = MLP(3, [], 2).double()
    with torch.no_grad():
        model.fc.weight.copy_(torch.tensor([[0.0, 0, 0], [3.0, 2.0, 1.0]]))
        model.fc.bias.copy_(torch.tensor([10.0, 0.0]))
    x = torch.tensor([[0.9, 0.5, 0.5]], dtype=torch.float64)
    attack = PGD(model, eps=0.5, alpha=0.1, steps=40, norm="l1", random_start=False)
    got = attack(x, torch.tensor([0]))
    expected = torch.tensor([[1.0, 0.9, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_one_step_as_long_as_the_ball_is_fgsm(norm, cnn, batch):
    x, y = batch
    once = PGD(cnn, eps=0.05, alpha=0.05, steps=1, random_start=False, norm=norm)
    assert torch.equal(once(x, y), FGSM(cnn, eps=0.05, norm=norm)(x, y))


def test_pgd_against_a_slow_loop(cnn, batch):
    x, y = batch[0][:5].double(), batch[1][:5]
    model = cnn.double()
    try:
        got = PGD(model, eps=0.1, alpha=0.03, steps=5, random_start=False)(x, y)
        for image, label, adv in zip(x, y, got, strict=True):
            z = image[None].clone()
            for _ in range(5):
                z.requires_grad_()
                (gradient,) = torch.autograd.grad(cross_entropy(model(z), label[None]), z)
                step = z.detach() + 0.03 * gradient.sign()
                z = torch.maximum(torch.minimum(step, image + 0.1), image - 0.1).clamp(0, 1)
            torch.testing.assert_close(adv[None], z, atol=1e-12, rtol=0)
    finally:
        model.float()


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_are_not_worse_and_a_target_is_reached(norm, cnn, batch):
    x, y = batch
    eps = {"linf": 0.12, "l2": 0.8, "l1": 6.0}[norm]

    def loss(steps):
        adv = PGD(cnn, eps=eps, alpha=eps / 5, steps=steps, norm=norm, random_start=False)(x, y)
        with torch.no_grad():
            return float(cross_entropy(cnn(adv), y))

    losses = [loss(steps) for steps in (1, 3, 20)]
    assert losses == sorted(losses)
    assert losses[-1] > losses[0] + 0.1
    target = (y + 1) % 10
    aimed = PGD(cnn, eps=2 * eps, alpha=eps / 5, steps=30, norm=norm)
    assert float(aimed.run(x, y, target=target).success.double().mean()) > 0.5


def test_stopping_changes_the_cost_and_no_verdict(cnn, batch):
    x, y = batch
    whole = PGD(cnn, eps=0.3, alpha=0.05, steps=10, random_start=False)
    early = PGD(cnn, eps=0.3, alpha=0.05, steps=10, random_start=False, stop_on_success=True)
    one, other = whole.run(x, y), early.run(x, y)
    assert bool((other.success >= one.success).all())
    assert other.forwards < one.forwards == 10 * len(x)
    for rows in (slice(0, 1), slice(3, 9)):
        torch.testing.assert_close(early(x[rows], y[rows]), other.adv[rows])


def test_a_random_start_is_inside_the_ball_and_not_at_the_image(mlp, batch):
    x, y = batch
    start = PGD(mlp, eps=0.1, alpha=1e-12, steps=1)
    moved = (start(x, y) - x).abs()
    assert 0.02 < float(moved[(x > 0.1) & (x < 0.9)].mean()) < 0.08
