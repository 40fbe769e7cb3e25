"""Many hypergraphs as one: block-diagonal batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from cv_graph.hypergraph import Hypergraph


class HypergraphBatch(NamedTuple):
    """Several hypergraphs side by side, none connected with another.

    ``node_batch`` and ``hyperedge_batch`` say which hypergraph each node and hyperedge is of; PyG's
    pooling functions take ``node_batch`` as it is.
    """

    hypergraph: Hypergraph
    node_batch: Int[Tensor, " n"]
    hyperedge_batch: Int[Tensor, " m"]

    def unbatch(self) -> list[Hypergraph]:
        """Return the single hypergraphs, in order."""
        whole = self.hypergraph
        nodes = torch.bincount(self.node_batch).tolist()
        count = len(nodes)
        hyperedges = torch.bincount(self.hyperedge_batch, minlength=count).tolist()
        owner = self.hyperedge_batch[whole.hyperedge_index[1]]  # rises: so do the hyperedges
        sizes = torch.bincount(owner, minlength=count).tolist()
        parts, node, edge, start = [], 0, 0, 0
        for number in range(count):
            mine = slice(start, start + sizes[number])
            offset = torch.tensor([[node], [edge]], device=whole.device)
            weight, incidence = whole.hyperedge_weight, whole.incidence_weight
            parts.append(
                Hypergraph(
                    whole.hyperedge_index[:, mine] - offset,
                    num_nodes=nodes[number],
                    num_hyperedges=hyperedges[number],
                    hyperedge_weight=None
                    if weight is None
                    else weight[edge : edge + hyperedges[number]],
                    incidence_weight=None if incidence is None else incidence[mine],
                )
            )
            node, edge = node + nodes[number], edge + hyperedges[number]
            start += sizes[number]
        return parts


def batch_hypergraphs(hypergraphs: Sequence[Hypergraph]) -> HypergraphBatch:
    """Put hypergraphs side by side as one block-diagonal hypergraph.

    Features are concatenated by the user in the same order: ``torch.cat([x_1, x_2])``.

    Args:
        hypergraphs: At least one, each with at least one node, all on one device. Where only some
            have weights the others count as 1.

    Returns:
        The whole with the owner of every node and hyperedge.

    Raises:
        ValueError: If there is none, one has no nodes, or devices differ.

    Example:
        >>> one = Hypergraph.from_lists([[0, 1]])
        >>> two = Hypergraph.from_lists([[0, 2], [1]])
        >>> batch = batch_hypergraphs([one, two])
        >>> batch.hypergraph.lists(), batch.node_batch.tolist()
        ([[0, 1], [2, 4], [3]], [0, 0, 1, 1, 1])
    """
    owner = "batch_hypergraphs"
    if not hypergraphs:
        raise ValueError(f"{owner}: at least one hypergraph is needed; got none.")
    for place, part in enumerate(hypergraphs):
        if part.num_nodes == 0:
            raise ValueError(f"{owner}: hypergraph {place} has no nodes.")
        if part.device != hypergraphs[0].device:
            raise ValueError(
                f"{owner}: hypergraph {place} is on {part.device}, hypergraph 0 on "
                f"{hypergraphs[0].device}."
            )
    device = hypergraphs[0].device
    nodes = torch.tensor([part.num_nodes for part in hypergraphs], device=device)
    hyperedges = torch.tensor([part.num_hyperedges for part in hypergraphs], device=device)
    offsets = torch.stack([nodes.cumsum(0) - nodes, hyperedges.cumsum(0) - hyperedges])
    index = [part.hyperedge_index + offsets[:, i, None] for i, part in enumerate(hypergraphs)]
    number = torch.arange(len(hypergraphs), device=device)
    whole = Hypergraph(
        torch.cat(index, dim=1),
        num_nodes=int(nodes.sum()),
        num_hyperedges=int(hyperedges.sum()),
        hyperedge_weight=_hyperedge_weights(hypergraphs),
        incidence_weight=_incidence_weights(hypergraphs),
    )
    return HypergraphBatch(
        whole, number.repeat_interleave(nodes), number.repeat_interleave(hyperedges)
    )


def _hyperedge_weights(hypergraphs: Sequence[Hypergraph]) -> Tensor | None:
    weights = [part.hyperedge_weight for part in hypergraphs]
    if all(weight is None for weight in weights):
        return None
    return torch.cat(
        [
            torch.ones(part.num_hyperedges, device=part.device) if weight is None else weight
            for part, weight in zip(hypergraphs, weights, strict=True)
        ]
    )


def _incidence_weights(hypergraphs: Sequence[Hypergraph]) -> Tensor | None:
    if all(part.incidence_weight is None for part in hypergraphs):
        return None
    return torch.cat([part.incidence_values() for part in hypergraphs])
