"""Self-attention graph pooling on dense batches of padded graphs, put back in its place.

The scores follow SAGPool (Lee, Lee, Kang: *Self-Attention Graph Pooling*, ICML 2019) in the form
that SARG prints: see ``cv_graph.methods.sarg``. ``torch_geometric.nn.SAGPooling`` is the relative
for sparse graphs.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from cv_core.checks import check_choice, check_floating, check_integer, check_range, check_shape
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

Encoder = Literal["gcn", "fc"]
Gate = Literal["printed", "sigmoid"]


class Subgraph(NamedTuple):
    """What ``SubgraphAttentionPool`` keeps of a graph.

    Args:
        features: Nodes ``(B, N, d)`` times their score where kept, zero elsewhere.
        scores: Score of every node ``(B, N)``, kept or not; zero where padded.
        nodes: Kept nodes ``(B, K)``, best first (within a frame), then -1.
        adjacency: Weights ``(B, K, K)`` between the kept nodes, zero where ``nodes`` is -1.
    """

    features: Float[Tensor, "b n d"]
    scores: Float[Tensor, "b n"]
    nodes: Int64[Tensor, "b k"]
    adjacency: Float[Tensor, "b k k"]


class SubgraphAttentionPool(nn.Module):
    r"""Scores every node, keeps the best and weighs them by their scores (Eqs. 5 to 10 of SARG).

    .. math:: H_a = \mathrm{FC}(H), \qquad
              S = \sigma((A + I) H_a \Theta) \ \text{(gcn)} \quad\text{or}\quad
              S = \mathrm{MLP}(H_a) \ \text{(fc)},

    .. math:: H'_i = S_i H_i \ \text{if}\ i \in \mathrm{top}_{\lceil k n \rceil}(S),
              \ \text{else}\ 0,

    with n nodes in a graph. Of equal scores the node listed first is kept. The selection itself
    has no gradient: :math:`\Theta` learns through the kept nodes' scores alone. A node that is not
    kept gets no gradient from H', except, with ``"gcn"``, through the scores of kept neighbours.

    Args:
        dim: Features d of a node.
        ratio: The share k of nodes that is kept, in (0, 1]; 0.5 in the paper.
        encoder: ``"gcn"``, one graph convolution, or ``"fc"``, a perceptron d, d/2, 1.
        gate: ``"printed"``: a sigmoid behind ``"gcn"``, nothing behind ``"fc"``, whose scores are
            then unbounded and flip the sign of kept features where negative. ``"sigmoid"``: behind
            both.
        frames: The nodes are so many runs of equal length, and k holds within each; 1 for all
            jointly.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> pool = SubgraphAttentionPool(4)
        >>> kept = pool(torch.rand(2, 6, 4), torch.eye(6).expand(2, 6, 6))
        >>> kept.nodes.shape, (kept.features.abs().sum(2) > 0).sum(1)
        (torch.Size([2, 3]), tensor([3, 3]))
    """

    def __init__(
        self,
        dim: int,
        ratio: float = 0.5,
        *,
        encoder: Encoder = "gcn",
        gate: Gate = "printed",
        frames: int = 1,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_integer(owner, "dim", dim, low=1)
        check_range(owner, "ratio", ratio, low=0.0, high=1.0, low_open=True)
        check_choice(owner, "encoder", encoder, get_args(Encoder))
        check_choice(owner, "gate", gate, get_args(Gate))
        check_integer(owner, "frames", frames, low=1)
        self.dim = dim
        self.ratio = ratio
        self.encoder = encoder
        self.gate = gate
        self.frames = frames
        self.actions = nn.Linear(dim, dim)
        if encoder == "gcn":
            self.theta: nn.Module = nn.Linear(dim, 1, bias=False)
        else:
            half = max(1, dim // 2)
            self.theta = nn.Sequential(nn.Linear(dim, half), nn.ReLU(), nn.Linear(half, 1))

    def extra_repr(self) -> str:
        """Show the options."""
        return f"ratio={self.ratio:g}, encoder={self.encoder!r}, gate={self.gate!r}"

    def size(self, nodes: int) -> int:
        """Return how many of so many nodes are kept: the share, rounded up, and at least one."""
        exact = self.ratio * nodes
        return min(nodes, max(1, math.ceil(exact - 1e-9)))  # 0.28 * 25 is a little above 7

    def score(self, H: Float[Tensor, "b n d"], A: Float[Tensor, "b n n"]) -> Float[Tensor, "b n"]:
        """Return the score S of every node."""
        S: Tensor = self.theta(self.actions(H))
        if self.encoder == "gcn":
            S = A @ S + S
        if self.encoder == "gcn" or self.gate == "sigmoid":
            S = S.sigmoid()
        return S.squeeze(2)

    def forward(
        self,
        H: Float[Tensor, "b n d"],
        A: Float[Tensor, "b n n"],
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> Subgraph:
        """Pool graphs.

        Args:
            H: Node features ``(B, N, d)``.
            A: Weights ``(B, N, N)``, row i those that node i gives to others; zero where padded.
            mask: True where there is a node ``(B, N)``; False for padding. All by default.

        Returns:
            Features ``(B, N, d)``, scores ``(B, N)``, nodes ``(B, K)`` and adjacency ``(B, K, K)``,
            where K is ``ceil(ratio N)``, or the sum of that over frames.

        Raises:
            TypeError: If ``H`` or ``A`` is not floating, or ``mask`` not boolean.
            ValueError: If the shapes do not fit, or a graph has no node.
        """
        owner = type(self).__name__
        check_floating(owner, "H", H)
        check_floating(owner, "A", A)
        sizes = check_shape(owner, "H", H, "b n d", d=self.dim)
        check_shape(owner, "A", A, "b n n", b=sizes["b"], n=sizes["n"])
        check_nodes(owner, mask, sizes["b"], sizes["n"], self.frames)
        if mask is not None:
            H = H.masked_fill(~mask.unsqueeze(2), 0.0)
        S = self.score(H, A)
        if mask is not None:
            S = S.masked_fill(~mask, 0.0)
        index = self._select(S.detach(), mask)
        slots = index.where(index >= 0, sizes["n"])  # those left over go to a column of their own
        kept = torch.zeros(len(S), sizes["n"] + 1, dtype=torch.bool, device=S.device)
        kept = kept.scatter(1, slots, value=True)[:, :-1]
        features = torch.where(kept, S, 0.0).unsqueeze(2) * H
        return Subgraph(features, S, index, _between(A, index))

    def _select(self, S: Tensor, mask: Tensor | None) -> Tensor:
        run = S.shape[1] // self.frames
        scores = S.unflatten(1, (self.frames, run))
        nodes = None if mask is None else mask.unflatten(1, (self.frames, run))
        if nodes is not None:
            scores = scores.masked_fill(~nodes, -math.inf)
        best = scores.argsort(dim=2, descending=True, stable=True)[:, :, : self.size(run)]
        index = best + run * torch.arange(self.frames, device=S.device)[:, None]
        if nodes is not None:
            sizes = [self.size(count) for count in range(run + 1)]
            limit = torch.tensor(sizes, device=S.device)[nodes.sum(2, keepdim=True)]
            rank = torch.arange(index.shape[2], device=S.device)
            index = index.where(rank < limit, -1)
        return index.flatten(1)


def _between(A: Tensor, index: Tensor) -> Tensor:
    there = index >= 0
    rows = index.clamp(min=0)
    width = A.shape[2]
    among = A.gather(1, rows.unsqueeze(2).expand(-1, -1, width))
    among = among.gather(2, rows.unsqueeze(1).expand(-1, index.shape[1], -1))
    return among.where(there.unsqueeze(2) & there.unsqueeze(1), 0.0)


def check_nodes(owner: str, mask: Tensor | None, graphs: int, nodes: int, frames: int = 1) -> None:
    """Refuse a mask of another shape or type, a graph without nodes, and unequal frames.

    Raises:
        TypeError: If the mask is not boolean.
        ValueError: If its shape does not fit, a graph has no node, or frames do not divide nodes.
    """
    if nodes % frames:
        raise ValueError(
            f"{owner}: frames={frames} must divide the number of slots; got {nodes}. Pad every "
            "frame to the same number."
        )
    if mask is None:
        return
    check_shape(owner, "mask", mask, "b n", b=graphs, n=nodes)
    if mask.dtype != torch.bool:
        raise TypeError(f"{owner}: mask must be boolean; got {mask.dtype}. Convert it with != 0.")
    if not torch.compiler.is_compiling():  # reading values back would break the graph
        empty = (~mask.any(1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"{owner}: mask must leave every graph a node; graph {empty[0]} of the batch has "
                "none. Leave such graphs out."
            )
