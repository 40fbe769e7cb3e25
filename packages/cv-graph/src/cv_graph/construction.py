"""Hypergraphs built from features, clusters, pictures and graphs.

Each function returns a :class:`~cv_graph.hypergraph.Hypergraph` on the device of what it was given.
Of nodes equally near, the lower index comes first, so that the result is the same everywhere.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from cv_core.checks import check_choice, check_finite, check_integer, check_range, check_shape
from jaxtyping import Float, Int
from torch import Tensor

from cv_graph.hypergraph import Hypergraph, check_pairs

NeighborWeight = Literal["binary", "paper", "hgnn"]
_ROWS = 2**24  # distances held at a time: 64 MiB in single precision


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
    members, squared, mean = _nearest(X, k)
    centres = torch.arange(n, device=X.device).repeat_interleave(k)
    values = None
    if weight == "paper":
        values = torch.exp(-2 * squared / _positive(mean.mean())).flatten()
    elif weight == "hgnn":
        values = torch.exp(-squared / _positive(mean).square()[:, None]).flatten()
    return Hypergraph(
        torch.stack([members.flatten(), centres]),
        num_nodes=n,
        num_hyperedges=n,
        incidence_weight=values,
    )


def ball_hypergraph(X: Float[Tensor, "n d"], radius: float) -> Hypergraph:
    """Build one hyperedge per node: all nodes within a radius, itself included.

    Args:
        X: Features as rows.
        radius: Euclidean, in the unit of X, at least 0.

    Returns:
        n hyperedges; hyperedge j is the ball around node j.

    Raises:
        ValueError: If ``X`` is not finite or the radius negative.

    Example:
        >>> import torch
        >>> ball_hypergraph(torch.tensor([[0.0], [1.0], [3.0]]), 1.5).lists()
        [[0, 1], [0, 1], [2]]
    """
    owner = "ball_hypergraph"
    n = _check_features(owner, X)
    check_range(owner, "radius", radius, low=0)
    pairs = []
    for first in range(0, n, _block(n)):
        distance = _squared(X[first : first + _block(n)], X)
        near = distance <= radius**2
        own = torch.arange(len(near), device=X.device)
        near[own, first + own] = True
        centre, member = near.nonzero(as_tuple=True)
        pairs.append(torch.stack([member, centre + first]))
    return Hypergraph(torch.cat(pairs, dim=1), num_nodes=n, num_hyperedges=n)


def cluster_hypergraph(labels: Int[Tensor, " n"]) -> Hypergraph:
    """Build one hyperedge per cluster from any clustering's labels.

    Args:
        labels: Cluster of every node, from 0; -1 (noise) leaves a node without hyperedge. Numbers
            that do not occur become empty hyperedges, so that hyperedge c is cluster c.

    Example:
        >>> import torch
        >>> cluster_hypergraph(torch.tensor([0, 1, -1, 0])).lists()
        [[0, 3], [1]]
    """
    owner = "cluster_hypergraph"
    n = check_shape(owner, "labels", labels, "n")["n"]
    if labels.is_floating_point() or int(labels.min()) < -1:
        raise ValueError(
            f"{owner}: labels must be integers from 0, or -1 for none; got {labels.dtype} with "
            f"least value {labels.min().item()}."
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
    bad = (~torch.isfinite(X)).any(dim=1).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"{owner}: X must be finite; {len(bad)} rows are not, the first is row {int(bad[0])}."
        )
    return n


def _block(n: int) -> int:
    return max(1, _ROWS // n)


def _squared(A: Tensor, B: Tensor) -> Tensor:
    return torch.cdist(A, B, compute_mode="donot_use_mm_for_euclid_dist").square()


def _nearest(X: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return members (n, k) with the centre first, squared distances, and mean distances (n,)."""
    n = len(X)
    found = []
    for first in range(0, n, _block(n)):
        squared = _squared(X[first : first + _block(n)], X)
        own = torch.arange(len(squared), device=X.device)
        mean = squared.sqrt().mean(dim=1)
        squared[own, first + own] = -1.0  # the centre comes before its duplicates
        near, member = _smallest(squared, k)
        found.append((member, near.clamp(min=0), mean))
    members, distances, means = (torch.cat(parts) for parts in zip(*found, strict=True))
    return members, distances, means


def _smallest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return each row's k smallest values, of equal ones the first; topk alone picks any."""
    near, member = values.topk(min(k + 1, values.shape[1]), dim=1, largest=False, sorted=True)
    tied = (near[:, k - 1] == near[:, -1]).nonzero().flatten() if near.shape[1] > k else []
    near, member = near[:, :k].contiguous(), member[:, :k].contiguous()
    if len(tied):
        rows, limit = values[tied], near[tied, -1:]
        tie = rows == limit
        room = k - (rows < limit).sum(dim=1, keepdim=True)
        chosen = (rows < limit) | (tie & (tie.cumsum(dim=1) <= room))
        member[tied] = chosen.nonzero()[:, 1].view(len(tied), k)
        near[tied] = rows.gather(1, member[tied])
    return near, member


def _positive(scale: Tensor) -> Tensor:
    """Return the scale, and 1 where all distances are 0."""
    return torch.where(scale > 0, scale, 1.0)
