"""Hypergraphs built from features, clusters, pictures and graphs.

Each function returns a :class:`~cv_graph.hypergraph.Hypergraph` on the device of what it was given.
Of nodes equally near, the lower index comes first, so that the result is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from cv_core.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_range,
    check_shape,
)
from jaxtyping import Float, Int
from torch import Tensor

from cv_graph.hypergraph import Hypergraph, check_finite_rows, check_pairs

NeighborWeight = Literal["binary", "paper", "hgnn"]
_ENTRIES = 2**23  # numbers held at a time: 64 MiB in double precision


def knn_hypergraph(
    X: Float[Tensor, "n d"], k: int = 10, *, weight: NeighborWeight = "binary"
) -> Hypergraph:
    r"""Build one hyperedge per node: the node itself and its nearest others, ``k`` in all.

    Entries, with :math:`D_{ij}` the Euclidean distance of member i from centre j: 1 (``binary``);
    :math:`\exp(-2 D_{ij}^2 / \Delta)` with :math:`\Delta` the mean distance over all pairs of
    nodes, self-pairs counted (``paper``: Huang et al., HybridHGCN, PRCV 2021, Eq. 10; it depends
    on the unit of X); :math:`\exp(-D_{ij}^2 / \Delta_j^2)` with :math:`\Delta_j` the mean distance
    of all nodes from the centre (``hgnn``: the code of Feng et al., AAAI 2019).

    Args:
        X: Features as rows.
        k: Members of every hyperedge, its centre included, up to the number of nodes.
        weight: ``"binary"``, ``"paper"`` or ``"hgnn"``.

    Returns:
        n hyperedges; hyperedge j has centre j. A node with duplicates has distance 0 to them, and
        is a member of its own hyperedge all the same.

    Raises:
        TypeError: If ``X`` is not floating-point.
        ValueError: If ``X`` is not finite (NaN in a row would reach every distance), or ``k`` does
            not fit.

    Example:
        >>> import torch
        >>> knn_hypergraph(torch.tensor([[0.0], [1.0], [3.0]]), 2).lists()
        [[0, 1], [0, 1], [1, 2]]
    """
    owner = "knn_hypergraph"
    n = _check_features(owner, X)
    check_choice(owner, "weight", weight, ("binary", "paper", "hgnn"))
    check_integer(owner, "k", k, low=1, high=n)
    distances = _Distances(X)
    members, squared = _nearest(distances, k)
    centres = torch.arange(n, device=X.device).repeat_interleave(k)
    values = None
    if weight == "paper":
        values = torch.exp(-2 * squared / _positive(distances.means().mean()))
    elif weight == "hgnn":
        values = torch.exp(-squared / _positive(distances.means()).square()[:, None])
    return Hypergraph(
        torch.stack([members.flatten(), centres]),
        num_nodes=n,
        num_hyperedges=n,
        incidence_weight=None if values is None else values.flatten().to(X.dtype),
    )


def ball_hypergraph(X: Float[Tensor, "n d"], radius: float) -> Hypergraph:
    """Build one hyperedge per node: all nodes within a radius, itself included.

    Args:
        X: Features as rows.
        radius: Euclidean, in the unit of X, at least 0.

    Returns:
        n hyperedges; hyperedge j is the ball around node j.

    Raises:
        TypeError: If ``X`` is not floating-point.
        ValueError: If ``X`` is not finite or the radius negative.

    Example:
        >>> import torch
        >>> ball_hypergraph(torch.tensor([[0.0], [1.0], [3.0]]), 1.5).lists()
        [[0, 1], [0, 1], [2]]
    """
    owner = "ball_hypergraph"
    n = _check_features(owner, X)
    check_range(owner, "radius", radius, low=0)
    distances, pairs = _Distances(X), []
    for first, squared in distances.blocks():
        centre, member = (squared <= radius**2 + distances.error).nonzero(as_tuple=True)
        found, centre = squared[centre, member], centre + first
        close = (found - radius**2).abs() <= distances.error  # too close to call from a product
        found[close] = distances.exact(centre[close], member[close])
        inside = (found <= radius**2) | (centre == member)
        pairs.append(torch.stack([member[inside], centre[inside]]))
    return Hypergraph(torch.cat(pairs, dim=1), num_nodes=n, num_hyperedges=n)


def cluster_hypergraph(labels: Int[Tensor, " n"]) -> Hypergraph:
    """Build one hyperedge per cluster from any clustering's labels.

    Args:
        labels: Cluster of every node, from 0; -1 (noise) leaves a node without hyperedge. Numbers
            that do not occur become empty hyperedges, so that hyperedge c is cluster c.

    Raises:
        TypeError: If the labels are no integers.
        ValueError: If a label is below -1; the message says which.

    Example:
        >>> import torch
        >>> cluster_hypergraph(torch.tensor([0, 1, -1, 0])).lists()
        [[0, 3], [1]]
    """
    owner = "cluster_hypergraph"
    n = check_shape(owner, "labels", labels, "n")["n"]
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{owner}: labels must hold integers; got {labels.dtype}.")
    bad = (labels < -1).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"{owner}: labels must be integers from 0, or -1 for none; entry {int(bad[0])} is "
            f"{int(labels[bad[0]])}."
        )
    member = (labels >= 0).nonzero().flatten()
    return Hypergraph(torch.stack([member, labels[member].long()]), num_nodes=n)


def superpixel_hypergraph(
    image: Float[Tensor, "3 h w"], segments: int = 100, *, compactness: float = 10.0
) -> Hypergraph:
    """Build one hyperedge per superpixel over the pixels of an image.

    The superpixels are those of SLIC (Achanta et al., PAMI 2012) by scikit-image. For labels from
    elsewhere: ``cluster_hypergraph(labels.flatten())``.

    Args:
        image: RGB in [0, 1].
        segments: About how many superpixels.
        compactness: Weight of nearness against colour, above 0.

    Returns:
        h * w nodes, row by row.

    Raises:
        ImportError: If scikit-image is not installed.
        ValueError: If the image is not RGB in [0, 1].
    """
    from cv_core.optional import require

    owner = "superpixel_hypergraph"
    check_shape(owner, "image", image, "3 h w")
    check_finite(owner, "image", image)
    check_integer(owner, "segments", segments, low=1)
    check_range(owner, "compactness", compactness, low=0, low_open=True)
    if float(image.min()) < 0 or float(image.max()) > 1:
        raise ValueError(f"{owner}: image must lie in [0, 1].")
    skimage = require(
        "skimage.segmentation", package="cv-graph", extra="superpixels", purpose=owner
    )
    labels = skimage.slic(
        image.permute(1, 2, 0).cpu().numpy(),
        n_segments=segments,
        compactness=compactness,
        start_label=0,
    )
    return cluster_hypergraph(torch.from_numpy(labels).long().flatten().to(image.device))


def neighborhood_hypergraph(
    edge_index: Int[Tensor, "2 e"], *, num_nodes: int, hops: int = 1
) -> Hypergraph:
    """Build one hyperedge per node of a graph: itself and all nodes that reach it.

    Args:
        edge_index: Sources in row 0, targets in row 1; an undirected edge occurs both ways.
        num_nodes: Number of nodes; an isolated one is alone in its hyperedge.
        hops: Longest path along which a node counts as neighbour, from 1.

    Returns:
        ``num_nodes`` hyperedges; hyperedge j has centre j. For an undirected graph and one hop the
        incidence matrix is A + I.

    Raises:
        ValueError: If an index is out of range.

    Example:
        >>> import torch
        >>> neighborhood_hypergraph(torch.tensor([[0, 1], [1, 0]]), num_nodes=3).lists()
        [[0, 1], [0, 1], [2]]
    """
    owner = "neighborhood_hypergraph"
    check_integer(owner, "num_nodes", num_nodes, low=1)
    check_integer(owner, "hops", hops, low=1)
    check_pairs(owner, "edge_index", edge_index, {"source": num_nodes, "target": num_nodes})
    import numpy as np
    from scipy.sparse import csr_array, eye_array

    source, target = edge_index.cpu().numpy()
    step = csr_array((np.ones(len(source)), (source, target)), shape=(num_nodes, num_nodes))
    step = csr_array((step + eye_array(num_nodes)) > 0, dtype=np.float64)
    reach = step
    for _ in range(hops - 1):
        reach = csr_array((reach @ step) > 0, dtype=np.float64)
    node, centre = reach.nonzero()
    pairs = torch.from_numpy(np.stack([node, centre]).astype(np.int64))
    return Hypergraph(pairs.to(edge_index.device), num_nodes=num_nodes, num_hyperedges=num_nodes)


def clique_hypergraph(
    edge_index: Int[Tensor, "2 e"], *, num_nodes: int, smallest: int = 2
) -> Hypergraph:
    """Build one hyperedge per maximal clique of an undirected graph.

    Their number can grow exponentially with the graph's density; sparse graphs are fine.

    Args:
        edge_index: Edges in any direction; loops are left out.
        num_nodes: Number of nodes.
        smallest: Fewest members of a clique that counts, from 1.

    Returns:
        The cliques in lexical order of their members.

    Raises:
        ValueError: If an index is out of range.

    Example:
        >>> import torch
        >>> clique_hypergraph(torch.tensor([[0, 1, 0, 2], [1, 2, 2, 3]]), num_nodes=4).lists()
        [[0, 1, 2], [2, 3]]
    """
    import networkx as nx

    owner = "clique_hypergraph"
    check_integer(owner, "num_nodes", num_nodes, low=1)
    check_integer(owner, "smallest", smallest, low=1)
    check_pairs(owner, "edge_index", edge_index, {"source": num_nodes, "target": num_nodes})
    graph: Any = nx.Graph()
    graph.add_nodes_from(range(num_nodes))
    graph.add_edges_from((a, b) for a, b in edge_index.T.tolist() if a != b)
    cliques = sorted(sorted(clique) for clique in nx.find_cliques(graph))
    kept = [clique for clique in cliques if len(clique) >= smallest]
    return Hypergraph.from_lists(kept, num_nodes=num_nodes).to(edge_index.device)


def _check_features(owner: str, X: Tensor) -> int:
    n = check_shape(owner, "X", X, "n d")["n"]
    check_floating(owner, "X", X)
    check_finite_rows(owner, "X", X)
    return n


class _Distances:
    """Squared distances between rows: fast with a bound on the error, exact where it matters."""

    def __init__(self, X: Tensor) -> None:
        X = X.double()
        self.X = X - X.mean(dim=0)
        self.norms = self.X.square().sum(dim=1)
        self.error = 1e-12 * X.shape[1] ** 0.5 * float(self.norms.max())

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield first rows and fast squared distances, a bounded number of rows at a time."""
        n = len(self.X)
        size = max(1, _ENTRIES // n)
        for first in range(0, n, size):
            rows = slice(first, first + size)
            squared = torch.addmm(self.norms, self.X[rows], self.X.T, alpha=-2)
            yield first, squared.add_(self.norms[rows, None]).clamp_(min=0)

    def means(self) -> Tensor:
        """Return every row's mean distance from all rows, itself included."""
        return torch.cat([squared.sqrt_().mean(dim=1) for _, squared in self.blocks()])

    def exact(self, row: Tensor, column: Tensor) -> Tensor:
        """Return the squared distances of single pairs, from their differences."""
        size = max(1, _ENTRIES // self.X.shape[1])
        pairs = zip(row.split(size), column.split(size), strict=True)
        found = [(self.X[i] - self.X[j]).square().sum(dim=1) for i, j in pairs]
        return torch.cat(found) if found else self.norms[:0]


def _nearest(distances: _Distances, k: int) -> tuple[Tensor, Tensor]:
    """Return members (n, k) with the centre first, and their squared distances."""
    found = []
    for first, squared in distances.blocks():
        own = torch.arange(len(squared), device=squared.device)
        squared[own, first + own] = -1.0  # the centre comes before its duplicates
        nearest = squared.topk(k, dim=1, largest=False).values
        limit = nearest.amax(dim=1, keepdim=True) + 2 * distances.error
        row, column = (squared <= limit).nonzero(as_tuple=True)
        exact = distances.exact(row + first, column)
        exact[row + first == column] = -1.0
        order = exact.argsort(stable=True)  # of equals the lower column, for nonzero's order
        order = order[row[order].argsort(stable=True)]
        count = torch.bincount(row, minlength=len(squared))
        chosen = order[(count.cumsum(0) - count)[:, None] + torch.arange(k, device=order.device)]
        found.append((column[chosen], exact[chosen].clamp(min=0)))
    members, near = (torch.cat(parts) for parts in zip(*found, strict=True))
    return members, near


def _positive(scale: Tensor) -> Tensor:
    """Return the scale, and 1 where all distances are 0."""
    return torch.where(scale > 0, scale, 1.0)
