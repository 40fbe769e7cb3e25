"""To other libraries and back: nothing is lost, or it is refused."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from cv_graph.conv import HypergraphConv
from cv_graph.hypergraph import Hypergraph
from cv_graph.interop import dhg as dhg_interop
from cv_graph.interop import networkx as networkx_interop
from cv_graph.interop import pyg, xgi
from cv_graph.propagation import graph_propagation, hypergraph_propagation


def same(one, other):
    assert one.lists() == other.lists()
    assert one.num_nodes == other.num_nodes
    torch.testing.assert_close(one.node_degree(), other.node_degree())
    torch.testing.assert_close(one.incidence_values(), other.incidence_values())


@pytest.mark.parametrize("name", ["odd", "drawn"])
def test_there_and_back_through_pyg_and_networkx(name, request):
    h = request.getfixturevalue(name)
    same(pyg.from_pyg(pyg.to_pyg(h)), h)
    same(networkx_interop.from_networkx(networkx_interop.to_networkx(h)), h)


def test_pyg_data_with_features_and_a_plain_graph():
    from torch_geometric.data import Data
    from torch_geometric.data.hypergraph_data import HyperGraphData

    index = torch.tensor([[0, 1], [0, 0]])
    assert pyg.from_pyg(HyperGraphData(x=torch.ones(4, 2), edge_index=index)).num_nodes == 4
    assert pyg.from_pyg(Data(hyperedge_index=index, num_nodes=5)).num_nodes == 5
    with pytest.raises(TypeError, match="holds no hyperedges"):
        pyg.from_pyg(Data(edge_index=index))


def test_networkx_graphs_and_their_errors():
    path = nx.path_graph(3)
    assert networkx_interop.edge_index_from_networkx(path).tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    one_way = nx.DiGraph([("a", "b"), ("b", "b")])
    assert networkx_interop.edge_index_from_networkx(one_way).tolist() == [[0, 1], [1, 1]]
    with pytest.raises(ValueError, match="vertex 0 must have bipartite"):
        networkx_interop.from_networkx(path)
    nx.set_node_attributes(path, 0, "bipartite")
    with pytest.raises(ValueError, match="two vertices of one kind"):
        networkx_interop.from_networkx(path)


@pytest.mark.filterwarnings("ignore:Sparse (CSR tensor|invariant):UserWarning")  # DHG, once
def test_there_and_back_through_dhg():
    pytest.importorskip("dhg", reason="DHG is not installed")
    h = Hypergraph.from_lists(
        [[0, 1, 2], [2, 3], [5]], num_nodes=6, hyperedge_weight=torch.tensor([0.5, 1.0, 2.0])
    )
    there = dhg_interop.to_dhg(h)
    same(dhg_interop.from_dhg(there), h)
    expected = there.L_HGNN.to_dense()
    torch.testing.assert_close(hypergraph_propagation(h).dense(), expected)


def test_what_dhg_would_change_is_refused(odd):
    pytest.importorskip("dhg", reason="DHG is not installed")
    with pytest.raises(ValueError, match="hyperedge 2 is empty"):
        dhg_interop.to_dhg(odd)
    with pytest.raises(ValueError, match="incidence_weight"):
        dhg_interop.to_dhg(Hypergraph.from_incidence(torch.tensor([[0.5], [1.0]])))
    with pytest.raises(ValueError, match="same members"):
        dhg_interop.to_dhg(Hypergraph.from_lists([[0, 1], [1, 0]]))


def test_there_and_back_through_xgi(odd, drawn):
    pytest.importorskip("xgi", reason="XGI is not installed")
    same(xgi.from_xgi(xgi.to_xgi(odd)), odd)
    with pytest.raises(ValueError, match="incidence_weight"):
        xgi.to_xgi(drawn)


def test_layer_equals_pygs(odd):
    from torch_geometric.nn import HypergraphConv as Peer

    peer, layer = Peer(3, 4), HypergraphConv(3, 4, normalization="random-walk")
    with torch.no_grad():
        layer.weight.copy_(peer.lin.weight.T)
        layer.bias.copy_(peer.bias)
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    results, gradients = [], []
    for one in (peer, layer):
        x.grad = None
        results.append(one(x, odd.hyperedge_index))
        results[-1].square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)


def test_graph_operator_equals_pygs_normalisation():
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    index = torch.tensor([[0, 1, 2, 2, 3], [1, 2, 0, 3, 3]])
    weight = torch.tensor([1.0, 2.0, 0.5, 0.25, 4.0])
    edges, values = gcn_norm(index, weight, num_nodes=5)
    expected = torch.zeros(5, 5).index_put((edges[1], edges[0]), values, accumulate=True)
    torch.testing.assert_close(graph_propagation(index, weight, num_nodes=5).dense(), expected)
