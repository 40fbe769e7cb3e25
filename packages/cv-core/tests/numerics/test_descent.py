"""Proximal gradients against closed forms, scikit-learn and their convergence rates."""

import pytest
import torch
from cv_core.numerics.descent import fista, ista
from cv_core.numerics.proximal import prox_l1
from sklearn.linear_model import Lasso


def lasso(seed=0, n=40, d=60, weight=0.3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(n, d, generator=generator, dtype=dtype)
    y = torch.randn(n, generator=generator, dtype=dtype)
    problem = {
        "gradient": lambda x: A.T @ (A @ x - y),
        "prox": lambda x, step: prox_l1(x, step * weight),
        "objective": lambda x: 0.5 * ((A @ x - y) ** 2).sum() + weight * x.abs().sum(),
    }
    lipschitz = float(torch.linalg.svdvals(A)[0]) ** 2
    return A, y, weight, problem, lipschitz


def sklearn_lasso(A, y, weight):
    model = Lasso(weight / len(y), fit_intercept=False, tol=1e-12, max_iter=100_000)
    return torch.tensor(model.fit(A.numpy(), y.numpy()).coef_)


@pytest.mark.parametrize("solver", [ista, fista])
def test_lasso_equals_scikit_learn(solver):
    A, y, weight, problem, lipschitz = lasso()
    options = {"restart": "gradient"} if solver is fista else {}
    result = solver(
        torch.zeros(60, dtype=torch.float64),
        **problem,
        step=1 / lipschitz,
        max_iter=20_000,
        tol=1e-11,
        **options,
    )
    assert result.converged
    torch.testing.assert_close(result.solution, sklearn_lasso(A, y, weight), atol=1e-6, rtol=0)


def test_one_step_on_an_orthonormal_dictionary_is_the_soft_threshold():
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    y = torch.randn(6, generator=generator, dtype=torch.float64)
    for solver in (ista, fista):
        result = solver(
            torch.zeros(6, dtype=torch.float64),
            lambda x: Q.T @ (Q @ x - y),
            lambda x, step: prox_l1(x, 0.4 * step),
            step=1.0,
            max_iter=1,
        )
        torch.testing.assert_close(result.solution, prox_l1(Q.T @ y, 0.4))


def test_ista_descends_and_fista_keeps_its_rate():
    _, _, _, problem, lipschitz = lasso()
    start = torch.zeros(60, dtype=torch.float64)
    plain = ista(start, **problem, step=1 / lipschitz, max_iter=200, tol=0.0)
    fast = fista(start, **problem, step=1 / lipschitz, max_iter=200, tol=0.0)
    best = fista(start, **problem, step=1 / lipschitz, max_iter=3000, tol=0.0, restart="gradient")
    assert len(plain.objective) == 201
    assert all(b <= a + 1e-12 for a, b in zip(plain.objective, plain.objective[1:], strict=False))
    bound = lipschitz * float((best.solution - start).square().sum())
    for k in range(1, 201):  # the two theorems of Beck and Teboulle
        assert plain.objective[k] - best.objective[-1] <= bound / (2 * k) + 1e-9
        assert fast.objective[k] - best.objective[-1] <= 2 * bound / (k + 1) ** 2 + 1e-9
    assert fast.objective[-1] < plain.objective[-1]


def slow_fista(x, problem, step, iterations):
    y, theta = x, 1.0
    for _ in range(iterations):
        new = problem["prox"](y - step * problem["gradient"](y), step)
        following = (1 + (1 + 4 * theta**2) ** 0.5) / 2
        y, x, theta = new + (theta - 1) / following * (new - x), new, following
    return x


def test_fista_equals_the_recursion_as_printed():
    _, _, _, problem, lipschitz = lasso(seed=4)
    start = torch.ones(60, dtype=torch.float64)
    ours = fista(start, **problem, step=1 / lipschitz, max_iter=37, tol=0.0)
    torch.testing.assert_close(ours.solution, slow_fista(start, problem, 1 / lipschitz, 37))
    assert not ours.converged
    assert torch.equal(start, torch.ones(60, dtype=torch.float64))


@pytest.mark.parametrize("solver", [ista, fista])
def test_search_finds_a_step_from_one_that_is_too_large(solver):
    A, y, weight, problem, lipschitz = lasso()
    smooth = lambda x: 0.5 * ((A @ x - y) ** 2).sum()  # noqa: E731 - reads as the formula
    start = torch.zeros(60, dtype=torch.float64)
    result = solver(
        start, **problem, step=1000.0 / lipschitz, smooth=smooth, max_iter=20_000, tol=1e-10
    )
    assert 0.5 / lipschitz <= result.step <= 1000.0 / lipschitz
    torch.testing.assert_close(result.solution, sklearn_lasso(A, y, weight), atol=1e-5, rtol=0)


def test_too_large_a_step_is_reported():
    _, _, _, problem, lipschitz = lasso()
    with pytest.raises(FloatingPointError, match="smaller step"):
        ista(torch.zeros(60, dtype=torch.float64), **problem, step=50 / lipschitz, max_iter=1000)


def test_restart_beats_momentum_on_a_strongly_convex_problem():
    scales = torch.logspace(0, -3, 30, dtype=torch.float64)
    gradient = lambda x: scales * x  # noqa: E731 - reads as the formula
    prox = lambda x, _: x  # noqa: E731 - the same
    start = torch.ones(30, dtype=torch.float64)
    never = fista(start, gradient, prox, step=1.0, max_iter=400, tol=0.0)
    restarted = fista(start, gradient, prox, step=1.0, max_iter=400, tol=0.0, restart="gradient")
    assert restarted.solution.norm() < 0.5 * never.solution.norm()


def test_gradients_flow_through_unrolled_iterations():
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([2.0, -1.0, 0.1], dtype=torch.float64)
    result = ista(y * 0, lambda x: x - y, lambda x, t: prox_l1(x, t * weight), step=1.0, max_iter=3)
    result.solution.sum().backward()
    assert weight.grad == pytest.approx(0.0)  # one entry shrinks, one grows, one is cut off
    weight.grad = None
    result = ista(y * 0, lambda x: x - y, lambda x, t: prox_l1(x, t * weight), step=1.0, max_iter=3)
    result.solution[0].backward()
    assert weight.grad == pytest.approx(-1.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"step": 0.0},
        {"step": 1.0, "max_iter": 0},
        {"step": 1.0, "tol": -1.0},
        {"step": 1.0, "restart": "always"},
    ],
)
def test_refusals(bad):
    with pytest.raises(ValueError, match=list(bad)[-1]):
        fista(torch.zeros(2), lambda x: x, lambda x, _: x, **bad)
