"""Homophily as torch-geometric's and networkx's, on random graphs and the karate club."""

import networkx as nx
import pytest
import torch
from cv_graph.diagnostics import (
    adjusted_homophily,
    class_insensitive_homophily,
    edge_homophily,
    node_homophily,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")


def graphs():
    generator = torch.Generator().manual_seed(0)
    for n in (6, 50):
        ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])  # no node is isolated
        more = torch.randint(n, (2, 4 * n), generator=generator)
        y = torch.cat([torch.arange(3), torch.randint(3, (n - 3,), generator=generator)])
        yield torch.cat([ring, more], dim=1), y
    club = nx.karate_club_graph()
    edges = torch.tensor(list(club.edges)).T
    y = torch.tensor([int(club.nodes[node]["club"] != "Mr. Hi") for node in club])
    yield torch.cat([edges, edges.flip(0)], dim=1), y


@pytest.mark.parametrize(
    ("method", "ours"),
    [
        ("edge", edge_homophily),
        ("node", node_homophily),
        ("edge_insensitive", class_insensitive_homophily),
    ],
)
def test_torch_geometric(method, ours):
    utils = pytest.importorskip("torch_geometric.utils")
    for edges, y in graphs():
        assert ours(edges, y) == pytest.approx(utils.homophily(edges, y, method=method), rel=1e-5)


def test_torch_geometric_counts_isolated_nodes_as_0():
    utils = pytest.importorskip("torch_geometric.utils")
    for edges, y in graphs():
        more = torch.cat([y, y[:5]])
        peer = utils.homophily(edges, more, method="node")
        expected = node_homophily(edges, more) * len(y) / len(more)
        assert peer == pytest.approx(expected, rel=1e-5)


def test_networkx_assortativity():
    for edges, y in graphs():
        peer = nx.MultiDiGraph()
        peer.add_nodes_from((node, {"y": label}) for node, label in enumerate(y.tolist()))
        peer.add_edges_from(edges.T.tolist())
        expected = nx.attribute_assortativity_coefficient(peer, "y")
        assert adjusted_homophily(edges, y) == pytest.approx(expected, rel=1e-10)
