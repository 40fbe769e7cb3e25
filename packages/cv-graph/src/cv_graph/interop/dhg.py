"""DeepHypergraph (DHG): its ``Hypergraph``."""

from __future__ import annotations

from typing import Any

import torch
from cv_core.optional import require

from cv_graph.hypergraph import Hypergraph


def to_dhg(hypergraph: Hypergraph) -> Any:
    """Return a ``dhg.Hypergraph``.

    DHG knows no empty hyperedges and, of several with the same members, keeps one; weights of
    memberships have no place there.

    Raises:
        ImportError: If DHG is not installed.
        ValueError: If there are empty hyperedges, hyperedges with the same members, or weights of
            memberships: DHG would change the hypergraph without a word.
    """
    dhg = require("dhg", package="cv-graph", extra="dhg", purpose="to_dhg")
    lists = hypergraph.lists()
    for number, members in enumerate(lists):
        if not members:
            raise ValueError(f"to_dhg: hyperedge {number} is empty; DHG has no empty hyperedges.")
    if len({tuple(members) for members in lists}) < len(lists):
        raise ValueError("to_dhg: some hyperedges have the same members; DHG would merge them.")
    if hypergraph.incidence_weight is not None:
        raise ValueError("to_dhg: DHG has no weights of memberships (incidence_weight).")
    weight = hypergraph.hyperedge_weight
    return dhg.Hypergraph(
        hypergraph.num_nodes, lists, e_weight=None if weight is None else weight.tolist()
    )


def from_dhg(hypergraph: Any) -> Hypergraph:
    """Return the hypergraph of a ``dhg.Hypergraph``, all its groups together."""
    members, weights = hypergraph.e
    ones = all(weight == 1.0 for weight in weights)
    return Hypergraph.from_lists(
        members,
        num_nodes=hypergraph.num_v,
        hyperedge_weight=None if ones else torch.tensor(weights),
    )
