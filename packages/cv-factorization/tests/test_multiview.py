import numpy as np
import pytest
import torch
from cv_factorization.multiview import CCA, RobustMultiViewKMeans
from scipy.linalg import eigh
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import check_estimator


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


# k-means over several views


@pytest.fixture
def blobs():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 30)
    first = 4 * np.eye(3)[y] + rng.normal(size=(90, 3))
    second = 4 * np.eye(3)[(y + 1) % 3, :2] + rng.normal(size=(90, 2))
    return [first, second], y


def slow_objective(views, labels, model):
    total = 0.0
    for view, centres, alpha in zip(
        views, model.cluster_centers_, model.view_weights_, strict=True
    ):
        for x, label in zip(view, labels, strict=True):
            total += alpha**model.gamma * np.linalg.norm(x - centres[label])
    return total


@pytest.mark.filterwarnings("ignore")  # the suite provokes warnings on purpose
def test_kmeans_passes_scikit_learns_own_suite():
    check_estimator(RobustMultiViewKMeans(3, random_state=0), on_skip=None)


@pytest.mark.parametrize("gamma", [1.05, 2.0, 8.0])
def test_kmeans_objective_never_rises_and_is_what_it_says(blobs, gamma):
    X, _ = blobs
    model = RobustMultiViewKMeans(3, gamma=gamma, n_init=3, tol=0, random_state=0).fit(X)
    history = model.objective_
    assert len(history) == model.n_iter_ > 2
    assert (np.diff(history) <= 1e-12 * history[:-1]).all()
    assert history[-1] == pytest.approx(slow_objective(X, model.labels_, model), rel=1e-9)


def test_kmeans_labels_are_the_best_and_those_of_predict(blobs):
    X, _ = blobs
    model = RobustMultiViewKMeans(3, max_iter=2, random_state=0).fit(X)
    np.testing.assert_array_equal(model.predict(X), model.labels_)
    least = slow_objective(X, model.labels_, model)
    for i in range(0, 90, 7):
        for label in range(3):
            other = model.labels_.copy()
            other[i] = label
            assert slow_objective(X, other, model) >= least * (1 - 1e-12)


def test_kmeans_view_weights_are_the_minimum_on_the_simplex(blobs):
    X, _ = blobs
    model = RobustMultiViewKMeans(3, gamma=3.0, random_state=0).fit(X)
    spread = [
        np.linalg.norm(view - centres[model.labels_], axis=1).sum()
        for view, centres in zip(X, model.cluster_centers_, strict=True)
    ]
    best = minimize(
        lambda a: a**3 * spread[0] + (1 - a) ** 3 * spread[1], 0.5, bounds=[(0, 1)], tol=1e-14
    )
    np.testing.assert_allclose(model.view_weights_, [best.x[0], 1 - best.x[0]], atol=1e-6)


def test_kmeans_with_one_cluster_is_the_geometric_median():
    points = np.random.default_rng(3).normal(size=(21, 2))
    points[0] = 1000.0  # the mean would follow it
    model = RobustMultiViewKMeans(1, max_iter=2000, tol=0, n_init=1, random_state=0).fit([points])
    median = minimize(lambda c: np.linalg.norm(points - c, axis=1).sum(), [0.0, 0.0], tol=1e-12)
    np.testing.assert_allclose(model.cluster_centers_[0][0], median.x, atol=1e-5)
    np.testing.assert_array_equal(model.view_weights_, [1.0])


def test_kmeans_finds_clusters_in_spite_of_outliers_and_a_view_of_noise(blobs):
    X, y = blobs
    X = [X[0].copy(), X[1], np.random.default_rng(1).normal(size=(90, 4))]
    X[0][::30] += 12 * np.eye(3)  # three outliers, each in a direction of its own
    found = RobustMultiViewKMeans(3, random_state=0).fit_predict(X)
    keep = np.arange(90) % 30 != 0
    assert adjusted_rand_score(y[keep], found[keep]) > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kmeans_of_tensors_is_that_of_arrays(blobs, dtype):
    X, _ = blobs
    plain = RobustMultiViewKMeans(3, random_state=0).fit(X)
    given = [torch.tensor(view, dtype=dtype) for view in X]
    model = RobustMultiViewKMeans(3, random_state=0).fit(given)
    assert isinstance(model.predict(given), torch.Tensor)
    assert model.cluster_centers_[0].dtype == model.view_weights_.dtype == dtype
    assert adjusted_rand_score(plain.labels_, model.labels_.numpy()) == 1.0
    assert isinstance(model.predict(X), np.ndarray)
    if dtype == torch.float64:
        np.testing.assert_array_equal(model.objective_, plain.objective_)


def test_kmeans_of_an_array_of_views_is_that_of_a_list(blobs):
    X, _ = blobs
    stacked = np.stack([X[1], X[0][:, :2]])
    first = RobustMultiViewKMeans(3, random_state=0).fit(stacked)
    second = RobustMultiViewKMeans(3, random_state=0).fit(list(stacked))
    np.testing.assert_array_equal(first.objective_, second.objective_)


def test_kmeans_with_as_many_clusters_as_samples_leaves_nothing():
    view = np.arange(5.0)[:, None]
    model = RobustMultiViewKMeans(5, random_state=0).fit([view, view])
    assert model.objective_[-1] == pytest.approx(0.0, abs=1e-12)
    assert sorted(model.labels_) == [0, 1, 2, 3, 4]
    same = RobustMultiViewKMeans(2, random_state=0).fit([np.zeros((4, 2)), np.ones((4, 1))])
    assert np.isfinite(same.view_weights_).all()
    assert all(np.isfinite(centre).all() for centre in same.cluster_centers_)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, "at least one view"),
        ([A, B[:5]], {}, r"X\[1\] must have shape \(n, d\) with n=80"),
        ([A], {"n_clusters": 81}, "n_clusters must be at least 1 and at most 80"),
        ([A], {"gamma": 1.0}, "gamma must lie in"),
        ([A], {"n_init": 0}, "n_init must be at least 1"),
        ([A], {"max_iter": 0}, "max_iter must be at least 1"),
        ([A], {"tol": -1.0}, "tol must lie in"),
    ],
)
def test_kmeans_refuses_bad_input(given, options, message):
    with pytest.raises(ValueError, match=message):
        RobustMultiViewKMeans(**{"n_clusters": 2, **options}).fit(given)
