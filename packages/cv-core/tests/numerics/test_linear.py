"""Solves against torch.linalg and scikit-learn, including the systems that are singular."""

import pytest
import torch
from cv_core.numerics.linear import (
    adjoint_error,
    conjugate_gradient,
    power_iteration,
    ridge_solve,
    solve_psd,
)
from sklearn.linear_model import Ridge


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(n, seed=0):
    M = randn(n, n, seed=seed)
    return M @ M.T + torch.eye(n, dtype=torch.float64)


def test_conjugate_gradient_equals_the_direct_solve_in_n_steps():
    A, b = positive(12), randn(12, seed=1)
    result = conjugate_gradient(lambda x: A @ x, b, tol=1e-8)
    torch.testing.assert_close(result.solution, torch.linalg.solve(A, b), atol=1e-7, rtol=1e-6)
    assert result.converged
    assert result.iterations <= 16  # 12 in exact arithmetic
    assert len(result.residuals) == result.iterations + 1


def test_conjugate_gradient_on_images_of_a_batch_is_as_one_by_one():
    A, b = positive(12), randn(3, 4, 3, seed=1)
    b[1] = 0.0

    def operator(x):
        return (x.reshape(-1, 12) @ A).reshape(x.shape)

    batch = conjugate_gradient(operator, b, batch_dims=1, tol=1e-10)
    assert batch.converged
    for i in range(3):
        expected = torch.linalg.solve(A, b[i].flatten())
        torch.testing.assert_close(batch.solution[i].flatten(), expected, atol=1e-8, rtol=1e-7)


def test_a_good_preconditioner_and_a_good_start_save_iterations():
    A, b = positive(12) + torch.diag(torch.logspace(0, 4, 12, dtype=torch.float64)), randn(12)
    inverse = torch.linalg.inv(A)
    plain = conjugate_gradient(lambda x: A @ x, b, tol=1e-9)
    jacobi = conjugate_gradient(
        lambda x: A @ x, b, tol=1e-9, preconditioner=lambda r: r / A.diagonal()
    )
    exact = conjugate_gradient(lambda x: A @ x, b, tol=1e-9, preconditioner=lambda r: inverse @ r)
    assert exact.iterations == 1
    assert jacobi.iterations < plain.iterations
    torch.testing.assert_close(jacobi.solution, plain.solution, atol=1e-8, rtol=1e-6)
    assert conjugate_gradient(lambda x: A @ x, b, start=inverse @ b, tol=1e-9).iterations == 0


def test_indefinite_operators_and_bad_input_are_refused():
    with pytest.raises(ArithmeticError, match="positive definite"):
        conjugate_gradient(lambda x: -x, torch.ones(3))
    with pytest.raises(ValueError, match="b must be finite"):
        conjugate_gradient(lambda x: x, torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match="batch_dims"):
        conjugate_gradient(lambda x: x, torch.ones(3), batch_dims=2)
    short = conjugate_gradient(lambda x: positive(12) @ x, randn(12), max_iter=2)
    assert not short.converged


def test_psd_solve_regular_and_singular():
    A, B = positive(7), randn(7, 3)
    torch.testing.assert_close(solve_psd(A, B), torch.linalg.solve(A, B))
    V = randn(7, 3)
    singular = V @ V.T
    expected = torch.linalg.pinv(singular, hermitian=True) @ B
    torch.testing.assert_close(solve_psd(singular, B), expected)
    assert torch.equal(solve_psd(torch.zeros(4, 4), torch.ones(4, 1)), torch.zeros(4, 1))


@pytest.mark.parametrize("rank", [3, 5])
def test_singular_matrices_are_told_from_regular_ones(rank):
    """Rounding leaves Cholesky pivots that look regular; without a condition this fails."""
    for seed in range(200):
        X, C = randn(rank, 6, seed=seed), randn(6, 2, seed=1000 + seed)
        if torch.linalg.cond(X) > 1e4:  # its square is singular to working precision
            continue
        found = solve_psd(X.T @ X, X.T @ X @ C)
        torch.testing.assert_close(found, torch.linalg.pinv(X) @ X @ C, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (9, 9)])
def test_ridge_equals_scikit_learn_both_ways_round(shape):
    X, Y = randn(*shape), randn(shape[0], 4, seed=2)
    peer = Ridge(0.7, fit_intercept=False).fit(X.numpy(), Y.numpy())
    torch.testing.assert_close(ridge_solve(X, Y, 0.7), torch.tensor(peer.coef_.T))


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_no_ridge_is_least_squares_of_least_norm(shape):
    X, Y = randn(*shape), randn(shape[0], 2, seed=2)
    X[:, 0] = X[:, 1]  # not even of full rank
    torch.testing.assert_close(ridge_solve(X, Y, 0.0), torch.linalg.pinv(X) @ Y)


def test_power_iteration_finds_the_largest_eigenvalue_from_below():
    A = randn(9, 5)
    largest = float(torch.linalg.svdvals(A)[0]) ** 2
    found = power_iteration(lambda x: A.T @ (A @ x), torch.zeros(5, dtype=torch.float64), tol=1e-12)
    assert largest * (1 - 1e-6) <= found <= largest * (1 + 1e-12)
    assert power_iteration(lambda x: 0 * x, torch.zeros(5)) == 0.0
    assert power_iteration(lambda x: 3 * x, torch.zeros(2, 4, 4)) == pytest.approx(3.0)


def test_power_iteration_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    power_iteration(lambda x: x, torch.zeros(5))
    assert torch.equal(before, torch.get_rng_state())


def test_adjoint_error_tells_adjoints_from_others():
    A = randn(4, 6)
    x, y = torch.zeros(6, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    assert adjoint_error(lambda v: A @ v, lambda v: A.T @ v, x, y) < 1e-15
    assert adjoint_error(lambda v: A @ v, lambda v: 1.1 * (A.T @ v), x, y) > 1e-3
