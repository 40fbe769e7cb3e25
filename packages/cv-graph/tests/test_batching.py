"""Batches: side by side is the same as one by one."""

from __future__ import annotations

import pytest
import torch
from cv_core.random import torch_generator
from cv_graph.batching import batch_hypergraphs
from cv_graph.hypergraph import Hypergraph
from cv_graph.propagation import hypergraph_propagation


def test_a_batch_is_block_diagonal(odd, drawn):
    plain = Hypergraph.from_lists([[0, 1], []], num_nodes=3)
    parts = [odd, plain, drawn]
    batch = batch_hypergraphs(parts)
    expected = torch.block_diag(*(part.incidence().to_dense() for part in parts))
    assert torch.equal(batch.hypergraph.incidence().to_dense(), expected)
    assert batch.node_batch.tolist() == [0] * 7 + [1] * 3 + [2] * 40
    assert batch.hyperedge_batch.tolist() == [0] * 8 + [1] * 2 + [2] * 25


def test_propagation_over_a_batch_is_that_of_its_parts(odd, drawn):
    parts = [drawn, odd]
    x = torch.randn(47, 3, generator=torch_generator(0, "x"))
    together = hypergraph_propagation(batch_hypergraphs(parts).hypergraph)(x)
    alone = [
        hypergraph_propagation(part)(piece)
        for part, piece in zip(parts, x.split([40, 7]), strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_unbatch_gives_the_parts_back(odd, drawn):
    empty_end = Hypergraph.from_lists([[0, 1], []], num_nodes=3)
    parts = batch_hypergraphs([odd, empty_end, drawn]).unbatch()
    for part, expected in zip(parts, [odd, empty_end, drawn], strict=True):
        assert part.lists() == expected.lists()
        assert part.num_nodes == expected.num_nodes
        torch.testing.assert_close(part.incidence_values(), expected.incidence_values())
        torch.testing.assert_close(part.node_degree(), expected.node_degree())


def test_what_cannot_be_batched_is_refused(odd):
    with pytest.raises(ValueError, match="at least one"):
        batch_hypergraphs([])
    nothing = Hypergraph(torch.empty(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="hypergraph 1 has no nodes"):
        batch_hypergraphs([odd, nothing])


def test_weights_of_memberships_keep_their_precision():
    weight = torch.tensor([0.1, 0.3], dtype=torch.float64)
    weighted = Hypergraph(torch.tensor([[0, 1], [0, 0]]), incidence_weight=weight)
    batch = batch_hypergraphs([weighted, Hypergraph.from_lists([[0, 1]])])
    assert batch.hypergraph.incidence_weight.tolist() == [0.1, 0.3, 1.0, 1.0]
    assert torch.equal(batch.unbatch()[0].incidence_weight, weight)
