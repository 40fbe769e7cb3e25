"""Sampled parts: exact without limits, fair and bounded with them."""

from __future__ import annotations

import pytest
import torch
from cv_core.random import torch_generator
from cv_graph.conv import HypergraphConv
from cv_graph.hypergraph import Hypergraph
from cv_graph.propagation import hypergraph_propagation
from cv_graph.sampling import NeighborSampler, neighbor_batches, sample_hyperedges


def test_without_limits_the_first_rows_equal_the_whole(drawn):
    x = torch.randn(40, 5, generator=torch_generator(0, "x"))
    layers = [HypergraphConv(5, 6), HypergraphConv(6, 2)]

    def network(features, hypergraph):
        P = hypergraph_propagation(hypergraph, normalization="random-walk")
        return layers[1](layers[0](features, P).relu(), P)

    whole = network(x, drawn)
    sampler = NeighborSampler(drawn, num_hyperedges=[-1, -1], num_members=[-1, -1])
    seeds = torch.tensor([7, 0, 31])
    sample = sampler.sample(seeds, generator=torch_generator(0, "sample"))
    assert torch.equal(sample.nodes[:3], seeds)
    assert sample.batch_size == 3
    torch.testing.assert_close(network(x[sample.nodes], sample.hypergraph)[:3], whole[seeds])


def test_one_hop_reaches_the_members_of_the_nodes_hyperedges(odd):
    sampler = NeighborSampler(odd, num_hyperedges=[-1], num_members=[-1])
    sample = sampler.sample(torch.tensor([3]), generator=torch_generator(0, "sample"))
    assert sorted(sample.nodes.tolist()) == [1, 2, 3, 4, 5]
    assert sample.hyperedges.tolist() == [1, 3, 4]
    own = [[sample.nodes[node].item() for node in part] for part in sample.hypergraph.lists()]
    assert [sorted(part) for part in own] == [[2, 3], [1, 3, 4, 5], [2, 3]]
    assert torch.equal(sample.hypergraph.hyperedge_weight, odd.hyperedge_weight[[1, 3, 4]])


def test_an_isolated_node_is_a_sample_of_its_own(odd):
    sampler = NeighborSampler(odd, num_hyperedges=[2], num_members=[2])
    sample = sampler.sample(torch.tensor([6]), generator=torch_generator(0, "sample"))
    assert sample.nodes.tolist() == [6]
    assert sample.hypergraph.num_hyperedges == 0


def test_limits_bound_what_a_hop_adds():
    star = Hypergraph.from_lists([list(range(50)) for _ in range(30)])
    sampler = NeighborSampler(star, num_hyperedges=[3], num_members=[4])
    for seed in range(20):
        sample = sampler.sample(torch.tensor([9]), generator=torch_generator(seed, "sample"))
        sizes = [len(part) for part in sample.hypergraph.lists()]
        assert len(sizes) == 3
        assert all(4 <= size <= 5 for size in sizes)  # the four drawn, and the one asked for
        assert all(0 in part for part in sample.hypergraph.lists())


def test_hyperedges_are_drawn_uniformly():
    star = Hypergraph.from_lists([[0, 1 + edge] for edge in range(5)])
    sampler = NeighborSampler(star, num_hyperedges=[2], num_members=[-1])
    generator = torch_generator(0, "draws")
    counts = torch.zeros(5)
    rounds = 2000
    for _ in range(rounds):
        counts[sampler.sample(torch.tensor([0]), generator=generator).hyperedges] += 1
    assert counts.sum() == 2 * rounds
    deviation = (rounds * 0.4 * 0.6) ** 0.5
    assert (counts - 0.4 * rounds).abs().max() < 4.5 * deviation


def test_the_same_generator_state_draws_the_same(drawn):
    sampler = NeighborSampler(drawn, num_hyperedges=[2, 2], num_members=[2, 2])
    one, other = (
        sampler.sample(torch.tensor([1, 2]), generator=torch_generator(4, "sample"))
        for _ in range(2)
    )
    assert torch.equal(one.nodes, other.nodes)
    assert torch.equal(one.hypergraph.hyperedge_index, other.hypergraph.hyperedge_index)


def test_batches_go_once_through_the_nodes(drawn):
    sampler = NeighborSampler(drawn, num_hyperedges=[2], num_members=[2])
    nodes = torch.arange(5, 36)
    batches = list(
        neighbor_batches(sampler, nodes, batch_size=8, generator=torch_generator(0, "epoch"))
    )
    asked = torch.cat([batch.nodes[: batch.batch_size] for batch in batches])
    assert torch.equal(asked.sort().values, nodes)
    assert [batch.batch_size for batch in batches] == [8, 8, 8, 7]
    assert not torch.equal(asked, nodes)


def test_sampled_hyperedges_keep_all_their_members(drawn):
    sample = sample_hyperedges(drawn, 6, generator=torch_generator(0, "hyperedges"))
    assert len(sample.hyperedges) == 6
    lists = drawn.lists()
    for edge, local in zip(sample.hyperedges.tolist(), sample.hypergraph.lists(), strict=True):
        assert sample.nodes[local].tolist() == lists[edge]


def test_what_does_not_fit_is_refused(drawn):
    with pytest.raises(ValueError, match="one number for every hop"):
        NeighborSampler(drawn, num_hyperedges=[1], num_members=[1, 2])
    with pytest.raises(ValueError, match="num_members must be positive, or -1"):
        NeighborSampler(drawn, num_hyperedges=[1], num_members=[0])
    sampler = NeighborSampler(drawn, num_hyperedges=[1], num_members=[1])
    generator = torch_generator(0, "sample")
    with pytest.raises(ValueError, match=r"nodes must lie in \[0, 39\]; got 40"):
        sampler.sample(torch.tensor([40]), generator=generator)
    with pytest.raises(ValueError, match="must not repeat"):
        sampler.sample(torch.tensor([4, 4]), generator=generator)
    with pytest.raises(ValueError, match="count"):
        sample_hyperedges(drawn, 26, generator=generator)


def test_a_limited_mean_leans_to_the_node_that_reached_it_as_documented():
    whole = Hypergraph.from_lists([list(range(50))])
    x = torch.zeros(50, 1)
    x[0] = 1.0
    sampler = NeighborSampler(whole, num_hyperedges=[-1], num_members=[4])
    generator = torch_generator(0, "draws")
    found = []
    for _ in range(400):
        sample = sampler.sample(torch.tensor([0]), generator=generator)
        P = hypergraph_propagation(sample.hypergraph, normalization="random-walk")
        found.append(float(P(x[sample.nodes])[0]))
    # drawn itself (4 times in 50) it is one of 4, else one of 5
    assert {round(value, 6) for value in found} == {0.2, 0.25}
    expected = 0.2 + 0.05 * 4 / 50
    assert sum(found) / 400 == pytest.approx(expected, abs=4.5 * 0.05 * 0.272 / 20)
