"""A projection that is searched by re-weighting its neighbourhood graph (FPSORA)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from cv_core.checks import check_choice, check_finite, check_integer, check_range, check_shape
from cv_core.numerics.affinity import graph_laplacian, nearest_neighbors
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float, Int
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from cv_graph.manifold import LPP
from cv_graph.matrix_roots import psd_null_space, psd_sqrt, psd_sqrt_pinv

if TYPE_CHECKING:
    import torch


def inverse_distance_weights(
    distances: Float[np.ndarray, "n k"], *, eps: float = 1e-12
) -> Float[np.ndarray, "n k"]:
    r"""Weigh each node's neighbours so that the weighted squared distances are least.

    .. math::
        \min_\mu \tfrac12 \sum_j d_{ij} \mu_{ij}^2 \;\text{s.t.}\; \sum_j \mu_{ij} = 1
        \quad\Longrightarrow\quad \mu_{ij} = \frac{1 / d_{ij}}{\sum_l 1 / d_{il}}

    The solution is positive without being told so.

    Args:
        distances: :math:`d`, squared distances of each node (row) to its neighbours; not negative.
        eps: Added to the distances, as a share of the row's largest, so that a neighbour at
            distance 0 takes almost all the weight and does not divide by 0.

    Returns:
        :math:`\mu`; rows sum to 1, and are uniform where all distances are 0.

    Raises:
        ValueError: If a distance is negative or not finite, or ``eps`` is not positive.

    Example:
        >>> inverse_distance_weights(np.array([[1.0, 4.0]])).round(6)
        array([[0.8, 0.2]])
    """
    owner = "inverse_distance_weights"
    check_shape(owner, "distances", distances, "n k")
    check_finite(owner, "distances", distances)
    check_range(owner, "eps", eps, low=0, low_open=True)
    if distances.min() < 0:
        raise ValueError(f"{owner}: distances must not be negative; got {distances.min():g}.")
    largest = distances.max(axis=1, keepdims=True)
    largest = np.where(largest > 0, largest, 1.0)
    inverse = 1 / (distances / largest + eps)
    weights: np.ndarray = inverse / inverse.sum(axis=1, keepdims=True)
    return weights


class _Piece(NamedTuple):
    """A connected component: its nodes, its inverse root, and what that root cannot see."""

    nodes: np.ndarray
    inverse_root: np.ndarray
    null: np.ndarray


class FPSORA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Flexible projection search using an optimally re-weighted adjacency, for clustering.

    Tao, Zhao, Zhang: Flexible Projection Search Using Optimal Re-weighted Adjacency for
    Unsupervised Manifold Learning. PRCV 2021, LNCS 13022, pp. 227-239.

    .. math::
        J(Y) = \tfrac12 \sum_i \sum_{j \in N(i)} a_{ij} \|y_i - y_j\|^2
        = \mathrm{tr}(Y^\top L_A Y), \qquad
        \sqrt{a_{ij}} = \frac{\sqrt{w_{ij}}}{\sum_l \sqrt{w_{il}}}, \quad
        w_{ij} = e^{-\|x_i - x_j\|^2 / 2 \sigma^2}

    Samples are rows: :math:`Y` (n, d) holds the coordinates of :math:`X` (n, p), :math:`N(i)` the k
    nearest neighbours in the input space, which stay, and :math:`L_A` is the Laplacian of the
    weights :math:`a`. A step first gives every sample's edges the weights that lower the objective
    most (``inverse_distance_weights``), with the Laplacian :math:`L_o` of :math:`\mu^2`,

    .. math::
        \mu_{ij} = \frac{1 / d_{ij}}{\sum_l 1 / d_{il}}, \qquad d_{ij} = \|y_i - y_j\|^2,

    and then moves the samples so that the *first* weights have the value just reached:

    .. math::
        Y \leftarrow (L_A^{1/2})^+ L_o^{1/2} Y + \Pi_0 Y
        \quad\Longrightarrow\quad
        J_t = \mathrm{tr}(Y_{t-1}^\top L_{o,t} Y_{t-1}) \le J_{t-1}

    with :math:`\Pi_0` the projector on the null space of :math:`L_A`. The projection itself is
    never formed. Each step decomposes :math:`L_o` within each connected component of the graph:
    O(m^3) for one of m samples.

    Args:
        n_components: Dimensions d.
        n_neighbors: Neighbours k; at most all others. The paper takes 2 to 10.
        sigma: :math:`\sigma > 0` in units of X, or ``"local"``: each sample's distance to its k-th
            neighbour. A large one gives uniform weights.
        init: :math:`Y_0`: ``"pca"``, ``"lpp"`` (``cv_graph.manifold.LPP`` with the same neighbours
            and width; with ``"local"`` its own default), or coordinates (n, d), which are centred.
        max_iter: Most steps; 0 leaves :math:`Y_0`. The objective often falls for hundreds of steps,
            and the coordinates shrink with it: this is how far to go rather than a limit that
            should not be met, and reaching it is no reason for a warning.
        tol: Steps end once one lowers the objective by this share or less; 0 takes them all.
        null_space: ``"keep"`` leaves the mean of each connected component where it is; ``"drop"``
            is the printed formula, without :math:`\Pi_0`, which puts all of them at 0.
        eps: As in ``inverse_distance_weights``.

    Attributes:
        embedding_: (n, d) the coordinates of the training samples: what the paper clusters.
        components_: (d, p) the least-squares map of centred samples to ``embedding_``, Eq. 13.
        mean_: (p,) the mean of the training samples.
        objective_: (n_iter_ + 1,) :math:`J_0, J_1, \dots`, never rising.
        weights_: (n, n) sparse :math:`\mu` of the last step, rows of sum 1.
        n_iter_: Steps taken.
        n_features_in_: p.
        feature_names_in_: Names of the columns of X, if they all had names.

    Deviations from the paper:

    - Both weights are made symmetric, :math:`(A + A^\top) / 2`. Nearest neighbours are not mutual;
      the sum over edges is a trace with a Laplacian, and the Laplacian has a square root, only so.
    - The printed formula sets the mean of every connected component to 0 and thereby lays them on
      top of each other. Its condition on J does not determine the means, hence ``"keep"``. In a
      connected graph both are the same.
    - Coordinates are carried on, not their Gram matrix (Eq. 11): distances from that cancel, and
      after about 100 steps it goes astray, with an objective that rises or turns negative.
    - ``transform`` adds to the linear map what it misses of the nearest training samples (see
      there), so that it agrees with ``fit_transform``. With at least as many independent features
      as samples it misses nothing, and ``transform`` is Eq. 13.
    - :math:`Y_0` and the rule to stop are not in the paper.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(30, 5))
        >>> model = FPSORA(2, max_iter=10).fit(X)
        >>> model.embedding_.shape, bool(model.objective_[-1] < model.objective_[0])
        ((30, 2), True)
    """

    def __init__(
        self,
        n_components: int = 2,
        n_neighbors: int = 5,
        *,
        sigma: float | Literal["local"] = 1.0,
        init: Literal["pca", "lpp"] | np.ndarray = "pca",
        max_iter: int = 50,
        tol: float = 1e-4,
        null_space: Literal["keep", "drop"] = "keep",
        eps: float = 1e-12,
    ) -> None:
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.sigma = sigma
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.null_space = null_space
        self.eps = eps

    def fit(
        self,
        X: Float[np.ndarray, "n p"],
        y: object = None,  # noqa: ARG002 - scikit-learn's signature
    ) -> FPSORA:
        """Search the coordinates of the samples.

        Args:
            X: Samples as rows, at least two; computed in float64.
            y: Not used; for scikit-learn's conventions.

        Raises:
            ValueError: If X is not finite, an option is out of range, or more components are asked
                for than the initialiser can give.
        """
        self._check_options()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        neighbors, squared = nearest_neighbors(X, min(self.n_neighbors, len(X) - 1))
        first = _first_weights(squared, self.sigma)
        start = self._start(X)
        self.mean_ = X.mean(axis=0)
        self.embedding_, weights, self.objective_ = self._search(start, neighbors, first)
        self.weights_ = _directed(neighbors, weights)
        self.n_iter_ = len(self.objective_) - 1
        centred = X - self.mean_
        self.components_ = np.linalg.lstsq(centred, self.embedding_, rcond=None)[0].T
        self._training = X
        self._missed = self.embedding_ - centred @ self.components_.T
        return self

    def fit_transform(
        self, X: Float[np.ndarray, "n p"], y: object = None
    ) -> Float[np.ndarray, "n d"]:
        """Search the coordinates of the samples and return them, ``embedding_``.

        Args:
            X: Samples as rows, at least two.
            y: Not used; for scikit-learn's conventions.
        """
        return self.fit(X, y).embedding_

    def transform(self, X: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n d"]:
        """Place samples among the training samples.

        A sample gets its image under ``components_`` plus what that map misses of its nearest
        training samples, weighed by ``inverse_distance_weights``: Shepard's interpolation. A
        training sample is put where it was. ``(X - mean_) @ components_.T`` is the map alone.

        Args:
            X: Samples as rows.

        Returns:
            (n, n_components).

        Raises:
            ValueError: If X has other columns than those of ``fit``.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        from sklearn.neighbors import NearestNeighbors

        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        search = NearestNeighbors(n_neighbors=min(self.n_neighbors, len(self._training)))
        index = search.fit(self._training).kneighbors(X, return_distance=False)
        # by plain differences: the search's own distances are not exactly 0 for a training sample
        distances = _squared_distances(X, self._training, index)
        weights = inverse_distance_weights(distances, eps=self.eps)
        missed = np.einsum("nk,nkd->nd", weights, self._missed[index])
        placed: np.ndarray = (X - self.mean_) @ self.components_.T + missed
        return placed

    def _check_options(self) -> None:
        owner = type(self).__name__
        check_integer(owner, "n_components", self.n_components, low=1)
        check_integer(owner, "n_neighbors", self.n_neighbors, low=1)
        if isinstance(self.sigma, str):
            check_choice(owner, "sigma", self.sigma, ("local",))
        else:
            check_range(owner, "sigma", self.sigma, low=0, low_open=True)
        if isinstance(self.init, str):
            check_choice(owner, "init", self.init, ("pca", "lpp"))
        check_integer(owner, "max_iter", self.max_iter, low=0)
        check_range(owner, "tol", self.tol, low=0)
        check_choice(owner, "null_space", self.null_space, ("keep", "drop"))
        check_range(owner, "eps", self.eps, low=0, low_open=True)

    def _start(self, X: np.ndarray) -> np.ndarray:
        """Return the centred coordinates to begin with."""
        owner, d = type(self).__name__, self.n_components
        if not isinstance(self.init, str):
            given = np.asarray(self.init, dtype=np.float64)
            check_shape(owner, "init", given, "n d", n=len(X), d=d)
            check_finite(owner, "init", given)
            return given - given.mean(axis=0)
        if d > min(X.shape):
            raise ValueError(
                f"{owner}: n_components must be at most the smaller of n_samples={len(X)} and "
                f"n_features={X.shape[1]} with init={self.init!r}; got {d}."
            )
        if self.init == "lpp":
            width = None if isinstance(self.sigma, str) else 2 * self.sigma**2
            lpp = LPP(d, n_neighbors=self.n_neighbors, bandwidth=width)
            coordinates = lpp.fit_transform(X)
        else:
            from sklearn.decomposition import PCA

            coordinates = PCA(d, svd_solver="full").fit_transform(X)
        return coordinates - coordinates.mean(axis=0)

    def _search(
        self, Y: np.ndarray, neighbors: np.ndarray, first: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take the steps; return coordinates, last weights and the course of the objective."""
        weights = first
        pieces = list(_pieces(neighbors, first))
        distances = _squared_distances(Y, Y, neighbors)
        history = [_objective(first, distances)]
        while len(history) <= self.max_iter and history[-1] > 0:
            weights = inverse_distance_weights(distances, eps=self.eps)
            Y = self._moved(Y, pieces, graph_laplacian(_symmetric(neighbors, weights**2)))
            distances = _squared_distances(Y, Y, neighbors)
            history.append(_objective(first, distances))
            if history[-2] - history[-1] <= self.tol * history[-2] and self.tol > 0:
                break
        return Y, weights, np.array(history)

    def _moved(self, Y: np.ndarray, pieces: Sequence[_Piece], L: sparse.csr_array) -> np.ndarray:
        moved = np.empty_like(Y)
        for nodes, inverse_root, null in pieces:
            own = Y[nodes]
            root = psd_sqrt(L[nodes][:, nodes].toarray())
            moved[nodes] = inverse_root @ (root @ own)
            if self.null_space == "keep":
                moved[nodes] += null @ (null.T @ own)
        return moved

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)


def _first_weights(
    squared: Float[np.ndarray, "n k"], sigma: float | Literal["local"]
) -> Float[np.ndarray, "n k"]:
    """Return the normalised roots of the heat kernel's weights, from squared distances that rise.

    The nearest neighbour's own weight cancels; without it a small sigma would leave only zeros.
    """
    scale = squared[:, -1:] if isinstance(sigma, str) else np.full((len(squared), 1), sigma**2)
    excess = squared - squared[:, :1]
    # with a scale of 0 all neighbours coincide with the sample: none is farther than another
    ratio = np.divide(excess, scale, out=np.zeros_like(excess), where=scale > 0)
    roots = np.exp(-ratio / 4)
    weights: np.ndarray = roots / roots.sum(axis=1, keepdims=True)
    return weights


def _directed(
    neighbors: Int[np.ndarray, "n k"], values: Float[np.ndarray, "n k"]
) -> sparse.csr_array:
    n, k = neighbors.shape
    start = np.arange(n + 1) * k
    return sparse.csr_array((values.ravel(), neighbors.ravel(), start), shape=(n, n))


def _symmetric(
    neighbors: Int[np.ndarray, "n k"], values: Float[np.ndarray, "n k"]
) -> sparse.csr_array:
    """Return the weighted graph in which an edge that one end chose has half its weight."""
    directed = _directed(neighbors, values)
    return sparse.csr_array((directed + directed.T) / 2)


def _pieces(neighbors: Int[np.ndarray, "n k"], first: Float[np.ndarray, "n k"]) -> Iterator[_Piece]:
    """Cut the graph into its connected components: Laplacians are block diagonal over them.

    An edge belongs to the graph even where its first weight is too small for a number; the null
    space is that of the weights, and then has more than the constants.
    """
    from scipy.sparse.csgraph import connected_components

    _, labels = connected_components(_directed(neighbors, np.ones_like(first)), directed=False)
    L = graph_laplacian(_symmetric(neighbors, first**2))
    for label in range(labels.max() + 1):
        nodes = np.flatnonzero(labels == label)
        block = L[nodes][:, nodes].toarray()
        yield _Piece(nodes, psd_sqrt_pinv(block), psd_null_space(block))


def _squared_distances(
    X: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"], index: Int[np.ndarray, "n k"]
) -> Float[np.ndarray, "n k"]:
    """Return the squared distances of each row of X to the other rows that the index names."""
    # a column at a time, so that no (n, k, d) array is held
    return np.stack([np.square(X - others[column]).sum(axis=1) for column in index.T], axis=1)


def _objective(weights: np.ndarray, distances: np.ndarray) -> float:
    return float(np.vdot(weights**2, distances)) / 2


def _examples() -> Sequence[Example]:
    def inputs(generator: torch.Generator) -> tuple[np.ndarray]:
        import torch

        return (torch.rand(24, 6, generator=generator, dtype=torch.float64).numpy(),)

    return [
        Example(build=partial(FPSORA, 2, max_iter=10), inputs=inputs),
        Example(build=partial(FPSORA, 2, init="lpp", null_space="drop", max_iter=5), inputs=inputs),
    ]


CARD = Card(
    slug="fpsora",
    title="Projection search by re-weighting the neighbourhood graph",
    reference=Reference(
        title=(
            "Flexible Projection Search Using Optimal Re-weighted Adjacency for Unsupervised "
            "Manifold Learning"
        ),
        authors="Tao, Zhao, Zhang",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="227-239",
    ),
    kind="estimator",
    objects=(
        "cv_graph.methods.fpsora.FPSORA",
        "cv_graph.methods.fpsora.inverse_distance_weights",
        "cv_graph.manifold.LPP",
        "cv_graph.manifold.NPE",
        "cv_graph.matrix_roots.psd_null_space",
        "cv_graph.matrix_roots.psd_sqrt",
        "cv_graph.matrix_roots.psd_sqrt_pinv",
    ),
    examples=_examples,
)
