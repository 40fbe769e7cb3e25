"""Known methods for several views: one decomposition, and spectral clusterings that agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from cv_core.checks import check_integer, check_range, check_shape
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from cv_factorization._shared.arrays import as_floating, like_given
from cv_factorization._shared.views import as_views, like_views


class SharedSVD(TransformerMixin, BaseEstimator):
    r"""Truncated singular value decomposition of the views side by side.

    .. math::
        \min_{H, V}\; \sum_v \frac{1}{n d_v} \|X_v - H V_v\|_F^2
        = \sum_{i > k} \sigma_i^2\Big(\big[\tfrac{X_1}{\sqrt{n d_1}} \dots
        \tfrac{X_P}{\sqrt{n d_P}}\big]\Big)

    (Eckart, Young: The approximation of one matrix by another of lower rank. Psychometrika 1,
    1936.) A mean over entries per view, so that wide views do not dominate: the linear limit of
    ``SharedDeepMF``. Nothing is centred.

    Args:
        n_components: Columns k of H, at most the smaller of n and all d_v together.

    Attributes:
        embedding_: (n, k) the H of the training samples; columns of falling length, orthogonal.
        components_: (k, sum of d_v) the :math:`V_v` side by side.
        singular_values_: (k,) the largest :math:`\sigma_i`, falling.
        objective_: (1,) the minimum.
        n_features_in_: Columns of X, or the list of those of its views.

    Example:
        >>> import numpy as np
        >>> view = np.outer([1.0, 2.0, 3.0], [1.0, 0.0])
        >>> float(SharedSVD(1).fit([view, 5 * view]).objective_.round(9)[0])
        0.0
    """

    def __init__(self, n_components: int = 10) -> None:
        self.n_components = n_components

    @torch.no_grad()
    def fit(self, X: Any, y: object = None) -> SharedSVD:  # noqa: ARG002 - scikit-learn's
        """Decompose the views.

        Args:
            X: The views: a list of (n, d_v) arrays or tensors, or one (views, n, d) array; a single
                (n, d) matrix is one view.
            y: Not used; for scikit-learn's conventions.

        Raises:
            TypeError: If a tensor is neither float32 nor float64, or a view is sparse.
            ValueError: If the views differ in rows, an entry is not finite, or ``n_components`` is
                out of range.
        """
        views = as_views(self, X, reset=True)
        joined = _joined(views)
        check_integer(
            type(self).__name__, "n_components", self.n_components, low=1, high=min(joined.shape)
        )
        left, values, right = torch.linalg.svd(joined, full_matrices=False)
        k, n = self.n_components, len(joined)
        unscale = torch.cat(
            [view.new_full((view.shape[1],), view.shape[1] ** 0.5) for view in views]
        )
        self.singular_values_ = like_views(values[:k] / n**0.5, X)
        self.objective_ = np.array([float(values[k:].square().sum()) / n])
        self.embedding_ = like_views(left[:, :k] * values[:k], X)
        self.components_ = like_views(right[:k] * unscale, X)
        return self

    def fit_transform(self, X: Any, y: object = None) -> Any:
        """Decompose the views and return H, ``embedding_``.

        Args:
            X: The views, as for ``fit``.
            y: Not used; for scikit-learn's conventions.
        """
        return self.fit(X, y).embedding_

    @torch.no_grad()
    def transform(self, X: Any) -> Any:
        r"""Return codes of samples: the least of the objective for the fitted :math:`V_v`.

        Args:
            X: The views, as for ``fit``.

        Returns:
            (n, k), of the kind of X.

        Raises:
            ValueError: If X has other columns than those of ``fit``.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        check_is_fitted(self)
        views = as_views(self, X, reset=False)
        scale = torch.cat(
            [view.new_full((view.shape[1],), view.shape[1] ** -0.5) for view in views]
        )
        # rows of V, so scaled, are orthonormal
        return like_views(_joined(views) @ (as_floating(self.components_).to(scale) * scale).mT, X)

    @torch.no_grad()
    def inverse_transform(self, H: Any) -> Any:
        """Return what codes stand for.

        Args:
            H: Codes (n, k), an array or a tensor.

        Returns:
            The views as a list of (n, d_v), or one (n, d) if ``fit`` was given a single matrix.

        Raises:
            ValueError: If H is not (n, k).
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        check_is_fitted(self)
        check_shape(type(self).__name__, "H", H, "n k", k=self.n_components)
        codes = as_floating(H)
        joined = codes @ as_floating(self.components_).to(codes)
        if not isinstance(self.n_features_in_, list):
            return like_given(joined, H)
        return [like_given(view, H) for view in joined.split(self.n_features_in_, dim=1)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class CoRegularizedSpectralClustering(ClusterMixin, BaseEstimator):
    r"""Spectral clusterings of several views that are drawn to each other (Kumar et al., 2011).

    .. math::
        \max_{U_v^\top U_v = I}\; \sum_v \mathrm{tr}(U_v^\top L_v U_v)
        + \lambda \sum_{v < w} \mathrm{tr}(U_v U_v^\top U_w U_w^\top)

    with :math:`L_v = D_v^{-1/2} K_v D_v^{-1/2}` of the Gaussian affinities :math:`K_v`, whose width
    is the (lower) median distance of two samples. A round sets every :math:`U_v` to the k leading
    eigenvectors of :math:`L_v + \lambda \sum_{w \ne v} U_w U_w^\top`, its exact optimum. k-means
    then clusters the rows of all :math:`U_v`, each brought to length 1, side by side. With
    :math:`\lambda = 0` and one view this is the spectral clustering of Ng, Jordan and Weiss.

    A. Kumar, P. Rai, H. Daumé III: Co-regularized Multi-view Spectral Clustering. NIPS 2011.

    Args:
        n_clusters: Clusters, and eigenvectors k of every view.
        lam: :math:`\lambda \ge 0`; the paper takes 0.01 to 0.1.
        max_iter: Most rounds.
        tol: Rounds end once one raises the objective by this share or less.
        n_init: Starts of k-means.
        random_state: Seed or ``numpy.random.Generator`` of k-means.

    Attributes:
        labels_: (n,) clusters of the samples.
        embedding_: (n, views * k) what k-means clustered.
        objective_: (n_iter_,) the objective, rising; the first round leaves the views apart.
        n_iter_: Rounds taken.

    Example:
        >>> import numpy as np
        >>> view = np.array([[0.0], [0.1], [5.0], [5.1]])
        >>> labels = CoRegularizedSpectralClustering(2, random_state=0).fit_predict([view, -view])
        >>> bool(labels[0] == labels[1] != labels[2] == labels[3])
        True
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        lam: float = 0.05,
        max_iter: int = 30,
        tol: float = 1e-6,
        n_init: int = 10,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.lam = lam
        self.max_iter = max_iter
        self.tol = tol
        self.n_init = n_init
        self.random_state = random_state

    @torch.no_grad()
    def fit(
        self,
        X: Any,
        y: object = None,  # noqa: ARG002 - scikit-learn's
    ) -> CoRegularizedSpectralClustering:
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
        from sklearn.cluster import KMeans

        owner = type(self).__name__
        views = as_views(self, X, reset=True, min_samples=2)
        check_integer(owner, "n_clusters", self.n_clusters, low=1, high=len(views[0]))
        check_range(owner, "lam", self.lam, low=0)
        check_integer(owner, "max_iter", self.max_iter, low=1)
        check_range(owner, "tol", self.tol, low=0)
        check_integer(owner, "n_init", self.n_init, low=1)
        U, history = self._agree([_normalised_affinity(view) for view in views])
        self.objective_ = np.array(history)
        self.n_iter_ = len(history)
        rows = torch.cat([torch.nn.functional.normalize(u, dim=1) for u in U], dim=1)
        self.embedding_ = like_views(rows, X)
        seed = int(np.random.default_rng(self.random_state).integers(2**31))
        k_means = KMeans(self.n_clusters, n_init=self.n_init, random_state=seed)
        labels = torch.from_numpy(k_means.fit_predict(rows.cpu().numpy()).astype(np.int64))
        self.labels_ = like_views(labels.to(rows.device), X)
        return self

    def _agree(self, L: Sequence[Tensor]) -> tuple[list[Tensor], list[float]]:
        U = [_leading(each, self.n_clusters) for each in L]
        history = [self._value(L, U)]
        for _ in range(self.max_iter - 1 if self.lam > 0 and len(L) > 1 else 0):
            for v, own in enumerate(L):
                others = torch.cat([u for w, u in enumerate(U) if w != v], dim=1)
                U[v] = _leading(own + self.lam * others @ others.mT, self.n_clusters)
            history.append(self._value(L, U))
            if history[-1] - history[-2] <= self.tol * abs(history[-1]):
                break
        return U, history

    def _value(self, L: Sequence[Tensor], U: Sequence[Tensor]) -> float:
        own = sum(float(((each @ u) * u).sum()) for each, u in zip(L, U, strict=True))
        shared = sum(
            float((u.mT @ other).square().sum()) for v, u in enumerate(U) for other in U[:v]
        )
        return own + self.lam * shared


def _joined(views: Sequence[Tensor]) -> Float[Tensor, "n d"]:
    return torch.cat([view / view.shape[1] ** 0.5 for view in views], dim=1)


def _normalised_affinity(view: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    distance = torch.cdist(view, view, compute_mode="donot_use_mm_for_euclid_dist")
    width = torch.nn.functional.pdist(view).median()
    # samples that mostly coincide have no typical distance: any width tells equal from different
    K = torch.exp(-(distance / torch.where(width > 0, width, 1)).square() / 2)
    root = K.sum(dim=1).rsqrt()
    return K * root * root[:, None]


def _leading(matrix: Float[Tensor, "n n"], k: int) -> Float[Tensor, "n k"]:
    return torch.linalg.eigh(matrix).eigenvectors[:, -k:]
