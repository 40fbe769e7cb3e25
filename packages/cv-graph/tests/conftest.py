"""Hypergraphs that the tests share."""

from __future__ import annotations

import pytest
import torch
from cv_core.random import torch_generator
from cv_graph.hypergraph import Hypergraph


@pytest.fixture
def odd() -> Hypergraph:
    """Everything that can go wrong: isolated nodes, an empty and a repeated hyperedge, weights."""
    lists = [[0, 1, 2], [2, 3], [], [1, 3, 4, 5], [2, 3], [5], [0], [4]]  # more than nodes
    weights = torch.tensor([0.5, 1.0, 3.0, 2.0, 1.5, 0.0, 1.0, 0.25])
    return Hypergraph.from_lists(lists, num_nodes=7, hyperedge_weight=weights)


@pytest.fixture
def drawn() -> Hypergraph:
    """Return a random hypergraph with weighted memberships."""
    generator = torch_generator(0, "hypergraph")
    index = torch.stack(
        [
            torch.randint(40, (150,), generator=generator),
            torch.randint(25, (150,), generator=generator),
        ]
    ).unique(dim=1)
    count = index.shape[1]
    order = torch.randperm(count, generator=generator)
    return Hypergraph(
        index[:, order],
        num_nodes=40,
        num_hyperedges=25,
        hyperedge_weight=torch.rand(25, generator=generator),
        incidence_weight=torch.rand(count, generator=generator) + 0.1,
    )
