"""Against torch-geometric's attention, scikit-learn's average precision, torchvision's loss."""

import numpy as np
import pytest
import torch
from cv_core.random import numpy_generator, seeded, torch_generator
from cv_graph.hgat import HGATConv
from cv_graph.interactions import hoi_mean_ap
from cv_graph.methods.multi_branch_hoi_graph import MultiGranularityHead


def test_graph_attention_is_torch_geometrics():
    """Where nothing is cut by the ReLUs, messages are those of GATConv on the complete graph."""
    nn = pytest.importorskip("torch_geometric.nn")
    nodes, out, edge_dim = 5, 4, 3
    with seeded(0, "layers"):
        ours = HGATConv(6, out, edge_dim)
        peer = nn.GATConv(6, out, edge_dim=edge_dim, add_self_loops=False, bias=False)
    torch.nn.init.zeros_(ours.own.weight)
    torch.nn.init.zeros_(ours.own.bias)
    torch.nn.init.zeros_(ours.score.bias)
    ours.message.weight.data.abs_()
    score = ours.score.weight.data[0]
    peer.lin.weight.data = ours.message.weight.data
    peer.att_dst.data[0, 0], peer.att_src.data[0, 0] = score[:out], score[out : 2 * out]
    peer.lin_edge.weight.data = torch.eye(out)[:, :edge_dim]
    peer.att_edge.data[0, 0] = torch.nn.functional.pad(score[2 * out :], (0, out - edge_dim))
    generator = torch_generator(0, "graph")
    x = torch.rand(nodes, 6, generator=generator)
    edge = torch.randn(nodes, nodes, edge_dim, generator=generator)
    here, there = (1 - torch.eye(nodes)).nonzero().T
    expected = peer(x, torch.stack([there, here]), edge[here, there])
    torch.testing.assert_close(ours(x[None], edge[None])[0], expected)


@pytest.mark.parametrize("missed", [0, 5])
def test_average_precision_is_scikit_learns(missed):
    """One pair per image; annotations without a prediction lower the recall alone."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = numpy_generator(0, "scores")
    scores = rng.random((80, 3)).clip(0.01)
    labels = rng.integers(3, size=80)
    box = {"subject_boxes": torch.tensor([[0.0, 0.0, 2.0, 2.0]]),
           "object_boxes": torch.tensor([[2.0, 0.0, 4.0, 2.0]])}  # fmt: skip
    none = {"subject_boxes": torch.zeros(0, 4), "object_boxes": torch.zeros(0, 4)}
    predictions = [{**box, "scores": torch.from_numpy(row[None])} for row in scores]
    targets = [{**box, "labels": torch.tensor([label])} for label in labels]
    predictions += [{**none, "scores": torch.zeros(0, 3, dtype=torch.float64)}] * missed
    targets += [{**box, "labels": torch.tensor([0])}] * missed
    plain = hoi_mean_ap(predictions, targets, interpolation="none").per_label
    eleven = hoi_mean_ap(predictions, targets).per_label
    for label in range(3):
        truth = labels == label
        share = truth.sum() / (truth.sum() + (missed if label == 0 else 0))
        expected = metrics.average_precision_score(truth, scores[:, label]) * share
        assert float(plain[label]) == pytest.approx(expected)
        precision, recall, _ = metrics.precision_recall_curve(truth, scores[:, label])
        levels = [precision[:-1][recall[:-1] * share >= t - 1e-9] for t in np.arange(11) / 10]
        best = [level.max() if len(level) else 0.0 for level in levels]
        assert float(eleven[label]) == pytest.approx(np.mean(best))


def test_loss_is_torchvisions_focal_loss():
    ops = pytest.importorskip("torchvision.ops")
    T = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    generator = torch_generator(0)
    logits = [torch.randn(6, 2, generator=generator)]
    y = (torch.rand(6, 3, generator=generator) < 0.5).float()
    merged = torch.stack([y[:, :2].amax(1), y[:, 2]], dim=1)
    expected = ops.sigmoid_focal_loss(logits[0], merged, alpha=0.8, gamma=2, reduction="sum") / 6
    torch.testing.assert_close(MultiGranularityHead(4, [T]).loss(logits, y), expected)
