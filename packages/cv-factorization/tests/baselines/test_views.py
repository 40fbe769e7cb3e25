import numpy as np
import pytest
import torch
from cv_factorization.baselines.views import CoRegularizedSpectralClustering, SharedSVD
from scipy.spatial.distance import pdist, squareform
from scipy.stats import ortho_group
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import check_estimator


def blobs(seed=0, gap=4.0):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(3), 12)
    first = gap * np.eye(3)[y] + rng.normal(size=(36, 3))
    second = gap * np.eye(3)[(y + 1) % 3, :2] + rng.normal(size=(36, 2))
    return [first, second], y


@pytest.mark.filterwarnings("ignore")  # the suite provokes warnings on purpose
@pytest.mark.parametrize(
    "estimator", [SharedSVD(1), CoRegularizedSpectralClustering(3, random_state=0)]
)
def test_scikit_learns_own_suite_passes(estimator):
    check_estimator(estimator, on_skip=None)


# the decomposition


def test_svd_reaches_its_bound_and_projects_what_it_knows_onto_itself():
    X, _ = blobs()
    model = SharedSVD(2)
    H = model.fit_transform(X)
    made = model.inverse_transform(H)
    error = sum(np.square(a - b).mean() for a, b in zip(made, X, strict=True))
    joined = np.hstack([view / (36 * view.shape[1]) ** 0.5 for view in X])
    sigma = np.linalg.svd(joined, compute_uv=False)
    assert error == pytest.approx(np.square(sigma[2:]).sum(), rel=1e-10)
    assert model.objective_[0] == pytest.approx(error, rel=1e-10)
    np.testing.assert_allclose(model.singular_values_, sigma[:2])
    np.testing.assert_allclose(model.transform(X), H, atol=1e-10)
    # of new rows, no codes fit better: the normal equations of each row
    new = [view[:5] + 1 for view in X]
    codes = model.transform(new)
    residual = [a - b for a, b in zip(new, model.inverse_transform(codes), strict=True)]
    parts = np.split(model.components_, [3], axis=1)
    slope = sum(r @ V.T / r.shape[1] for r, V in zip(residual, parts, strict=True))
    np.testing.assert_allclose(slope, 0, atol=1e-10)


def test_svd_does_not_let_wide_views_dominate():
    X, _ = blobs()
    tall = SharedSVD(2).fit(X)
    repeated = SharedSVD(2).fit([np.hstack([X[0]] * 50), X[1]])
    np.testing.assert_allclose(repeated.singular_values_, tall.singular_values_)


def test_svd_of_tensors_and_of_too_many_components():
    X, _ = blobs()
    given = [torch.tensor(view, dtype=torch.float32) for view in X]
    model = SharedSVD(2).fit(given)
    for tensor in (
        model.transform(given),
        model.components_,
        *model.inverse_transform(model.embedding_),
    ):
        assert tensor.dtype == torch.float32
    with pytest.raises(ValueError, match="n_components must be at least 1 and at most 5; got 6"):
        SharedSVD(6).fit(X)
    with pytest.raises(ValueError, match="H must have shape"):
        model.inverse_transform(np.ones((3, 3)))


# spectral clustering


def slow_laplacian(view):
    distance = squareform(pdist(view))
    typical = np.sort(pdist(view))[(len(pdist(view)) - 1) // 2]  # the lower of two medians
    K = np.exp(-(distance**2) / (2 * typical**2))
    D = np.diag(K.sum(axis=1) ** -0.5)
    return D @ K @ D


def slow_value(L, U, lam):
    own = sum(np.trace(u.T @ each @ u) for each, u in zip(L, U, strict=True))
    pairs = [(v, w) for v in range(len(U)) for w in range(v)]
    return own + lam * sum(np.trace(U[v] @ U[v].T @ U[w] @ U[w].T) for v, w in pairs)


def test_rounds_are_the_printed_ones_and_the_objective_rises():
    X, _ = blobs(gap=1.5)
    third = np.random.default_rng(5).normal(size=(36, 4))
    X = [*X, third]
    model = CoRegularizedSpectralClustering(3, lam=0.4, max_iter=5, tol=0, random_state=0).fit(X)
    L = [slow_laplacian(view) for view in X]
    U = [np.linalg.eigh(each)[1][:, -3:] for each in L]
    course = [slow_value(L, U, 0.4)]
    for _ in range(4):
        for v in range(3):
            pull = sum(U[w] @ U[w].T for w in range(3) if w != v)
            U[v] = np.linalg.eigh(L[v] + 0.4 * pull)[1][:, -3:]
        course.append(slow_value(L, U, 0.4))
    np.testing.assert_allclose(model.objective_, course, rtol=1e-9)
    assert (np.diff(model.objective_) >= 0).all()
    assert model.objective_[-1] > model.objective_[0] * (1 + 1e-4)
    for v, part in enumerate(np.split(model.embedding_, 3, axis=1)):
        rows = U[v] / np.linalg.norm(U[v], axis=1, keepdims=True)
        np.testing.assert_allclose(part @ part.T, rows @ rows.T, atol=1e-6)


def test_views_apart_at_zero_and_alike_at_a_large_weight():
    X, _ = blobs(gap=1.0)

    def gap(lam):
        model = CoRegularizedSpectralClustering(3, lam=lam, random_state=0)
        spaces = [
            part @ part.T for part in model.fit(X).embedding_.reshape(36, 2, 3).swapaxes(0, 1)
        ]
        return np.abs(spaces[0] - spaces[1]).mean()

    assert gap(100.0) < 1e-2 < gap(0.0)
    alone = CoRegularizedSpectralClustering(3, lam=0.0, random_state=0).fit(X)
    assert alone.n_iter_ == 1


def test_no_best_subspace_is_missed_for_one_view():
    (view, _), _ = blobs()
    model = CoRegularizedSpectralClustering(3, random_state=0).fit(view)
    L = slow_laplacian(view)
    for seed in range(20):
        other = ortho_group.rvs(36, random_state=np.random.RandomState(seed))[:, :3]
        assert np.trace(other.T @ L @ other) <= model.objective_[-1]
    assert model.objective_[0] == pytest.approx(np.linalg.eigvalsh(L)[-3:].sum())


def test_clusters_are_found_and_come_back_in_kind():
    X, y = blobs()
    model = CoRegularizedSpectralClustering(3, random_state=0).fit(X)
    assert adjusted_rand_score(y, model.labels_) > 0.9
    twin = CoRegularizedSpectralClustering(3, random_state=0).fit([torch.tensor(v) for v in X])
    assert isinstance(twin.labels_, torch.Tensor)
    np.testing.assert_array_equal(twin.labels_, model.labels_)
    same = CoRegularizedSpectralClustering(1, random_state=0).fit([np.zeros((4, 2))])
    assert np.isfinite(same.embedding_).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 0}, "n_clusters must be at least 1"),
        ({"n_clusters": 37}, "at most 36; got 37"),
        ({"lam": -1.0}, "lam must lie in"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
        ({"tol": -1.0}, "tol must lie in"),
        ({"n_init": 0}, "n_init must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CoRegularizedSpectralClustering(**options).fit(blobs()[0])
