import numpy as np
import pytest
from cv_core.numerics.clustering import RobustMultiViewKMeans
from scipy.optimize import minimize
from sklearn.metrics import adjusted_rand_score


@pytest.fixture
def blobs():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 30)
    first = 4 * np.eye(3)[y] + rng.normal(size=(90, 3))
    second = 4 * np.eye(3)[(y + 1) % 3, :2] + rng.normal(size=(90, 2))
    return [first, second], y


def objective(views, model):
    total = 0.0
    for view, centres, alpha in zip(
        views, model.cluster_centers_, model.view_weights_, strict=True
    ):
        for x, label in zip(view, model.labels_, strict=True):
            total += alpha**model.gamma * np.linalg.norm(x - centres[label])
    return total


@pytest.mark.parametrize("gamma", [1.05, 2.0, 8.0])
def test_objective_never_rises_and_is_what_it_says(blobs, gamma):
    views, _ = blobs
    model = RobustMultiViewKMeans(3, gamma=gamma, n_init=3, tol=0, random_state=0).fit(views)
    history = model.objective_
    assert len(history) == model.n_iter_ > 2
    assert (np.diff(history) <= 1e-12 * history[:-1]).all()
    assert history[-1] == pytest.approx(objective(views, model), rel=1e-12)


def test_view_weights_are_the_minimum_on_the_simplex(blobs):
    views, _ = blobs
    model = RobustMultiViewKMeans(3, gamma=3.0, random_state=0).fit(views)
    spread = [
        np.linalg.norm(view - centres[model.labels_], axis=1).sum()
        for view, centres in zip(views, model.cluster_centers_, strict=True)
    ]
    best = minimize(
        lambda a: a**3 * spread[0] + (1 - a) ** 3 * spread[1], 0.5, bounds=[(0, 1)], tol=1e-14
    )
    np.testing.assert_allclose(model.view_weights_, [best.x[0], 1 - best.x[0]], atol=1e-6)


def test_one_cluster_of_one_view_is_the_geometric_median():
    points = np.random.default_rng(3).normal(size=(21, 2))
    points[0] = 1000.0  # k-means would follow it
    model = RobustMultiViewKMeans(1, max_iter=2000, tol=0, n_init=1).fit([points])
    median = minimize(lambda c: np.linalg.norm(points - c, axis=1).sum(), [0.0, 0.0], tol=1e-12)
    np.testing.assert_allclose(model.cluster_centers_[0][0], median.x, atol=1e-5)
    np.testing.assert_array_equal(model.view_weights_, [1.0])


def test_clusters_are_found_in_spite_of_outliers_and_a_view_of_noise(blobs):
    views, y = blobs
    views = [views[0].copy(), views[1], np.random.default_rng(1).normal(size=(90, 4))]
    views[0][::30] += 12 * np.eye(3)  # three outliers, each in a direction of its own
    found = RobustMultiViewKMeans(3, random_state=0).fit_predict(views)
    keep = np.arange(90) % 30 != 0
    assert adjusted_rand_score(y[keep], found[keep]) > 0.9


def test_an_array_of_views_is_a_list_of_views(blobs):
    views, _ = blobs
    stacked = np.stack([views[1], views[0][:, :2]])
    first = RobustMultiViewKMeans(3, random_state=0).fit(stacked)
    second = RobustMultiViewKMeans(3, random_state=0).fit(list(stacked))
    np.testing.assert_array_equal(first.labels_, second.labels_)
    np.testing.assert_array_equal(first.objective_, second.objective_)


def test_as_many_clusters_as_samples_leave_nothing(blobs):
    view = np.arange(5.0)[:, None]
    model = RobustMultiViewKMeans(5, random_state=0).fit([view, view])
    assert model.objective_[-1] == pytest.approx(0.0, abs=1e-12)
    assert sorted(model.labels_) == [0, 1, 2, 3, 4]


VIEW = np.random.default_rng(0).random((6, 2))


@pytest.mark.parametrize(
    ("views", "options", "message"),
    [
        ([], {}, "at least one view"),
        ([VIEW, VIEW[:5]], {}, r"X\[1\] must have shape \(n, d\) with n=6"),
        ([VIEW * np.nan], {}, r"X\[0\] must be finite"),
        ([VIEW], {"n_clusters": 7}, "n_clusters must be at least 1 and at most 6"),
        ([VIEW], {"gamma": 1.0}, "gamma must lie in"),
        ([VIEW], {"n_init": 0}, "n_init must be at least 1"),
        ([VIEW], {"tol": -1.0}, "tol must lie in"),
    ],
)
def test_bad_input_is_refused(views, options, message):
    with pytest.raises(ValueError, match=message):
        RobustMultiViewKMeans(**{"n_clusters": 2, **options}).fit(views)
