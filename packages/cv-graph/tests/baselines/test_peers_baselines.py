"""torch-geometric and scikit-learn have some of the baselines; DHG, where installed, the others."""

import warnings

import numpy as np
import pytest
import torch
from cv_graph.baselines.graph import pyg_network
from cv_graph.baselines.hypergraph import HGNN, HGNNPlus, UniGCN
from cv_graph.baselines.labels import label_propagation, label_spreading
from cv_graph.hypergraph import Hypergraph
from cv_graph.methods.hybrid_hgcn import HybridHGCN
from cv_graph.propagation import graph_propagation

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torch-geometric imports is deprecated in torch
    geometric = pytest.importorskip("torch_geometric.nn")

N, D = 20, 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def features():
    return torch.randn(N, D, generator=generator(), dtype=torch.float64)


def edges():
    pairs = torch.randint(N, (2, 35), generator=generator(1))
    pairs = pairs[:, pairs[0] != pairs[1]]
    return torch.cat([pairs, pairs.flip(0)], dim=1).unique(dim=1)


def hypergraph():
    draw = generator(2)
    index = torch.stack(
        [torch.randint(N, (60,), generator=draw), torch.randint(15, (60,), generator=draw)]
    )
    return Hypergraph(index, num_nodes=N, num_hyperedges=15)


def test_hgnn_plus_is_two_of_pygs_layers():
    h, x = hypergraph(), features()
    ours = HGNNPlus(D, 8, 3, dropout=0.0).double()
    hidden, out = (geometric.HypergraphConv(*sizes).double() for sizes in ((D, 8), (8, 3)))
    with torch.no_grad():
        for theirs, mine in ((hidden, ours.conv1), (out, ours.conv2)):
            theirs.lin.weight.copy_(mine.weight.T)
            theirs.bias.copy_(mine.bias.uniform_(generator=generator(3)))
    expected = out(hidden(x, h.hyperedge_index).relu(), h.hyperedge_index)
    torch.testing.assert_close(ours(x, h), expected)


def copied(network, ours):
    with torch.no_grad():
        for theirs, mine in zip(network.convs, (ours.conv1, ours.conv2), strict=True):
            theirs.lin.weight.copy_(mine.weight.T)
            theirs.bias.copy_(mine.bias.uniform_(generator=generator(3)))


def test_a_graphs_operator_makes_the_network_a_gcn():
    x, edge_index = features(), edges()
    ours = HGNN(D, 8, 3, dropout=0.0).double()
    theirs = pyg_network("gcn", D, 8, 3, dropout=0.0).double()
    copied(theirs, ours)
    P = graph_propagation(edge_index, num_nodes=N, dtype=torch.float64)
    torch.testing.assert_close(ours(x, P), theirs(x, edge_index))
    hybrid = HybridHGCN(D, 8, 3, orders=(1,), dropout=0.0).double()
    hybrid.conv1[0].load_state_dict(ours.conv1.state_dict())
    hybrid.conv2[0].load_state_dict(ours.conv2.state_dict())
    torch.testing.assert_close(hybrid(x, [P]), theirs(x, edge_index))


def test_the_named_networks_are_pygs():
    for name, kind in (("gcn", "GCN"), ("sage", "GraphSAGE"), ("gat", "GAT")):
        network = pyg_network(name, D, 8, 3, num_layers=3, dropout=0.25)
        assert type(network).__name__ == kind
        assert network.num_layers == 3
        assert network.dropout.p == 0.25
        assert network.float()(features().float(), edges()).shape == (N, 3)
    assert pyg_network("gat", D, 8, 3, heads=4).convs[0].heads == 4
    with pytest.raises(ValueError, match=r"pyg_network: name must be one of .* Did you mean 'gcn'"):
        pyg_network("gnc", D, 8, 3)


def affinity():
    x = features().numpy()
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    W = np.exp(-squared / 4)
    index = torch.from_numpy(np.indices(W.shape).reshape(2, -1))
    return W, index, torch.from_numpy(W.ravel())


def labels():
    y = torch.full((N,), -1)
    y[:6] = torch.tensor([0, 1, 2, 0, 1, 2])
    return y


@pytest.mark.parametrize("alpha", [0.2, 0.9])
def test_label_spreading_is_scikit_learns(alpha):
    from sklearn.semi_supervised import LabelSpreading

    W, index, weight = affinity()
    theirs = LabelSpreading(
        kernel=lambda *_: W.copy(),  # it is divided in place
        alpha=alpha,
        max_iter=3000,
        tol=1e-10,
    )
    theirs.fit(features().numpy(), labels().numpy())
    off = index[0] != index[1]  # scikit-learn's Laplacian knows no loops
    S = graph_propagation(
        index[:, off], weight[off], num_nodes=N, self_loops=False, dtype=torch.float64
    )
    ours = label_spreading(S, labels(), alpha=alpha, tol=1e-10)
    np.testing.assert_allclose(ours, theirs.label_distributions_, rtol=1e-8, atol=1e-12)


def test_label_propagation_is_scikit_learns():
    from sklearn.semi_supervised import LabelPropagation

    W, index, weight = affinity()
    theirs = LabelPropagation(kernel=lambda *_: W.copy(), max_iter=3000, tol=1e-10)
    theirs.fit(features().numpy(), labels().numpy())
    P = graph_propagation(
        index,
        weight,
        num_nodes=N,
        normalization="random-walk",
        self_loops=False,
        dtype=torch.float64,
    )
    ours = label_propagation(P, labels(), tol=1e-10)
    np.testing.assert_allclose(ours, theirs.label_distributions_, rtol=1e-8, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize(
    ("ours", "theirs"), [(HGNN, "HGNNConv"), (HGNNPlus, "HGNNPConv"), (UniGCN, "UniGCNConv")]
)
def test_layers_of_dhg(ours, theirs):
    dhg = pytest.importorskip("dhg", reason="DHG is not installed")
    lists = [members for members in hypergraph().lists() if members]
    lists += [[v] for v in range(N)]  # DHG's UniGCN adds no loops of its own
    network = ours(D, 8, 3, dropout=0.0)
    layer = getattr(dhg.nn, theirs)(D, 8, is_last=True)
    x = features().float()
    with torch.no_grad():
        layer.theta.weight.copy_(network.conv1.weight.T)
        layer.theta.bias.zero_()
    h = Hypergraph.from_lists(lists, num_nodes=N)
    expected = layer(x, dhg.Hypergraph(N, lists))
    torch.testing.assert_close(
        network.conv1(x, network.operator(h, x)), expected, rtol=1e-4, atol=1e-5
    )
