"""Builders against plain loops, and at their edges."""

from __future__ import annotations

import itertools

import networkx as nx
import pytest
import torch
from cv_core.random import torch_generator
from cv_graph import construction
from cv_graph.construction import (
    ball_hypergraph,
    clique_hypergraph,
    cluster_hypergraph,
    knn_hypergraph,
    neighborhood_hypergraph,
    superpixel_hypergraph,
)


@pytest.fixture(name="X")
def features():
    return torch.randn(30, 4, generator=torch_generator(0, "features"))


def nearest_in_loops(X, k):
    found = []
    for j in range(len(X)):
        order = sorted(range(len(X)), key=lambda i: (i != j, float((X[i] - X[j]).norm()), i))
        found.append(sorted(order[:k]))
    return found


@pytest.mark.parametrize("k", [1, 4, 30])
def test_knn_equals_a_search_in_loops(X, k):
    assert knn_hypergraph(X, k).lists() == nearest_in_loops(X, k)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_ties_go_to_the_lower_index(k):
    grid = torch.tensor(list(itertools.product(range(4), range(3))), dtype=torch.float32)
    assert knn_hypergraph(grid, k).lists() == nearest_in_loops(grid, k)


def test_duplicates_keep_every_centre_in_its_own_hyperedge():
    lists = knn_hypergraph(torch.zeros(6, 2), 2).lists()
    assert lists == [[0, 1], [0, 1], [0, 2], [0, 3], [0, 4], [0, 5]]


def test_blocks_of_rows_do_not_change_the_result(X, monkeypatch):
    expected = knn_hypergraph(X, 5, weight="paper"), ball_hypergraph(X, 2.0)
    monkeypatch.setattr(construction, "_ENTRIES", 100)
    for one, other in zip(
        expected, (knn_hypergraph(X, 5, weight="paper"), ball_hypergraph(X, 2.0)), strict=True
    ):
        assert torch.equal(one.hyperedge_index, other.hyperedge_index)
        torch.testing.assert_close(one.incidence_values(), other.incidence_values())


def test_weights_are_those_of_their_sources(X):
    distance = torch.stack([(X - row).norm(dim=1) for row in X])  # distance[j, i] from centre j
    paper = knn_hypergraph(X, 5, weight="paper").incidence().to_dense()
    hgnn = knn_hypergraph(X, 5, weight="hgnn").incidence().to_dense()
    for j, members in enumerate(nearest_in_loops(X, 5)):
        for i in members:
            expected = torch.exp(-2 * distance[j, i] ** 2 / distance.mean())
            torch.testing.assert_close(paper[i, j], expected, atol=1e-6, rtol=1e-4)
            expected = torch.exp(-(distance[j, i] ** 2) / distance[j].mean() ** 2)
            torch.testing.assert_close(hgnn[i, j], expected, atol=1e-6, rtol=1e-4)


def test_hgnn_weights_do_not_depend_on_the_unit_and_the_papers_do(X):
    for weight, same in (("hgnn", True), ("paper", False)):
        one, other = (knn_hypergraph(scale * X, 5, weight=weight) for scale in (1.0, 10.0))
        assert torch.allclose(one.incidence_values(), other.incidence_values(), atol=1e-5) == same


def test_ball_equals_a_search_in_loops(X):
    expected = [
        [i for i in range(30) if i == j or float((X[i] - X[j]).norm()) <= 1.8] for j in range(30)
    ]
    assert ball_hypergraph(X, 1.8).lists() == expected
    assert ball_hypergraph(X, 0.0).lists() == [[j] for j in range(30)]


def test_clusters_become_hyperedges():
    h = cluster_hypergraph(torch.tensor([2, 0, 2, -1, 0]))
    assert h.lists() == [[1, 4], [], [0, 2]]
    with pytest.raises(ValueError, match="entry 1 is -2"):
        cluster_hypergraph(torch.tensor([0, -2]))
    with pytest.raises(TypeError, match=r"labels must hold integers; got torch\.float32"):
        cluster_hypergraph(torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_neighborhoods_equal_those_of_networkx(hops):
    graph = nx.erdos_renyi_graph(20, 0.12, seed=3)
    pairs = torch.tensor(list(graph.edges)).T
    index = torch.cat([pairs, pairs.flip(0)], dim=1)
    expected = [
        sorted(nx.single_source_shortest_path_length(graph, node, cutoff=hops))
        for node in range(20)
    ]
    assert neighborhood_hypergraph(index, num_nodes=20, hops=hops).lists() == expected


def test_a_directed_neighborhood_holds_the_sources():
    assert neighborhood_hypergraph(torch.tensor([[0], [1]]), num_nodes=2).lists() == [[0], [0, 1]]


def test_cliques_of_two_triangles_and_a_bridge():
    edges = torch.tensor([[0, 1, 2, 2, 3, 4, 5, 6], [1, 2, 0, 3, 4, 5, 3, 6]])
    assert clique_hypergraph(edges, num_nodes=7).lists() == [[0, 1, 2], [2, 3], [3, 4, 5]]
    assert [6] in clique_hypergraph(edges, num_nodes=7, smallest=1).lists()


def test_superpixels_cover_every_pixel_once():
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    image = torch.zeros(3, 20, 30)
    image[:, :, 15:] = 1.0
    h = superpixel_hypergraph(image, 6)
    assert h.num_nodes == 600
    assert torch.equal(h.node_degree(), torch.ones(600))
    values = image[0].flatten()
    assert all(len(set(values[part].tolist())) == 1 for part in h.lists())


def test_what_does_not_fit_is_refused(X):
    broken = X.clone()
    broken[3, 1] = float("nan")
    with pytest.raises(ValueError, match="1 rows are not, the first is row 3"):
        knn_hypergraph(broken, 3)
    with pytest.raises(TypeError, match=r"knn_hypergraph: X must be .* X\.float\(\)"):
        knn_hypergraph(torch.arange(6).view(3, 2), 2, weight="paper")
    with pytest.raises(ValueError, match="k must"):
        knn_hypergraph(X, 31)
    with pytest.raises(ValueError, match="radius"):
        ball_hypergraph(X, -1.0)
    with pytest.raises(ValueError, match=r"edge_index\[1, 0\] is target 30"):
        neighborhood_hypergraph(torch.tensor([[0], [30]]), num_nodes=30)
    with pytest.raises(ValueError, match=r"image must lie in \[0, 1\]"):
        superpixel_hypergraph(torch.full((3, 4, 4), 255.0))
