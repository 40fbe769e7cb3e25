"""Balls: exact membership for any numbers, and projections against slow references."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from cv_adversarial.attacks.balls import add_towards, ball, distance
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

NORMS = ["linf", "l2", "l1"]
DTYPES = [torch.float32, torch.float64]


def images(seed, dtype, size=12):
    """Pixels of which some lie on the ends of the range and some very near 0."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, size, generator=generator, dtype=dtype)
    x[:, 0], x[:, 1], x[:, 2] = 0.0, 1.0, 1e-9 * x[:, 2]
    return x


def exact_length(norm, adv, x):
    """In rational numbers, squared for l2."""
    size = [abs(Fraction(a) - Fraction(b)) for a, b in zip(adv.tolist(), x.tolist(), strict=True)]
    return {"linf": max(size), "l1": sum(size), "l2": sum(item * item for item in size)}[norm]


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    dtype=st.sampled_from(DTYPES),
    eps=st.floats(1e-6, 3.0),
    push=st.floats(1e-7, 10.0),
    seed=st.integers(0, 10**6),
)
def test_projections_lie_in_the_ball_exactly(norm, dtype, eps, push, seed):
    x = images(seed, dtype)
    region = ball(norm, x, eps)
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(x.shape, generator=generator, dtype=dtype)
    points = [
        region.project(x + push * normal),
        region.draw(generator),
        region.move(x, normal, eps),
        region.project(x),
    ]
    assert torch.equal(points[-1], x)
    bound = Fraction(eps) ** (2 if norm == "l2" else 1)
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    for z in points:
        assert z.dtype == dtype
        assert bool(((z >= 0) & (z <= 1)).all())
        assert all(exact_length(norm, *pair) <= bound for pair in zip(z, x, strict=True))
        assert bool(((z - x).norm(order, dim=1) <= eps).all()), "as a user would measure it"
        assert bool((distance(norm, z, x) <= eps).all())


@settings(max_examples=200, deadline=None)
@given(x=st.floats(0, 1, width=32), delta=st.floats(-2, 2, width=32, allow_subnormal=False))
def test_addition_never_overshoots_and_is_off_by_one_rounding(x, delta):
    a, d = torch.tensor(x), torch.tensor(delta)
    total = add_towards(a, d).item()
    assert abs(Fraction(total) - Fraction(x)) <= abs(Fraction(delta))
    rounded = (a + d).item()
    assert total in (rounded, float(np.nextafter(np.float32(rounded), np.float32(x))))


@pytest.mark.parametrize("norm", NORMS)
def test_points_inside_stay(norm):
    x = images(0, torch.float64)
    z = (x + 1e-3 * torch.randn_like(x)).clamp(0, 1)
    torch.testing.assert_close(ball(norm, x, 1.0).project(z), z, rtol=0, atol=1e-15)


@pytest.mark.parametrize("eps", [0.1, 0.7, 2.5])
def test_l1_projection_against_a_slow_reference(eps):
    x = images(1, torch.float64)
    z = x + 0.8 * torch.randn_like(x)
    got = ball("l1", x, eps).project(z)
    for row, point, found in zip(x.numpy(), z.numpy(), got.numpy(), strict=True):

        def moved(threshold, row=row, point=point):
            soft = np.sign(point - row) * np.maximum(np.abs(point - row) - threshold, 0.0)
            return np.clip(row + soft, 0.0, 1.0)

        def excess(threshold, row=row, moved=moved):
            return np.abs(moved(threshold) - row).sum() - eps

        threshold = brentq(excess, 0.0, 10.0, xtol=1e-14) if excess(0.0) > 0 else 0.0
        np.testing.assert_allclose(found, moved(threshold), atol=1e-10)


def test_l1_projection_beats_clipping_after_the_ball():
    """It is the nearest point of the intersection, so no other point of it is nearer."""
    x = images(2, torch.float64)
    z = x + torch.randn_like(x)
    region = ball("l1", x, 0.8)
    nearest = (region.project(z) - z).norm(dim=1)
    for _ in range(200):
        other = region.draw(torch.default_generator)
        assert bool((nearest <= (other - z).norm(dim=1) + 1e-9).all())


def test_l2_projection_scales_the_difference():
    x = torch.full((1, 4), 0.5, dtype=torch.float64)
    z = x + torch.tensor([[3.0, 0.0, -4.0, 0.0]], dtype=torch.float64)
    got = ball("l2", x, 0.1).project(z)
    torch.testing.assert_close(got - x, 0.02 * (z - x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_directions_are_steepest_and_of_length_one(norm):
    z = torch.full((2, 100), 0.5, dtype=torch.float64)
    gradient = torch.randn_like(z)
    direction = ball(norm, z, 1.0).direction(z, gradient)
    torch.testing.assert_close(distance(norm, direction, 0 * z), torch.ones(2).double())
    dual = {"linf": 1, "l2": 2, "l1": float("inf")}[norm]
    rise = (gradient * direction).sum(1)
    torch.testing.assert_close(rise, gradient.norm(dual, dim=1), rtol=1e-12, atol=0)
    assert not ball(norm, z, 1.0).direction(z, 0 * z).any()


def test_l1_direction_passes_over_pixels_without_room():
    z = torch.tensor([[1.0, 0.0, 0.5, 1.0]])
    gradient = torch.tensor([[9.0, -8.0, 1.0, -2.0]])
    got = ball("l1", z, 1.0).direction(z, gradient)
    assert got.tolist() == [[0.0, 0.0, 0.0, -1.0]]


@pytest.mark.parametrize("norm", NORMS)
def test_draws_fill_the_ball_evenly(norm):
    """The share of the points within radius r is r to the power of the dimension."""
    x = torch.full((4000, 3), 0.5, dtype=torch.float64)
    z = ball(norm, x, 0.2).draw(torch.Generator().manual_seed(0))
    share = float((distance(norm, z, x) <= 0.14).double().mean())
    assert abs(share - 0.7**3) < 0.03
    assert float((z - x).mean(0).abs().max()) < 0.01
