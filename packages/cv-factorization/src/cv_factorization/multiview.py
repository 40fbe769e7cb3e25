"""Several views of the same samples: canonical correlation of two, clusters of any number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from cv_core.checks import check_finite, check_integer, check_range, check_shape
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from cv_factorization._shared.arrays import as_floating, check_tensor, like_given
from cv_factorization._shared.views import as_views, like_views


class CCA(BaseEstimator):
    r"""Linear canonical correlation analysis, plain or regularised (Hotelling; Vinod).

    .. math::
        \max_{W_1, W_2} \mathrm{tr}(W_1^\top C_{12} W_2) \quad\text{subject to}\quad
        W_v^\top \big((1 - \kappa) C_{vv} + \kappa I\big) W_v = I

    with the covariances C of the centred views. Each view is whitened by its singular vectors,
    which keeps rounding at bay and drops directions without variance; the singular vectors of the
    whitened views' cross-covariance then give all directions at once.

    H. Hotelling: Relations between two sets of variates. Biometrika 28, 1936. H. D. Vinod:
    Canonical ridge and econometrics of joint production. Journal of Econometrics 4(2), 1976.

    Args:
        n_components: Directions k per view, at most the smaller rank of the two.
        regularization: :math:`\kappa` in [0, 1]: 0 is canonical correlation analysis, 1 partial
            least squares (by singular vectors); in between it stands up to more features than
            samples. It is measured against the variances: scale the views.

    Attributes:
        means_: Per view (d_v,) the means.
        weights_: Per view (d_v, k) the W.
        correlations_: (k,) correlations of the projections of the training samples.
        objective_: (k,) covariances that were maximised, falling; without regularisation these are
            the correlations.
        n_features_in_: Per view d_v.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> shared = rng.standard_normal((50, 1))
        >>> views = [shared @ [[1.0, 2.0]], shared @ [[3.0, 0.0, 1.0]]]
        >>> CCA(1).fit(views).correlations_.round(6)
        array([1.])
    """

    def __init__(self, n_components: int = 2, *, regularization: float = 0.0) -> None:
        self.n_components = n_components
        self.regularization = regularization

    @torch.no_grad()
    def fit(self, Xs: Sequence[Any], y: object = None) -> CCA:  # noqa: ARG002 - scikit-learn's
        """Find the directions.

        Args:
            Xs: Two views (n, d_v) of the same samples, both arrays or both tensors.
            y: Not used; for scikit-learn's conventions.

        Raises:
            TypeError: If a tensor is neither float32 nor float64, or sparse.
            ValueError: If there are not two views of the same two or more samples, an entry is not
                finite, the views have too few directions, or an option is out of range.
        """
        owner = type(self).__name__
        check_integer(owner, "n_components", self.n_components, low=1)
        check_range(owner, "regularization", self.regularization, low=0, high=1)
        views = self._checked(Xs)
        if len(views[0]) < 2:
            raise ValueError(f"{owner}: Xs must hold at least 2 samples; got 1.")
        means = [view.mean(dim=0) for view in views]
        centred = [view - mean for view, mean in zip(views, means, strict=True)]
        parts = [self._whiten(view, mean) for view, mean in zip(centred, means, strict=True)]
        rank = min(scores.shape[1] for scores, _ in parts)
        if self.n_components > rank:
            raise ValueError(
                f"{owner}: n_components must be at most the smaller rank of the centred views, "
                f"{rank}; got {self.n_components}."
            )
        left, values, right = torch.linalg.svd(parts[0][0].mT @ parts[1][0], full_matrices=False)
        k = self.n_components
        weights = [parts[0][1] @ left[:, :k], parts[1][1] @ right[:k].mT]
        scores = [view @ weight for view, weight in zip(centred, weights, strict=True)]
        units = [score / torch.linalg.vector_norm(score, dim=0) for score in scores]
        self.means_ = [like_given(mean, given) for mean, given in zip(means, Xs, strict=True)]
        self.weights_ = [like_given(w, given) for w, given in zip(weights, Xs, strict=True)]
        self.correlations_ = like_given((units[0] * units[1]).sum(dim=0), Xs[0])
        self.objective_ = like_given(values[:k], Xs[0])
        self.n_features_in_ = [view.shape[1] for view in views]
        return self

    def _whiten(
        self, view: Float[Tensor, "n d"], mean: Float[Tensor, " d"]
    ) -> tuple[Float[Tensor, "n r"], Float[Tensor, "d r"]]:
        """Return the white scores of a centred view over the root of n - 1, and their weights."""
        n = len(view)
        left, values, right = torch.linalg.svd(view, full_matrices=False)
        # what is left of a constant column after its mean is rounding of its entries
        size = torch.maximum(values[0], torch.linalg.vector_norm(mean) * n**0.5)
        cut = max(view.shape) * torch.finfo(view.dtype).eps * size
        kept = values > cut
        left, values, right = left[:, kept], values[kept] / (n - 1) ** 0.5, right[kept]
        kappa = float(self.regularization)
        scale = ((1 - kappa) * values.square() + kappa).rsqrt()
        return left * (values * scale), right.mT * scale

    @torch.no_grad()
    def transform(self, Xs: Sequence[Any]) -> list[Any]:
        """Project samples.

        Args:
            Xs: Two views (n, d_v).

        Returns:
            Per view (n, k), of its kind.

        Raises:
            ValueError: If the views do not fit each other or those of ``fit``.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        check_is_fitted(self)
        owner = type(self).__name__
        views = self._checked(Xs)
        for index, (view, features) in enumerate(zip(views, self.n_features_in_, strict=True)):
            check_shape(owner, f"Xs[{index}]", view, "n d", d=features)
        result = []
        for view, mean, weight, given in zip(views, self.means_, self.weights_, Xs, strict=True):
            centre, directions = (torch.as_tensor(part).to(view) for part in (mean, weight))
            result.append(like_given((view - centre) @ directions, given))
        return result

    def fit_transform(self, Xs: Sequence[Any], y: object = None) -> list[Any]:
        """Find the directions and project the samples.

        Args:
            Xs: Two views (n, d_v).
            y: Not used; for scikit-learn's conventions.
        """
        return self.fit(Xs, y).transform(Xs)

    def _checked(self, Xs: Sequence[Any]) -> list[Tensor]:
        owner = type(self).__name__
        if len(Xs) != 2:
            raise ValueError(f"{owner}: Xs must hold two views; got {len(Xs)}.")
        views: list[Tensor] = []
        for index, given in enumerate(Xs):
            name = f"Xs[{index}]"
            view = as_floating(given)
            check_tensor(owner, name, view)
            check_shape(owner, name, view, "n d", **({"n": len(views[0])} if views else {}))
            check_finite(owner, name, view)
            views.append(view)
        return views


class RobustMultiViewKMeans(ClusterMixin, BaseEstimator):
    r"""k-means over several views that bears outliers (Cai, Nie, Huang, IJCAI 2013).

    .. math::
        \min_{F, g, \alpha}\; \sum_v \alpha_v^\gamma \sum_i \|x_i^v - f^v_{g_i}\|_2,
        \qquad \sum_v \alpha_v = 1,\; \alpha_v \ge 0

    Distances are not squared, which bounds what one sample can do. A round sets the clusters
    :math:`g`, then the centroids to means weighted by :math:`1 / \|x_i^v - f^v_{g_i}\|_2` (a step
    of Weiszfeld's towards their geometric medians), then the view weights
    :math:`\alpha_v \propto h_v^{1 / (1 - \gamma)}`, :math:`h_v = \sum_i \|x_i^v - f^v_{g_i}\|_2`;
    none of the three raises the objective.

    X. Cai, F. Nie, H. Huang: Multi-View K-Means Clustering on Big Data. IJCAI 2013, pp. 2598-2604.

    Args:
        n_clusters: Number of clusters.
        gamma: Exponent above 1: near 1 the best view takes all weight, large values level them.
        n_init: Starts by k-means++ on the views side by side; the best is kept.
        max_iter: Most rounds of a start.
        tol: A start ends once a round lowers the objective by this share of it or less.
        random_state: Seed or ``numpy.random.Generator``; ``None`` draws from the system.

    Attributes:
        labels_: (n,) clusters of the samples.
        cluster_centers_: One (n_clusters, d_v) array per view.
        view_weights_: (views,) the :math:`\alpha_v`, which sum to 1.
        objective_: (n_iter_,) objective after each round of the best start.
        n_iter_: Rounds of the best start.
        n_features_in_: Columns of X, or the list of those of its views.

    Deviations from the paper: clusters are set by the distances of the objective themselves, not
    by their majorants of the round before, so that ``predict`` agrees with ``labels_``; a cluster
    that lost all samples keeps its centroid; starts by k-means++ instead of at random.

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

    @torch.no_grad()
    def fit(self, X: Any, y: object = None) -> RobustMultiViewKMeans:  # noqa: ARG002 - as above
        """Cluster the samples.

        Args:
            X: The views: a list of (n, d_v) arrays or tensors, or one (views, n, d) array; a single
                (n, d) matrix is one view.
            y: Not used; for scikit-learn's conventions.

        Raises:
            TypeError: If a tensor is neither float32 nor float64, or a view is sparse.
            ValueError: If the views differ in rows, an entry is not finite, or an option is out of
                range.
        """
        owner = type(self).__name__
        check_range(owner, "gamma", self.gamma, low=1, low_open=True)
        check_integer(owner, "n_init", self.n_init, low=1)
        check_integer(owner, "max_iter", self.max_iter, low=1)
        check_range(owner, "tol", self.tol, low=0)
        views = as_views(self, X, reset=True)
        check_integer(owner, "n_clusters", self.n_clusters, low=1, high=len(views[0]))
        rng = np.random.default_rng(self.random_state)
        runs = [self._run(views, rng) for _ in range(self.n_init)]
        labels, centres, alpha, history = min(runs, key=lambda run: run[3][-1])
        self.labels_ = like_views(labels, X)
        self.cluster_centers_ = [like_views(centre, X) for centre in centres]
        self.view_weights_ = like_views(alpha, X)
        self.objective_ = np.array(history)
        self.n_iter_ = len(history)
        return self

    @torch.no_grad()
    def predict(self, X: Any) -> Any:
        r"""Assign samples to the clusters of least :math:`\sum_v \alpha_v^\gamma \|x_v - f_v\|`.

        Args:
            X: The views, as for ``fit``.

        Returns:
            (n,) clusters, of the kind of X.

        Raises:
            ValueError: If X has other columns than those of ``fit``.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        check_is_fitted(self)
        views = as_views(self, X, reset=False)
        centres = [torch.as_tensor(centre).to(views[0]) for centre in self.cluster_centers_]
        alpha = torch.as_tensor(self.view_weights_).to(views[0])
        return like_views(_nearest(views, centres, alpha**self.gamma), X)

    def _run(
        self, views: Sequence[Tensor], rng: np.random.Generator
    ) -> tuple[Tensor, list[Tensor], Tensor, list[float]]:
        """One start: clusters, centroids, view weights and the objective after each round."""
        labels = _plus_plus(views, self.n_clusters, rng)
        ones = views[0].new_ones(len(labels))
        centres = [view.new_zeros(self.n_clusters, view.shape[1]) for view in views]
        centres = _moved(views, labels, [ones] * len(views), centres)
        alpha = views[0].new_full((len(views),), 1 / len(views))
        history: list[float] = []
        for _ in range(self.max_iter):
            labels = _nearest(views, centres, alpha**self.gamma)
            weights = [1 / gap for gap in _gaps(views, centres, labels)]
            centres = _moved(views, labels, weights, centres)
            spread = torch.stack([gap.sum() for gap in _gaps(views, centres, labels)])
            alpha = _view_weights(spread, self.gamma)
            history.append(float(alpha**self.gamma @ spread))
            if len(history) > 1 and history[-2] - history[-1] <= self.tol * history[-1]:
                break
        return _nearest(views, centres, alpha**self.gamma), centres, alpha, history


def _plus_plus(
    views: Sequence[Tensor], n_clusters: int, rng: np.random.Generator
) -> Int[Tensor, " n"]:
    """Return the clusters of a start by k-means++ on the views side by side."""
    from sklearn.cluster import kmeans_plusplus

    joined = torch.cat(list(views), dim=1)
    seed = int(rng.integers(2**31))
    _, chosen = kmeans_plusplus(joined.cpu().numpy(), n_clusters, random_state=seed)
    index = torch.from_numpy(chosen).to(joined.device)
    return _distances(joined, joined[index]).argmin(dim=1)


def _distances(view: Tensor, centres: Tensor) -> Float[Tensor, "n k"]:
    # the product form of the distance cancels where a centroid lies on a sample
    return torch.cdist(view, centres, compute_mode="donot_use_mm_for_euclid_dist")


def _nearest(
    views: Sequence[Tensor], centres: Sequence[Tensor], factors: Float[Tensor, " v"]
) -> Int[Tensor, " n"]:
    parts = zip(views, centres, factors, strict=True)
    return torch.stack([factor * _distances(x, f) for x, f, factor in parts]).sum(dim=0).argmin(1)


def _gaps(
    views: Sequence[Tensor], centres: Sequence[Tensor], labels: Tensor
) -> list[Float[Tensor, " n"]]:
    """Return every sample's distance from its centroid, never quite zero."""
    limits = torch.finfo(views[0].dtype)
    floor = max(limits.eps * max(float(view.abs().max()) for view in views), limits.tiny)
    return [
        torch.linalg.vector_norm(view - centre[labels], dim=1).clamp(min=floor)
        for view, centre in zip(views, centres, strict=True)
    ]


def _moved(
    views: Sequence[Tensor],
    labels: Tensor,
    weights: Sequence[Tensor],
    centres: Sequence[Tensor],
) -> list[Tensor]:
    """Return every centroid as the weighted mean of its samples; one without samples stays."""
    result = []
    for view, weight, centre in zip(views, weights, centres, strict=True):
        members = view.new_zeros(len(centre), len(view))
        members[labels, torch.arange(len(view), device=view.device)] = weight
        total = members.sum(dim=1, keepdim=True)
        result.append(torch.where(total > 0, members @ view / total, centre))
    return result


def _view_weights(spread: Float[Tensor, " v"], gamma: float) -> Float[Tensor, " v"]:
    """Minimise sum alpha^gamma h over the simplex; in logarithms, for powers overflow near 1."""
    return torch.softmax(spread.log() / (1 - gamma), dim=0)
