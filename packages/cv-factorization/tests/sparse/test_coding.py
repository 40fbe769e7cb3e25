"""Lasso codes against scikit-learn and their conditions of optimality; the estimator's manners."""

import numpy as np
import pytest
import torch
from cv_factorization.sparse import pursuit
from cv_factorization.sparse.coding import (
    SparseCoder,
    lasso_cd,
    lasso_fista,
    lasso_ista,
    lasso_objective,
    sparse_encode,
    spectral_bound,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import decomposition
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import Lasso
from sklearn.utils.estimator_checks import check_estimator

SOLVERS = [lasso_cd, lasso_fista, lasso_ista]


def problem(seed=0, n=20, d=10, m=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator, dtype=dtype)
    D = torch.randn(m, d, generator=generator, dtype=dtype)
    return X, D / D.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("positive", [False, True])
def test_equals_scikit_learns_lasso(solve, positive):
    X, D = problem()
    # scikit-learn divides the misfit by the number of equations, here the features
    peer = Lasso(0.4 / 10, fit_intercept=False, positive=positive, tol=1e-12, max_iter=100_000)
    theirs = torch.from_numpy(peer.fit(D.T.numpy(), X.T.numpy()).coef_)
    ours = solve(X, D, 0.4, positive=positive, max_iter=50_000, tol=1e-12)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solve", SOLVERS)
def test_equals_scikit_learns_sparse_encode(solve):
    X, D = problem()
    ours = solve(X, D, 0.4, max_iter=50_000, tol=1e-12)
    exact = decomposition.sparse_encode(X.numpy(), D.numpy(), algorithm="lasso_lars", alpha=0.4)
    torch.testing.assert_close(ours, torch.from_numpy(exact), rtol=0, atol=1e-6)
    near = decomposition.sparse_encode(X.numpy(), D.numpy(), algorithm="lasso_cd", alpha=0.4)
    torch.testing.assert_close(ours, torch.from_numpy(near), rtol=0, atol=1e-2)


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("positive", [False, True])
def test_conditions_of_optimality_hold_for_atoms_of_any_length(solve, positive):
    X, D = problem(1)
    D = D * torch.linspace(0.5, 3.0, len(D), dtype=torch.float64)[:, None]
    codes = solve(X, D, 0.4, positive=positive, max_iter=50_000, tol=1e-12)
    slope = (X - codes @ D) @ D.T
    assert (slope if positive else slope.abs()).max() <= 0.4 + 1e-7
    taken = codes != 0
    torch.testing.assert_close(slope[taken], 0.4 * codes[taken].sign(), rtol=0, atol=1e-7)
    assert taken.any()
    assert not taken.all()
    assert not positive or codes.min() >= 0


@pytest.mark.parametrize("solve", [lasso_cd, lasso_ista])
def test_no_iteration_raises_the_objective_of_any_sample(solve):
    X, D = problem(2)
    course = [lasso_objective(X, D, torch.zeros(20, 16, dtype=torch.float64), 0.3)]
    for iterations in range(1, 25):
        codes = solve(X, D, 0.3, max_iter=iterations, tol=0)
        course.append(lasso_objective(X, D, codes, 0.3))
        assert (course[-1] <= course[-2] + 1e-12).all()
    assert course[-1].sum() < 0.8 * course[0].sum()


def test_objective_is_the_printed_sum():
    X, D = problem(3)
    codes = lasso_cd(X, D, 0.2, max_iter=5, tol=0)
    for x, a, value in zip(X, codes, lasso_objective(X, D, codes, 0.2), strict=True):
        expected = sum((x - sum(a[k] * D[k] for k in range(16))) ** 2) / 2 + 0.2 * sum(abs(a))
        assert float(value) == pytest.approx(float(expected), rel=1e-12)


def slow_sweep(x, D, a, alpha):
    for k in range(len(D)):
        rest = x - a @ D + a[k] * D[k]
        pull = float(rest @ D[k])
        a[k] = np.sign(pull) * max(abs(pull) - alpha, 0.0) / float(D[k] @ D[k])


def test_sweeps_equal_a_loop_of_coordinates():
    X, D = problem(4)
    D = D * torch.linspace(0.5, 2.0, 16, dtype=torch.float64)[:, None]
    slow = torch.zeros(20, 16, dtype=torch.float64)
    for x, a in zip(X, slow, strict=True):
        for _ in range(3):
            slow_sweep(x, D, a, 0.3)
    torch.testing.assert_close(lasso_cd(X, D, 0.3, max_iter=3, tol=0), slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solve", SOLVERS)
def test_orthonormal_atoms_give_the_soft_threshold(solve):
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64)).Q
    X = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    expected = torch.nn.functional.softshrink(X @ Q.T, 0.5)
    torch.testing.assert_close(solve(X, Q, 0.5, tol=1e-9), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("solve", SOLVERS)
def test_a_large_weight_leaves_nothing_and_none_leaves_the_projection(solve):
    X, D = problem(5, m=6)
    most = float((X @ D.T).abs().max())
    assert not solve(X, D, most * (1 + 1e-9)).any()
    least_squares = torch.linalg.lstsq(D.T, X.T).solution.T
    free = solve(X, D, 0.0, max_iter=20_000, tol=1e-12)
    torch.testing.assert_close(free, least_squares, rtol=0, atol=1e-7)


@pytest.mark.parametrize("solve", SOLVERS)
def test_the_solution_stays_where_it_is(solve):
    X, D = problem(6)
    codes = lasso_cd(X, D, 0.3, max_iter=50_000, tol=1e-13)
    again = solve(X, D, 0.3, start=codes, max_iter=3, tol=0)
    torch.testing.assert_close(again, codes, rtol=0, atol=1e-10)


def test_samples_converge_on_their_own(monkeypatch):
    X, D = problem(7)
    X[::3] *= 0.5
    whole = lasso_cd(X, D, 0.3)
    alone = torch.cat([lasso_cd(x[None], D, 0.3) for x in X])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-12)
    monkeypatch.setitem(pursuit.BLOCK, "cpu", 7 * len(D))
    torch.testing.assert_close(lasso_cd(X, D, 0.3), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solve", SOLVERS)
def test_too_few_iterations_warn(solve):
    X, D = problem(8)
    with pytest.warns(ConvergenceWarning, match=f"{solve.__name__}: tol=0.0001 was not reached"):
        solve(X, D, 0.1, max_iter=2)


@pytest.mark.parametrize("rank", [1, 3, 64])
def test_spectral_bound_lies_close_above_the_largest_eigenvalue(rank):
    generator = torch.Generator().manual_seed(rank)
    factor = torch.randn(64, rank, generator=generator, dtype=torch.float64)
    for scale in (1e-30, 1.0, 1e30):
        gram = scale * factor @ factor.T
        largest = float(torch.linalg.eigvalsh(gram)[-1])
        assert largest * (1 - 1e-12) <= spectral_bound(gram) <= largest * 1.15
    assert spectral_bound(torch.eye(64)) == pytest.approx(64 ** (1 / 32), rel=1e-5)
    assert spectral_bound(torch.zeros(3, 3)) == 1.0


entries = st.sampled_from([0.0, 0.0, 1.0, -1.0, 2.0, 1e-3, 1 + 1e-9])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_degenerate_matrices_give_finite_codes_that_help(data, n, d, m, positive):
    def matrix(rows):
        flat = data.draw(st.lists(entries, min_size=rows * d, max_size=rows * d))
        return torch.tensor(flat, dtype=torch.float64).reshape(rows, d)

    X, D = matrix(n), matrix(m)
    nothing = lasso_objective(X, D, torch.zeros(n, m, dtype=torch.float64), 0.1)
    for solve in SOLVERS:
        codes = solve(X, D, 0.1, positive=positive, max_iter=30, tol=0)
        assert torch.isfinite(codes).all()
        assert not codes[:, ~D.any(dim=1)].any()
        assert (lasso_objective(X, D, codes, 0.1) <= nothing + 1e-9).all()


def test_sparse_encode_is_the_named_solver():
    X, D = problem(9)
    for solve in SOLVERS:
        codes = sparse_encode(X, D, algorithm=solve.__name__, alpha=0.3, positive=True)
        torch.testing.assert_close(codes, solve(X, D, 0.3, positive=True), rtol=0, atol=0)
    with pytest.raises(ValueError, match="positive codes are not supported by algorithm='omp'"):
        sparse_encode(X, D, positive=True)
    with pytest.raises(ValueError, match="Did you mean 'lasso_cd'"):
        sparse_encode(X, D, algorithm="lasso_cdd")


def test_estimator_is_scikit_learns():
    check_estimator(SparseCoder(), on_skip=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_estimator_codes_in_the_samples_kind_and_type(kind, dtype):
    X, D = problem(10, dtype=dtype)
    expected = sparse_encode(X, D, algorithm="lasso_cd", alpha=0.3)
    coder = SparseCoder(D.double().numpy(), algorithm="lasso_cd", alpha=0.3)
    codes = coder.fit_transform(X if kind == "torch" else X.numpy())
    assert isinstance(codes, torch.Tensor) == (kind == "torch")
    assert isinstance(coder.components_, torch.Tensor) == (kind == "torch")
    torch.testing.assert_close(torch.as_tensor(codes), expected, rtol=0, atol=1e-5)
    # fitted on one kind, it codes the other
    other = coder.transform(X.numpy() if kind == "torch" else X)
    torch.testing.assert_close(torch.as_tensor(other), expected, rtol=0, atol=1e-5)
    back = coder.inverse_transform(codes)
    torch.testing.assert_close(torch.as_tensor(back), expected @ D, rtol=0, atol=1e-5)


def test_without_a_dictionary_the_samples_are_the_atoms():
    X, _ = problem(11, n=8, d=5)
    X[3] = 0.0
    coder = SparseCoder(n_nonzero=1).fit(X)
    codes = coder.transform(X)
    lengths = X.norm(dim=1)
    torch.testing.assert_close(codes, torch.diag(lengths), rtol=0, atol=1e-12)
    assert list(coder.get_feature_names_out()[:2]) == ["sparsecoder0", "sparsecoder1"]


X, D = problem()


@pytest.mark.parametrize(
    ("options", "data", "error", "message"),
    [
        ({}, X * np.nan, ValueError, "Input X contains NaN"),
        ({}, X.numpy() * np.nan, ValueError, "Input X contains NaN"),
        ({}, X[0], ValueError, "Expected 2D array, got 1D array"),
        ({}, X[:0], ValueError, r"0 sample\(s\)"),
        ({}, X.half(), TypeError, "X must be float32 or float64; got torch.float16"),
        ({"n_nonzero": 17}, X, ValueError, "n_nonzero must not exceed the number of atoms, 16"),
        ({"algorithm": "ompp"}, X, ValueError, "Did you mean 'omp'"),
        ({"dictionary": D[:, :4]}, X, ValueError, r"dictionary must have shape \(m, d\)"),
        ({"dictionary": D / 0}, X, ValueError, "dictionary must be finite"),
        ({"algorithm": "lasso_cd", "alpha": -1.0}, X, ValueError, "alpha must lie in"),
        ({"algorithm": "lasso_cd", "max_iter": 0}, X, ValueError, "max_iter must be at least 1"),
        ({"algorithm": "lasso_cd", "tol": np.nan}, X, ValueError, "tol must lie in"),
        ({"positive": True}, X, ValueError, "positive codes are not supported"),
    ],
)
def test_bad_input_is_refused(options, data, error, message):
    with pytest.raises(error, match=message):
        SparseCoder(**{"dictionary": D, **options}).fit(data).transform(data)


def test_transform_needs_a_fit_and_the_same_columns():
    with pytest.raises(NotFittedError):
        SparseCoder(D).transform(X)
    with pytest.raises(ValueError, match="SparseCoder is expecting 10 features"):
        SparseCoder(D).fit(X).transform(X[:, :4])
    with pytest.raises(ValueError, match="codes must have shape"):
        SparseCoder(D).fit(X).inverse_transform(X)
    with pytest.raises(ValueError, match="start must have shape"):
        lasso_cd(X, D, 0.1, start=X)
