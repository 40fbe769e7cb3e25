import numpy as np
import pytest
import torch
from cv_factorization.multiview import CCA
from scipy.linalg import eigh
from sklearn.base import clone
from sklearn.exceptions import NotFittedError


def views(seed=0, n=80, sizes=(5, 4)):
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, 3))
    return [
        shared @ rng.standard_normal((3, d)) + rng.standard_normal((n, d)) * 0.7 + 3 for d in sizes
    ]


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
def test_directions_solve_the_generalised_eigenproblem(kappa):
    A, B = views()
    model = CCA(4, regularization=kappa).fit([A, B])
    C = np.cov(np.hstack([A, B]).T)
    own = np.zeros_like(C)
    own[:5, :5], own[5:, 5:] = C[:5, :5], C[5:, 5:]
    values = eigh(C - own, (1 - kappa) * own + kappa * np.eye(9), eigvals_only=True)[::-1]
    np.testing.assert_allclose(model.objective_, values[:4], rtol=1e-9)
    first, second = model.weights_
    for W, part in ((first, own[:5, :5]), (second, own[5:, 5:])):
        metric = (1 - kappa) * part + kappa * np.eye(len(part))
        np.testing.assert_allclose(W.T @ metric @ W, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(first.T @ C[:5, 5:] @ second, np.diag(model.objective_), atol=1e-9)


def test_projections_have_the_correlations():
    A, B = views(1)
    for kappa in (0.0, 0.5):
        model = CCA(3, regularization=kappa)
        P, Q = model.fit_transform([A, B])
        expected = [np.corrcoef(P[:, k], Q[:, k])[0, 1] for k in range(3)]
        np.testing.assert_allclose(model.correlations_, expected, rtol=1e-9)
        np.testing.assert_allclose(P.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(CCA(3).fit([A, B]).objective_, CCA(3).fit([A, B]).correlations_)


def test_correlations_do_not_change_with_the_coordinates():
    A, B = views(2)
    mixing = np.random.default_rng(3).standard_normal((5, 5))
    plain = CCA(3).fit([A, B]).correlations_
    np.testing.assert_allclose(CCA(3).fit([1e4 * A @ mixing + 7, B]).correlations_, plain)


def test_full_regularisation_is_partial_least_squares():
    A, B = views(4)
    cross = (A - A.mean(axis=0)).T @ (B - B.mean(axis=0)) / (len(A) - 1)
    left, values, right = np.linalg.svd(cross)
    model = CCA(2, regularization=1.0).fit([A, B])
    np.testing.assert_allclose(model.objective_, values[:2])
    np.testing.assert_allclose(np.abs(model.weights_[0].T @ left[:, :2]), np.eye(2), atol=1e-9)
    np.testing.assert_allclose(np.abs(model.weights_[1].T @ right[:2].T), np.eye(2), atol=1e-9)


def test_degenerate_views():
    A, B = views(5)
    plain = CCA(2).fit([A, B]).correlations_
    more = np.hstack([A, np.full((80, 1), 0.1), A[:, :1] - A[:, 1:2]])  # constant, dependent
    np.testing.assert_allclose(CCA(2).fit([more, B]).correlations_, plain, rtol=1e-8)
    same = CCA(4).fit([B, B])
    np.testing.assert_allclose(same.correlations_, 1.0)
    # more features than samples: plain correlations are all 1, regularised ones are not
    rng = np.random.default_rng(6)
    wide = [rng.standard_normal((10, 30)), rng.standard_normal((10, 30))]
    np.testing.assert_allclose(CCA(9).fit(wide).correlations_, 1.0)
    assert CCA(1, regularization=0.5).fit(wide).correlations_[0] < 1 - 1e-6
    assert np.isfinite(CCA(9, regularization=0.5).fit(wide).weights_[0]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_come_back_as_tensors(dtype):
    given = views(7)
    model = CCA(2, regularization=0.1)
    plain = model.fit_transform(given)
    twin = clone(model)
    result = twin.fit_transform([torch.tensor(view, dtype=dtype) for view in given])
    for value in (*result, *twin.weights_, *twin.means_, twin.correlations_, twin.objective_):
        assert isinstance(value, torch.Tensor)
        assert value.dtype == dtype
    atol = 1e-9 if dtype == torch.float64 else 1e-3
    for mine, theirs in zip(result, plain, strict=True):
        np.testing.assert_allclose(np.abs(mine.numpy()), np.abs(theirs), atol=atol)
    # a model fitted on tensors projects arrays
    assert isinstance(twin.transform(given)[0], np.ndarray)


A, B = views()


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, [A], "CCA: Xs must hold two views; got 1"),
        ({}, [A, B[:-1]], r"Xs\[1\] must have shape \(n, d\) with n=80"),
        ({}, [A[:1], B[:1]], "at least 2 samples; got 1"),
        ({}, [A * np.nan, B], r"Xs\[0\] must be finite"),
        ({}, [A, B[:, 0]], r"Xs\[1\] must have shape"),
        ({"n_components": 5}, [A, B], "at most the smaller rank of the centred views, 4; got 5"),
        ({"n_components": 1}, [A, np.ones((80, 3))], "smaller rank of the centred views, 0"),
        ({"n_components": 1}, [A, np.full((80, 3), 0.1)], "rank of the centred views, 0"),
        ({"n_components": 0}, [A, B], "n_components must be at least 1"),
        ({"regularization": 1.5}, [A, B], "regularization must lie in"),
    ],
)
def test_bad_input_is_refused(options, given, message):
    with pytest.raises(ValueError, match=message):
        CCA(**options).fit(given)


def test_transform_needs_a_fit_and_the_same_columns():
    with pytest.raises(NotFittedError):
        CCA().transform([A, B])
    model = CCA().fit([A, B])
    with pytest.raises(ValueError, match=r"Xs\[0\] must have shape \(n, d\) with d=5"):
        model.transform([A[:, :3], B])
