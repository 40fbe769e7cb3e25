"""Clustering that scikit-learn does not have; for k-means and mean shift use its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClusterMixin

from cv_core.checks import check_finite, check_integer, check_range, check_shape

EPS = 1e-12
"""Least distance that a sample is taken to have from its centroid, relative to the data's size."""


class RobustMultiViewKMeans(ClusterMixin, BaseEstimator):
    r"""k-means over several views of the same samples that bears outliers (Cai et al., IJCAI 2013).

    .. math::
        \min_{F, g, \alpha}\; \sum_v \alpha_v^\gamma \sum_i \|x_i^v - f^v_{g_i}\|_2,
        \qquad \sum_v \alpha_v = 1,\; \alpha_v \ge 0

    Distances are not squared, which bounds what one sample can do. Each round majorises them by
    :math:`d_i^v \|x_i^v - f^v\|_2^2` with :math:`d_i^v = 1 / (2\|x_i^v - f^v_{g_i}\|)`, then sets
    centroids (weighted means), clusters and view weights
    :math:`\alpha_v \propto h_v^{1 / (1 - \gamma)}`, :math:`h_v = \sum_i \|x_i^v - f^v_{g_i}\|`,
    in this order; none of the three steps raises the objective.

    X. Cai, F. Nie, H. Huang: Multi-View K-Means Clustering on Big Data. IJCAI 2013, pp. 2598-2604.

    Args:
        n_clusters: Number of clusters.
        gamma: Exponent above 1: near 1 the best view takes all weight, large values level them.
        n_init: Starts by k-means++ on the concatenated views; the best is kept.
        max_iter: Most rounds of a start.
        tol: A start ends once a round lowers the objective by less than this share of it.
        random_state: Seed or ``numpy.random.Generator``; ``None`` draws from the system.

    Attributes:
        labels_: (n,) clusters of the samples.
        cluster_centers_: One (n_clusters, d_v) array per view.
        view_weights_: (views,) the :math:`\alpha_v`, which sum to 1.
        objective_: (n_iter_,) objective after each round of the best start.
        n_iter_: Rounds of the best start.

    Deviations from the paper: a cluster that lost all samples keeps its centroid, where the paper
    says nothing; starts by k-means++ instead of at random.

    Example:
        >>> import numpy as np
        >>> view = np.array([[0.0], [0.1], [5.0], [5.1]])
        >>> model = RobustMultiViewKMeans(2, random_state=0).fit([view, 3 * view])
        >>> bool(model.labels_[0] == model.labels_[1] != model.labels_[2] == model.labels_[3])
        True
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        gamma: float = 2.0,
        n_init: int = 10,
        max_iter: int = 100,
        tol: float = 1e-6,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.gamma = gamma
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(
        self,
        X: Sequence[Float[np.ndarray, "n _"]] | Float[np.ndarray, "v n m"],
        y: object = None,  # noqa: ARG002 - scikit-learn's signature
    ) -> RobustMultiViewKMeans:
        """Cluster the samples.

        Args:
            X: The views: a list of (n, d_v) arrays, or one (views, n, m) array.
            y: Not used; for scikit-learn's conventions.

        Raises:
            ValueError: If the views do not have the same rows, an entry is not finite, or an option
                is out of range.
        """
        views = self._checked(X)
        rng = np.random.default_rng(self.random_state)
        runs = [self._run(views, rng) for _ in range(self.n_init)]
        best = min(runs, key=lambda run: run[3][-1])
        self.labels_, self.cluster_centers_, self.view_weights_, history = best
        self.objective_ = np.array(history)
        self.n_iter_ = len(history)
        return self

    def _checked(self, X: Sequence[np.ndarray] | np.ndarray) -> list[np.ndarray]:
        owner = type(self).__name__
        if len(X) == 0:
            raise ValueError(f"{owner}: X must hold at least one view; got none.")
        views = [np.asarray(view, dtype=np.float64) for view in X]
        n = check_shape(owner, "X[0]", views[0], "n d")["n"]
        for index, view in enumerate(views):
            check_shape(owner, f"X[{index}]", view, "n d", n=n)
            check_finite(owner, f"X[{index}]", view)
        check_integer(owner, "n_clusters", self.n_clusters, low=1, high=n)
        check_range(owner, "gamma", self.gamma, low=1, low_open=True)
        check_integer(owner, "n_init", self.n_init, low=1)
        check_integer(owner, "max_iter", self.max_iter, low=1)
        check_range(owner, "tol", self.tol, low=0)
        return views

    def _run(
        self, views: list[np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, list[float]]:
        """One start: clusters, centroids, view weights and the objective after each round."""
        labels = self._start(views, rng)
        floor = EPS * max(float(np.abs(view).max()) for view in views) + np.finfo(float).tiny
        centres = [np.zeros((self.n_clusters, view.shape[1])) for view in views]
        _move_centres(views, labels, [np.ones(len(labels))] * len(views), centres)
        alpha = np.full(len(views), 1 / len(views))
        history: list[float] = []
        for _ in range(self.max_iter):
            distances = _distances(views, centres, labels)
            weights = [0.5 / np.maximum(distance, floor) for distance in distances]
            _move_centres(views, labels, weights, centres)
            labels = _assign(views, centres, weights, alpha**self.gamma)
            spread = np.array([distance.sum() for distance in _distances(views, centres, labels)])
            alpha = _view_weights(spread, self.gamma)
            history.append(float(alpha**self.gamma @ spread))
            if len(history) > 1 and history[-2] - history[-1] <= self.tol * history[-1]:
                break
        return labels, centres, alpha, history

    def _start(self, views: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        from sklearn.cluster import kmeans_plusplus
        from sklearn.metrics import pairwise_distances_argmin

        joined = np.concatenate(views, axis=1)
        seed = int(rng.integers(2**31))
        centres, _ = kmeans_plusplus(joined, self.n_clusters, random_state=seed)
        return pairwise_distances_argmin(joined, centres)


def _distances(
    views: list[np.ndarray], centres: list[np.ndarray], labels: np.ndarray
) -> list[np.ndarray]:
    return [
        np.linalg.norm(view - centre[labels], axis=1)
        for view, centre in zip(views, centres, strict=True)
    ]


def _move_centres(
    views: list[np.ndarray],
    labels: np.ndarray,
    weights: list[np.ndarray],
    centres: list[np.ndarray],
) -> None:
    """Set every centroid to the weighted mean of its samples; one without samples stays."""
    for view, weight, centre in zip(views, weights, centres, strict=True):
        members = np.equal.outer(np.arange(len(centre)), labels) * weight
        total = members.sum(axis=1, keepdims=True)
        np.divide(members @ view, total, out=centre, where=total > 0)


def _assign(
    views: list[np.ndarray],
    centres: list[np.ndarray],
    weights: list[np.ndarray],
    view_factors: np.ndarray,
) -> np.ndarray:
    from scipy.spatial.distance import cdist

    cost = np.zeros((len(views[0]), len(centres[0])))
    for view, centre, weight, factor in zip(views, centres, weights, view_factors, strict=True):
        cost += factor * weight[:, None] * cdist(view, centre, "sqeuclidean")
    return cost.argmin(axis=1)


def _view_weights(spread: np.ndarray, gamma: float) -> np.ndarray:
    """Minimise sum alpha^gamma h over the simplex; a view without spread takes all weight."""
    if not spread.all():
        return (spread == 0) / np.count_nonzero(spread == 0)
    # in logarithms, for near gamma = 1 the power alone would overflow
    power = np.log(spread) / (1 - gamma)
    alpha = np.exp(power - power.max())
    return alpha / alpha.sum()
