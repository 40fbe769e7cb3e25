"""Square: no gradients, the paper's schedule and patterns, margins that never grow."""

import pytest
import torch
from cv_adversarial.attacks.balls import L2Ball, distance
from cv_adversarial.attacks.base import Goal
from cv_adversarial.attacks.objectives import margin
from cv_adversarial.attacks.square import (
    Square,
    _Draws,
    _grid,
    _moved_mass,
    bump,
    double_bump,
    side,
)

NORMS = {"linf": 0.2, "l2": 1.2}


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradients_are_used(norm, mlp, batch):
    x, y = batch
    grad_modes = []

    def black_box(images):
        grad_modes.append(torch.is_grad_enabled() or images.requires_grad)
        return torch.from_numpy(mlp(images).detach().numpy())  # cuts every graph

    result = Square(black_box, eps=NORMS[norm], steps=30, norm=norm).run(x, y)
    assert result.backwards == 0
    assert not any(grad_modes)
    assert torch.equal(result.adv, Square(mlp, eps=NORMS[norm], steps=30, norm=norm)(x, y))


@pytest.mark.parametrize("norm", NORMS)
def test_margins_only_rise_and_more_steps_fool_more(norm, cnn, batch):
    x, y = batch
    reached = []
    for steps in (5, 40, 200):
        result = Square(cnn, eps=NORMS[norm], steps=steps, norm=norm).run(x, y)
        reached.append(int(result.success.sum()))
    assert reached == sorted(reached)
    assert reached[-1] >= 15
    values = []

    def watched(images):
        logits = cnn(images)
        values.append(float(margin(logits, Goal(y[:1]))))
        return logits

    adv = Square(watched, eps=0.5 * NORMS[norm], steps=60, norm=norm)(x[:1], y[:1])
    with torch.no_grad():
        final = float(margin(cnn(adv), Goal(y[:1])))
    assert final == pytest.approx(max(values[1:]), abs=1e-5), "the best point met is returned"


def test_queries_are_at_most_steps_and_end_with_success(cnn, batch):
    x, y = batch
    counts = [Square(cnn, eps=0.3, steps=50).run(x[i : i + 1], y[i : i + 1]) for i in range(6)]
    for result in counts:
        assert result.forwards <= 51, "one of them is the clean image"
        assert bool(result.success) or result.forwards == 51
    assert any(result.forwards < 40 for result in counts)


def test_linf_perturbations_lie_on_the_balls_corners(cnn):
    """Every pixel is eps away, but where the range cuts the ball."""
    x = torch.full((3, 1, 8, 8), 0.5)
    x[:, :, :2] = 0.05
    y = cnn(x).argmax(1)
    change = (Square(cnn, eps=0.1, steps=15)(x, y) - x).abs()
    inside = change[:, :, 2:]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [2, 5, 10])
def test_l2_mass_moves_and_fills_the_ball(channels, size):
    """Far from the range's ends the moved mass and what the ball had left are the whole radius."""
    x = torch.full((4, channels, 10, 12), 0.5, dtype=torch.float64)
    region, draws = L2Ball(x, 0.4), _Draws(x, torch.Generator().manual_seed(0))
    z = x + 0.5 * (region.project(_grid(region, draws)) - x)
    moved = _moved_mass(region, z, size, draws)
    torch.testing.assert_close(distance("l2", moved, x), torch.full((4,), 0.4).double())
    kept = ((moved - x) == (z - x)).flatten(1).sum(1)
    assert bool((kept >= channels * (120 - 2 * size**2)).all()), "two squares change, no more"
    assert not torch.equal(moved, z)


def test_sides_follow_the_papers_schedule():
    sides = [side(step, 10_000, 0.8, 100, 100) for step in range(10_000)]
    assert sides[0] == round((0.8 * 10_000) ** 0.5)
    changes = [step for step in range(1, 10_000) if sides[step] != sides[step - 1]]
    assert changes == [11, 51, 201, 1001, 2001, 4001, 6001, 8001]
    assert side(99, 100, 0.8, 4, 4) == 1
    assert side(0, 100, 1.0, 4, 9) == 4


def test_bumps_are_the_papers_sums():
    """Concentric squares around the middle, each adding 1 / (ring + 1)^2."""
    for height, width in ((5, 5), (2, 5), (6, 7)):
        rings = max(height, width) // 2 + 1
        for r in range(height):
            for s in range(width):
                far = max(abs(r - height // 2), abs(s - width // 2))
                expected = sum(1 / (j + 1) ** 2 for j in range(far, rings))
                assert float(bump(height, width)[r, s]) == pytest.approx(expected)


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_double_bumps_have_length_one_and_two_signs(size):
    pattern = double_bump(size)
    assert pattern.shape == (size, size)
    assert float(pattern.norm()) == pytest.approx(1.0)
    assert bool((pattern[: size // 2] > 0).all() & (pattern[size // 2 :] < 0).all())


@pytest.mark.parametrize("norm", NORMS)
def test_targets_are_approached(norm, mlp, batch):
    x, y = batch
    target = (y + 1) % 10
    eps = 2 * NORMS[norm]
    result = Square(mlp, eps=eps, steps=200, norm=norm).run(x, y, target=target)
    with torch.no_grad():
        before, after = (margin(mlp(z), Goal(y, target)) for z in (x, result.adv))
    assert bool((after > before).all())
    assert int(result.success.sum()) >= 5
