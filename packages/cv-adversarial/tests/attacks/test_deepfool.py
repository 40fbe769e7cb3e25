"""DeepFool: exact for affine models, equal to a slow loop, batched over unfinished images only."""

import pytest
import torch
from cv_adversarial.attacks.deepfool import DeepFool
from cv_core.models.small import MLP
from torch import nn


def affine(classes=4, entries=30):
    model = MLP(entries, [], classes).double()
    with torch.no_grad():
        model.fc.bias.mul_(0.1)
    return model


def test_exact_for_an_affine_classifier():
    """The distance is the least |f_k - f_y| / ||w_k - w_y||, times 1 + overshoot."""
    model = affine()
    x = torch.rand(20, 30, dtype=torch.float64) * 0.2 + 0.4
    logits, weight = model(x).detach(), model.fc.weight.detach()
    y = logits.argmax(1)
    expected = []
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        gaps = [
            (row[label] - row[k]) / float((weight[label] - weight[k]).norm())
            for k in range(4)
            if k != label
        ]
        expected.append(1.02 * min(gaps))
    result = DeepFool(model).run(x, y)
    assert bool(result.success.all())
    assert bool(((result.adv > 0) & (result.adv < 1)).all()), "the range is not in the way"
    torch.testing.assert_close(result.norm, torch.tensor(expected, dtype=torch.float64))
    assert result.backwards == 20 * 3, "one step, one backward pass for each wrong class"


def slow(model, image, label, steps):
    z = image[None].clone()
    for _ in range(steps):
        z = z.detach().requires_grad_()
        logits = model(z)[0]
        if int(logits.argmax()) != label:
            break
        gradients = [torch.autograd.grad(logit, z, retain_graph=True)[0] for logit in logits]
        best, move = float("inf"), None
        for k in range(len(logits)):
            if k == label:
                continue
            w = gradients[k] - gradients[label]
            gap = abs(logits[k].item() - logits[label].item())
            if gap / float(w.norm()) < best:
                best = gap / float(w.norm())
                move = max(gap, 1e-4) / float(w.norm()) ** 2 * w
        z = (z + 1.02 * move).clamp(0, 1)
    return z.detach()


def test_against_a_slow_loop(cnn, batch):
    model, x, y = cnn.double(), batch[0][:8].double(), batch[1][:8]
    try:
        got = DeepFool(model, steps=20)(x, y)
        expected = [
            slow(model, image, label, 20) for image, label in zip(x, y.tolist(), strict=True)
        ]
    finally:
        model.float()
    torch.testing.assert_close(got, torch.cat(expected), atol=1e-9, rtol=0)


def test_fools_all_and_counts_only_the_unfinished(cnn, batch):
    x, y = batch[0][:12], batch[1][:12]
    result = DeepFool(cnn).run(x, y)
    assert bool(result.success.all())
    slowest = 0
    for row in range(len(x)):
        alone = DeepFool(cnn).run(x[row : row + 1], y[row : row + 1])
        slowest = max(slowest, alone.backwards)
        torch.testing.assert_close(alone.adv[0], result.adv[row], atol=1e-4, rtol=0)
    assert result.backwards < len(x) * slowest


def test_fewer_candidates_cost_less_and_find_no_shorter_way(mlp, batch):
    x, y = batch
    full, few = DeepFool(mlp, candidates=None).run(x, y), DeepFool(mlp, candidates=2).run(x, y)
    assert bool(few.success.all())
    assert few.backwards < 0.5 * full.backwards
    assert float(few.norm.mean()) >= float(full.norm.mean()) - 1e-3


def test_target_is_reached_past_other_classes(mlp, batch):
    x, y = batch
    target = (y + 1) % 10
    result = DeepFool(mlp).run(x, y, target=target)
    assert float(result.success.double().mean()) > 0.9
    assert float(result.norm.mean()) > float(DeepFool(mlp).run(x, y).norm.mean())


@pytest.mark.parametrize("overshoot", [0.0, 0.02])
def test_a_point_on_the_boundary_moves(overshoot):
    model = nn.Linear(2, 2, bias=False).double()
    nn.init.eye_(model.weight)
    x = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    assert bool(DeepFool(model, overshoot=overshoot).run(x, torch.tensor([0])).success)
