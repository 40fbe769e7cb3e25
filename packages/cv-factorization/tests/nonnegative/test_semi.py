import warnings

import numpy as np
import pytest
import torch
from cv_factorization.nonnegative.nmf import NMF
from cv_factorization.nonnegative.semi import ConvexNMF, SemiNMF, convex_sweeps, semi_sweeps
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse
from sklearn.utils.estimator_checks import check_estimator


def problem(seed=0, n=14, d=9, m=3):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), rng.random((n, m)), rng.random((n, m))


def tensors(*arrays):
    return [torch.tensor(array) for array in arrays]


def parts(A):
    return (np.abs(A) + A) / 2, (np.abs(A) - A) / 2


def test_semi_sweeps_are_the_printed_ones():
    X, V, _ = problem()
    U = np.zeros((3, 9))
    mine_U, mine_C = tensors(U, V.T.copy())
    sweeps = semi_sweeps(torch.tensor(X), mine_U, mine_C)
    assert next(sweeps) == pytest.approx(np.square(X).sum())
    for _ in range(3):
        value = next(sweeps)
        U = np.linalg.inv(V.T @ V) @ V.T @ X
        (bp, bm), (ap, am) = parts(X @ U.T), parts(U @ U.T)
        V = V * np.sqrt((bp + V @ am) / (bm + V @ ap))
        np.testing.assert_allclose(mine_C.numpy(), V.T, rtol=1e-9)
        np.testing.assert_allclose(mine_U.numpy(), U, rtol=1e-9)
        assert value == pytest.approx(np.square(X - V @ U).sum(), rel=1e-9)


def test_convex_sweeps_are_the_printed_ones():
    X, V, W = problem(1)  # W (n, m) mixes samples, as in the paper
    mine_C, mine_G = tensors(V.T.copy(), W.T.copy())
    mine_U = mine_G @ torch.tensor(X)
    sweeps = convex_sweeps(torch.tensor(X), mine_U, mine_C, mine_G)
    assert next(sweeps) == pytest.approx(np.square(X - V @ W.T @ X).sum())
    plus, minus = parts(X @ X.T)
    for _ in range(3):
        value = next(sweeps)
        V = V * np.sqrt((plus @ W + V @ (W.T @ minus @ W)) / (minus @ W + V @ (W.T @ plus @ W)))
        W = W * np.sqrt((plus @ V + minus @ W @ (V.T @ V)) / (minus @ V + plus @ W @ (V.T @ V)))
        np.testing.assert_allclose(mine_C.numpy(), V.T, rtol=1e-9)
        np.testing.assert_allclose(mine_G.numpy(), W.T, rtol=1e-9)
        assert value == pytest.approx(np.square(X - V @ W.T @ X).sum(), rel=1e-9)


@pytest.mark.parametrize("method", [SemiNMF, ConvexNMF])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_history_falls_and_the_factors_explain_it(method, scale):
    X = problem(2, n=30)[0] * scale
    model = method(4, tol=0, max_iter=150, random_state=0).fit(X)
    assert len(model.objective_) == 151
    assert (np.diff(model.objective_) <= 1e-12 * model.objective_[0]).all()
    fit = np.linalg.norm(X - model.embedding_ @ model.components_)
    assert model.reconstruction_err_ == pytest.approx(fit, rel=1e-9)
    # exact codes in the end can only help
    assert fit**2 <= model.objective_[-1] * (1 + 1e-9)
    assert model.embedding_.min() >= 0
    np.testing.assert_allclose(model.transform(X), model.embedding_, atol=1e-9 * scale)
    assert (model.components_ < 0).any()


def test_clusters_are_found():
    rng = np.random.default_rng(3)
    centres = np.array([[5.0, -5.0, 0.0], [-5.0, 0.0, 5.0], [4.0, 5.0, -4.0]])
    y = np.repeat([0, 1, 2], 20)
    X = centres[y] + 0.3 * rng.standard_normal((60, 3))
    for method in (SemiNMF, ConvexNMF):
        codes = method(3, max_iter=500, tol=0, random_state=0).fit_transform(X)
        codes = codes / np.linalg.norm(codes, axis=1, keepdims=True)
        same = (codes @ codes.T)[y[:, None] == y]
        assert same.min() > 0.8, method


def test_atoms_of_convex_nmf_are_mixtures():
    X = problem(4)[0]
    model = ConvexNMF(3, random_state=0).fit(X)
    assert model.mixing_.min() >= 0
    np.testing.assert_allclose(model.mixing_.sum(axis=1), 1.0)
    np.testing.assert_allclose(model.components_, model.mixing_ @ X, rtol=1e-9)


def test_atoms_of_any_sign_fit_at_least_as_well_as_non_negative_ones():
    X = np.abs(problem(5, n=40)[0])
    semi = SemiNMF(3, max_iter=500, tol=0, random_state=0).fit(X)
    plain = NMF(3, max_iter=500, tol=0, random_state=0).fit(X)
    assert semi.reconstruction_err_ <= 1.001 * plain.reconstruction_err_
    best = np.sqrt(np.square(np.linalg.svd(X)[1][3:]).sum())
    assert semi.reconstruction_err_ >= best * (1 - 1e-9)


def test_sparse_data_and_tensors():
    X = sparse.random_array((20, 8), density=0.4, rng=np.random.default_rng(0), format="csr")
    options = {"tol": 0, "max_iter": 20, "random_state": 0}
    dense = SemiNMF(3, **options).fit(X.toarray())
    np.testing.assert_allclose(SemiNMF(3, **options).fit(X).embedding_, dense.embedding_, atol=1e-7)
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        ConvexNMF(3).fit(X)
    for method in (SemiNMF, ConvexNMF):
        model = method(3, **options)
        codes = model.fit_transform(torch.tensor(X.toarray(), dtype=torch.float32))
        assert isinstance(model.components_, torch.Tensor)
        assert codes.dtype == torch.float32
        plain = method(3, **options).fit_transform(X.toarray())
        np.testing.assert_allclose(codes.numpy(), plain, atol=2e-2)
    assert isinstance(model.mixing_, torch.Tensor)


@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 5), st.integers(1, 5)),
        elements=st.sampled_from([0.0, 0.0, 1.0, -1.0, 1e-9, 3e5, -1e100]),
    ),
    st.integers(1, 7),
    st.sampled_from([SemiNMF, ConvexNMF]),
)
@settings(max_examples=30, deadline=None)
def test_no_factor_is_ever_nan(X, m, method):
    model = method(m, max_iter=8, tol=0, random_state=0).fit(X)
    for factor in (model.components_, model.embedding_, model.transform(X)):
        assert np.isfinite(factor).all()
    assert np.isfinite(model.objective_).all()


def test_bad_input_is_refused():
    for method in (SemiNMF, ConvexNMF):
        with pytest.raises(ValueError, match="NaN"):
            method(2).fit([[np.nan, 1.0]])
        with pytest.raises(ValueError, match=f"{method.__name__}: n_components must be at least 1"):
            method(0).fit([[1.0, 1.0]])


@pytest.mark.parametrize("model", [SemiNMF(2, max_iter=50), ConvexNMF(2, max_iter=50)])
@pytest.mark.slow
def test_scikit_learns_suite(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite provokes warnings on purpose
        check_estimator(model, on_skip=None)
