r"""What a graph says about its labels (homophily), and features about depth (over-smoothing).

Graphs are ``edge_index`` (2, E), row 0 the source and row 1 the target of each edge; an undirected
graph lists every edge in both directions. Hypergraphs are ``hyperedge_index`` (2, nnz), row 0 the
node and row 1 the hyperedge. Both are torch-geometric's.

Labels ``y`` are integers from 0; -1 stands for unlabelled. Such a node is left out, and with it its
edges and memberships. Edges count as often as they are listed. A self-loop counts as an edge to a
node of the same class: remove them where they are only a device of the network.
"""

from __future__ import annotations

from typing import Literal

import torch
from cv_core.checks import check_choice, check_floating, check_indices, check_shape
from jaxtyping import Float, Int
from torch import Tensor

from cv_graph.hypergraph import check_finite_rows, check_pairs, check_weights


def edge_homophily(edge_index: Int[Tensor, "2 e"], y: Int[Tensor, " n"]) -> float:
    r"""Return the share of edges that join nodes of one class (Zhu et al., NeurIPS 2020).

    .. math::
        h = \frac{|\{(u, v) \in E : y_u = y_v\}|}{|E|}

    Args:
        edge_index: The edges.
        y: One class per node; -1 for none.

    Returns:
        A share in [0, 1]. With C classes of one size, edges at random give 1 / C.

    Raises:
        TypeError: If indices or labels are no integers.
        ValueError: If an index is out of range (the message says which column), a label is below
            -1, or no edge joins two labelled nodes.

    Example:
        >>> edges = torch.tensor([[0, 1, 2, 3], [1, 2, 0, 4]])
        >>> edge_homophily(edges, torch.tensor([0, 0, 0, 0, 1]))
        0.75
    """
    source, target = _labelled_ends("edge_homophily", edge_index, y)
    return float((y[source] == y[target]).double().mean())


def node_homophily(edge_index: Int[Tensor, "2 e"], y: Int[Tensor, " n"]) -> float:
    r"""Return the mean share of a node's neighbours that are of its class (Pei et al., ICLR 2020).

    .. math::
        h = \frac{1}{|V'|} \sum_{v \in V'} \frac{|\{u \in N(v) : y_u = y_v\}|}{|N(v)|}

    :math:`N(v)` are the sources of the edges into :math:`v`, and :math:`V'` the labelled nodes that
    have a labelled one among them. torch-geometric counts nodes without neighbours too, as 0.

    Args:
        edge_index: The edges.
        y: One class per node; -1 for none.

    Returns:
        A share in [0, 1].

    Raises:
        TypeError: If indices or labels are no integers.
        ValueError: If an index is out of range (the message says which column), a label is below
            -1, or no edge joins two labelled nodes.

    Example:
        >>> edges = torch.tensor([[0, 1, 2, 3], [1, 2, 0, 4]])
        >>> node_homophily(edges, torch.tensor([0, 0, 0, 0, 1]))
        0.75
    """
    source, target = _labelled_ends("node_homophily", edge_index, y)
    degree = torch.bincount(target, minlength=len(y))
    same = torch.bincount(target[y[source] == y[target]], minlength=len(y))
    reached = degree > 0
    return float((same[reached].double() / degree[reached]).mean())


def class_insensitive_homophily(edge_index: Int[Tensor, "2 e"], y: Int[Tensor, " n"]) -> float:
    r"""Return what edges within classes exceed the classes' sizes by (Lim et al., NeurIPS 2021).

    .. math::
        h = \frac{1}{C - 1} \sum_k \max\Big(0, h_k - \frac{|V_k|}{|V|}\Big)

    with :math:`h_k` the share of the edges into nodes of class k that come from class k; 0 for a
    class without edges. A class less joined to itself than by chance counts as one at chance.

    Args:
        edge_index: The edges.
        y: One class per node; -1 for none. C is the number of classes that occur.

    Returns:
        A number in [0, 1]; 0 for edges at random.

    Raises:
        TypeError: If indices or labels are no integers.
        ValueError: If an index is out of range (the message says which column), a label is below
            -1, no edge joins two labelled nodes, or fewer than two classes occur.
    """
    owner = "class_insensitive_homophily"
    source, target = _labelled_ends(owner, edge_index, y)
    sizes = torch.bincount(y[y >= 0])
    classes = int((sizes > 0).sum())
    if classes < 2:
        raise ValueError(f"{owner}: y must hold at least two classes; it holds {classes}.")
    into = torch.bincount(y[target], minlength=len(sizes))
    same = torch.bincount(y[target][y[source] == y[target]], minlength=len(sizes))
    within = same.double() / into.clamp(min=1)
    return float((within - sizes / sizes.sum()).clamp(min=0).sum() / (classes - 1))


def adjusted_homophily(edge_index: Int[Tensor, "2 e"], y: Int[Tensor, " n"]) -> float:
    r"""Return the edge homophily adjusted for chance (Platonov et al., NeurIPS 2023).

    .. math::
        h = \frac{h_\text{edge} - \sum_k a_k b_k}{1 - \sum_k a_k b_k}

    with :math:`a_k` and :math:`b_k` the shares of edges that leave and that enter class k, equal in
    an undirected graph: the assortativity coefficient of the classes (Newman, 2003).

    Args:
        edge_index: The edges.
        y: One class per node; -1 for none.

    Returns:
        At most 1, for edges within classes only; 0 for edges at random; negative where edges rather
        join different classes.

    Raises:
        TypeError: If indices or labels are no integers.
        ValueError: If an index is out of range (the message says which column), a label is below
            -1, no edge joins two labelled nodes, or all edges lie within one class.
    """
    owner = "adjusted_homophily"
    source, target = _labelled_ends(owner, edge_index, y)
    count = int(y.max()) + 1
    leaving = torch.bincount(y[source], minlength=count).double() / len(source)
    entering = torch.bincount(y[target], minlength=count).double() / len(target)
    chance = float(leaving @ entering)
    if chance == 1:
        raise ValueError(f"{owner}: edge_index must join more than one class; it joins one alone.")
    return (edge_homophily(edge_index, y) - chance) / (1 - chance)


def hyperedge_majority(
    hyperedge_index: Int[Tensor, "2 nnz"],
    y: Int[Tensor, " n"],
    *,
    num_hyperedges: int | None = None,
) -> Float[Tensor, " m"]:
    r"""Return the share of every hyperedge's members that are of its most frequent class.

    .. math::
        \max_k \frac{n_{ek}}{n_e}

    with :math:`n_{ek}` the members of hyperedge e of class k. ``.nanmean()`` of the result is one
    number for the hypergraph. It is at least 1 / C, and high by itself in small hyperedges; compare
    with ``hyperedge_agreement``.

    Args:
        hyperedge_index: The memberships; one that occurs twice counts once.
        y: One class per node; -1 for none.
        num_hyperedges: Number of hyperedges; by default one more than the highest that occurs.

    Returns:
        (m,) float64; NaN for a hyperedge without labelled members.

    Raises:
        TypeError: If indices or labels are no integers.
        ValueError: If an index is out of range (the message says which column) or a label is below
            -1.

    Example:
        >>> members = torch.tensor([[0, 1, 2, 2, 3], [0, 0, 0, 1, 1]])
        >>> hyperedge_majority(members, torch.tensor([0, 0, 1, 1])).tolist()
        [0.6666666666666666, 1.0]
    """
    counts = _class_counts("hyperedge_majority", hyperedge_index, y, num_hyperedges)
    return counts.amax(dim=1) / counts.sum(dim=1)


def hyperedge_agreement(
    hyperedge_index: Int[Tensor, "2 nnz"],
    y: Int[Tensor, " n"],
    *,
    num_hyperedges: int | None = None,
) -> Float[Tensor, " m"]:
    r"""Return the share of every hyperedge's pairs of members that are of one class.

    .. math::
        \frac{\sum_k n_{ek} (n_{ek} - 1)}{n_e (n_e - 1)}

    with :math:`n_{ek}` the members of hyperedge e of class k. For hyperedges of two nodes each, the
    mean is the edge homophily.

    Args:
        hyperedge_index: The memberships; one that occurs twice counts once.
        y: One class per node; -1 for none.
        num_hyperedges: Number of hyperedges; by default one more than the highest that occurs.

    Returns:
        (m,) float64; NaN for a hyperedge with fewer than two labelled members.

    Raises:
        TypeError: If indices or labels are no integers.
        ValueError: If an index is out of range (the message says which column) or a label is below
            -1.

    Example:
        >>> members = torch.tensor([[0, 1, 2, 2, 3], [0, 0, 0, 1, 1]])
        >>> hyperedge_agreement(members, torch.tensor([0, 0, 1, 1])).tolist()
        [0.3333333333333333, 1.0]
    """
    counts = _class_counts("hyperedge_agreement", hyperedge_index, y, num_hyperedges)
    sizes = counts.sum(dim=1)
    pairs = sizes * (sizes - 1)
    return torch.where(pairs > 0, (counts * (counts - 1)).sum(dim=1) / pairs, torch.nan)


def dirichlet_energy(
    x: Float[Tensor, "n d"],
    edge_index: Int[Tensor, "2 e"],
    *,
    edge_weight: Float[Tensor, " e"] | None = None,
    normalization: Literal["symmetric"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return how much node features differ along the edges; 0 when a network has smoothed them.

    .. math::
        E(X) = \tfrac12 \sum_{(u, v) \in E} w_{uv}
        \Big\|\frac{x_u}{s_u} - \frac{x_v}{s_v}\Big\|^2 = \mathrm{tr}(X^\top L X)

    With ``normalization=None``, :math:`s = 1` and :math:`L = D - W`. With ``"symmetric"``,
    :math:`s_v = \sqrt{d_v}` and :math:`L = I - D^{-1/2} W D^{-1/2}` without the rows of isolated
    nodes; for the form with :math:`1 + d_v` (Cai and Wang, 2020), add self-loops beforehand. The
    trace supposes that both directions of an edge are listed; the sum is over what is listed.

    It is a sum, not a mean, and scales with the square of x: over the layers of a network compare
    ``dirichlet_energy(x, edge_index) / x.square().sum()``.

    Args:
        x: Node features.
        edge_index: The edges.
        edge_weight: Weights :math:`w`, non-negative; 1 by default.
        normalization: ``None`` or ``"symmetric"``.

    Returns:
        A scalar that carries gradients to x and the weights.

    Raises:
        TypeError: If x is not of a floating type, or the indices are no integers.
        ValueError: If an index is out of range (the message says which column), x is not finite, or
            a weight is negative.

    Example:
        >>> edges = torch.tensor([[0, 1], [1, 0]])
        >>> dirichlet_energy(torch.tensor([[0.0], [3.0]]), edges)
        tensor(9.)
    """
    owner = "dirichlet_energy"
    _check_features(owner, x, edge_index)
    check_choice(owner, "normalization", normalization, (None, "symmetric"))
    source, target = edge_index.long()
    if edge_weight is None:
        edge_weight = x.new_ones(len(source))
    check_weights(owner, "edge_weight", edge_weight, len(source))
    if normalization == "symmetric":
        degree = x.new_zeros(len(x)).index_add(0, target, edge_weight.to(x.dtype))
        x = x * torch.where(degree > 0, degree, 1).rsqrt()[:, None]
    return (edge_weight * (x[source] - x[target]).square().sum(dim=1)).sum() / 2


def mean_average_distance(
    x: Float[Tensor, "n d"], edge_index: Int[Tensor, "2 e"] | None = None
) -> Float[Tensor, ""]:
    r"""Return the mean cosine distance of node features, MAD (Chen et al., AAAI 2020).

    .. math::
        \mathrm{MAD} = \frac{1}{|V'|} \sum_{v \in V'} \frac{1}{|N(v)|}
        \sum_{u \in N(v)} \Big(1 - \frac{x_u^\top x_v}{\|x_u\| \|x_v\|}\Big)

    over the sources :math:`N(v)` of the edges into :math:`v`, other than :math:`v` itself, and the
    nodes :math:`V'` that have any; or, without edges given, over all pairs of nodes. MADGap is the
    value for pairs far apart in the graph less the value for near ones. A row of zeros has the
    distance 1 from everything.

    The paper's formula leaves out distances of exactly 0, which its masks do not need: features
    that become equal would then raise the mean.

    Args:
        x: Node features.
        edge_index: The pairs that count; by default all, at O(n d) operations.

    Returns:
        A scalar in [0, 2] that carries gradients to x; 0 when all features point one way.

    Raises:
        TypeError: If x is not of a floating type, or the indices are no integers.
        ValueError: If an index is out of range (the message says which column), x is not finite, or
            there is no pair of different nodes.

    Example:
        >>> mean_average_distance(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]]))
        tensor(0.6667)
    """
    owner = "mean_average_distance"
    _check_features(owner, x, edge_index)
    unit = torch.nn.functional.normalize(x, dim=1)
    if edge_index is None:
        n = len(x)
        if n < 2:
            raise ValueError(f"{owner}: x must have at least two rows; got {n}.")
        # the sum over all pairs of cosines is the squared length of the sum, less the squares
        cosines = unit.sum(dim=0).square().sum() - unit.square().sum()
        return (1 - cosines / (n * (n - 1))).clamp(min=0)  # rounding: equal rows gave -4e-7
    source, target = edge_index.long()
    apart = source != target
    source, target = source[apart], target[apart]
    if len(source) == 0:
        raise ValueError(f"{owner}: edge_index must hold an edge between different nodes.")
    distance = 1 - (unit[source] * unit[target]).sum(dim=1)
    degree = torch.bincount(target, minlength=len(x))
    total = x.new_zeros(len(x)).index_add(0, target, distance)
    reached = degree > 0
    return (total[reached] / degree[reached]).mean()


def _labelled_ends(owner: str, edge_index: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return sources and targets of the edges between labelled nodes."""
    nodes = _check_labels(owner, y)
    check_pairs(owner, "edge_index", edge_index, {"source node": nodes, "target node": nodes})
    source, target = edge_index.long()
    labelled = (y[source] >= 0) & (y[target] >= 0)
    if not bool(labelled.any()):
        raise ValueError(f"{owner}: edge_index must hold an edge between two labelled nodes.")
    return source[labelled], target[labelled]


def _class_counts(
    owner: str, hyperedge_index: Tensor, y: Tensor, num_hyperedges: int | None
) -> Float[Tensor, "m k"]:
    """Return how many labelled members of each class every hyperedge has."""
    sizes = {"node": _check_labels(owner, y), "hyperedge": num_hyperedges}
    _, count = check_pairs(owner, "hyperedge_index", hyperedge_index, sizes)
    node, hyperedge = hyperedge_index.long().unique(dim=1)
    classes = max(int(y.max()) + 1, 1)
    labelled = y[node] >= 0
    cell = hyperedge[labelled] * classes + y[node[labelled]]
    return torch.bincount(cell, minlength=count * classes).view(count, classes).double()


def _check_labels(owner: str, y: Tensor) -> int:
    nodes = check_shape(owner, "y", y, "n")["n"]
    check_indices(owner, "y", y, high=int(y.max()) + 1, ignore=-1)
    return nodes


def _check_features(owner: str, x: Tensor, edge_index: Tensor | None) -> None:
    check_floating(owner, "x", x)
    nodes = check_shape(owner, "x", x, "n d")["n"]
    check_finite_rows(owner, "x", x)
    if edge_index is not None:
        check_pairs(owner, "edge_index", edge_index, {"source node": nodes, "target node": nodes})
