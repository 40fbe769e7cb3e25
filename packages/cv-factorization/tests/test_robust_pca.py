import warnings

import numpy as np
import pytest
import torch
from cv_factorization.robust_pca import RobustPCA
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator


def planted(seed=0, n=60, d=50, rank=3, share=0.08):
    rng = np.random.default_rng(seed)
    low = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, d))
    errors = np.where(rng.random((n, d)) < share, rng.uniform(-20, 20, (n, d)), 0.0)
    return low, errors


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("turned", [False, True])
def test_planted_parts_are_recovered(scale, turned):
    low, errors = (part.T if turned else part for part in planted())
    model = RobustPCA().fit(scale * (low + errors))
    np.testing.assert_allclose(model.low_rank_, scale * low, atol=1e-4 * scale)
    np.testing.assert_allclose(model.sparse_, scale * errors, atol=1e-4 * scale)
    assert len(model.singular_values_) == 3
    np.testing.assert_allclose(model.singular_values_, scale * np.linalg.svd(low)[1][:3], rtol=1e-5)
    np.testing.assert_allclose(model.components_ @ model.components_.T, np.eye(3), atol=1e-10)


def test_split_is_optimal_by_duality():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((15, 12)) + 3 * np.outer(rng.standard_normal(15), np.ones(12))
    lam = 0.2
    model = RobustPCA(lam, tol=1e-9).fit(X)
    np.testing.assert_allclose(model.low_rank_ + model.sparse_, X, atol=1e-6)
    primal = np.linalg.norm(model.low_rank_, "nuc") + lam * np.abs(model.sparse_).sum()
    assert model.objective_[-1] == pytest.approx(primal, rel=1e-6)
    # no feasible neighbour is better: moves along random directions raise the convex objective
    for _ in range(200):
        move = rng.standard_normal(X.shape) * 10.0 ** rng.uniform(-3, 0)
        L, S = model.low_rank_ + move, model.sparse_ - move
        assert np.linalg.norm(L, "nuc") + lam * np.abs(S).sum() >= primal * (1 - 2e-3)


def test_large_weight_leaves_no_errors_and_small_weight_nothing_else():
    X = np.random.default_rng(2).standard_normal((10, 8))
    np.testing.assert_allclose(RobustPCA(10.0).fit(X).low_rank_, X, atol=1e-5)
    np.testing.assert_allclose(RobustPCA(1e-3).fit(X).sparse_, X, atol=1e-5)


def test_residual_is_that_of_the_parts_and_stops_the_fit():
    X = sum(planted(3))
    model = RobustPCA(tol=1e-5).fit(X)
    rest = np.linalg.norm(X - model.low_rank_ - model.sparse_) / np.linalg.norm(X)
    assert model.residual_[-1] == pytest.approx(rest, rel=1e-5)
    assert model.residual_[-1] <= 1e-5 < model.residual_[-2]
    assert model.n_iter_ == len(model.objective_) == len(model.residual_)
    with pytest.warns(ConvergenceWarning, match="RobustPCA: tol=1e-07 was not reached"):
        RobustPCA(max_iter=3).fit(X)


def test_tensors_come_back_as_tensors():
    low, errors = planted(4)
    model = RobustPCA(tol=1e-5).fit(torch.tensor(low + errors, dtype=torch.float32))
    for value in (model.low_rank_, model.sparse_, model.components_, model.singular_values_):
        assert isinstance(value, torch.Tensor)
        assert value.dtype == torch.float32
    np.testing.assert_allclose(model.low_rank_.numpy(), low, atol=2e-2)


@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 5), st.integers(1, 5)),
        elements=st.sampled_from([0.0, 0.0, 1.0, -1.0, 1e-100, 3e5, 1e100]),
    )
)
@settings(max_examples=60, deadline=None)
def test_degenerate_matrices_give_finite_parts_that_add_up(X):
    model = RobustPCA().fit(X)
    assert np.isfinite(model.components_).all()
    assert np.isfinite(model.objective_).all()
    np.testing.assert_allclose(
        model.low_rank_ + model.sparse_,
        X,
        atol=1e-6 * np.linalg.norm(X / (np.abs(X).max() or 1)) * (np.abs(X).max() or 1),
    )


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({}, [[np.nan, 1.0]], "NaN"),
        ({}, [1.0, 2.0], "2D array"),
        ({"lam": 0.0}, [[1.0]], "RobustPCA: lam must lie in"),
        ({"max_iter": 0}, [[1.0]], "max_iter must be at least 1"),
        ({"tol": 0.0}, [[1.0]], "tol must lie in"),
    ],
)
def test_bad_input_is_refused(options, data, message):
    with pytest.raises(ValueError, match=message):
        RobustPCA(**options).fit(data)


def test_scikit_learns_suite():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite provokes warnings on purpose
        check_estimator(RobustPCA(max_iter=30), on_skip=None)
