"""Mini-batches of one large hypergraph: sampled neighbourhoods and sampled hyperedges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from cv_core.checks import check_indices, check_integer, check_shape
from jaxtyping import Int
from torch import Tensor

from cv_graph.hypergraph import Hypergraph
from cv_graph.propagation import Rows, sorted_structure


class SampledHypergraph(NamedTuple):
    """A part of a hypergraph, with its own numbers.

    ``nodes`` and ``hyperedges`` hold the numbers in the whole: ``x[sample.nodes]`` are the part's
    features. The first ``batch_size`` nodes are those that were asked for.
    """

    hypergraph: Hypergraph
    nodes: Int[Tensor, " k"]
    hyperedges: Int[Tensor, " h"]
    batch_size: int


class NeighborSampler:
    r"""Sample the surroundings of nodes, hop by hop.

    One hop leads from a node to at most ``num_hyperedges`` of its hyperedges, drawn without
    replacement, and from each to at most ``num_members`` of its nodes. As many hops as the network
    has layers; a network on the sample then computes the first ``batch_size`` rows.

    With unlimited numbers and ``normalization="random-walk"`` those rows equal the ones of the
    whole hypergraph. (The symmetric normalisation also uses the degrees of the outermost nodes,
    which a sample does not have.)

    With limits the rows are estimates, and biased ones: a node through which a hyperedge was
    reached stays a member beside those drawn, and so counts more in the hyperedge's mean than the
    others do. In a hyperedge of 50 of which 4 are drawn its share is 0.2 in place of 0.02. More
    ``num_members`` bring them nearer; predict with unlimited numbers, or over the whole.

    Args:
        hypergraph: The whole, on the CPU or a GPU.
        num_hyperedges: For every hop the most hyperedges of a node; -1 for all.
        num_members: For every hop the most members of a hyperedge; -1 for all.

    Raises:
        ValueError: If the numbers of hops differ, or one is neither positive nor -1.

    Example:
        >>> import torch
        >>> h = Hypergraph.from_lists([[0, 1, 2], [2, 3], [4, 5]])
        >>> sampler = NeighborSampler(h, num_hyperedges=[-1], num_members=[-1])
        >>> sample = sampler.sample(torch.tensor([3]), generator=torch.Generator().manual_seed(0))
        >>> sample.nodes.tolist(), sample.hyperedges.tolist(), sample.hypergraph.lists()
        ([3, 2], [1], [[0, 1]])
    """

    def __init__(
        self, hypergraph: Hypergraph, *, num_hyperedges: Sequence[int], num_members: Sequence[int]
    ) -> None:
        owner = "NeighborSampler"
        if len(num_hyperedges) != len(num_members) or not num_members:
            raise ValueError(
                f"{owner}: num_hyperedges and num_members must give one number for every hop; got "
                f"{len(num_hyperedges)} and {len(num_members)}."
            )
        for name, numbers in (("num_hyperedges", num_hyperedges), ("num_members", num_members)):
            for number in numbers:
                check_integer(owner, name, number, low=-1)
                if number == 0:
                    raise ValueError(f"{owner}: {name} must be positive, or -1 for all; got 0.")
        self.hypergraph = hypergraph
        self.hops = list(zip(num_hyperedges, num_members, strict=True))
        node, edge = hypergraph.hyperedge_index
        structure, self._place = sorted_structure(
            node, edge, (hypergraph.num_nodes, hypergraph.num_hyperedges)
        )
        self._of_node, self._of_hyperedge, self._order = structure[1:]

    def sample(self, nodes: Int[Tensor, " b"], *, generator: torch.Generator) -> SampledHypergraph:
        """Sample around nodes.

        Args:
            nodes: Numbers of the nodes asked for, each once.
            generator: Where the draws come from, on the hypergraph's device.

        Raises:
            ValueError: If a node is out of range or occurs twice.
        """
        owner = "NeighborSampler.sample"
        check_shape(owner, "nodes", nodes, "b")
        check_indices(owner, "nodes", nodes, high=self.hypergraph.num_nodes, ignore=None)
        if len(nodes.unique()) != len(nodes):
            raise ValueError(f"{owner}: nodes must not repeat.")
        kept: list[Tensor] = []  # places of memberships in the whole
        seen, frontier = nodes, nodes
        for most_hyperedges, most_members in self.hops:
            out = _draw(self._of_node, frontier, most_hyperedges, generator)
            reached = self._of_node.columns[out].long().unique()
            back = _draw(self._of_hyperedge, reached, most_members, generator)
            kept += [self._place[out], self._place[self._order[back]]]
            found = self._of_hyperedge.columns[back].long().unique()
            frontier = found[~torch.isin(found, seen)]
            seen = torch.cat([seen, frontier])
        places = torch.cat(kept).unique()
        return _part(self.hypergraph, places, seen, batch_size=len(nodes))


def sample_hyperedges(
    hypergraph: Hypergraph, count: int, *, generator: torch.Generator
) -> SampledHypergraph:
    """Sample hyperedges with all their members, uniformly without replacement.

    Args:
        hypergraph: The whole.
        count: How many hyperedges.
        generator: Where the draws come from, on the hypergraph's device.

    Returns:
        The hyperedges and every node in them; ``batch_size`` is the number of nodes.

    Raises:
        ValueError: If there are not that many hyperedges.
    """
    check_integer("sample_hyperedges", "count", count, low=1, high=hypergraph.num_hyperedges)
    drawn = torch.randperm(
        hypergraph.num_hyperedges, generator=generator, device=hypergraph.device
    )[:count]
    wanted = torch.zeros(hypergraph.num_hyperedges, dtype=torch.bool, device=hypergraph.device)
    wanted[drawn] = True
    node, edge = hypergraph.hyperedge_index
    places = wanted[edge].nonzero().flatten()
    nodes = node[places].unique()
    return _part(hypergraph, places, nodes, batch_size=len(nodes))


def neighbor_batches(
    sampler: NeighborSampler,
    nodes: Int[Tensor, " t"],
    *,
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[SampledHypergraph]:
    """Go once through nodes in random order, a sampled surrounding at a time.

    Args:
        sampler: Draws the surroundings.
        nodes: The nodes to train on.
        batch_size: Nodes asked for at a time; the last batch may have fewer.
        generator: Where the draws come from.

    Yields:
        Samples whose first ``batch_size`` nodes are the ones asked for.
    """
    check_integer("neighbor_batches", "batch_size", batch_size, low=1)
    order = torch.randperm(len(nodes), generator=generator, device=nodes.device)
    for part in nodes[order].split(batch_size):
        yield sampler.sample(part, generator=generator)


def _draw(rows: Rows, wanted: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Return the places of at most so many entries of each wanted row, drawn uniformly."""
    start = rows.start.long()
    first, size = start[wanted], start[wanted + 1] - start[wanted]
    ends = size.cumsum(0)
    owner = torch.repeat_interleave(size)
    within = torch.arange(len(owner), device=owner.device) - (ends - size)[owner]
    places = first[owner] + within
    if most < 0 or not len(places) or int(size.max()) <= most:
        return places
    key = torch.rand(len(places), generator=generator, device=places.device, dtype=torch.float64)
    order = torch.argsort(owner + key)  # rows stay apart: the key lies below 1
    return places[order[within < most]]


def _part(
    whole: Hypergraph, places: Tensor, nodes: Tensor, *, batch_size: int
) -> SampledHypergraph:
    """Return the part with the memberships at the places and the nodes in their order."""
    node, edge = whole.hyperedge_index[:, places]
    hyperedges, local_edge = edge.unique(return_inverse=True)
    local = torch.full((whole.num_nodes,), -1, dtype=torch.long, device=node.device)
    local[nodes] = torch.arange(len(nodes), device=node.device)
    weight, incidence = whole.hyperedge_weight, whole.incidence_weight
    part = Hypergraph(
        torch.stack([local[node], local_edge]),
        num_nodes=len(nodes),
        num_hyperedges=len(hyperedges),
        hyperedge_weight=None if weight is None else weight[hyperedges],
        incidence_weight=None if incidence is None else incidence[places],
    )
    return SampledHypergraph(part, nodes, hyperedges, batch_size)
