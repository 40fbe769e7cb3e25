"""XGI: its ``Hypergraph``."""

from __future__ import annotations

from typing import Any

from cv_core.optional import require

from cv_graph.hypergraph import Hypergraph


def to_xgi(hypergraph: Hypergraph) -> Any:
    """Return an ``xgi.Hypergraph`` with nodes and hyperedges under their numbers.

    Weights of hyperedges become the attribute ``weight``; weights of memberships have no place
    there.

    Raises:
        ImportError: If XGI is not installed.
        ValueError: If there are weights of memberships.
    """
    xgi = require("xgi", package="cv-graph", extra="xgi", purpose="to_xgi")
    if hypergraph.incidence_weight is not None:
        raise ValueError("to_xgi: XGI has no weights of memberships (incidence_weight).")
    result = xgi.Hypergraph()
    result.add_nodes_from(range(hypergraph.num_nodes))
    weights = hypergraph.hyperedge_weight
    for number, members in enumerate(hypergraph.lists()):
        kept = {} if weights is None else {"weight": float(weights[number])}
        result.add_edge(members, idx=number, **kept)
    return result


def from_xgi(hypergraph: Any) -> Hypergraph:
    """Return the hypergraph of an ``xgi.Hypergraph``.

    Nodes and hyperedges are numbered in the order in which XGI lists them; the attribute ``weight``
    of hyperedges counts where any has it (1 for the others).
    """
    import torch

    number = {node: place for place, node in enumerate(hypergraph.nodes)}
    lists = [[number[node] for node in members] for members in hypergraph.edges.members()]
    kept = [hypergraph.edges[edge] for edge in hypergraph.edges]
    weighted = any("weight" in attributes for attributes in kept)
    weights = torch.tensor([float(attributes.get("weight", 1.0)) for attributes in kept])
    return Hypergraph.from_lists(
        lists, num_nodes=len(number), hyperedge_weight=weights if weighted else None
    )
