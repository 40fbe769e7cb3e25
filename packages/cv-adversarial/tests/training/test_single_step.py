"""FGSM-AT, Fast-AT and Free-AT against the attacks and against loops written here."""

import pytest
import torch
from cv_adversarial.attacks.gradient import FGSM
from cv_adversarial.training.single_step import FastATLoss, FGSMATLoss, FreeATLoss
from torch.nn.functional import cross_entropy

EPS = 0.2


def gradient(model, x, y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(cross_entropy(model(x), y), x)[0]


def test_fgsm_at_is_the_cross_entropy_of_fgsm_examples(mlp, batch):
    x, y = batch
    loss, parts = FGSMATLoss(EPS)(mlp, x, y)
    torch.testing.assert_close(loss, cross_entropy(mlp(FGSM(mlp, EPS)(x, y)), y))
    assert torch.equal(parts["adversarial"], loss.detach())


def test_a_shorter_step_ends_inside_the_ball(mlp, batch):
    x, y = batch
    adv = FGSMATLoss(EPS, alpha=EPS / 3).examples(mlp, x, y)
    expected = (x + EPS / 3 * gradient(mlp, x, y).sign()).clamp(0, 1)
    torch.testing.assert_close(adv, expected)


def test_fast_at_steps_from_a_random_point(mlp, batch):
    """Whatever the random point was: it lies in the ball, and the step from it is the paper's."""
    x, y = batch
    objective = FastATLoss(EPS, alpha=0.25, seed=3)
    state = objective.get_extra_state()
    adv = objective.examples(mlp, x, y)
    noise = torch.rand(x.shape, generator=torch.Generator().set_state(state), dtype=x.dtype)
    start = (x + EPS * (2 * noise - 1)).clamp(0, 1)
    moved = start + 0.25 * gradient(mlp, start, y).sign()
    expected = torch.minimum(torch.maximum(moved, x - EPS), x + EPS).clamp(0, 1)
    torch.testing.assert_close(adv, expected)
    assert FastATLoss(EPS).alpha == pytest.approx(1.25 * EPS)


def by_hand(model, batches, replays):
    """Algorithm 1 of the paper: one gradient for weights and perturbation, which is kept."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    kept, losses = torch.zeros_like(batches[0][0]), []
    for x, y in batches:
        for _ in range(replays):
            seen = (x + kept[: len(x)]).clamp(0, 1).requires_grad_()
            loss = cross_entropy(model(seen), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            kept[: len(x)] = (kept[: len(x)] + EPS * seen.grad.sign()).clamp(-EPS, EPS)
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("replays", [1, 3])
def test_free_at_is_the_papers_loop(replays, mlp, batch):
    """With batches of several sizes, the largest first: what a smaller one leaves out is kept."""
    x, y = batch
    batches = [(x, y), (x[:4].flip(0), y[:4].flip(0)), (x.flip(0), y.flip(0))]
    initial = {name: value.clone() for name, value in mlp.state_dict().items()}
    expected = by_hand(mlp, batches, replays)
    mlp.load_state_dict(initial)
    optimiser, objective = torch.optim.SGD(mlp.parameters(), lr=0.1), FreeATLoss(EPS)
    losses = []
    for images, labels in batches:
        for _ in range(replays):
            loss, _ = objective(mlp, images, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-9)


def test_free_at_begins_with_clean_training_and_forgets_when_asked(mlp, batch):
    x, y = batch
    objective = FreeATLoss(EPS)
    clean = cross_entropy(mlp(x), y)
    first, _ = objective(mlp, x, y)
    torch.testing.assert_close(first, clean)
    first.backward()
    second, _ = objective(mlp, x, y)
    assert float((second - clean).detach()) > 1e-3  # the weights have not moved, the images have
    second.backward()
    objective.reset()
    torch.testing.assert_close(objective(mlp, x, y)[0], clean)


def test_free_at_grows_with_a_larger_batch(mlp, batch):
    x, y = batch
    objective = FreeATLoss(EPS)
    objective(mlp, x[:2], y[:2])[0].backward()
    adv = (x[:2] + EPS * gradient(mlp, x[:2], y[:2]).sign()).clamp(0, 1)
    expected = cross_entropy(mlp(torch.cat([adv, x[2:]])), y)
    torch.testing.assert_close(objective(mlp, x, y)[0], expected)


def test_free_at_moves_pixels_at_the_ends_of_their_range(mlp, batch):
    """Half of a digit's pixels are black; clipping has no gradient there."""
    x, y = torch.zeros_like(batch[0]), batch[1]
    objective = FreeATLoss(EPS)
    objective(mlp, x, y)[0].backward()
    adv = (EPS * gradient(mlp, x, y).sign()).clamp(0, 1)
    assert float(adv.max()) == EPS
    torch.testing.assert_close(objective(mlp, x, y)[0], cross_entropy(mlp(adv), y))


def test_free_at_says_when_no_gradient_came(mlp, batch):
    objective = FreeATLoss(EPS)
    with torch.no_grad():
        objective(mlp, *batch)
    objective(mlp, *batch)  # nothing was due after an evaluation
    with pytest.raises(RuntimeError, match=r"FreeATLoss: the last loss has not been differ"):
        objective(mlp, *batch)


def test_free_at_ignores_a_gradient_that_overflowed(mlp, batch):
    x, y = batch
    objective = FreeATLoss(EPS)
    loss, _ = objective(mlp, x, y)
    (loss * torch.nan).backward()
    torch.testing.assert_close(objective(mlp, x, y)[0], cross_entropy(mlp(x), y))
