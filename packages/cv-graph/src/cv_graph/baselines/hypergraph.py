"""Hypergraph networks to compare with: two layers that differ in their operator alone."""

from __future__ import annotations

from abc import abstractmethod

import torch
from cv_core.checks import check_floating, check_integer, check_range, check_shape
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_graph.conv import HypergraphConv, checked
from cv_graph.hypergraph import Hypergraph, check_finite_rows
from cv_graph.propagation import (
    Propagation,
    graph_propagation,
    hypergraph_propagation,
    sparse_factor,
)

_ENTRIES = 2**22  # of differences held at a time: 16 MiB in single precision


class HypergraphNetwork(nn.Module):
    r"""Two layers :math:`P\, \mathrm{ReLU}(P X \Theta_1 + b_1)\, \Theta_2 + b_2`.

    A subclass says what P is.

    Args:
        in_channels: Features of a node.
        hidden_channels: Width of the hidden layer.
        out_channels: Classes.
        dropout: Share of the hidden features left out in training, in [0, 1).
        bias: Whether the layers have offsets.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        dropout: float = 0.5,
        bias: bool = True,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        for name, size in (
            ("in_channels", in_channels),
            ("hidden_channels", hidden_channels),
            ("out_channels", out_channels),
        ):
            check_integer(owner, name, size, low=1)
        check_range(owner, "dropout", dropout, low=0, high=1, high_open=True)
        self.dropout = dropout
        self.conv1 = HypergraphConv(in_channels, hidden_channels, bias=bias)
        self.conv2 = HypergraphConv(hidden_channels, out_channels, bias=bias)

    @abstractmethod
    def operator(self, hypergraph: Hypergraph, x: Float[Tensor, "n d"]) -> Propagation:
        """Prepare the operator: once for many calls with the same hypergraph.

        Args:
            hypergraph: The hypergraph.
            x: The nodes' features; only their type counts, unless the class says otherwise.
        """

    def forward(
        self,
        x: Float[Tensor, "n d"],
        hyperedge_index: Tensor | Hypergraph | Propagation,
        hyperedge_weight: Float[Tensor, " m"] | None = None,
    ) -> Float[Tensor, "n q"]:
        """Return logits.

        Args:
            x: (n, in_channels) node features.
            hyperedge_index: (2, nnz) memberships, node then hyperedge; a hypergraph; or the
                prepared operator, which is what to pass in training.
            hyperedge_weight: (m,) non-negative weights, with memberships only.

        Returns:
            (n, out_channels).

        Raises:
            TypeError: If the features or indices have the wrong type.
            ValueError: If shapes do not fit or an index is out of range.
        """
        given = self._checked(x, hyperedge_index, hyperedge_weight)
        operator = given if isinstance(given, Propagation) else self.operator(given, x)
        hidden = functional.relu(self.conv1(x, operator))
        hidden = functional.dropout(hidden, self.dropout, training=self.training)
        return self.conv2(hidden, operator)

    def _checked(
        self,
        x: Tensor,
        hyperedge_index: Tensor | Hypergraph | Propagation,
        hyperedge_weight: Tensor | None,
    ) -> Hypergraph | Propagation:
        owner = type(self).__name__
        check_floating(owner, "x", x)
        n = check_shape(owner, "x", x, "n d", d=self.conv1.in_channels)["n"]
        return checked(owner, hyperedge_index, hyperedge_weight, n)


class HGNN(HypergraphNetwork):
    r"""Hypergraph neural network (Feng, You, Zhang, Ji, Gao, AAAI 2019).

    :math:`P = D_v^{-1/2} H W D_e^{-1} H^\top D_v^{-1/2}`.

    Args:
        in_channels: Features of a node.
        hidden_channels: Width of the hidden layer.
        out_channels: Classes.
        dropout: Share of the hidden features left out in training, in [0, 1).
        bias: Whether the layers have offsets.

    Example:
        >>> import torch
        >>> network = HGNN(8, 16, 3)
        >>> network(torch.rand(4, 8), torch.tensor([[0, 1, 1, 2], [0, 0, 1, 1]])).shape
        torch.Size([4, 3])
    """

    def operator(self, hypergraph: Hypergraph, x: Float[Tensor, "n d"]) -> Propagation:
        """Prepare ``hypergraph_propagation``; of ``x`` only the type counts."""
        return hypergraph_propagation(hypergraph, dtype=x.dtype)


class HGNNPlus(HypergraphNetwork):
    r"""HGNN+ (Gao, Feng, Ji, Ji: HGNN+: General Hypergraph Neural Networks, TPAMI 2022).

    :math:`P = D_v^{-1} H W D_e^{-1} H^\top`: each hyperedge is the mean of its nodes, each node the
    weighted mean of its hyperedges. The paper's adaptive fusion learns one weight per group of
    hyperedges; for that, give the hypergraph a ``hyperedge_weight`` that carries gradients.

    Args:
        in_channels: Features of a node.
        hidden_channels: Width of the hidden layer.
        out_channels: Classes.
        dropout: Share of the hidden features left out in training, in [0, 1).
        bias: Whether the layers have offsets.
    """

    def operator(self, hypergraph: Hypergraph, x: Float[Tensor, "n d"]) -> Propagation:
        """Prepare ``hypergraph_propagation`` as a random walk; of ``x`` only the type counts."""
        return hypergraph_propagation(hypergraph, normalization="random-walk", dtype=x.dtype)


class UniGCN(HypergraphNetwork):
    r"""UniGCN (Huang, Yang: UniGNN: a Unified Framework for Graph and Hypergraph NNs, IJCAI 2021).

    See :func:`unigcn_propagation` for its operator.

    Args:
        in_channels: Features of a node.
        hidden_channels: Width of the hidden layer.
        out_channels: Classes.
        dropout: Share of the hidden features left out in training, in [0, 1).
        bias: Whether the layers have offsets.
    """

    def operator(self, hypergraph: Hypergraph, x: Float[Tensor, "n d"]) -> Propagation:
        """Prepare ``unigcn_propagation``; of ``x`` only the type counts."""
        return unigcn_propagation(hypergraph, dtype=x.dtype)


class HyperGCN(HypergraphNetwork):
    r"""HyperGCN with mediators (Yadati, Nimishakavi, Yadav, Nitin, Louis, Talukdar, NeurIPS 2019).

    See :func:`hypergcn_propagation` for its operator, a graph's that depends on a signal.

    Args:
        in_channels: Features of a node.
        hidden_channels: Width of the hidden layer.
        out_channels: Classes.
        fast: Whether the graph is made once, from the input features (the paper's FastHyperGCN). If
            not, each layer makes it from :math:`X \Theta` in every call, and needs the hypergraph.
        dropout: Share of the hidden features left out in training, in [0, 1).
        bias: Whether the layers have offsets.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        fast: bool = True,
        dropout: float = 0.5,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, hidden_channels, out_channels, dropout=dropout, bias=bias)
        self.fast = fast

    def operator(self, hypergraph: Hypergraph, x: Float[Tensor, "n d"]) -> Propagation:
        """Prepare ``hypergcn_propagation`` with ``x`` as the signal."""
        return hypergcn_propagation(hypergraph, x.detach())

    def forward(
        self,
        x: Float[Tensor, "n d"],
        hyperedge_index: Tensor | Hypergraph | Propagation,
        hyperedge_weight: Float[Tensor, " m"] | None = None,
    ) -> Float[Tensor, "n q"]:
        """Return logits.

        Args:
            x: (n, in_channels) node features.
            hyperedge_index: (2, nnz) memberships, a hypergraph, or, with ``fast``, the prepared
                operator.
            hyperedge_weight: (m,) non-negative weights, with memberships only.

        Returns:
            (n, out_channels).

        Raises:
            TypeError: If the features or indices have the wrong type.
            ValueError: If shapes do not fit, an index is out of range, or an operator is given
                without ``fast``.
        """
        if self.fast:
            return super().forward(x, hyperedge_index, hyperedge_weight)
        hypergraph = self._checked(x, hyperedge_index, hyperedge_weight)
        if isinstance(hypergraph, Propagation):
            raise ValueError(
                "HyperGCN: hyperedge_index must be a hypergraph or its memberships with "
                "fast=False, which makes new operators in every call; got an operator."
            )
        hidden = functional.relu(self._layer(self.conv1, x, hypergraph))
        hidden = functional.dropout(hidden, self.dropout, training=self.training)
        return self._layer(self.conv2, hidden, hypergraph)

    def _layer(self, conv: HypergraphConv, x: Tensor, hypergraph: Hypergraph) -> Tensor:
        signal = x @ conv.weight
        out = self.operator(hypergraph, signal)(signal).to(conv.weight.dtype)
        return out if conv.bias is None else out + conv.bias


def unigcn_propagation(
    hypergraph: Hypergraph, *, self_loops: bool = True, dtype: torch.dtype = torch.float32
) -> Propagation:
    r"""Prepare UniGCN's propagation (Huang, Yang, IJCAI 2021).

    .. math::
        x_i' = \frac{1}{\sqrt{d_i}} \sum_{e \ni i} \frac{1}{\sqrt{\bar d_e}} \,
        \frac{1}{|e|} \sum_{j \in e} x_j

    with :math:`d_i` the number of hyperedges of node i and :math:`\bar d_e` the mean of
    :math:`d_j` over the members of e.

    Args:
        hypergraph: A hypergraph without weights.
        self_loops: Whether every node first gets a hyperedge of its own, unless it has one.
        dtype: Type of the entries; at least single precision.

    Returns:
        An operator of shape (nodes, nodes).

    Raises:
        ValueError: If the hypergraph has weights, for which UniGCN has no place.
    """
    owner = "unigcn_propagation"
    _refuse_weights(owner, hypergraph, edges=True)
    dtype = torch.promote_types(dtype, torch.float32)
    node, edge = hypergraph.hyperedge_index
    m, n = hypergraph.num_hyperedges, hypergraph.num_nodes
    if self_loops:
        alone = torch.bincount(edge, minlength=m) == 1
        missing = torch.ones(n, dtype=torch.bool, device=node.device)
        missing[node[alone[edge]]] = False
        extra = missing.nonzero().flatten()
        node = torch.cat([node, extra])
        edge = torch.cat([edge, m + torch.arange(len(extra), device=edge.device)])
        m += len(extra)
    size = torch.bincount(edge, minlength=m).to(dtype)
    degree = torch.bincount(node, minlength=n).to(dtype)
    mean_degree = degree.new_zeros(m).index_add(0, edge, degree[node]) / size.clamp(min=1)
    spread = degree[node].rsqrt()
    gather = mean_degree[edge].rsqrt() / size[edge]
    return Propagation(
        sparse_factor(node, edge, spread, (n, m)), sparse_factor(edge, node, gather, (m, n))
    )


def hypergcn_propagation(hypergraph: Hypergraph, signal: Float[Tensor, "n d"]) -> Propagation:
    r"""Prepare HyperGCN's propagation: each hyperedge becomes a few edges of a graph.

    Of every hyperedge the two members :math:`(i_e, j_e)` whose signals differ most are joined with
    each other and with each of the other members, the mediators:
    :math:`2|e| - 3` edges of weight :math:`w_e / (2|e| - 3)`. The operator is
    :math:`D^{-1/2} (A + I) D^{-1/2}` of that graph.

    The pair is found exactly, by all :math:`|e|(|e|-1)/2` differences, the first of equal ones; the
    authors' code takes the extremes along one random direction, their paper breaks ties at random.

    Args:
        hypergraph: A hypergraph; hyperedges may have weights, memberships not.
        signal: (n, d) what the pairs are chosen by.

    Returns:
        An operator of shape (nodes, nodes), of the signal's type, at least single precision.

    Raises:
        TypeError: If the signal is not floating-point.
        ValueError: If shapes do not fit, the signal is not finite, or memberships have weights.
    """
    owner = "hypergcn_propagation"
    check_floating(owner, "signal", signal)
    check_shape(owner, "signal", signal, "n d", n=hypergraph.num_nodes)
    check_finite_rows(owner, "signal", signal)
    _refuse_weights(owner, hypergraph, edges=False)
    signal = signal.to(torch.promote_types(signal.dtype, torch.float32))
    node, edge = hypergraph.hyperedge_index
    size = torch.bincount(edge, minlength=hypergraph.num_hyperedges)
    kept = size[edge] > 1
    node, edge = node[kept], edge[kept]
    one, other = _farthest(node, edge, size, signal)
    to_one = node != one[edge]
    to_other = to_one & (node != other[edge])
    source = torch.cat([one[edge][to_one], other[edge][to_other]])
    target = torch.cat([node[to_one], node[to_other]])
    of = torch.cat([edge[to_one], edge[to_other]])
    weight = 1 / (2 * size[of] - 3).to(signal.dtype)
    if hypergraph.hyperedge_weight is not None:
        weight = weight * hypergraph.hyperedge_weight[of].to(signal.dtype)
    return graph_propagation(
        torch.stack([torch.cat([source, target]), torch.cat([target, source])]),
        weight.repeat(2),
        num_nodes=hypergraph.num_nodes,
        dtype=signal.dtype,
    )


def _farthest(node: Tensor, edge: Tensor, size: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two members of every hyperedge whose signals differ most.

    The memberships are sorted by hyperedge, and none of these has one member only; the answer for
    a hyperedge without memberships means nothing.
    """
    count = torch.bincount(edge, minlength=len(size))
    place = torch.arange(len(node), device=node.device)
    later = count.cumsum(0)[edge] - 1 - place  # members of the same hyperedge behind this one
    step = max(1, _ENTRIES // signal.shape[1])
    chunk = (later.cumsum(0) - later) // step  # of about so many pairs
    largest = signal.new_full((len(size),), -1.0)
    one, other = torch.zeros_like(size), torch.zeros_like(size)
    for places in place.split(chunk.unique_consecutive(return_counts=True)[1].tolist()):
        first = places.repeat_interleave(later[places])
        begin = later[places].cumsum(0) - later[places]
        second = first + 1 + torch.arange(len(first), device=node.device)
        second -= begin.repeat_interleave(later[places])
        distance = torch.cat(
            [
                (signal[node[a]] - signal[node[b]]).square().sum(dim=1)
                for a, b in zip(first.split(step), second.split(step), strict=True)
            ]
        )
        # of equal distances the first pair: later chunks must be greater
        edges, of = edge[first].unique_consecutive(return_inverse=True)
        here = distance.new_zeros(len(edges)).scatter_reduce(0, of, distance, "amax")
        tied = (distance == here[of]).nonzero().flatten()
        best = torch.zeros_like(edges).scatter_reduce(0, of[tied], tied, "amin", include_self=False)
        greater = here > largest[edges]
        edges, best = edges[greater], best[greater]
        largest[edges] = here[greater]
        one[edges], other[edges] = node[first[best]], node[second[best]]
    return one, other


def _refuse_weights(owner: str, hypergraph: Hypergraph, *, edges: bool) -> None:
    has = hypergraph.incidence_weight is not None
    if has or (edges and hypergraph.hyperedge_weight is not None):
        name = "incidence_weight" if has else "hyperedge_weight"
        raise ValueError(
            f"{owner}: hypergraph must have no {name}, for which the method has no place; build "
            "one without from its hyperedge_index."
        )
