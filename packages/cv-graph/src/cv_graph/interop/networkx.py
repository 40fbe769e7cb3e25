"""networkx: graphs, and hypergraphs as bipartite graphs."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from cv_graph.hypergraph import Hypergraph


def to_networkx(hypergraph: Hypergraph) -> Any:
    """Return the bipartite graph of nodes and hyperedges.

    Nodes are ``("node", i)`` with ``bipartite=0``, hyperedges ``("hyperedge", j)`` with
    ``bipartite=1`` and their ``weight``; every membership is an edge with its ``weight``.
    """
    import networkx as nx

    graph: Any = nx.Graph()
    graph.add_nodes_from((("node", i) for i in range(hypergraph.num_nodes)), bipartite=0)
    weights = hypergraph.hyperedge_weight
    shares = [1.0] * hypergraph.num_hyperedges if weights is None else weights.tolist()
    for number, weight in enumerate(shares):
        graph.add_node(("hyperedge", number), bipartite=1, weight=weight)
    pairs = hypergraph.hyperedge_index.T.tolist()
    values = hypergraph.incidence_values().tolist()
    for (node, edge), value in zip(pairs, values, strict=True):
        graph.add_edge(("node", node), ("hyperedge", edge), weight=value)
    return graph


def from_networkx(graph: Any) -> Hypergraph:
    """Return the hypergraph of a bipartite graph.

    Args:
        graph: A ``networkx.Graph`` whose vertices carry ``bipartite``: 0 for nodes, 1 for
            hyperedges. Both are numbered in the order in which the graph lists them; weights of
            edges and of hyperedges count where there are any.

    Raises:
        ValueError: If a vertex has no ``bipartite``, or an edge joins two of a kind.
    """
    sides: tuple[dict[Any, int], dict[Any, int]] = ({}, {})
    for vertex, kept in graph.nodes(data=True):
        side = kept.get("bipartite")
        if side not in (0, 1):
            raise ValueError(
                f"from_networkx: vertex {vertex!r} must have bipartite=0 (node) or 1 (hyperedge); "
                f"got {side!r}."
            )
        sides[side][vertex] = len(sides[side])
    nodes, hyperedges = sides
    pairs, values = [], []
    for a, b, kept in graph.edges(data=True):
        if (a in nodes) == (b in nodes):
            raise ValueError(f"from_networkx: edge {a!r} - {b!r} joins two vertices of one kind.")
        node, edge = (a, b) if a in nodes else (b, a)
        pairs.append((nodes[node], hyperedges[edge]))
        values.append(float(kept.get("weight", 1.0)))
    weights = [float(graph.nodes[edge].get("weight", 1.0)) for edge in hyperedges]
    return Hypergraph(
        torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T,
        num_nodes=len(nodes),
        num_hyperedges=len(hyperedges),
        hyperedge_weight=_unless_ones(weights),
        incidence_weight=_unless_ones(values),
    )


def edge_index_from_networkx(graph: Any) -> Int[Tensor, "2 e"]:
    """Return a graph's edges in PyG's format, nodes numbered in the order of ``graph.nodes``.

    Weights of edges are left out.

    Args:
        graph: A ``networkx`` graph; an undirected edge is listed both ways, a loop once.
    """
    number = {node: place for place, node in enumerate(graph.nodes)}
    pairs = [(number[a], number[b]) for a, b in graph.edges()]
    if not graph.is_directed():
        pairs += [(b, a) for a, b in pairs if a != b]
    return torch.tensor(sorted(pairs), dtype=torch.long).reshape(-1, 2).T.contiguous()


def _unless_ones(values: list[float]) -> Tensor | None:
    return None if all(value == 1.0 for value in values) else torch.tensor(values)
