"""Proximal operators against the minimum on a fine grid, and against other closed forms."""

import math

import pytest
import torch
from cv_core.numerics.proximal import (
    project_box,
    project_l2_ball,
    project_nonnegative,
    project_simplex,
    prox_group,
    prox_l0,
    prox_l1,
    prox_log,
    prox_nuclear,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

GRID = torch.arange(-60_000, 60_001, dtype=torch.float64) * 1e-4  # holds 0 exactly


def objective(z, x, weight, penalty):
    return 0.5 * (z - x) ** 2 + weight * penalty(z)


SCALAR = {
    "l1": (prox_l1, torch.abs),
    "l0": (prox_l0, lambda z: (z != 0).double()),
    "log convex": (lambda x, w: prox_log(x, w, eps=2.0), lambda z: torch.log1p(z.abs() / 2.0)),
    "log jumping": (lambda x, w: prox_log(x, w, eps=0.3), lambda z: torch.log1p(z.abs() / 0.3)),
    "log sharp": (lambda x, w: prox_log(x, w, eps=1e-3), lambda z: torch.log1p(z.abs() / 1e-3)),
}


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize("weight", [0.01, 0.3, 1.0, 2.5])
def test_scalar_operators_reach_the_minimum_on_a_grid(name, weight):
    operator, penalty = SCALAR[name]
    points = torch.linspace(-5.0, 5.0, 41, dtype=torch.float64) + 0.0137
    for x, z in zip(points, operator(points, weight), strict=True):
        best = objective(GRID, x, weight, penalty).min()
        # no grid point is better, and the grid comes as close as its spacing allows
        assert objective(z, x, weight, penalty) <= best + 1e-12
        assert objective(z, x, weight, penalty) >= best - 1e-3 * (1.0 + weight)


@pytest.mark.parametrize("name", SCALAR)
def test_scalar_operators_are_odd_monotone_and_shrink(name):
    operator, _ = SCALAR[name]
    x = torch.linspace(-5.0, 5.0, 4001, dtype=torch.float64)
    z = operator(x, 0.7)
    assert torch.equal(z, -z.flip(0))
    assert (z.diff() >= 0.0).all()
    assert (z.abs() <= x.abs()).all()
    torch.testing.assert_close(operator(x, 0.0), x, atol=1e-14, rtol=0)


@pytest.mark.parametrize(
    ("weight", "eps"), [(2e-7, 1e-3), (3e-6, 1e-3), (1e-7, 1e-4), (1e-6, 1e-3)]
)
def test_log_at_published_and_boundary_settings(weight, eps):
    # the last one has weight == eps**2, where the convex and the jumping regime meet
    grid = torch.linspace(0.0, 0.02, 100_001, dtype=torch.float64)
    points = torch.linspace(0.0, 0.01, 101, dtype=torch.float64)
    for x, z in zip(points, prox_log(points, weight, eps=eps), strict=True):
        values = 0.5 * (grid - x) ** 2 + weight * torch.log1p(grid / eps)
        value = 0.5 * (z - x) ** 2 + weight * torch.log1p(z / eps)
        assert value <= values.min() + 1e-18


def test_log_nears_the_soft_threshold():
    x = torch.linspace(-3.0, 3.0, 101, dtype=torch.float64)
    eps = 1e7
    torch.testing.assert_close(prox_log(x, 0.8 * eps, eps=eps), prox_l1(x, 0.8), atol=1e-6, rtol=0)


def test_log_in_single_precision_keeps_its_digits():
    x = torch.linspace(-2.0, 2.0, 999)
    for weight, eps in ((0.05, 100.0), (0.3, 0.2), (80.0, 100.0)):
        exact = prox_log(x.double(), weight, eps=eps)
        torch.testing.assert_close(
            prox_log(x, weight, eps=eps).double(), exact, atol=1e-5, rtol=1e-5
        )


def test_weights_may_differ_by_entry():
    x = torch.tensor([[3.0, -3.0], [0.5, 2.0]])
    weight = torch.tensor([1.0, 2.0])
    assert torch.equal(prox_l1(x, weight), torch.tensor([[2.0, -1.0], [0.0, 0.0]]))


def test_group_minimises_by_search():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    weight = 0.8
    ours = prox_group(x, weight)
    for point, z in zip(x, ours, strict=True):

        def value(z, point=point):
            return 0.5 * ((z - point.numpy()) ** 2).sum() + weight * math.sqrt((z**2).sum())

        found = minimize(value, point.numpy() * 0.5, method="Nelder-Mead", options={"xatol": 1e-9})
        assert value(z.numpy()) <= found.fun + 1e-9


def test_group_of_one_is_soft_and_zero_stays_zero():
    x = torch.tensor([[2.0], [-0.3], [0.0]])
    torch.testing.assert_close(prox_group(x, 0.5), prox_l1(x, 0.5))
    assert torch.equal(prox_group(torch.zeros(2, 3), 0.0), torch.zeros(2, 3))
    along_rows = prox_group(x.T, 0.5, dim=0)
    torch.testing.assert_close(along_rows, prox_l1(x.T, 0.5))


def test_nuclear_soft_thresholds_the_singular_values():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    z = prox_nuclear(x, 0.9)
    values = torch.linalg.svdvals(x)
    torch.testing.assert_close(torch.linalg.svdvals(z), prox_l1(values, 0.9))
    # optimality: (x - z) / weight is a subgradient, of spectral norm 1 and with <., z> = |z|_*
    slope = (x - z) / 0.9
    assert torch.linalg.svdvals(slope).max() <= 1.0 + 1e-12
    torch.testing.assert_close((slope * z).sum((-2, -1)), torch.linalg.svdvals(z).sum(-1))


def slow_simplex(x, radius):
    """Bisection on the shift that makes the clipped entries sum to the radius."""
    low, high = float(x.min()) - radius, float(x.max())
    for _ in range(200):
        middle = 0.5 * (low + high)
        if float((x - middle).clamp(min=0).sum()) > radius:
            low = middle
        else:
            high = middle
    return (x - 0.5 * (low + high)).clamp(min=0)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8),
    st.floats(1e-2, 1e2),
)
def test_simplex_against_bisection(entries, radius):
    x = torch.tensor(entries, dtype=torch.float64)
    z = project_simplex(x, radius=radius)
    torch.testing.assert_close(z, slow_simplex(x, radius), atol=1e-9, rtol=1e-9)
    assert float(z.sum()) == pytest.approx(radius, rel=1e-9)
    torch.testing.assert_close(project_simplex(z, radius=radius), z, atol=1e-9, rtol=1e-9)


def test_simplex_along_another_axis_and_far_from_the_origin():
    x = torch.tensor([[1e8, 0.0], [1e8 + 8.0, 0.0]])
    assert torch.equal(project_simplex(x, dim=0), torch.tensor([[0.0, 0.5], [1.0, 0.5]]))


def test_projections_onto_boxes_and_balls():
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    torch.testing.assert_close(project_l2_ball(x), torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    assert torch.equal(project_l2_ball(x, radius=0.0), torch.zeros(2, 2))
    whole = project_l2_ball(x, radius=1.0, dim=(0, 1))
    torch.testing.assert_close(whole, x / x.norm())
    boxed = project_box(x, 0.35, torch.tensor([1.0, 2.0]))
    assert torch.equal(boxed, torch.tensor([[1.0, 2.0], [0.35, 0.4]]))
    assert torch.equal(project_nonnegative(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))


NON_EXPANSIVE = {
    "l1": lambda x: prox_l1(x, 0.7),
    "group": lambda x: prox_group(x, 0.7),
    "nuclear": lambda x: prox_nuclear(x, 0.7),
    "box": lambda x: project_box(x, -0.5, 0.5),
    "non-negative": project_nonnegative,
    "simplex": project_simplex,
    "ball": project_l2_ball,
    "ball of the whole": lambda x: project_l2_ball(x, dim=(0, 1)),
}


@pytest.mark.parametrize("name", NON_EXPANSIVE)
def test_operators_of_convex_penalties_are_firmly_non_expansive(name):
    operator = NON_EXPANSIVE[name]
    generator = torch.Generator().manual_seed(3)
    for scale in (0.1, 1.0, 10.0):
        x, y = scale * torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
        moved, distance = operator(x) - operator(y), x - y
        assert (moved * moved).sum() <= (moved * distance).sum() + 1e-12


def test_jumping_operators_do_expand():
    x = torch.tensor([1.40, 1.43], dtype=torch.float64)  # on both sides of sqrt(2)
    assert prox_l0(x, 1.0).diff().abs() > 1.4


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: prox_l1(torch.ones(2), -1.0), ValueError, "weight"),
        (lambda: prox_l1(torch.ones(2), torch.tensor([1.0, -1.0])), ValueError, "weight"),
        (lambda: prox_l0(torch.ones(2, dtype=torch.int64), 1.0), TypeError, "floating"),
        (lambda: prox_log(torch.ones(2), 1.0, eps=0.0), ValueError, "eps"),
        (lambda: project_box(torch.ones(2), 1.0, 0.0), ValueError, "low"),
        (lambda: project_simplex(torch.ones(2), radius=0.0), ValueError, "radius"),
        (lambda: project_l2_ball(torch.ones(2), radius=-1.0), ValueError, "radius"),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()
