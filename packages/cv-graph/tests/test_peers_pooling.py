"""On 0/1 graphs with a sigmoid, torch-geometric's SAGPooling is the same pooling."""

import pytest
import torch
from cv_graph.pooling import SubgraphAttentionPool

geometric = pytest.importorskip("torch_geometric.nn")
select = pytest.importorskip("torch_geometric.nn.pool.select")
dense = pytest.importorskip("torch_geometric.utils")

SIZES = (7, 4, 9)


def batch():
    """Graphs of several sizes, padded: features, 0/1 weights, mask."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(9) < torch.tensor(SIZES)[:, None]
    H = torch.randn(3, 9, 5, generator=generator).relu() * mask.unsqueeze(2)
    A = (torch.rand(3, 9, 9, generator=generator) < 0.4).float()
    return H, A * (mask.unsqueeze(1) & mask.unsqueeze(2)), mask


@pytest.mark.parametrize("ratio", [0.5, 0.3])
def test_sagpooling(ratio):
    H, A, mask = batch()
    ours = SubgraphAttentionPool(5, ratio)
    theirs = geometric.SAGPooling(5, ratio, GNN=geometric.GraphConv, nonlinearity="sigmoid")
    with torch.no_grad():
        for layer in (theirs.gnn.lin_rel, theirs.gnn.lin_root):  # A H Theta + H Theta
            layer.weight.copy_(ours.theta.weight)
        theirs.gnn.lin_rel.bias.zero_()
        theirs.select.weight.fill_(1.0)
        out = ours(H, A, mask)
        # their edges point from the node that is looked at to the one that looks
        edges, _ = dense.dense_to_sparse(A.mT.contiguous(), mask)
        x, kept_edges, _, _, kept, score = theirs(
            H[mask], edges, batch=mask.nonzero()[:, 0], attn=ours.actions(H)[mask]
        )
    ours_kept = out.nodes[out.nodes >= 0]
    offset = torch.tensor([0, *SIZES[:-1]]).cumsum(0).repeat_interleave((out.nodes >= 0).sum(1))
    assert torch.equal(ours_kept + offset, kept)
    rows = (out.nodes >= 0).nonzero()[:, 0]
    torch.testing.assert_close(out.scores[rows, ours_kept], score)
    torch.testing.assert_close(out.features[rows, ours_kept], x)
    subgraph = torch.zeros(len(kept), len(kept))
    subgraph[kept_edges[1], kept_edges[0]] = 1
    counts = (out.nodes >= 0).sum(1).tolist()
    blocks = [out.adjacency[b, :k, :k] for b, k in enumerate(counts)]
    assert torch.equal(torch.block_diag(*blocks), subgraph)


def test_select_topk():
    _, _, mask = batch()
    H = torch.randn(3, 9, 1, generator=torch.Generator().manual_seed(1))
    ours = SubgraphAttentionPool(1, 0.5, encoder="fc")
    theirs = select.SelectTopK(1, 0.5, act=lambda score: score)
    with torch.no_grad():
        ours.actions.weight.fill_(1.0)
        ours.actions.bias.fill_(9.0)  # all positive: the rectifier lets everything pass
        for layer in (ours.theta[0], ours.theta[2]):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
        theirs.weight.fill_(1.0)
        nodes = ours(H, torch.zeros(3, 9, 9), mask).nodes
        chosen = theirs(H[mask], mask.nonzero()[:, 0]).node_index
    offset = torch.tensor([0, *SIZES[:-1]]).cumsum(0).repeat_interleave((nodes >= 0).sum(1))
    assert torch.equal(nodes[nodes >= 0] + offset, chosen)
