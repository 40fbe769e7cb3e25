"""Graph attention with edge features on small complete graphs, such as the boxes of an image."""

from __future__ import annotations

import torch
from cv_core.checks import check_floating, check_integer, check_range, check_shape
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


class HGATConv(nn.Module):
    r"""The graph attention layer of Wu, Zhang, Duan and Chang (PRCV 2021), with edge features.

    Every node attends to all others of its graph, not to itself:

        h_i  = W1 v_i
        a_ij = LeakyReLU(w2 . [h_i, h_j, e_ij] + b2)
        A_ij = exp(a_ij) / sum_{d != i} exp(a_id)                            j != i
        v'_i = ReLU(W3 v_i + b3) + sum_{j != i} ReLU(A_ij h_j + b1)

    The ReLU is inside the sum: each other node adds at least ``ReLU(b1)``, however little
    attention it gets, so that the output grows with the number of nodes. Nodes that are not there
    are therefore left out of the sum, not merely given no attention.

    Memory is that of ``B * N * N * out_dim`` numbers.

    Args:
        in_dim: Length of a node's vector ``v``.
        out_dim: Length of the new one.
        edge_dim: Length of the vector ``e_ij`` of the edge from ``i`` to ``j``.
        negative_slope: Slope of the LeakyReLU below 0, in [0, 1]; the paper does not print it, 0.2
            is that of graph attention networks.

    Raises:
        ValueError: If a length is below 1 or the slope outside [0, 1].

    Example:
        >>> layer = HGATConv(8, 4, edge_dim=2)
        >>> layer(torch.rand(1, 3, 8), torch.rand(1, 3, 3, 2)).shape
        torch.Size([1, 3, 4])
    """

    def __init__(
        self, in_dim: int, out_dim: int, edge_dim: int, *, negative_slope: float = 0.2
    ) -> None:
        super().__init__()
        for name, size in (("in_dim", in_dim), ("out_dim", out_dim), ("edge_dim", edge_dim)):
            check_integer("HGATConv", name, size, low=1)
        check_range("HGATConv", "negative_slope", negative_slope, low=0.0, high=1.0)
        self.in_dim, self.out_dim, self.edge_dim = in_dim, out_dim, edge_dim
        self.negative_slope = negative_slope
        self.message = nn.Linear(in_dim, out_dim, bias=False)  # W1
        self.score = nn.Linear(2 * out_dim + edge_dim, 1)  # w2, b2
        self.own = nn.Linear(in_dim, out_dim)  # W3, b3
        self.bias = nn.Parameter(torch.zeros(out_dim))  # b1

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{self.in_dim}, {self.out_dim}, {self.edge_dim}, slope={self.negative_slope:g}"

    def attention(
        self,
        x: Float[Tensor, "b n d"],
        edge: Float[Tensor, "b n n e"],
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n n"]:
        """Return ``A``; a row sums to 1, or is 0 where a node has no other to attend to.

        Args:
            x: As in ``forward``.
            edge: As in ``forward``.
            mask: As in ``forward``.

        Returns:
            How much node ``i`` (rows) attends to node ``j`` (columns).
        """
        x, edge, linked = self._checked(x, edge, mask)
        return self._attention(self.message(x), edge, linked)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        edge: Float[Tensor, "b n n e"],
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d2"]:
        """Compute the nodes' new vectors.

        Args:
            x: The nodes' vectors, ``(B, N, in_dim)``.
            edge: The edges' vectors, ``(B, N, N, edge_dim)``; the diagonal is not looked at.
            mask: Which nodes are there, ``(B, N)``; all by default. What padding holds, NaN
                included, changes nothing.

        Returns:
            ``(B, N, out_dim)``; 0 for nodes that are not there.

        Raises:
            TypeError: If a tensor has the wrong type.
            ValueError: If a shape does not fit.
        """
        x, edge, linked = self._checked(x, edge, mask)
        h = self.message(x)
        weight = self._attention(h, edge, linked)
        terms = torch.relu(weight[..., None] * h[:, None] + self.bias)
        out = torch.relu(self.own(x)) + terms.masked_fill(~linked[..., None], 0.0).sum(2)
        return out if mask is None else out.masked_fill(~mask[..., None], 0.0)

    def _attention(self, h: Tensor, edge: Tensor, linked: Tensor) -> Tensor:
        # w2 . [h_i, h_j, e_ij] in parts: the pairs' concatenation is never made
        sizes = (self.out_dim, self.out_dim, self.edge_dim)
        here, there, between = self.score.weight[0].split(sizes)
        a = (h @ here)[:, :, None] + (h @ there)[:, None] + edge @ between + self.score.bias
        a = functional.leaky_relu(a, self.negative_slope)
        a = a.masked_fill(~linked, torch.finfo(a.dtype).min)  # -inf would make NaN of empty rows
        return a.softmax(-1).masked_fill(~linked, 0.0)

    def _checked(
        self, x: Tensor, edge: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return both inputs without what padding holds, and which pairs are linked (b, n, n)."""
        check_floating("HGATConv", "x", x)
        check_floating("HGATConv", "edge", edge)
        sizes = check_shape("HGATConv", "x", x, "b n d", d=self.in_dim)
        b, n = sizes["b"], sizes["n"]
        check_shape("HGATConv", "edge", edge, "b n n e", b=b, n=n, e=self.edge_dim)
        linked = ~torch.eye(n, dtype=torch.bool, device=x.device).expand(b, n, n)
        if mask is not None:
            check_shape("HGATConv", "mask", mask, "b n", b=b, n=n)
            if mask.dtype != torch.bool:
                raise TypeError(f"HGATConv: mask must hold booleans; got {mask.dtype}.")
            linked = linked & mask[:, :, None] & mask[:, None]
            x = x.masked_fill(~mask[..., None], 0.0)
        # the diagonal's too: a NaN there would reach the gradient of w2
        return x, edge.masked_fill(~linked[..., None], 0.0), linked
