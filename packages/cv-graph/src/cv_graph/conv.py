"""Hypergraph convolution as a layer."""

from __future__ import annotations

import torch
from cv_core.checks import check_choice, check_floating, check_integer, check_shape
from jaxtyping import Float
from torch import Tensor, nn

from cv_graph.hypergraph import Hypergraph
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
            (n, out_channels). A node in no hyperedge gets the offset alone.

        Raises:
            TypeError: If the features or indices have the wrong type.
            ValueError: If shapes do not fit or an index is out of range.
        """
        check_floating("HypergraphConv", "x", x)
        n = check_shape("HypergraphConv", "x", x, "n d", d=self.in_channels)["n"]
        operator = prepared(hyperedge_index, hyperedge_weight, n, self.normalization, x.dtype)
        out = operator(x @ self.weight)
        return out if self.bias is None else out + self.bias


def prepared(
    hyperedge_index: Tensor | Hypergraph | Propagation,
    hyperedge_weight: Tensor | None,
    num_nodes: int,
    normalization: Normalization,
    dtype: torch.dtype,
) -> Propagation:
    """Return the operator that a layer was given, or prepare it.

    Args:
        hyperedge_index: Memberships, a hypergraph, or an operator.
        hyperedge_weight: Weights of the hyperedges, with memberships only.
        num_nodes: Rows of the features.
        normalization: For memberships and hypergraphs.
        dtype: Type of the features.

    Raises:
        ValueError: If weights come with something that has its own.
    """
    if not isinstance(hyperedge_index, Tensor):
        if hyperedge_weight is not None:
            raise ValueError(
                "hyperedge_weight goes with an index only: a Hypergraph or Propagation has its own."
            )
        if isinstance(hyperedge_index, Propagation):
            return hyperedge_index
        return hypergraph_propagation(hyperedge_index, normalization=normalization, dtype=dtype)
    count = None if hyperedge_weight is None else hyperedge_weight.shape[0]
    hypergraph = Hypergraph(
        hyperedge_index,
        num_nodes=num_nodes,
        num_hyperedges=count,
        hyperedge_weight=hyperedge_weight,
    )
    return hypergraph_propagation(hypergraph, normalization=normalization, dtype=dtype)
