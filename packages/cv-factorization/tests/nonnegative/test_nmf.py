import warnings

import numpy as np
import pytest
import torch
from cv_core.numerics.affinity import graph_laplacian, knn_affinity
from cv_factorization.methods.anmmf import ANMMF
from cv_factorization.nonnegative.nmf import GNMF, NMF
from cv_factorization.nonnegative.start import nndsvda
from cv_factorization.nonnegative.steps import nonnegative_least_squares
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse
from scipy.optimize import nnls
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import check_estimator

KINDS = {
    "hals": {"solver": "hals"},
    "mu": {"solver": "mu"},
    "pg": {"solver": "pg"},
    "kl": {"solver": "mu", "beta_loss": "kullback-leibler"},
}


def problem(seed=0, n=14, d=9, m=3):
    rng = np.random.default_rng(seed)
    return rng.random((n, d)), rng.random((m, d)), rng.random((n, m))


def loss(X, U, V, kind):
    """The objective of the docstring, entry by entry."""
    R = V @ U
    if kind != "kl":
        return float(np.square(X - R).sum())
    total = 0.0
    for x, r in zip(X.ravel(), R.ravel(), strict=True):
        total += (x * np.log(x / r) if x > 0 else 0.0) - x + r
    return total


def slow_component(X, U, V, k):
    """Minimise over component k's atom, then over its codes, by loops."""
    rest = X - V @ U + np.outer(V[:, k], U[k])
    for j in range(X.shape[1]):
        U[k, j] = max(0.0, V[:, k] @ rest[:, j] / (V[:, k] @ V[:, k]))


def test_hals_minimises_over_one_component_at_a_time():
    X, U, V = problem()
    model = NMF(3, init=(U, V), tol=0, max_iter=4).fit(X)
    U, V = U.copy(), V.copy()
    for _ in range(4):
        for k in range(3):
            slow_component(X, U, V, k)
        transposed_U, transposed_V = V.T.copy(), U.T.copy()
        for k in range(3):
            slow_component(X.T, transposed_U, transposed_V, k)
        V = transposed_U.T
    np.testing.assert_allclose(model.components_, U, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(model.embedding_, V, rtol=1e-9, atol=1e-12)


def test_projected_gradient_takes_steps_of_one_over_l():
    X, U, V = problem(1)
    model = NMF(3, solver="pg", init=(U, V), tol=0, max_iter=2).fit(X)
    for _ in range(2):
        for _ in range(10):
            U = np.maximum(U - V.T @ (V @ U - X) / np.linalg.norm(V.T @ V, 2), 0)
        for _ in range(10):
            V = np.maximum(V - (V @ U - X) @ U.T / np.linalg.norm(U @ U.T, 2), 0)
    np.testing.assert_allclose(model.components_, U, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(model.embedding_, V, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 255.0])
def test_history_is_the_objective_and_falls(kind, scale):
    X, U, V = problem(2, n=20, m=4)
    X = X * scale * (X > 0.3)
    model = NMF(4, **KINDS[kind], init=(U, V), tol=0, max_iter=60).fit(X)
    assert model.n_iter_ == 60
    assert model.objective_[0] == pytest.approx(loss(X, U, V, kind), rel=1e-9)
    last = loss(X, model.components_, model.embedding_, kind)
    assert model.objective_[-1] == pytest.approx(last, rel=1e-8)
    assert (np.diff(model.objective_) <= 1e-12 * model.objective_[0]).all()
    assert model.objective_[-1] < 0.9 * model.objective_[0]
    error = np.sqrt(2 * last if kind == "kl" else last)
    assert model.reconstruction_err_ == pytest.approx(error, rel=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_factorise_are_factorised(kind):
    _, U, V = problem(3, n=30)
    model = NMF(3, **KINDS[kind], max_iter=3000, tol=0, random_state=0).fit(V @ U)
    assert model.reconstruction_err_ < 2e-2 * np.linalg.norm(V @ U)
    np.testing.assert_allclose(model.inverse_transform(model.embedding_), V @ U, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["nndsvda", "random"])
def test_sparse_data_are_factorised_as_dense_ones(kind, init):
    X = sparse.random_array((20, 8), density=0.4, rng=np.random.default_rng(0), format="csr")
    before = X.copy()
    model = NMF(3, **KINDS[kind], init=init, tol=0, max_iter=20, random_state=0)
    dense = model.fit(X.toarray())
    codes, atoms, course = dense.embedding_, dense.components_, dense.objective_
    new = dense.transform(X.toarray())
    model.fit(X)
    np.testing.assert_allclose(model.embedding_, codes, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.components_, atoms, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.objective_, course, rtol=1e-8)
    np.testing.assert_allclose(model.transform(X), new, rtol=1e-5, atol=1e-7)
    assert (before != X).nnz == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_come_back_as_tensors_with_the_same_numbers(kind, dtype):
    X = problem(4)[0]
    model = NMF(3, **KINDS[kind], tol=0, max_iter=15, random_state=0)
    codes = model.fit_transform(X)
    tensor = torch.tensor(X, dtype=dtype, requires_grad=True)
    twin = NMF(3, **KINDS[kind], tol=0, max_iter=15, random_state=0)
    result = twin.fit_transform(tensor)
    for value in (result, twin.components_, twin.transform(tensor), twin.inverse_transform(result)):
        assert isinstance(value, torch.Tensor)
        assert value.dtype == dtype
        assert not value.requires_grad
    atol = 1e-9 if dtype == torch.float64 else 2e-3
    np.testing.assert_allclose(result.numpy(), codes, atol=atol)
    # a model fitted on tensors transforms arrays, and the other way round
    np.testing.assert_allclose(twin.transform(X), model.transform(X), atol=atol * 10)


def test_float32_arrays_stay_float32():
    X = problem()[0].astype(np.float32)
    model = NMF(2, random_state=0).fit(X)
    assert model.components_.dtype == model.embedding_.dtype == model.transform(X).dtype == "f4"


@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 5), st.integers(1, 5)),
        elements=st.sampled_from([0.0, 0.0, 0.0, 1.0, 1e-9, 1e-100, 3e5, 1e100]),
    ),
    st.integers(1, 7),
    st.sampled_from(sorted(KINDS)),
)
@settings(max_examples=80, deadline=None)
def test_no_factor_is_ever_nan_or_negative(X, m, kind):
    model = NMF(m, **KINDS[kind], max_iter=8, tol=0, random_state=0).fit(X)
    for factor in (model.components_, model.embedding_, model.transform(X)):
        assert np.isfinite(factor).all()
        assert (factor >= 0).all()
    assert np.isfinite(model.objective_).all()
    assert (np.diff(model.objective_) <= 1e-7 * model.objective_[0]).all()


def test_zero_rows_have_zero_codes():
    X = problem()[0]
    X[3] = 0
    for kind, options in KINDS.items():
        model = NMF(2, **options, random_state=0, max_iter=500).fit(X)
        assert np.abs(model.transform(X)[3]).max() < 1e-10
        # reached exactly by HALS, and in the limit by multiplication
        assert np.abs(model.embedding_[3]).max() < 1e-2, kind


def test_singular_vectors_start_from_their_larger_parts():
    X = problem(13)[0] - 0.3
    U, C = (F.numpy() for F in nndsvda(torch.tensor(X), 4, np.random.default_rng(0)))
    left, values, right = np.linalg.svd(X)
    for k in range(4):
        pairs = [(np.maximum(s * left[:, k], 0), np.maximum(s * right[k], 0)) for s in (1, -1)]
        a, b = max(pairs, key=lambda pair: np.linalg.norm(pair[0]) * np.linalg.norm(pair[1]))
        size = np.sqrt(values[k] * np.linalg.norm(a) * np.linalg.norm(b))
        for mine, part in ((C[k], a), (U[k], b)):
            wanted = size * part / np.linalg.norm(part)
            np.testing.assert_allclose(mine, np.where(wanted > 0, wanted, X.mean()), atol=1e-9)


def test_non_negative_least_squares_equals_an_active_set_method():
    rng = np.random.default_rng(5)
    X, U = rng.standard_normal((25, 8)), rng.standard_normal((4, 8)) * [[1], [30], [1e-3], [1]]
    exact = np.stack([nnls(U.T, row)[0] for row in X])
    codes = nonnegative_least_squares(torch.tensor(X), torch.tensor(U)).numpy()
    np.testing.assert_allclose(codes, exact, rtol=1e-5, atol=1e-6)
    assert (exact == 0).any()


def test_divergence_codes_are_stationary():
    X = problem(6)[0]
    model = NMF(3, **KINDS["kl"], tol=1e-12, max_iter=20000, random_state=0).fit(X)
    V = model.transform(X)
    gradient = model.components_.sum(axis=1) - (X / (V @ model.components_)) @ model.components_.T
    assert np.abs(gradient * V).max() < 1e-3
    assert gradient.min() > -1e-2


def test_tolerance_stops_and_its_absence_warns():
    X = problem(7)[0]
    model = NMF(2, tol=1e-3, random_state=0).fit(X)
    fall = -np.diff(model.objective_)
    assert fall[-1] <= 1e-3 * model.objective_[-1]
    assert (fall[:-1] > 1e-3 * model.objective_[1:-1]).all()
    with pytest.warns(ConvergenceWarning, match="NMF: tol=1e-12 was not reached in max_iter=2"):
        NMF(2, tol=1e-12, max_iter=2, random_state=0).fit(X)


def test_seed_decides_and_global_state_is_untouched():
    X = problem(8)[0]
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = NMF(3, init="random", random_state=1).fit(X).components_
    np.testing.assert_array_equal(first, NMF(3, init="random", random_state=1).fit(X).components_)
    assert not np.allclose(first, NMF(3, init="random", random_state=2).fit(X).components_)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (NMF(2), ""),
        (NMF(2, solver="mu", max_iter=50), "multiplication cannot leave zeros, transform does"),
        (GNMF(2, max_iter=50), "training codes feel the graph, those of transform do not"),
    ],
)
@pytest.mark.slow
def test_scikit_learns_suite(model, reason):
    names = ("check_transformer_general", "check_transformer_data_not_an_array")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite provokes warnings on purpose
        own = dict.fromkeys(names, reason) if reason else None
        check_estimator(model, on_skip=None, expected_failed_checks=own)


@pytest.mark.parametrize("lam", [0.0, 3.0, 1e4])
def test_graph_takes_the_steps_of_anmmf_with_one_view(lam):
    X, U, V = problem(9)
    X = 255 * X
    options = {"lam_graph": lam, "n_neighbors": 4, "tol": 0, "max_iter": 25}
    model = GNMF(3, init=(U, V), **options).fit(X)
    general = ANMMF(3, n_views=1, lam_hsic=0, init=(U[None], V[None]), **options).fit(X)
    np.testing.assert_allclose(model.components_, general.components_[0], rtol=1e-7)
    np.testing.assert_allclose(model.embedding_, general.embeddings_[0], rtol=1e-7)
    np.testing.assert_allclose(model.objective_, general.objective_, rtol=1e-7)


def test_graph_objective_falls_and_is_the_printed_one():
    X, U, V = problem(10)
    L = graph_laplacian(knn_affinity(X, 3)).toarray()
    model = GNMF(3, lam_graph=7.0, n_neighbors=3, init=(U, V), tol=0, max_iter=80).fit(X)
    start = np.square(X - V @ U).sum() + 7 * np.trace(V.T @ L @ V)
    assert model.objective_[0] == pytest.approx(start, rel=1e-10)
    W = model.embedding_
    end = np.square(X - W @ model.components_).sum() + 7 * np.trace(W.T @ L @ W)
    assert model.objective_[-1] == pytest.approx(end, rel=1e-9)
    assert (np.diff(model.objective_) <= 1e-12 * start).all()


def test_graph_on_sparse_data_and_tensors():
    X = sparse.random_array((20, 8), density=0.4, rng=np.random.default_rng(0), format="csr")
    options = {"tol": 0, "max_iter": 20, "random_state": 0}
    dense = GNMF(3, **options).fit(X.toarray())
    np.testing.assert_allclose(GNMF(3, **options).fit(X).embedding_, dense.embedding_, atol=1e-8)
    tensor = GNMF(3, **options).fit_transform(torch.tensor(X.toarray()))
    np.testing.assert_allclose(tensor.numpy(), dense.embedding_, atol=1e-8)


def test_training_codes_feel_the_graph_and_new_codes_do_not():
    X = problem(12)[0]
    model = GNMF(2, lam_graph=1e6, n_neighbors=13, normalize="u_columns", random_state=0).fit(X)
    spread = model.embedding_.std(axis=0) / model.embedding_.mean(axis=0)
    assert (spread < 1e-2).all()  # neighbours, here all, are pulled together
    assert (model.transform(X).std(axis=0) > 0.05 * model.transform(X).mean(axis=0)).all()
    # one length for all atoms: 1 in units of the data's root, which the base gives back
    np.testing.assert_allclose(np.ptp(np.linalg.norm(model.components_, axis=1)), 0, atol=1e-12)


def test_constant_codes_feel_no_graph():
    X = np.outer(np.ones(6), [1.0, 2.0, 3.0])
    U, V = np.array([[1.0, 2.0, 3.0]]), np.ones((6, 1))
    model = GNMF(1, lam_graph=100.0, n_neighbors=2, init=(U, V), tol=0, max_iter=5).fit(X)
    np.testing.assert_allclose(model.embedding_, V, rtol=1e-12)
    np.testing.assert_allclose(model.objective_, 0.0, atol=1e-12)


X = np.random.default_rng(0).random((6, 4))
U, V = np.ones((2, 4)), np.ones((6, 2))


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({}, -X, "Negative values in data"),
        ({}, torch.tensor(-X), "Negative values in data"),
        ({}, X * np.nan, "NaN"),
        ({}, torch.tensor(X * np.nan), "NaN"),
        ({}, X[0], "2D array"),
        ({}, X[:0], "minimum of 1 is required"),
        ({"n_components": 0}, X, "NMF: n_components must be at least 1"),
        ({"n_components": 5, "init": "nndsvda"}, X, r"n_components <= min\(n_samples, n_features"),
        ({"solver": "halz"}, X, "Did you mean 'hals'"),
        ({"beta_loss": "kl"}, X, "beta_loss must be one of"),
        ({"beta_loss": "kullback-leibler"}, X, "needs solver='mu'"),
        ({"init": "nndsvd"}, X, "Did you mean 'nndsvda'"),
        ({"init": 3}, X, "init must be 'nndsvda', 'random', None or a pair"),
        ({"init": (U, V[:5])}, X, "init codes must have shape"),
        ({"init": (-U, V)}, X, "init atoms must be non-negative"),
        ({"init": (U, V * np.inf)}, X, "init codes must be finite"),
        ({"max_iter": 0}, X, "max_iter must be at least 1"),
        ({"tol": -1.0}, X, "tol must lie in"),
    ],
)
def test_bad_input_is_refused(options, data, message):
    with pytest.raises(ValueError, match=message):
        NMF(**{"n_components": 2, **options}).fit(data)


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({}, X[:1], "minimum of 2 is required"),
        ({"lam_graph": -1.0}, X, "lam_graph must lie in"),
        ({"n_neighbors": 0}, X, "n_neighbors must be at least 1"),
        ({"affinity": "heatt"}, X, "Did you mean 'heat'"),
        ({"affinity": np.eye(5)}, X, r"affinity must have shape \(n, n\) with n=6"),
        ({"normalize": "rows"}, X, "normalize must be one of"),
    ],
)
def test_bad_graphs_are_refused(options, data, message):
    with pytest.raises(ValueError, match=message):
        GNMF(**{"n_components": 2, **options}).fit(data)


def test_other_tensors_are_refused():
    with pytest.raises(TypeError, match=r"X must be float32 or float64; got torch\.int64"):
        NMF(2).fit(torch.ones(3, 3, dtype=torch.long))
    with pytest.raises(TypeError, match="X must be dense"):
        NMF(2).fit(torch.eye(3).to_sparse())


def test_transform_needs_a_fit_and_the_same_columns():
    with pytest.raises(NotFittedError):
        NMF(2).transform(X)
    model = NMF(2, random_state=0).fit(X)
    with pytest.raises(ValueError, match="NMF is expecting 4 features"):
        model.transform(X[:, :3])
    with pytest.raises(ValueError, match=r"V must have shape \(n, 2\); got \(6, 4\)"):
        model.inverse_transform(X)
