import pickle
import tracemalloc

import numpy as np
import pytest
from cv_core.numerics.affinity import nearest_neighbors
from cv_graph.manifold import LPP
from cv_graph.methods.fpsora import FPSORA, inverse_distance_weights
from scipy.sparse.csgraph import connected_components
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator


def samples(seed=0, n=30, p=6):
    return np.random.default_rng(seed).normal(size=(n, p))


def islands(seed=0):
    """Three groups far apart: a graph of three components."""
    rng = np.random.default_rng(seed)
    return 50 * np.repeat(np.eye(3, 5), 9, axis=0) + rng.normal(size=(27, 5))


def laplacian(directed):
    W = (directed + directed.T) / 2
    return np.diag(W.sum(axis=1)) - W


def root(L):
    left, lengths, _ = np.linalg.svd(L)
    return (left * np.sqrt(lengths)) @ left.T


def root_pinv(L):
    values, vectors = np.linalg.eigh(L)
    kept = values > 1e-10
    return (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T


def null_projector(L):
    vectors = np.linalg.svd(L)[0][:, np.linalg.svd(L)[1] < 1e-10]
    return vectors @ vectors.T


def slow_first_weights(X, k, sigma):
    """The directed first weights a (n, n) as printed, edge by edge."""
    n = len(X)
    A = np.zeros((n, n))
    for i in range(n):
        squared = [((X[i] - X[j]) ** 2).sum() for j in range(n)]
        near = sorted((j for j in range(n) if j != i), key=lambda j: squared[j])[:k]
        width = squared[near[-1]] if sigma == "local" else sigma**2
        w = {j: np.exp(-squared[j] / (2 * width)) for j in near}
        C = sum(w[j] ** 0.5 for j in near)
        for j in near:
            A[i, j] = w[j] / C**2
    return A


def slow_weights(M, A):
    """The weights of every node from the linear system of Karush, Kuhn and Tucker."""
    mu = np.zeros_like(A)
    for i in range(len(A)):
        near = np.flatnonzero(A[i])
        d = [M[i, i] + M[j, j] - M[i, j] - M[j, i] for j in near]
        system = np.ones((len(near) + 1, len(near) + 1))
        system[:-1, :-1] = np.diag(d)
        system[-1, -1] = 0
        right = np.zeros(len(near) + 1)
        right[-1] = 1
        mu[i, near] = np.linalg.solve(system, right)[:-1]
    return mu


def slow_objective(A, Y):
    """The sum over edges."""
    pairs = zip(*np.nonzero(A), strict=True)
    return sum(A[i, j] * ((Y[i] - Y[j]) ** 2).sum() for i, j in pairs) / 2


# the weight step


@pytest.mark.parametrize("k", [1, 4])
def test_weights_solve_the_constrained_quadratic_programme(k):
    rng = np.random.default_rng(0)
    d = rng.random((7, k)) * 10 ** rng.uniform(-3, 3, (7, 1))
    mu = inverse_distance_weights(d)
    for row, found in zip(d, mu, strict=True):
        system = np.block([[np.diag(row), np.ones((k, 1))], [np.ones((1, k)), np.zeros((1, 1))]])
        solution = np.linalg.solve(system, np.r_[np.zeros(k), 1])
        np.testing.assert_allclose(found, solution[:-1], rtol=1e-9)
        assert solution[-1] == pytest.approx(-1 / (1 / row).sum(), rel=1e-9)
    np.testing.assert_allclose(mu.sum(axis=1), 1, rtol=1e-12)
    assert (mu > 0).all()


def test_weights_of_coinciding_neighbours():
    mu = inverse_distance_weights(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [1e300, 1e-300, 0]]))
    np.testing.assert_allclose(mu, [[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0], [0, 0.5, 0.5]], atol=1e-9)
    for bad, message in (
        ([[-1.0]], "must not be negative"),
        ([[np.nan]], "finite"),
        ([1.0], r"shape \(n, k\)"),
    ):
        with pytest.raises(ValueError, match=message):
            inverse_distance_weights(np.array(bad))


# the whole search


@pytest.mark.parametrize("sigma", [1.5, "local"])
@pytest.mark.parametrize("null_space", ["keep", "drop"])
@pytest.mark.parametrize("make", [samples, islands])
def test_search_equals_the_printed_recursion(sigma, null_space, make):
    X, k, steps = make(), 3, 4
    start = np.random.default_rng(1).normal(size=(len(X), 4))
    model = FPSORA(4, k, sigma=sigma, init=start, max_iter=steps, tol=0, null_space=null_space)
    model.fit(X)
    A = slow_first_weights(X, k, sigma)
    L_A = laplacian(A)
    Y = start - start.mean(axis=0)
    course = [slow_objective(A, Y)]
    for _ in range(steps):
        mu = slow_weights(Y @ Y.T, A)
        step = root_pinv(L_A) @ root(laplacian(mu**2))
        Y = step @ Y + (null_projector(L_A) @ Y if null_space == "keep" else 0)
        course.append(slow_objective(A, Y))
    np.testing.assert_allclose(model.embedding_, Y, atol=1e-6)
    np.testing.assert_allclose(model.weights_.toarray(), mu, atol=1e-6)
    np.testing.assert_allclose(model.objective_, course, rtol=1e-6)


@pytest.mark.parametrize("make", [samples, islands])
def test_objective_never_rises_and_steps_reach_the_value_of_the_new_weights(make):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        X, k = make(seed), int(rng.integers(1, 7))
        sigma = float(10 ** rng.uniform(-0.3, 1))
        options = {"n_components": 3, "n_neighbors": k, "sigma": sigma, "tol": 0}
        init = ("pca", "lpp", rng.normal(size=(len(X), 3)))[seed % 3]
        start = FPSORA(max_iter=0, init=init, **options).fit(X)
        L_A = laplacian(start.weights_.power(2).toarray())
        Y, course = start.embedding_, [start.objective_[0]]
        for _ in range(6):
            model = FPSORA(max_iter=1, init=Y, **options).fit(X)
            L_o = laplacian(model.weights_.power(2).toarray())
            # the sum over directed edges is the trace with a symmetric Laplacian
            half = np.trace(Y.T @ L_o @ Y)
            Y = model.embedding_
            assert np.trace(Y.T @ L_A @ Y) == pytest.approx(half, rel=1e-9)
            assert model.objective_[1] == pytest.approx(half, rel=1e-9)
            assert half <= model.objective_[0] * (1 + 1e-12)
            course.append(half)
        whole = FPSORA(max_iter=6, init=init, **options).fit(X)
        np.testing.assert_allclose(whole.objective_, course, rtol=1e-8)


def test_objective_falls_for_hundreds_of_steps_where_the_gram_recursion_goes_astray():
    X = np.random.default_rng(0).random((40, 8))
    steps = 300
    model = FPSORA(3, 5, max_iter=steps, tol=0).fit(X)
    assert (np.diff(model.objective_) < 0).all()
    A = slow_first_weights(X, 5, 1.0)
    Y = PCA(3, svd_solver="full").fit_transform(X)
    M, course = Y @ Y.T, []
    for _ in range(steps):
        step = root_pinv(laplacian(A)) @ root(laplacian(slow_weights(M, A) ** 2))
        M = step @ M @ step.T
        course.append(np.trace(M @ laplacian(A)))
        if not 0 < course[-1] < 10 * course[0]:
            break
    np.testing.assert_allclose(course[:40], model.objective_[1:41], rtol=1e-6)
    astray = np.abs(course / model.objective_[1 : len(course) + 1] - 1)
    assert astray.max() > 0.5


def test_no_steps_are_the_initialiser():
    X = samples()
    assert FPSORA(3, max_iter=0).fit(X).n_iter_ == 0
    np.testing.assert_allclose(
        FPSORA(3, max_iter=0).fit_transform(X),
        PCA(3, svd_solver="full").fit_transform(X),
        atol=1e-12,
    )
    lpp = LPP(3, n_neighbors=4, bandwidth=2 * 1.3**2).fit_transform(X)
    model = FPSORA(3, 4, sigma=1.3, init="lpp", max_iter=0).fit(X)
    np.testing.assert_allclose(model.embedding_, lpp, atol=1e-10)
    np.testing.assert_allclose(
        model.weights_.power(2).toarray(), slow_first_weights(X, 4, 1.3), atol=1e-12
    )


def test_scale_of_the_samples():
    X, c = samples(), 37.0
    small = FPSORA(3, sigma=1.2, max_iter=15, tol=0).fit(X)
    large = FPSORA(3, sigma=1.2 * c, max_iter=15, tol=0).fit(c * X)
    np.testing.assert_allclose(large.embedding_, c * small.embedding_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(large.weights_.toarray(), small.weights_.toarray(), atol=1e-8)
    # directions of LPP have a length of their own: the coordinates do not grow
    small = FPSORA(3, sigma=1.2, init="lpp", max_iter=15, tol=0).fit(X)
    large = FPSORA(3, sigma=1.2 * c, init="lpp", max_iter=15, tol=0).fit(c * X)
    np.testing.assert_allclose(large.embedding_, small.embedding_, atol=1e-6)


def chain(gaps):
    """Points whose squared gaps are given, each gap along an axis of its own."""
    return np.vstack([np.zeros(len(gaps)), np.cumsum(np.diag(np.sqrt(gaps)), axis=0)])


def test_distances_that_ask_for_the_first_weights_are_at_rest():
    # Neighbours along a chain; an end's second one is at the sum of two squared gaps. Coordinates
    # with squared gaps e^g, and e^g + e^h = e^(g + h) at the ends, ask for the weights of gaps g.
    ends = np.array([0.6, -np.log(1 - np.exp(-0.6))])
    g = np.array([ends[0], ends[1], 0.7, ends[1], ends[0]])
    X, Y = chain(4 * g), chain(np.exp(g))
    model = FPSORA(5, 2, sigma=1.0, init=Y, max_iter=3, tol=0).fit(X)
    first = FPSORA(5, 2, sigma=1.0, init=Y, max_iter=0).fit(X)
    assert set(zip(*first.weights_.nonzero(), strict=True)) >= {(0, 1), (0, 2), (3, 2), (3, 4)}
    assert np.ptp(first.weights_.data) > 0.05
    np.testing.assert_allclose(model.weights_.toarray(), first.weights_.toarray(), atol=1e-12)
    np.testing.assert_allclose(model.embedding_, Y - Y.mean(axis=0), atol=1e-10)
    np.testing.assert_allclose(model.objective_, first.objective_[0], rtol=1e-12)


def test_printed_formula_centres_every_component_of_the_graph():
    X = islands()
    labels = np.repeat(range(3), 9)
    options = {"n_components": 3, "n_neighbors": 4, "sigma": 2.0, "max_iter": 5}
    start = FPSORA(**{**options, "max_iter": 0}).fit(X)
    assert connected_components(start.weights_, directed=False)[0] == 3
    keep = FPSORA(**options).fit(X)
    drop = FPSORA(null_space="drop", **options).fit(X)
    for label in range(3):
        own = labels == label
        np.testing.assert_allclose(drop.embedding_[own].mean(axis=0), 0, atol=1e-10)
        mean = start.embedding_[own].mean(axis=0)
        np.testing.assert_allclose(keep.embedding_[own].mean(axis=0), mean, rtol=1e-9)
        np.testing.assert_allclose(keep.embedding_[own] - mean, drop.embedding_[own], atol=1e-9)
    np.testing.assert_allclose(keep.objective_, drop.objective_, rtol=1e-10)


def test_both_null_spaces_agree_in_a_connected_graph():
    X = samples()
    keep = FPSORA(3, 6, sigma=3.0, max_iter=8).fit(X)
    drop = FPSORA(3, 6, sigma=3.0, max_iter=8, null_space="drop").fit(X)
    assert connected_components(keep.weights_, directed=False)[0] == 1
    np.testing.assert_allclose(keep.embedding_, drop.embedding_, atol=1e-10)
    np.testing.assert_allclose(drop.embedding_.mean(axis=0), 0, atol=1e-12)


def test_components_of_the_graph_do_not_see_each_other():
    X = islands()
    Y = np.random.default_rng(1).normal(size=(27, 2))
    Y -= np.repeat(Y.reshape(3, 9, 2).mean(axis=1), 9, axis=0)
    options = {"n_components": 2, "n_neighbors": 3, "max_iter": 6, "tol": 0}
    whole = FPSORA(init=Y, **options).fit(X)
    for rows in np.arange(27).reshape(3, 9):
        alone = FPSORA(init=Y[rows], **options).fit(X[rows])
        np.testing.assert_allclose(whole.embedding_[rows], alone.embedding_, atol=1e-9)


def test_weights_too_small_for_a_number_do_no_harm():
    X = samples()
    model = FPSORA(3, 4, sigma=1e-3, max_iter=20, tol=0).fit(X)
    assert (model.weights_.data > 0).all()
    first = FPSORA(3, 4, sigma=1e-3, max_iter=0).fit(X)
    assert (first.weights_.data == 0).any()
    assert np.isfinite(model.embedding_).all()
    assert (np.diff(model.objective_) <= 1e-9 * model.objective_[:-1]).all()
    assert np.abs(model.embedding_).max() < 100 * np.abs(first.embedding_).max()


# new samples


def test_linear_map_is_the_product_of_the_steps():
    for n, p in ((30, 6), (12, 20)):
        X, k, steps = samples(n=n, p=p), 4, 3
        model = FPSORA(2, k, sigma=3.0, max_iter=steps, tol=0, null_space="drop").fit(X)
        A = slow_first_weights(X, k, 3.0)
        centred = X - X.mean(axis=0)
        pca = PCA(2, svd_solver="full").fit(X)
        product, Y = np.eye(n), centred @ pca.components_.T
        for _ in range(steps):
            step = root_pinv(laplacian(A)) @ root(laplacian(slow_weights(Y @ Y.T, A) ** 2))
            product, Y = step @ product, step @ Y
        P = np.linalg.pinv(centred) @ product @ centred @ pca.components_.T
        np.testing.assert_allclose(model.components_, P.T, atol=1e-6)
        linear = centred @ model.components_.T
        assert np.allclose(linear, model.embedding_, atol=1e-8) == (p >= n)


def test_training_samples_are_put_where_they_were_and_others_between():
    X = samples(n=60)
    model = FPSORA(3, max_iter=20).fit(X)
    np.testing.assert_allclose(model.transform(X), model.embedding_, atol=1e-8)
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_allclose(model.transform(X[order]), model.embedding_[order], atol=1e-8)
    new = samples(seed=1, n=7)
    index, placed = slow_places(model, X, new)
    np.testing.assert_allclose(model.transform(new), placed, atol=1e-10)
    assert index.shape == (7, 5)
    near = model.transform(X[:1] + 1e-6)
    np.testing.assert_allclose(near, model.embedding_[:1], atol=1e-4)


def slow_places(model, X, new):
    squared = np.array([[((a - b) ** 2).sum() for b in X] for a in new])
    index = np.argsort(squared, axis=1)[:, :5]
    placed = (new - X.mean(axis=0)) @ model.components_.T
    missed = model.embedding_ - (X - X.mean(axis=0)) @ model.components_.T
    for row, near in enumerate(index):
        weights = 1 / squared[row, near]
        for j, weight in zip(near, weights / weights.sum(), strict=True):
            placed[row] += weight * missed[j]
    return index, placed


def test_new_samples_fall_among_their_class():
    X = islands()
    model = make_pipeline(FPSORA(2, 4, sigma=2.0, max_iter=10)).fit(X[::2])
    Y, new = model.transform(X[::2]), model.transform(X[1::2])
    labels = np.repeat(range(3), 9)
    centres = np.stack([Y[labels[::2] == label].mean(axis=0) for label in range(3)])
    nearest = np.linalg.norm(new[:, None] - centres, axis=2).argmin(axis=1)
    np.testing.assert_array_equal(nearest, labels[1::2])


# the estimator


@pytest.mark.filterwarnings("ignore")  # the suite provokes warnings on purpose
@pytest.mark.parametrize("init", ["pca", "lpp"])
def test_scikit_learns_own_suite_passes(init):
    check_estimator(FPSORA(init=init, max_iter=5), on_skip=None)


def test_tolerance_stops():
    X = samples()
    model = FPSORA(4, tol=0.02).fit(X)
    falls = -np.diff(model.objective_) / model.objective_[:-1]
    assert 1 < model.n_iter_ < 50
    assert falls[-1] <= 0.02
    assert (falls[:-1] > 0.02).all()
    assert FPSORA(2, tol=0, max_iter=60).fit(X).n_iter_ == 60


def test_samples_that_coincide():
    model = FPSORA(1, 3, init=np.zeros((6, 1))).fit(np.ones((6, 2)))  # a warning would be an error
    assert model.n_iter_ == 0
    np.testing.assert_array_equal(model.transform(np.ones((1, 2))), [[0.0]])
    X = np.repeat(samples(n=8), 3, axis=0)
    for sigma in (1.0, "local"):
        model = FPSORA(2, 4, sigma=sigma, max_iter=10, tol=0).fit(X)
        assert np.isfinite(model.embedding_).all()
        assert (np.diff(model.objective_) <= 1e-9 * model.objective_[0]).all()


def test_neighbours_are_those_of_the_input_space():
    X = samples()
    model = FPSORA(2, 4, max_iter=3).fit(X)
    index, _ = nearest_neighbors(X, 4)
    found = model.weights_.toarray() > 0
    assert (found.sum(axis=1) == 4).all()
    assert np.take_along_axis(found, index, axis=1).all()
    np.testing.assert_allclose(model.weights_.sum(axis=1), 1, rtol=1e-12)
    assert list(model.get_feature_names_out()) == ["fpsora0", "fpsora1"]
    twin = pickle.loads(pickle.dumps(model))  # noqa: S301 - written a line above
    np.testing.assert_array_equal(twin.transform(X), model.transform(X))


X = samples(n=8, p=4)


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({}, X * np.nan, "NaN"),
        ({}, X[:1], "minimum of 2 is required"),
        ({"n_components": 0}, X, "FPSORA: n_components must be at least 1"),
        ({"n_components": 5}, X, "smaller of n_samples=8 and n_features=4 with init='pca'; got 5"),
        ({"n_neighbors": 0}, X, "n_neighbors must be at least 1"),
        ({"sigma": 0.0}, X, "sigma must lie in"),
        ({"sigma": "locl"}, X, "Did you mean 'local'"),
        ({"sigma": 1e-9, "init": "lpp"}, X, "LPP: all weights vanish"),
        ({"init": "pcaa"}, X, "Did you mean 'pca'"),
        ({"init": X[:, :3]}, X, r"init must have shape \(n, d\) with n=8, d=2"),
        ({"init": X[:, :2] * np.inf}, X, "init must be finite"),
        ({"max_iter": -1}, X, "max_iter must be at least 0"),
        ({"tol": -1.0}, X, "tol must lie in"),
        ({"null_space": "kept"}, X, "Did you mean 'keep'"),
        ({"eps": 0.0}, X, "eps must lie in"),
    ],
)
def test_bad_input_is_refused(options, data, message):
    with pytest.raises(ValueError, match=message):
        FPSORA(**options).fit(data)


def test_transform_needs_a_fit_and_the_same_columns():
    with pytest.raises(NotFittedError):
        FPSORA().transform(X)
    with pytest.raises(ValueError, match="FPSORA is expecting 4 features"):
        FPSORA(max_iter=1).fit(X).transform(X[:, :3])


def test_new_samples_are_placed_without_holding_all_differences():
    model = FPSORA(2, 10, max_iter=1).fit(samples(n=40, p=300))
    new = samples(seed=1, n=200, p=300)
    tracemalloc.start()
    model.transform(new)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.6 * 8 * 200 * 10 * 300
