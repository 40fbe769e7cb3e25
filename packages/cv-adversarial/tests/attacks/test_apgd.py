"""APGD: its checkpoints, its step halving on known cases, and better losses than PGD's."""

import pytest
import torch
from cv_adversarial.attacks.apgd import APGD, StepSizes, checkpoints
from cv_adversarial.attacks.base import Goal
from cv_adversarial.attacks.gradient import PGD
from cv_adversarial.attacks.objectives import cross_entropy
from torch import nn


def test_checkpoints_are_the_papers():
    """p_1 = 0.22 and p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), times the steps."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1000) == [220, 410, 570, 700, 800, 870, 930, 990]
    assert checkpoints(10) == [3, 5, 6, 7, 8, 9]
    assert checkpoints(1) == []


def judged(steps, best_before, best):
    sizes = StepSizes(2.0, torch.tensor([best_before]))
    for raised in steps:
        sizes.record(torch.tensor([raised]))
    return sizes, bool(sizes.judge(torch.tensor([best])))


@pytest.mark.parametrize(
    ("steps", "halved"),
    [
        ([True] * 4, False),
        ([True, True, True, False], False),  # 75 % exactly: not fewer
        ([True, True, False, False], True),
        ([False] * 4, True),
    ],
)
def test_steps_are_halved_where_too_few_raise_the_objective(steps, halved):
    sizes, found = judged(steps, 0.0, 1.0)
    assert found == halved
    assert sizes.size.tolist() == [1.0 if halved else 2.0]


def test_steps_are_halved_where_neither_they_nor_the_best_have_changed():
    _, found = judged([True] * 4, 1.0, 1.0)
    assert found, "every step raised the objective, yet none beyond the best before"
    sizes, _ = judged([False] * 4, 1.0, 1.0)
    for expected in (False, True, False):  # after a halving, the same best is given one period
        for _ in range(4):
            sizes.record(torch.tensor([True]))
        assert bool(sizes.judge(torch.tensor([1.0]))) == expected
    assert sizes.size.tolist() == [0.5]


def test_halving_is_each_images_own():
    sizes = StepSizes(2.0, torch.zeros(2))
    for _ in range(4):
        sizes.record(torch.tensor([True, False]))
    assert sizes.judge(torch.ones(2)).tolist() == [False, True]
    assert sizes.size.tolist() == [2.0, 1.0]


class Peak(nn.Module):
    """The label's loss is highest where the one pixel is 0.53, between the first long steps."""

    def forward(self, x):
        far = (x.flatten(1) - 0.53).square()
        return torch.cat([10.0 * far, torch.zeros_like(far), torch.zeros_like(far)], 1)


def test_halving_finds_a_peak_that_fixed_steps_jump_over():
    x, y = torch.full((1, 1, 1, 1), 0.5).double(), torch.tensor([0])
    fixed = PGD(Peak(), eps=0.2, alpha=0.4, steps=100, random_start=False)(x, y)
    adapted = APGD(Peak(), eps=0.2, steps=100, random_start=False)(x, y)
    assert abs(float(adapted) - 0.53) < 1e-2 < abs(float(fixed) - 0.53)


def slow(model, image, label, eps, steps):
    """Algorithm 1 for one image in l-infinity, written with scalars where it has them."""

    def value_and_gradient(z):
        z = z.detach().requires_grad_()
        value = cross_entropy(model(z), Goal(label[None]))
        return float(value.detach()), torch.autograd.grad(value.sum(), z)[0]

    def project(z):
        return z.clamp(image - eps, image + eps).clamp(0, 1)

    eta, before, z = 2 * eps, image, image
    value, gradient = value_and_gradient(z)
    best = (value, z, gradient)
    raised, since, best_before, halved_before = 0, 0, value, False
    marks = checkpoints(steps)
    for k in range(1, steps + 1):
        ahead = project(z + eta * gradient.sign())
        weight = 1.0 if k == 1 else 0.75
        new = project(z + weight * (ahead - z) + (1 - weight) * (z - before))
        before, z = z, new
        last = value
        value, gradient = value_and_gradient(z)
        raised, since = raised + (value > last), since + 1
        if value > best[0]:
            best = (value, z, gradient)
        if k in marks:
            halve = raised < 0.75 * since or (not halved_before and best[0] == best_before)
            if halve:
                eta, (value, z, gradient) = eta / 2, best
            raised, since, best_before, halved_before = 0, 0, best[0], halve
    return best[1]


def test_against_a_slow_loop(cnn, batch):
    """In a ball so small that nothing is fooled, the highest loss is what is returned."""
    model, x, y = cnn.double(), batch[0][:5].double(), batch[1][:5]
    try:
        result = APGD(model, eps=0.02, steps=25, random_start=False).run(x, y)
        expected = [
            slow(model, image[None], label, 0.02, 25) for image, label in zip(x, y, strict=True)
        ]
    finally:
        model.float()
    assert not bool(result.success.any())
    torch.testing.assert_close(result.adv, torch.cat(expected), atol=1e-9, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_at_least_as_good_as_pgd_on_average(norm, cnn, mlp, batch):
    x, y = batch
    eps = {"linf": 0.06, "l2": 0.3}[norm]
    for model in (cnn, mlp):
        fixed = PGD(model, eps=eps, alpha=eps / 4, steps=30, norm=norm, random_start=False)
        adapted = APGD(model, eps=eps, steps=30, norm=norm, random_start=False)
        with torch.no_grad():
            losses = [
                float(cross_entropy(model(attack(x, y)), Goal(y)).mean())
                for attack in (fixed, adapted)
            ]
        assert losses[1] >= losses[0] - 1e-3


def test_dlr_survives_logits_so_large_that_cross_entropy_has_no_gradient(mlp, batch):
    """Scaling logits by 1e4 masks the cross entropy's gradient in float32, not the ratio's."""
    x, y = batch

    def confident(images):
        return 1e4 * mlp(images)

    options = {"eps": 0.1, "steps": 20, "random_start": False}
    plain = APGD(mlp, loss="dlr", **options).run(x, y).success
    scaled = APGD(confident, loss="dlr", **options).run(x, y).success
    masked = APGD(confident, loss="ce", **options).run(x, y).success
    assert int((plain != scaled).sum()) <= 1
    assert int(masked.sum()) < int(scaled.sum())


def test_targeted_dlr_reaches_its_target(mlp, batch):
    x, y = batch
    target = (y + 1) % 10
    result = APGD(mlp, eps=0.3, steps=30, loss="dlr").run(x, y, target=target)
    assert float(result.success.double().mean()) > 0.5


def test_more_steps_are_not_worse(cnn, batch):
    x, y = batch
    rates = [
        int(APGD(cnn, eps=0.1, steps=steps, random_start=False).run(x, y).success.sum())
        for steps in (2, 10, 40)
    ]
    assert rates == sorted(rates)
