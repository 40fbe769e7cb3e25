"""Carlini and Wagner: the known distance of a linear model, short perturbations, confidence."""

import pytest
import torch
from cv_adversarial.attacks.base import Goal
from cv_adversarial.attacks.carlini_wagner import CarliniWagner, _Adam
from cv_adversarial.attacks.deepfool import DeepFool
from cv_adversarial.attacks.objectives import margin
from cv_core.models.small import MLP


def test_distance_to_the_boundary_of_a_linear_model():
    model = MLP(20, [], 2).double()
    x = torch.rand(6, 20, dtype=torch.float64) * 0.2 + 0.4
    logits, weight = model(x).detach(), model.fc.weight.detach()
    exact = (logits[:, 0] - logits[:, 1]).abs() / (weight[0] - weight[1]).norm()
    result = CarliniWagner(model, steps=100, lr=0.03).run(x, logits.argmax(1))
    assert bool(result.success.all())
    assert bool((result.norm >= exact).all())
    torch.testing.assert_close(result.norm, exact, rtol=0.05, atol=2e-3)


def test_about_as_short_as_deepfool_or_shorter(mlp, batch):
    """But for single images, where Adam settles for a class that is not the nearest one."""
    x, y = batch[0][:12], batch[1][:12]
    ours, deepfool = CarliniWagner(mlp).run(x, y), DeepFool(mlp).run(x, y)
    assert bool(ours.success.all())
    assert bool(deepfool.success.all())
    assert float(ours.norm.median()) <= 1.01 * float(deepfool.norm.median())
    assert int((ours.norm <= 1.02 * deepfool.norm).sum()) >= 10


def test_the_search_beats_one_constant(mlp, batch):
    """A large constant alone succeeds everywhere with longer perturbations."""
    x, y = batch[0][:10], batch[1][:10]
    one = CarliniWagner(mlp, steps=60, search_steps=1, c=10.0).run(x, y)
    more = CarliniWagner(mlp, steps=60, search_steps=6, c=10.0).run(x, y)
    assert bool(one.success.all() & more.success.all())
    assert bool((more.norm <= one.norm).all())
    assert float(more.norm.mean()) < 0.99 * float(one.norm.mean())


def test_the_search_closes_in_on_the_least_constant():
    """Tenfold until the first success, then halfway between failures and successes."""
    tried = []

    class FromAThresholdOn(CarliniWagner):
        def _minimise(self, x, goal, oracle, c, best):
            del x, goal, oracle, best
            tried.append(c.tolist())
            return c >= torch.tensor([0.3, 0.0004]).to(c)

    x = torch.tensor([[0.6, 0.2]], dtype=torch.float64).expand(2, -1)
    FromAThresholdOn(lambda z: z, search_steps=9)(x, torch.tensor([0, 0]))
    first, second = zip(*tried, strict=True)
    assert first == pytest.approx([0.001, 0.01, 0.1, 1.0, 0.55, 0.325, 0.2125, 0.26875, 0.296875])
    assert second[:3] == pytest.approx([0.001, 0.0005, 0.00025])
    assert second[3:5] == pytest.approx([0.000375, 0.0004375])


@pytest.mark.parametrize("aimed", [False, True])
def test_confidence_is_kept(aimed, mlp, batch):
    x, y = batch[0][:9], batch[1][:9]
    target = (y + 1) % 10 if aimed else None
    attack = CarliniWagner(mlp, steps=100, search_steps=5, c=0.1, confidence=2.0)
    result = attack.run(x, y, target=target)
    with torch.no_grad():
        lead = margin(mlp(result.adv), Goal(y, target))
    assert int(result.success.sum()) >= 8
    assert bool((lead[result.success] >= 2.0 - 1e-3).all())


def test_failures_come_back_unchanged(mlp, batch):
    x, y = batch[0][:5], batch[1][:5]
    result = CarliniWagner(mlp, steps=2, search_steps=1, c=1e-6).run(x, y)
    assert not bool(result.success.any())
    assert torch.equal(result.adv, x)


def test_adam_is_torchs():
    w = torch.randn(4, 3, dtype=torch.float64)
    theirs = w.clone().requires_grad_()
    optimiser, ours = torch.optim.Adam([theirs], lr=0.1), _Adam(w, 0.1)
    for step in range(5):
        gradient = torch.randn_like(w) + step
        theirs.grad = gradient
        optimiser.step()
        w = ours.step(w, gradient)
    torch.testing.assert_close(w, theirs.detach(), rtol=1e-12, atol=1e-12)
