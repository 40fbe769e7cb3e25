"""K-SVD: its steps, its descent, and what it recovers."""

import numpy as np
import pytest
import torch
from cv_factorization.sparse.ksvd import (
    KSVD,
    _replace_unused_,
    _update_atom_,
    best_direction,
    next_direction,
)
from cv_factorization.sparse.pursuit import omp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator


def planted(seed=0, n=600, d=16, m=24, k=2):
    """Samples that are sums of k of m random atoms."""
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((m, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    codes = np.zeros((n, m))
    for row in codes:
        row[rng.choice(m, k, replace=False)] = rng.choice([-1, 1], k) * rng.uniform(1, 2, k)
    return codes @ D, D


def slow_iteration(X, D, A, exact):
    """The sweep over the atoms as printed, on copies, with the whole error matrix each time."""
    D, A = D.copy(), A.copy()
    for j in range(len(D)):
        users = np.flatnonzero(A[:, j])
        if len(users):
            E = (X - A @ D + np.outer(A[:, j], D[j]))[users]
            if exact:
                D[j] = np.linalg.svd(E)[2][0]
            else:
                D[j] = E.T @ A[users, j] / np.linalg.norm(E.T @ A[users, j])
            A[users, j] = E @ D[j]
    return D, A


@pytest.mark.parametrize("update", ["approximate", "exact"])
def test_an_iteration_equals_the_printed_one(update):
    X, _ = planted(n=80)
    start = np.random.default_rng(1).standard_normal((24, 16))
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    model = KSVD(24, n_nonzero=3, update=update, init=start, max_iter=1, tol=0).fit(X)
    A = omp(torch.tensor(X), torch.tensor(start), n_nonzero=3).numpy()
    assert A.any(axis=0).all()  # every atom is used, so that none is replaced
    D, A_new = slow_iteration(X, start, A, update == "exact")
    signs = np.sign((D * model.components_).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(model.components_, D * signs, rtol=0, atol=1e-9)
    expected = [np.sum((X - A @ start) ** 2), np.sum((X - A_new @ D) ** 2)]
    np.testing.assert_allclose(model.objective_, expected, rtol=1e-9)


@pytest.mark.parametrize("update", ["approximate", "exact"])
def test_objective_never_rises(update):
    for seed in range(6):
        X = np.random.default_rng(seed).standard_normal((60, 10))
        model = KSVD(20, n_nonzero=3, update=update, max_iter=15, tol=0, random_state=seed).fit(X)
        assert model.n_iter_ == 15
        assert (np.diff(model.objective_) <= 1e-9 * model.objective_[:-1]).all()
        assert model.objective_[-1] < 0.9 * model.objective_[0]
        np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1.0, rtol=1e-12)


def test_one_exact_update_is_best_and_one_approximate_is_a_power_step():
    E = torch.tensor(np.random.default_rng(0).standard_normal((9, 5)))
    codes = torch.ones(9, dtype=torch.float64)
    best = best_direction(E, codes)
    top = float(torch.linalg.svdvals(E)[0])
    assert float((E @ best).norm()) == pytest.approx(top, rel=1e-12)
    direction = next_direction(E, codes)
    for _ in range(500):
        direction = next_direction(E, E @ direction)
    assert abs(float(direction @ best)) == pytest.approx(1.0, rel=1e-9)
    for choose in (best_direction, next_direction):
        assert not choose(torch.zeros(3, 4), torch.ones(3)).any()


def test_planted_atoms_are_found():
    X, D = planted(n=1500)
    model = KSVD(24, n_nonzero=2, max_iter=80, tol=0, random_state=0).fit(X)
    closest = np.abs(D @ model.components_.T).max(axis=1)
    assert (closest > 0.99).mean() > 0.75  # the paper's measure of an atom found
    codes = model.transform(X)
    assert (codes != 0).sum(axis=1).max() <= 2
    error = np.sum((X - model.inverse_transform(codes)) ** 2)
    assert error < 0.1 * np.sum(X**2)


def test_one_atom_is_the_first_singular_vector():
    X = np.random.default_rng(2).standard_normal((30, 6)) @ np.diag([3, 1, 1, 1, 1, 1])
    model = KSVD(1, n_nonzero=1, update="exact", random_state=0).fit(X)
    _, values, right = np.linalg.svd(X)
    assert abs(model.components_[0] @ right[0]) == pytest.approx(1.0, rel=1e-9)
    assert model.objective_[-1] == pytest.approx(np.sum(values[1:] ** 2), rel=1e-9)


def test_unused_atoms_become_the_worst_samples():
    X = torch.tensor([[4.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    atoms = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    codes = torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    residual = X - codes @ atoms
    _replace_unused_(X, atoms, codes, residual)
    half = 0.5**0.5
    torch.testing.assert_close(atoms, torch.tensor([[1.0, 0.0], [0.0, 1.0], [half, half]]))
    _update_atom_(1, atoms, codes, residual, next_direction)  # without a user nothing moves
    torch.testing.assert_close(residual, X - codes @ atoms)


def test_more_atoms_than_samples_are_filled_at_random():
    X = np.random.default_rng(3).standard_normal((4, 6))
    model = KSVD(9, n_nonzero=1, random_state=0).fit(X)
    np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1.0, rtol=1e-12)
    assert model.objective_[-1] < 1e-20  # each sample is an atom


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_learn_as_arrays_do(dtype):
    X = torch.tensor(planted(n=100)[0], dtype=dtype)
    options = {"n_nonzero": 2, "max_iter": 3, "tol": 0, "random_state": 0}
    ours = KSVD(20, **options).fit(X)
    theirs = KSVD(20, **options).fit(X.numpy())
    assert ours.components_.dtype == dtype
    assert isinstance(theirs.components_, np.ndarray)
    np.testing.assert_array_equal(ours.components_.numpy(), theirs.components_)
    codes = ours.transform(X)
    assert codes.dtype == dtype
    torch.testing.assert_close(ours.inverse_transform(codes), codes @ ours.components_)


@pytest.mark.parametrize("update", ["approximate", "exact"])
def test_estimator_is_scikit_learns(update):
    check_estimator(KSVD(3, update=update, max_iter=5), on_skip=None)


entries = st.sampled_from([0.0, 0.0, 1.0, -1.0, 2.0, 1e-3, 1 + 1e-9])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_degenerate_data_never_give_nan(data, n, d, m, exact):
    flat = data.draw(st.lists(entries, min_size=n * d, max_size=n * d))
    X = np.array(flat).reshape(n, d)
    k = data.draw(st.integers(1, m))
    update = "exact" if exact else "approximate"
    model = KSVD(m, n_nonzero=k, update=update, max_iter=4, tol=0, random_state=0).fit(X)
    assert np.isfinite(model.components_).all()
    assert (np.diff(model.objective_) <= 1e-9).all()
    np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1.0, rtol=1e-9)
    assert np.isfinite(model.transform(X)).all()


X = np.random.default_rng(0).standard_normal((12, 4))


@pytest.mark.parametrize(
    ("options", "data", "error", "message"),
    [
        ({}, X * np.nan, ValueError, "Input X contains NaN"),
        ({}, torch.tensor(X) / 0, ValueError, "Input X contains infinity"),
        ({}, X[0], ValueError, "Expected 2D array"),
        ({"n_components": 0}, X, ValueError, "n_components must be at least 1"),
        ({"n_nonzero": 6}, X, ValueError, "n_nonzero must not exceed the number of atoms, 5"),
        ({"update": "exakt"}, X, ValueError, "Did you mean 'exact'"),
        ({"max_iter": 0}, X, ValueError, "max_iter must be at least 1"),
        ({"tol": -1.0}, X, ValueError, "tol must lie in"),
        ({"init": "sample"}, X, ValueError, "Did you mean 'samples'"),
        ({"init": X[:3]}, X, ValueError, "init must have shape"),
    ],
)
def test_bad_input_is_refused(options, data, error, message):
    with pytest.raises(error, match=message):
        KSVD(**{"n_components": 5, **options}).fit(data)


def test_transform_needs_a_fit_and_the_same_columns():
    with pytest.raises(NotFittedError):
        KSVD(2).transform(X)
    with pytest.raises(ValueError, match="KSVD is expecting 4 features"):
        KSVD(2, random_state=0).fit(X).transform(X[:, :3])
