"""Hypergraph convolution as a layer."""

from __future__ import annotations

import torch
from cv_core.checks import check_choice, check_floating, check_integer, check_shape
from jaxtyping import Float
from torch import Tensor, nn

from cv_graph.hypergraph import Hypergraph, check_pairs
from cv_graph.propagation import Normalization, Propagation, hypergraph_propagation


class HypergraphConv(nn.Module):
    r"""Hypergraph convolution (Feng, You, Zhang, Ji, Gao: Hypergraph Neural Networks, AAAI 2019).

    :math:`X' = P X \Theta + b` with :math:`P = D_v^{-1/2} H W D_e^{-1} H^\top D_v^{-1/2}`.

    It takes what PyG's layer of this name takes, and a prepared operator in place of the index:
    over many epochs on one hypergraph that is an order of magnitude faster. PyG's own layer
    normalises as a random walk; ``normalization="random-walk"`` equals it. With hyperedge weights
    PyG's (2.8) divides by weighted degrees without weighting the sum; here the weights are in both
    places, as its documentation and the papers have it.

    Args:
        in_channels: Features of a node, d.
        out_channels: Features of the result.
        bias: Whether to add a learned offset.
        normalization: ``"symmetric"`` or ``"random-walk"``, used where the index is given; a
            prepared operator has its own.

    Example:
        >>> import torch
        >>> from cv_graph import Hypergraph, HypergraphConv, hypergraph_propagation
        >>> layer = HypergraphConv(8, 4)
        >>> x, hyperedge_index = torch.randn(4, 8), torch.tensor([[0, 1, 1, 2], [0, 0, 1, 1]])
        >>> P = hypergraph_propagation(Hypergraph(hyperedge_index, num_nodes=4))
        >>> torch.equal(layer(x, hyperedge_index), layer(x, P))
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        normalization: Normalization = "symmetric",
    ) -> None:
        super().__init__()
        owner = "HypergraphConv"
        check_integer(owner, "in_channels", in_channels, low=1)
        check_integer(owner, "out_channels", out_channels, low=1)
        check_choice(owner, "normalization", normalization, ("symmetric", "random-walk"))
        self.in_channels, self.out_channels = in_channels, out_channels
        self.normalization: Normalization = normalization
        self.weight = nn.Parameter(torch.empty(in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights by Glorot's uniform rule; the offset is 0."""
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """Return the settings."""
        return (
            f"{self.in_channels}, {self.out_channels}, bias={self.bias is not None}, "
            f"normalization={self.normalization!r}"
        )

    def forward(
        self,
        x: Float[Tensor, "n d"],
        hyperedge_index: Tensor | Hypergraph | Propagation,
        hyperedge_weight: Float[Tensor, " m"] | None = None,
    ) -> Float[Tensor, "n k"]:
        """Convolve.

        Args:
            x: (n, in_channels) node features. NaN reaches the nodes that share a hyperedge.
            hyperedge_index: (2, nnz) memberships, node then hyperedge; a hypergraph; or a prepared
                operator.
            hyperedge_weight: (m,) non-negative weights, with an index only; may carry gradients.

        Returns:
            (n, out_channels), of the weights' type. A node in no hyperedge gets the offset alone.

        Raises:
            TypeError: If the features or indices have the wrong type.
            ValueError: If shapes do not fit or an index is out of range.
        """
        check_floating("HypergraphConv", "x", x)
        n = check_shape("HypergraphConv", "x", x, "n d", d=self.in_channels)["n"]
        given = checked("HypergraphConv", hyperedge_index, hyperedge_weight, n)
        if isinstance(given, Hypergraph):
            given = hypergraph_propagation(given, normalization=self.normalization, dtype=x.dtype)
        out = given(x @ self.weight).to(self.weight.dtype)  # half precision is propagated in single
        return out if self.bias is None else out + self.bias


def checked(
    owner: str,
    hyperedge_index: Tensor | Hypergraph | Propagation,
    hyperedge_weight: Tensor | None,
    num_nodes: int,
) -> Hypergraph | Propagation:
    """Return the hypergraph or operator that a layer was given, built where it was memberships.

    Args:
        owner: The layer.
        hyperedge_index: Memberships, a hypergraph, or an operator.
        hyperedge_weight: Weights of the hyperedges, with memberships only.
        num_nodes: Rows of the features.

    Raises:
        TypeError: If it is none of these, or indices or weights have the wrong type.
        ValueError: If an index is out of range, or weights come with something that has its own.
    """
    if isinstance(hyperedge_index, Hypergraph | Propagation):
        if hyperedge_weight is not None:
            raise ValueError(
                f"{owner}: hyperedge_weight goes with an index only: a Hypergraph or Propagation "
                "has its own."
            )
        return hyperedge_index
    count = len(hyperedge_weight) if isinstance(hyperedge_weight, Tensor) else None
    check_pairs(owner, "hyperedge_index", hyperedge_index, {"node": num_nodes, "hyperedge": count})
    return Hypergraph(
        hyperedge_index,
        num_nodes=num_nodes,
        num_hyperedges=count,
        hyperedge_weight=hyperedge_weight,
    )
