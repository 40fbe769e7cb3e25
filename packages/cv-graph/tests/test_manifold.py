import numpy as np
import pytest
from cv_core.numerics.affinity import graph_laplacian, knn_affinity, nearest_neighbors
from cv_graph.manifold import LPP, NPE
from scipy.linalg import eigh
from scipy.optimize import minimize
from sklearn.decomposition import PCA
from sklearn.utils.estimator_checks import check_estimator


def samples(seed=0, n=40, p=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, p)) @ rng.normal(size=(p, p)) + 5


@pytest.mark.filterwarnings("ignore")  # the suite provokes warnings on purpose
@pytest.mark.parametrize(
    "estimator", [LPP(), LPP(1, pca=0.9), NPE()], ids=["lpp", "lpp after pca", "npe"]
)
def test_scikit_learns_own_suite_passes(estimator):
    check_estimator(estimator, on_skip=None)


def same_directions(found, expected):
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs((found * expected).sum(axis=1)), 1, rtol=1e-8)


def test_lpp_solves_the_printed_problem():
    X = samples()
    W = knn_affinity(X, 4, bandwidth=3.0)
    model = LPP(3, n_neighbors=4, bandwidth=3.0).fit(X)
    centred = X - X.mean(axis=0)
    D = np.diag(W.sum(axis=1))
    L = graph_laplacian(W).toarray()
    values, vectors = eigh(centred.T @ L @ centred, centred.T @ D @ centred)
    np.testing.assert_allclose(model.eigenvalues_, values[:3], rtol=1e-9)
    same_directions(model.components_, vectors[:, :3].T)
    Y = model.transform(X)
    np.testing.assert_allclose(Y.T @ D @ Y, np.eye(3), atol=1e-9)
    # the quotient is the sum over edges
    total = sum(W[i, j] * (Y[i, 0] - Y[j, 0]) ** 2 for i in range(40) for j in range(40)) / 2
    assert total == pytest.approx(model.eigenvalues_[0], rel=1e-9)
    given = LPP(3, affinity=W).fit(X)
    np.testing.assert_allclose(given.components_, model.components_, rtol=1e-9)


def test_lpp_with_many_features_is_laplacian_eigenmaps():
    X = samples(n=20, p=50)
    W = np.random.default_rng(1).random((20, 20))
    W = np.triu(W, 1) + np.triu(W, 1).T
    for _ in range(200):  # equal degrees, so that a plain mean is the eigenmaps' own
        scale = W.sum(axis=1) ** -0.5
        W *= scale[:, None] * scale
    values, vectors = np.linalg.eigh(graph_laplacian(W).toarray())
    model = LPP(3, affinity=(W + W.T) / 2).fit(X)
    np.testing.assert_allclose(model.eigenvalues_, values[1:4], rtol=1e-8)
    same_directions(model.transform(X).T, vectors[:, 1:4].T)


def test_npe_solves_the_printed_problem():
    X = samples()
    index, _ = nearest_neighbors(X, 4)
    W = np.zeros((40, 40))
    for i, near in enumerate(index):
        edges = X[near] - X[i]
        gram = edges @ edges.T
        gram += 1e-3 * np.trace(gram) * np.eye(4)
        # least of w' G w with w' 1 = 1, by a general solver
        found = minimize(
            lambda w, gram=gram: w @ gram @ w / np.trace(gram),
            np.full(4, 0.25),
            jac=lambda w, gram=gram: 2 * gram @ w / np.trace(gram),
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
            options={"ftol": 1e-14},
        )
        W[i, near] = found.x
    gap = np.eye(40) - W
    centred = X - X.mean(axis=0)
    values, vectors = eigh(centred.T @ gap.T @ gap @ centred, centred.T @ centred)
    model = NPE(2, n_neighbors=4).fit(X)
    np.testing.assert_allclose(model.eigenvalues_, values[:2], rtol=1e-3)
    found, expected = model.components_, vectors[:, :2].T
    cosines = (found * expected).sum(axis=1) / (
        np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    )
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-4)
    Y = model.transform(X)
    np.testing.assert_allclose(Y.T @ Y, np.eye(2), atol=1e-9)


def test_npe_rebuilds_a_flat_sheet_exactly():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(60, 2))
    X = plane @ rng.normal(size=(2, 5))
    model = NPE(2, n_neighbors=5, reg=1e-9).fit(X)
    np.testing.assert_allclose(model.eigenvalues_, 0, atol=1e-8)
    with pytest.raises(ValueError, match=r"at most 2, the dimensions .* got 3"):
        NPE(3).fit(X)


@pytest.mark.parametrize("kind", [LPP, NPE])
@pytest.mark.parametrize("pca", [3, 0.9])
def test_principal_components_beforehand(kind, pca):
    X = samples()
    model = kind(2, n_neighbors=4, pca=pca).fit(X)
    scores = PCA(pca, svd_solver="full").fit(X)
    inside = model.components_ @ scores.components_.T @ scores.components_
    np.testing.assert_allclose(inside, model.components_, atol=1e-12)
    if kind is LPP:
        given = LPP(2, affinity=knn_affinity(X, 4)).fit(scores.transform(X))
        np.testing.assert_allclose(given.eigenvalues_, model.eigenvalues_, rtol=1e-9)
    many = kind(2, n_neighbors=4, pca=500).fit(X)
    np.testing.assert_allclose(many.eigenvalues_, kind(2, n_neighbors=4).fit(X).eigenvalues_)


@pytest.mark.parametrize("kind", [LPP, NPE])
def test_projection_does_not_depend_on_where_the_samples_lie(kind):
    X = samples()
    model, moved = kind(2).fit(X), kind(2).fit(X + 100)
    np.testing.assert_allclose(moved.components_, model.components_, rtol=1e-6, atol=1e-8)
    largest = np.abs(model.components_).argmax(axis=1)
    assert (model.components_[[0, 1], largest] > 0).all()
    np.testing.assert_allclose(moved.transform(X + 100), model.transform(X), atol=1e-7)


def test_samples_that_coincide():
    X = np.repeat(samples(n=6, p=3), 5, axis=0)
    for model in (LPP(1, n_neighbors=3), NPE(1, n_neighbors=3)):
        assert np.isfinite(model.fit_transform(X)).all()
        with pytest.raises(ValueError, match="at most 0, the dimensions that the samples span"):
            model.fit(np.ones((5, 3)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LPP(0), "LPP: n_components must be at least 1"),
        (LPP(n_neighbors=0), "n_neighbors must be at least 1"),
        (LPP(affinity="heatt"), "Did you mean 'heat'"),
        (LPP(affinity=np.eye(3)), r"affinity must have shape \(n, n\) with n=40"),
        (LPP(affinity=np.zeros((40, 40))), "all weights vanish"),
        (LPP(bandwidth=0.0), "bandwidth must lie in"),
        (LPP(pca=1.0), "pca must lie in"),
        (LPP(pca=0), "pca must be at least 1"),
        (LPP(3, pca=2), r"at most 2, the dimensions .* pca=2\); got 3"),
        (NPE(reg=0.0), "NPE: reg must lie in"),
        (NPE(7), "n_components must be at most 6"),
    ],
)
def test_bad_input_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        model.fit(samples())
