"""Graphs of data points: nearest-neighbour affinities, Laplacians, hypergraphs.

Everything here is a sparse matrix of SciPy with samples as rows; hyperedges follow the index
convention of PyTorch Geometric.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from cv_core.checks import check_choice, check_finite, check_integer, check_range, check_shape

Weight = Literal["heat", "binary", "cosine"]
Symmetrize = Literal["max", "mean", "mutual"]
Normalization = Literal["symmetric", "random-walk"]


def nearest_neighbors(
    X: Float[np.ndarray, "n d"], n_neighbors: int
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """Find every row's nearest other rows; of rows equally far away the lower index comes first.

    Args:
        X: Samples as rows.
        n_neighbors: How many neighbours of each row, below the number of rows.

    Returns:
        The neighbours' indices and the *squared* Euclidean distances, both nearest first. A row is
        never its own neighbour, a duplicate of it is one.

    Raises:
        ValueError: If ``X`` is no finite matrix, or ``n_neighbors`` does not fit its rows.
    """
    owner = "nearest_neighbors"
    n = check_shape(owner, "X", X, "n d")["n"]
    check_finite(owner, "X", X)
    check_integer(owner, "n_neighbors", n_neighbors, low=1, high=n - 1)
    from sklearn.neighbors import NearestNeighbors

    # Where rows are equally far away, before the cut or (hence one more than asked for) across it,
    # their order is an accident of how the search sums up: those rows are decided exactly.
    centred = np.asarray(X, dtype=np.float64) - np.mean(X, axis=0, dtype=np.float64)
    search = NearestNeighbors(n_neighbors=min(n_neighbors + 1, n - 1)).fit(centred)
    index = search.kneighbors(return_distance=False)
    distance = np.stack(
        [np.square(centred - centred[column]).sum(axis=1) for column in index.T], axis=1
    )
    order = np.lexsort((index, distance), axis=1)
    index = np.take_along_axis(index, order, axis=1)
    distance = np.take_along_axis(distance, order, axis=1)
    rounding = 1e-10 * np.square(centred).sum(axis=1).max()
    tied = (np.diff(distance, axis=1) <= rounding).any(axis=1)
    _decide_ties(np.asarray(X, dtype=np.float64), np.flatnonzero(tied), index, distance)
    return index[:, :n_neighbors], distance[:, :n_neighbors]


def _decide_ties(X: np.ndarray, rows: np.ndarray, index: np.ndarray, distance: np.ndarray) -> None:
    """Search the given rows anew by plain differences, and write the answers in place."""
    from scipy.spatial.distance import cdist

    for row in rows:
        exact = cdist(X[row : row + 1], X, "sqeuclidean")[0]
        exact[row] = np.inf
        index[row] = np.argsort(exact, kind="stable")[: index.shape[1]]
        distance[row] = exact[index[row]]


def knn_affinity(
    X: Float[np.ndarray, "n d"],
    n_neighbors: int,
    *,
    weight: Weight = "heat",
    bandwidth: float | None = None,
    symmetrize: Symmetrize = "max",
) -> sparse.csr_array:
    r"""Build the symmetric affinity matrix of the graph that joins each row to its nearest rows.

    The weight of an edge is :math:`\exp(-\|x_i - x_j\|^2 / t)` (``heat``), 1 (``binary``) or the
    cosine of the angle between the rows, at least 0 (``cosine``, neighbours by angle as well).

    Args:
        X: Samples as rows.
        n_neighbors: Neighbours of each row, below the number of rows.
        weight: ``"heat"``, ``"binary"`` or ``"cosine"``.
        bandwidth: The heat kernel's :math:`t`, in squared units of ``X``; by default the mean
            squared distance between neighbours.
        symmetrize: ``"max"`` keeps an edge that either end chose, ``"mutual"`` one that both ends
            chose, ``"mean"`` gives an edge that one end chose half its weight.

    Returns:
        (n, n) with zero diagonal. Equal distances are decided in favour of the lower index, so that
        the graph does not depend on the machine.

    Raises:
        ValueError: If ``X`` is no finite matrix, an option is unknown or out of range, or a row is
            zero and the weight is ``"cosine"``.

    Example:
        >>> import numpy as np
        >>> W = knn_affinity(np.array([[0.0], [1.0], [3.0]]), 1, weight="binary")
        >>> W.toarray()
        array([[0., 1., 0.],
               [1., 0., 1.],
               [0., 1., 0.]])
    """
    owner = "knn_affinity"
    check_choice(owner, "weight", weight, ("heat", "binary", "cosine"))
    check_choice(owner, "symmetrize", symmetrize, ("max", "mean", "mutual"))
    if bandwidth is not None:
        check_range(owner, "bandwidth", bandwidth, low=0, low_open=True)
    n = check_shape(owner, "X", X, "n d")["n"]
    if weight == "cosine":
        X = _unit_rows(owner, X)
    index, squared = nearest_neighbors(X, n_neighbors)
    values = _edge_weights(squared, weight, bandwidth)
    start = np.arange(n + 1) * n_neighbors
    directed = sparse.csr_array((values.ravel(), index.ravel(), start), shape=(n, n))
    if symmetrize == "mean":
        affinity = (directed + directed.T) / 2
    elif symmetrize == "max":
        affinity = directed.maximum(directed.T)
    else:
        affinity = directed.minimum(directed.T)
    affinity = sparse.csr_array(affinity)
    affinity.eliminate_zeros()
    affinity.sort_indices()
    return affinity


def _unit_rows(owner: str, X: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    if not norms.all():
        raise ValueError(
            f"{owner}: X must have no zero row with weight='cosine'; row "
            f"{int(np.flatnonzero(norms == 0)[0])} is zero. Remove it or use weight='heat'."
        )
    return X / norms


def _edge_weights(squared: np.ndarray, weight: Weight, bandwidth: float | None) -> np.ndarray:
    if weight == "binary":
        return np.ones_like(squared)
    if weight == "cosine":
        return np.clip(1 - squared / 2, 0, 1)  # |a - b|^2 = 2 - 2 cos for unit vectors
    scale = float(squared.mean()) if bandwidth is None else bandwidth
    return np.exp(-squared / scale) if scale > 0 else np.ones_like(squared)


def graph_laplacian(W: Any, normalization: Normalization | None = None) -> sparse.csr_array:
    r"""Build the Laplacian of a weighted undirected graph.

    With :math:`D = \mathrm{diag}(W 1)`: :math:`D - W`; ``symmetric``
    :math:`D^{-1/2} (D - W) D^{-1/2}`; ``random-walk`` :math:`D^{-1} (D - W)`. Row and column of a
    node without edges are zero in all three.

    Args:
        W: (n, n) symmetric non-negative affinities, an array or a sparse matrix.
        normalization: ``None``, ``"symmetric"`` or ``"random-walk"``.

    Returns:
        (n, n), float64.

    Raises:
        ValueError: If ``W`` is not square, symmetric, finite and non-negative.

    Example:
        >>> import numpy as np
        >>> graph_laplacian(np.array([[0.0, 2.0], [2.0, 0.0]])).toarray()
        array([[ 2., -2.],
               [-2.,  2.]])
    """
    owner = "graph_laplacian"
    check_choice(owner, "normalization", normalization, (None, "symmetric", "random-walk"))
    W = check_affinity(owner, "W", W)
    degree = W.sum(axis=1)
    laplacian = sparse.diags_array(degree) - W
    if normalization == "symmetric":
        scale = sparse.diags_array(_inverse(np.sqrt(degree)))
        laplacian = scale @ laplacian @ scale
    elif normalization == "random-walk":
        laplacian = sparse.diags_array(_inverse(degree)) @ laplacian
    return sparse.csr_array(laplacian)


def check_affinity(owner: str, name: str, W: Any, *, n: int | None = None) -> sparse.csr_array:
    """Refuse what is no affinity matrix, and return it as a sparse float64 array.

    Args:
        owner: The class or function that takes the argument.
        name: The argument.
        W: An array or a sparse matrix.
        n: The number of rows it must have; any by default.

    Raises:
        ValueError: If it is not square, symmetric (to 1e-10 of its largest entry), finite and
            non-negative.
    """
    W = sparse.csr_array(W, dtype=np.float64)
    check_shape(owner, name, W, "n n", **({} if n is None else {"n": n}))
    check_finite(owner, name, W.data)
    if W.data.size and W.data.min() < 0:
        raise ValueError(f"{owner}: {name} must be non-negative; got {W.data.min():g}.")
    largest = W.data.max() if W.data.size else 0.0
    if abs(W - W.T).max() > 1e-10 * largest:
        raise ValueError(
            f"{owner}: {name} must be symmetric; it is not. Use W.maximum(W.T) or (W + W.T) / 2."
        )
    return W


def _inverse(values: np.ndarray) -> np.ndarray:
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


def hypergraph_incidence(
    hyperedge_index: Int[np.ndarray, "2 m"],
    *,
    n_nodes: int | None = None,
    n_edges: int | None = None,
) -> sparse.csr_array:
    """Build the incidence matrix of a hypergraph from its (node, hyperedge) pairs.

    Args:
        hyperedge_index: Nodes in the first row, their hyperedges in the second, from 0 on; a pair
            that occurs twice counts once.
        n_nodes: Number of nodes; by default one more than the highest that occurs.
        n_edges: Number of hyperedges; by default one more than the highest that occurs.

    Returns:
        (n_nodes, n_edges) with entries 0 and 1, float64.

    Raises:
        TypeError: If the pairs are no integers.
        ValueError: If the shape is wrong or an index lies outside the range.

    Example:
        >>> import numpy as np
        >>> hypergraph_incidence(np.array([[0, 1, 1, 2], [0, 0, 1, 1]])).toarray()
        array([[1., 0.],
               [1., 1.],
               [0., 1.]])
    """
    owner = "hypergraph_incidence"
    check_shape(owner, "hyperedge_index", hyperedge_index, "2 m")
    pairs = np.asarray(hyperedge_index)
    if pairs.dtype.kind not in "iu":
        raise TypeError(f"{owner}: hyperedge_index must hold integers; got {pairs.dtype}.")
    shape = (
        _axis_size(owner, "n_nodes", pairs[0], n_nodes),
        _axis_size(owner, "n_edges", pairs[1], n_edges),
    )
    H = sparse.csr_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=shape)
    H.sum_duplicates()
    H.data[:] = 1.0
    return H


def _axis_size(owner: str, name: str, index: np.ndarray, size: int | None) -> int:
    highest = int(index.max())
    if index.min() < 0:
        raise ValueError(f"{owner}: hyperedge_index must not be negative; got {index.min()}.")
    if size is None:
        return highest + 1
    check_integer(owner, name, size, low=highest + 1)
    return size


def hypergraph_laplacian(
    H: Any, edge_weights: Float[np.ndarray, " e"] | None = None
) -> sparse.csr_array:
    r"""Build the normalised Laplacian of a hypergraph (Zhou, Huang, Schölkopf, NIPS 2006).

    :math:`I - D_v^{-1/2} H W_e D_e^{-1} H^\top D_v^{-1/2}` with the weights of the hyperedges on
    the diagonal of :math:`W_e`, their sizes on that of :math:`D_e` and the nodes' weighted degrees
    on that of :math:`D_v`. Row and column of a node without hyperedges are zero.

    Args:
        H: (nodes, hyperedges) incidence matrix, an array or a sparse matrix.
        edge_weights: One non-negative weight per hyperedge; all 1 by default.

    Returns:
        (nodes, nodes) symmetric and positive semidefinite, float64.

    Raises:
        ValueError: If ``H`` or the weights are negative, not finite, or of the wrong shape.
    """
    owner = "hypergraph_laplacian"
    H = sparse.csr_array(H, dtype=np.float64)
    e = check_shape(owner, "H", H, "n e")["e"]
    weights = np.ones(e) if edge_weights is None else np.asarray(edge_weights, dtype=np.float64)
    check_shape(owner, "edge_weights", weights, "e", e=e)
    for name, values in (("H", H.data), ("edge_weights", weights)):
        check_finite(owner, name, values)
        if values.size and values.min() < 0:
            raise ValueError(f"{owner}: {name} must be non-negative; got {values.min():g}.")
    degree = H @ weights
    left = sparse.diags_array(_inverse(np.sqrt(degree))) @ H
    middle = sparse.diags_array(weights * _inverse(H.sum(axis=0)))
    identity = sparse.diags_array((degree > 0).astype(np.float64))
    return sparse.csr_array(identity - left @ middle @ left.T)
