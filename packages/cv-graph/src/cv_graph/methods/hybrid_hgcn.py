r"""HybridHGCN: hypergraph convolution over neighbours of several orders, mixed by the maximum.

Huang, Lei, Wang, Wang, Dai: *Hypergraph Convolutional Network with Hybrid Higher-Order Neighbors*,
PRCV 2021, LNCS 13022, pp. 103-114.

With :math:`H` (n, n) one hyperedge per node and :math:`H^{(k)} = H^k` its power, the operator of
order k and branch k are

.. math::
    P_k = D_v^{(k)-1/2} H^{(k)} W D_e^{(k)-1} H^{(k)\top} D_v^{(k)-1/2}, \qquad
    Z_k = P_k\, \mathrm{ReLU}(P_k X \Theta_1)\, \Theta_2 \qquad (Eq. 8)

with the degrees of :math:`H^{(k)}`; :math:`Z = \max_k Z_k` element by element goes into the
soft-max. The weights :math:`\Theta` are those of all branches. Order (1,) is HGNN.

What an order reaches: for a graph's :math:`H = A + I`, :math:`P_k` joins nodes up to 2k steps apart
(over :math:`H H^\top`), so that order 1 already sees two, and two layers of order 3 twelve. What it
costs: entries of :math:`H^k`, on Cora 13,264, 99,596 and 346,846.

Deviations from the paper:
    - "Incidence matrix of the k-th power" is read as the power with its own degrees. The other
      reading, the power of the operator, is ``hypergraph_propagation(h).power(k)``.
    - Hypergraphs with other hyperedges than one per node have no power: there :math:`H^{(k)}` is
      :math:`(H H^\top)^{k-1} H`, an extension. It walks twice as far per order.
    - Walks are counted, as the paper's text has it, which favours hubs; ``binarize`` forgets the
      counts.
    - Layers have offsets and dropout, as in the code of HGNN; the paper mentions neither.
    - Mixing by the mean and by attention, and weights of each branch's own, are controls of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
import torch
from cv_core.checks import check_choice, check_floating, check_integer, check_range, check_shape
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from cv_graph.conv import HypergraphConv, checked
from cv_graph.hypergraph import Hypergraph
from cv_graph.propagation import Propagation, hypergraph_propagation, sparse_factor

Mix = Literal["max", "mean", "attention"]
Rule = Literal["auto", "power", "gram"]


def hypergraph_power(
    hypergraph: Hypergraph, order: int, *, rule: Rule = "auto", binarize: bool = False
) -> Hypergraph:
    r"""Return the hypergraph of neighbours of an order; the weights of the hyperedges stay.

    Args:
        hypergraph: Where hyperedge j is centred at node j for the power to mean anything.
        order: k, from 1; 1 is the hypergraph itself.
        rule: ``"power"`` is :math:`H^k`, for as many hyperedges as nodes; ``"gram"`` is
            :math:`(H H^\top)^{k-1} H`, for any, and does not depend on the hyperedges' order;
            ``"auto"`` is the power where H is square. Pass ``"gram"`` where it is square by chance.
        binarize: Whether all entries become 1, in order 1 too; else they count walks.

    Returns:
        The same nodes and hyperedges, with more memberships.

    Raises:
        ValueError: If the power is asked of an H that is not square, or the memberships' weights
            carry gradients, which an order above 1 cannot pass on.

    Example:
        >>> path = Hypergraph.from_lists([[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]])  # A + I
        >>> hypergraph_power(path, 2).incidence().to_dense()
        tensor([[2., 2., 1., 0.],
                [2., 3., 2., 1.],
                [1., 2., 3., 2.],
                [0., 1., 2., 2.]])
    """
    owner = "hypergraph_power"
    check_integer(owner, "order", order, low=1)
    check_choice(owner, "rule", rule, ("auto", "power", "gram"))
    square = hypergraph.num_nodes == hypergraph.num_hyperedges
    if rule == "power" and not square:
        raise ValueError(
            f"{owner}: rule='power' needs one hyperedge per node; got {hypergraph}. Use 'gram'."
        )
    weight = hypergraph.incidence_weight
    if order > 1 and weight is not None and weight.requires_grad:
        raise ValueError(f"{owner}: incidence_weight must not carry gradients; detach it.")
    index = hypergraph.hyperedge_index
    if order > 1:
        H = hypergraph.scipy_incidence()
        step = H if square and rule != "gram" else H @ H.T
        power = H
        for _ in range(order - 1):
            power = step @ power
        found = power.tocoo()
        index = torch.from_numpy(np.stack(found.coords).astype(np.int64)).to(index.device)
        weight = torch.from_numpy(found.data).to(index.device)
    return Hypergraph(
        index,
        num_nodes=hypergraph.num_nodes,
        num_hyperedges=hypergraph.num_hyperedges,
        hyperedge_weight=hypergraph.hyperedge_weight,
        incidence_weight=None if binarize else weight,
    )


def order_propagations(
    hypergraph: Hypergraph,
    orders: Sequence[int] = (1, 2, 3),
    *,
    rule: Rule = "auto",
    binarize: bool = False,
    dtype: torch.dtype = torch.float32,
) -> list[Propagation]:
    """Prepare the operators of several orders, the second argument of ``HybridHGCN``.

    Args:
        hypergraph: The hypergraph.
        orders: Orders, each from 1, such as those of the network.
        rule: ``"auto"``, ``"power"`` or ``"gram"``, as in ``hypergraph_power``.
        binarize: Whether to forget the number of walks.
        dtype: Type of the entries, that of the features.

    Returns:
        One operator per order; ``nnz`` tells what each costs.

    Example:
        >>> path = Hypergraph.from_lists([[0, 1], [0, 1, 2], [1, 2]])
        >>> [operator.nnz for operator in order_propagations(path)]
        [14, 18, 18]
    """
    powers = (hypergraph_power(hypergraph, k, rule=rule, binarize=binarize) for k in orders)
    return [hypergraph_propagation(power, dtype=dtype) for power in powers]


def sparse_features(X: Float[Tensor, "n d"]) -> Propagation:
    """Prepare features that are mostly zeros, such as bags of words, as a network's input.

    The first product dominates the time of a small network on wide features: on Citeseer's 3,703
    columns it takes a twentieth of the dense one.

    Args:
        X: (n, d) dense features.

    Returns:
        An operator of shape (n, d), for the first argument of ``HybridHGCN``.

    Example:
        >>> import torch
        >>> sparse_features(torch.eye(3)).nnz
        3
    """
    check_floating("sparse_features", "X", X)
    n, d = check_shape("sparse_features", "X", X, "n d").values()
    row, column = X.nonzero(as_tuple=True)
    values = X[row, column].to(torch.promote_types(X.dtype, torch.float32))
    return Propagation(sparse_factor(row, column, values, (n, d)))


class HybridHGCN(nn.Module):
    """Two-layer hypergraph network over several orders; see the module for its equations.

    Args:
        in_channels: Features of a node.
        hidden_channels: Width of the hidden layer; the paper takes 16 to 64 for citations, 256 for
            objects.
        out_channels: Classes.
        orders: Orders of the branches, each from 1.
        mix: ``"max"`` as in the paper; ``"mean"``; or ``"attention"``, where each node weights its
            branches by the soft-max of their products with a learned vector, equally at first.
        share_weights: Whether all branches have the same weights, as in the paper.
        dropout: Share of the hidden features left out in training, in [0, 1), of each branch anew.
        bias: Whether the layers have offsets.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import torch
        >>> from cv_graph.construction import knn_hypergraph
        >>> x = torch.rand(20, 8)
        >>> operators = order_propagations(knn_hypergraph(x, 5))  # once
        >>> network = HybridHGCN(8, 32, 3)
        >>> network(x, operators).shape  # in every epoch
        torch.Size([20, 3])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        orders: Sequence[int] = (1, 2, 3),
        mix: Mix = "max",
        share_weights: bool = True,
        dropout: float = 0.5,
        bias: bool = True,
    ) -> None:
        super().__init__()
        owner = "HybridHGCN"
        for order in orders:
            check_integer(owner, "orders", order, low=1)
        check_integer(owner, "number of orders", len(orders), low=1)
        check_choice(owner, "mix", mix, ("max", "mean", "attention"))
        check_range(owner, "dropout", dropout, low=0, high=1, high_open=True)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.orders = tuple(orders)
        self.mix, self.dropout = mix, dropout
        copies = 1 if share_weights else len(self.orders)
        self.conv1 = nn.ModuleList(
            HypergraphConv(in_channels, hidden_channels, bias=bias) for _ in range(copies)
        )
        self.conv2 = nn.ModuleList(
            HypergraphConv(hidden_channels, out_channels, bias=bias) for _ in range(copies)
        )
        self.attention = nn.Parameter(torch.zeros(out_channels)) if mix == "attention" else None

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"orders={self.orders}, mix={self.mix!r}, dropout={self.dropout:g}"

    def forward(
        self,
        x: Float[Tensor, "n d"] | Propagation,
        hyperedge_index: Int[Tensor, "2 nnz"] | Hypergraph | Propagation | Sequence[Propagation],
        hyperedge_weight: Float[Tensor, " m"] | None = None,
    ) -> Float[Tensor, "n q"]:
        """Return logits.

        Args:
            x: (n, in_channels) node features, or ``sparse_features`` of them.
            hyperedge_index: One prepared operator per order, as ``order_propagations`` makes them;
                or a hypergraph or its (2, nnz) memberships, prepared anew in every call.
            hyperedge_weight: (m,) non-negative weights, with memberships only.

        Returns:
            (n, out_channels).

        Raises:
            TypeError: If the features or indices have the wrong type.
            ValueError: If shapes do not fit or an index is out of range.
        """
        branches = self.branches(x, hyperedge_index, hyperedge_weight)
        if self.mix == "max":
            return branches.max(dim=0).values  # at a tie the gradient goes to one branch
        if self.attention is None:
            return branches.mean(dim=0)
        share = torch.softmax(branches @ self.attention, dim=0)
        return (share[..., None] * branches).sum(dim=0)

    def branches(
        self,
        x: Float[Tensor, "n d"] | Propagation,
        hyperedge_index: Int[Tensor, "2 nnz"] | Hypergraph | Propagation | Sequence[Propagation],
        hyperedge_weight: Float[Tensor, " m"] | None = None,
    ) -> Float[Tensor, "k n q"]:
        """Return the logits of every order before they are mixed.

        Args:
            x: (n, in_channels) node features, or ``sparse_features`` of them.
            hyperedge_index: As in ``forward``.
            hyperedge_weight: As in ``forward``.
        """
        operators = self._operators(x, hyperedge_index, hyperedge_weight)
        first = [cast("HypergraphConv", conv) for conv in self.conv1]
        # P (X T) is (P X) T: the narrow side is propagated, and shared weights multiply once.
        projected = [
            x(conv.weight) if isinstance(x, Propagation) else x @ conv.weight for conv in first
        ]
        found = []
        for k, operator in enumerate(operators):
            place = k % len(first)
            hidden, bias = operator(projected[place]), first[place].bias
            hidden = hidden.to(first[place].weight.dtype)  # half precision is propagated in single
            hidden = functional.relu(hidden if bias is None else hidden + bias)
            hidden = functional.dropout(hidden, self.dropout, training=self.training)
            found.append(self.conv2[place](hidden, operator))
        return torch.stack(found)

    def _operators(
        self,
        x: Tensor | Propagation,
        given: Tensor | Hypergraph | Propagation | Sequence[Propagation],
        hyperedge_weight: Tensor | None,
    ) -> Sequence[Propagation]:
        owner = "HybridHGCN"
        if isinstance(x, Propagation):
            (n, d), dtype = x.shape, x.factors[0].values.dtype
            if d != self.in_channels:
                raise ValueError(f"{owner}: x must have {self.in_channels} columns; got {d}.")
        else:
            check_floating(owner, "x", x)
            n, dtype = check_shape(owner, "x", x, "n d", d=self.in_channels)["n"], x.dtype
        if isinstance(given, Tensor | Hypergraph | Propagation):
            made = checked(owner, given, hyperedge_weight, n)
            if isinstance(made, Propagation):
                given = [made]
            else:
                given = order_propagations(made, self.orders, dtype=dtype)
        elif hyperedge_weight is not None:
            raise ValueError(
                f"{owner}: hyperedge_weight goes with an index only: operators have their own."
            )
        shapes = [operator.shape for operator in given]
        if shapes != [(n, n)] * len(self.orders):
            raise ValueError(
                f"{owner}: one operator of shape {(n, n)} is needed for each of the orders "
                f"{self.orders}; got {shapes}. Make them with order_propagations."
            )
        return given


def _examples() -> list[Example]:
    from cv_graph.construction import knn_hypergraph

    def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(9, 5, generator=generator)
        hypergraph = knn_hypergraph(x, 3)
        return x, hypergraph.hyperedge_index

    def build(mix: Mix, *, share: bool = True) -> HybridHGCN:
        return HybridHGCN(5, 6, 4, mix=mix, share_weights=share, dropout=0.0)

    return [
        Example(build=lambda: build("max"), inputs=inputs, output_shapes=((9, 4),)),
        Example(build=lambda: build("mean", share=False), inputs=inputs, output_shapes=((9, 4),)),
        Example(build=lambda: build("attention"), inputs=inputs, output_shapes=((9, 4),)),
    ]


CARD = Card(
    slug="hybrid-hgcn",
    title="Hypergraph convolution over neighbours of several orders",
    reference=Reference(
        title="Hypergraph Convolutional Network with Hybrid Higher-Order Neighbors",
        authors="Huang, Lei, Wang, Wang, Dai",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="103-114",
    ),
    kind="graph-module",
    objects=(
        "cv_graph.methods.hybrid_hgcn.HybridHGCN",
        "cv_graph.transductive.HybridHGCNClassifier",
        "cv_graph.methods.hybrid_hgcn.hypergraph_power",
        "cv_graph.methods.hybrid_hgcn.order_propagations",
        "cv_graph.methods.hybrid_hgcn.sparse_features",
        "cv_graph.baselines.hypergraph.HGNN",
        "cv_graph.baselines.hypergraph.HGNNPlus",
        "cv_graph.baselines.hypergraph.HyperGCN",
        "cv_graph.baselines.hypergraph.UniGCN",
        "cv_graph.baselines.hypergraph.hypergcn_propagation",
        "cv_graph.baselines.hypergraph.unigcn_propagation",
        "cv_graph.baselines.graph.pyg_network",
        "cv_graph.baselines.labels.label_propagation",
        "cv_graph.baselines.labels.label_spreading",
        "cv_graph.splits.NodeSplit",
        "cv_graph.splits.published_node_split",
        "cv_graph.splits.random_node_split",
    ),
    examples=_examples,
    properties=("deterministic",),
)
