import pytest
import torch
from cv_core.data import sources

pytest.importorskip("torch_geometric", reason="torch-geometric is not installed")


def test_graph_becomes_data():
    graph = sources.load("karate-club")
    data = graph.to_pyg()
    data.validate()
    assert data.num_nodes == 34
    assert data.is_undirected()
    assert not data.has_self_loops()
    assert data.x.data_ptr() == graph.x.data_ptr()
    assert torch.equal(data.train_mask | data.test_mask, torch.ones(34, dtype=torch.bool))


def test_hypergraph_becomes_data_that_a_layer_takes():
    from torch_geometric.nn import HypergraphConv

    graph = sources.load("digits-hypergraph")
    data = graph.to_pyg(split=3)
    assert data.num_nodes == 1797
    assert data.num_edges == graph.num_hyperedges
    assert data.train_mask.nonzero().flatten().tolist() == graph.splits[3][0].tolist()
    assert data.test_mask.nonzero().flatten().tolist() == graph.splits[3][1].tolist()
    layer = HypergraphConv(64, 2, bias=False)
    # without weights of its own the layer is D^-1 H B^-1 H^T X Theta
    out = layer(data.x, data.edge_index)
    incidence = torch.zeros(1797, 1797)
    incidence[data.edge_index[0], data.edge_index[1]] = 1
    smooth = (incidence / incidence.sum(1, keepdim=True)) @ (
        (incidence / incidence.sum(0)).T @ (data.x @ layer.lin.weight.T)
    )
    torch.testing.assert_close(out, smooth, atol=1e-5, rtol=1e-4)
