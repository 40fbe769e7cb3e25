r"""Linear projections that keep neighbourhoods: LPP and NPE.

Both solve, for centred samples as the rows of :math:`X`,

.. math::
    \min_a\; \frac{a^\top X^\top L X a}{a^\top X^\top D X a}

and differ in :math:`L` and :math:`D`. Their counterparts without a projection are scikit-learn's,
and nothing here wraps them: ``sklearn.manifold.SpectralEmbedding`` (Laplacian eigenmaps, what LPP
makes linear), ``sklearn.manifold.LocallyLinearEmbedding`` (what NPE makes linear), ``Isomap`` and
``TSNE``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cv_core.checks import check_choice, check_integer, check_range
from cv_core.numerics.affinity import (
    check_affinity,
    graph_laplacian,
    knn_affinity,
    nearest_neighbors,
)
from jaxtyping import Float
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

_WEIGHTS = ("heat", "binary", "cosine")


class _NeighborhoodProjection(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What LPP and NPE share: all but the two matrices of the quotient."""

    components_: np.ndarray
    n_components: int
    n_neighbors: int
    pca: int | float | None

    def fit(
        self,
        X: Float[np.ndarray, "n p"],
        y: object = None,  # noqa: ARG002 - scikit-learn's signature
    ) -> Any:
        """Find the projection.

        Args:
            X: Samples as rows, at least two; computed in float64.
            y: Not used; for scikit-learn's conventions.

        Raises:
            ValueError: If X is not finite, an option is out of range, or more components are asked
                for than the samples span dimensions.
        """
        self._check_options()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        L, degrees = self._quotient(X, min(self.n_neighbors, len(X) - 1))
        self.mean_ = X.mean(axis=0)
        centred = X - self.mean_
        if self.pca is None:
            directions, self.eigenvalues_ = self._smallest(centred, L, degrees)
        else:
            axes = self._principal_axes(centred)
            directions, self.eigenvalues_ = self._smallest(centred @ axes.T, L, degrees)
            directions = axes.T @ directions
        self.components_ = _with_fixed_signs(directions.T)
        return self

    def transform(self, X: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n d"]:
        """Project samples.

        Args:
            X: Samples as rows.

        Returns:
            (n, n_components).

        Raises:
            ValueError: If X has other columns than those of ``fit``.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        projected: np.ndarray = (X - self.mean_) @ self.components_.T
        return projected

    def _check_options(self) -> None:
        owner = type(self).__name__
        check_integer(owner, "n_components", self.n_components, low=1)
        check_integer(owner, "n_neighbors", self.n_neighbors, low=1)
        if isinstance(self.pca, float):
            check_range(owner, "pca", self.pca, low=0, high=1, low_open=True, high_open=True)
        elif self.pca is not None:
            check_integer(owner, "pca", self.pca, low=1)

    def _quotient(self, X: np.ndarray, n_neighbors: int) -> tuple[Any, np.ndarray]:
        """Return L (n, n) and the diagonal of D (n,)."""
        raise NotImplementedError

    def _principal_axes(self, X: np.ndarray) -> np.ndarray:
        from sklearn.decomposition import PCA

        count = min(self.pca, *X.shape) if isinstance(self.pca, int) else self.pca
        axes: np.ndarray = PCA(count, svd_solver="full").fit(X).components_
        return axes

    def _smallest(
        self, X: np.ndarray, L: Any, degrees: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the directions (p, d) of the least quotients, and these.

        X is whitened by its singular values: the generalised problem becomes an ordinary one, and
        directions in which the samples do not vary drop out.
        """
        _, lengths, right = np.linalg.svd(np.sqrt(degrees)[:, None] * X, full_matrices=False)
        rank = int((lengths > max(X.shape) * np.finfo(float).eps * lengths[0]).sum())
        if rank < self.n_components:
            raise ValueError(
                f"{type(self).__name__}: n_components must be at most {rank}, the dimensions that "
                f"the samples span (n_samples={len(X)}, n_features={self.n_features_in_}, "
                f"pca={self.pca}); got {self.n_components}."
            )
        whitening = right[:rank].T / lengths[:rank]
        white = X @ whitening
        values, vectors = np.linalg.eigh(white.T @ (L @ white))
        d = self.n_components
        return whitening @ vectors[:, :d], values[:d]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)


class LPP(_NeighborhoodProjection):
    r"""Locality preserving projections (He, Niyogi; NIPS 2003): linear Laplacian eigenmaps.

    .. math::
        \min_a \sum_{ij} W_{ij} (a^\top x_i - a^\top x_j)^2
        \quad\text{s.t.}\quad \sum_i D_{ii} (a^\top x_i)^2 = 1, \qquad D = \mathrm{diag}(W 1)

    The components are the solutions of :math:`X^\top L X a = \lambda X^\top D X a` with the least
    :math:`\lambda`, :math:`L = D - W`. With at least as many features as samples, and ``pca=None``,
    nothing is left of the linear constraint: the training samples then get the coordinates of
    Laplacian eigenmaps, up to a shift.

    Args:
        n_components: Dimensions d of the projection.
        n_neighbors: Neighbours of each sample in the graph; at most all others.
        affinity: ``"heat"``, ``"binary"`` or ``"cosine"`` as in ``cv_core.numerics.affinity``, or
            W itself, (n, n) symmetric and non-negative, an array or a sparse matrix.
        bandwidth: The heat kernel's t in squared units of X, :math:`\exp(-\|x_i - x_j\|^2 / t)`; by
            default the mean squared distance between neighbours.
        pca: Principal components kept beforehand, a number or a share of the variance in (0, 1);
            by default all. The samples' own dimensions are found without it.

    Attributes:
        components_: (d, p) the directions :math:`a`, least :math:`\lambda` first; the largest entry
            of each is positive.
        eigenvalues_: (d,) the :math:`\lambda`, rising.
        mean_: (p,) the mean of the training samples.
        n_features_in_: p.
        feature_names_in_: Names of the columns of X, if they all had names.

    Deviations from the paper: the samples are centred, which the paper leaves to a preceding PCA;
    without it a constant may be the first, useless solution.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(20, 4))
        >>> LPP(2, n_neighbors=3).fit_transform(X).shape
        (20, 2)
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        n_neighbors: int = 5,
        affinity: Any = "heat",
        bandwidth: float | None = None,
        pca: int | float | None = None,
    ) -> None:
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.affinity = affinity
        self.bandwidth = bandwidth
        self.pca = pca

    def _check_options(self) -> None:
        super()._check_options()
        if isinstance(self.affinity, str):
            check_choice(type(self).__name__, "affinity", self.affinity, _WEIGHTS)
        if self.bandwidth is not None:
            check_range(type(self).__name__, "bandwidth", self.bandwidth, low=0, low_open=True)

    def _quotient(self, X: np.ndarray, n_neighbors: int) -> tuple[Any, np.ndarray]:
        if isinstance(self.affinity, str):
            W = knn_affinity(
                X,
                n_neighbors,
                weight=self.affinity,  # type: ignore[arg-type] # checked
                bandwidth=self.bandwidth,
            )
        else:
            W = check_affinity(type(self).__name__, "affinity", self.affinity, n=len(X))
        if W.sum() == 0:
            raise ValueError(f"{type(self).__name__}: all weights vanish. Use a larger bandwidth.")
        return graph_laplacian(W), W.sum(axis=1)


class NPE(_NeighborhoodProjection):
    r"""Neighbourhood preserving embedding (He et al., ICCV 2005): linear locally linear embedding.

    .. math::
        \min_a \sum_i \Big(a^\top x_i - \sum_j W_{ij} a^\top x_j\Big)^2
        \quad\text{s.t.}\quad \sum_i (a^\top x_i)^2 = 1

    with the affine weights :math:`W` that rebuild each sample from its neighbours best.

    X. He, D. Cai, S. Yan, H.-J. Zhang: Neighborhood Preserving Embedding. ICCV 2005.

    Args:
        n_components: Dimensions d of the projection.
        n_neighbors: Neighbours from which each sample is rebuilt; at most all others.
        reg: Damping of each sample's weights, a share of its local covariance's trace, positive.
        pca: Principal components kept beforehand, a number or a share of the variance in (0, 1);
            by default all.

    Attributes:
        components_: (d, p) the directions :math:`a`, least quotient first; the largest entry of
            each is positive.
        eigenvalues_: (d,) the quotients, rising.
        mean_: (p,) the mean of the training samples.
        n_features_in_: p.
        feature_names_in_: Names of the columns of X, if they all had names.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(20, 4))
        >>> NPE(2, n_neighbors=3).fit_transform(X).shape
        (20, 2)
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        n_neighbors: int = 5,
        reg: float = 1e-3,
        pca: int | float | None = None,
    ) -> None:
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.reg = reg
        self.pca = pca

    def _check_options(self) -> None:
        super()._check_options()
        check_range(type(self).__name__, "reg", self.reg, low=0, low_open=True)

    def _quotient(self, X: np.ndarray, n_neighbors: int) -> tuple[Any, np.ndarray]:
        n = len(X)
        index, _ = nearest_neighbors(X, n_neighbors)
        weights = _rebuilding_weights(X, index, self.reg)
        start = np.arange(n + 1) * n_neighbors
        W = sparse.csr_array((weights.ravel(), index.ravel(), start), shape=(n, n))
        gap = sparse.eye_array(n, format="csr") - W
        return gap.T @ gap, np.ones(n)


def _rebuilding_weights(X: np.ndarray, index: np.ndarray, reg: float) -> np.ndarray:
    """Return the weights (n, k), rows of sum 1, that rebuild each row of X from its neighbours."""
    weights = np.empty(index.shape)
    for row, neighbors in enumerate(index):
        edges = X[neighbors] - X[row]
        gram = edges @ edges.T
        trace = np.trace(gram)
        # neighbours that all coincide with the sample rebuild it with any weights
        gram[np.diag_indices_from(gram)] += reg * trace if trace > 0 else 1.0
        weights[row] = np.linalg.solve(gram, np.ones(len(neighbors)))
    rebuilt: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return rebuilt


def _with_fixed_signs(components: np.ndarray) -> np.ndarray:
    """Make the largest entry of each row positive, so that machines agree on the sign."""
    largest = np.abs(components).argmax(axis=1)
    signed: np.ndarray = (
        components * np.sign(components[np.arange(len(components)), largest])[:, None]
    )
    return signed
