"""The multi-granularity head and the network: slow references, equal branches, paper sizes."""

import pytest
import torch
from cv_core.random import seeded, torch_generator
from cv_graph.interactions import pair_spatial_features
from cv_graph.label_merging import merge_label_matrix
from cv_graph.methods.multi_branch_hoi_graph import HOIGraphNet, MultiGranularityHead
from torch import nn

TRIPLETS = torch.tensor([[p, o] for p in range(3) for o in range(4) if (p, o) != (1, 2)])
COARSE, MIDDLE, FINE = (
    merge_label_matrix(TRIPLETS, torch.tensor(c)) for c in ([0] * 4, [0, 0, 1, 1], [0, 1, 2, 3])
)


def labels(pairs):
    return (torch.rand(pairs, 11, generator=torch_generator(0, "y")) < 0.3).double()


def head(matrices, **options):
    with seeded(0, "head"):
        return MultiGranularityHead(6, matrices, hidden_dim=8, **options).double()


def vectors(pairs):
    return torch.randn(pairs, 6, generator=torch_generator(0, "x"), dtype=torch.float64)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.8, 2.0), (0.25, 1.5)])
def test_loss_and_scores_against_a_slow_loop(alpha, gamma):
    model, y = head([COARSE, MIDDLE, FINE], alpha=alpha, gamma=gamma), labels(5)
    logits = model(vectors(5))
    total, fused = 0.0, torch.zeros(5, 11, dtype=torch.float64)
    for z, T in zip(logits, (COARSE, MIDDLE, FINE), strict=True):
        for pair in range(5):
            for k in range(len(T)):
                p = 1 / (1 + (-z[pair, k]).exp())
                held = [j for j in range(11) if T[k, j]]
                if any(y[pair, j] for j in held):
                    total -= alpha * (1 - p) ** gamma * p.log()
                else:
                    total -= (1 - alpha) * p**gamma * (1 - p).log()
                fused[pair, held] += p / 3
    assert float((y @ COARSE.T.double()).max()) > 1.5, "labels of one super class meet"
    torch.testing.assert_close(model.loss(logits, y), total / (5 * 3))
    torch.testing.assert_close(model.loss(logits, y.bool()), total / (5 * 3))
    torch.testing.assert_close(model.fuse(logits), fused)


def test_branches_that_agree_are_one_branch():
    """Property 6."""
    one, three = head([MIDDLE]), head([MIDDLE] * 3)
    for branch in three.branches:
        branch.load_state_dict(one.branches[0].state_dict())
    x, y = vectors(5), labels(5)
    torch.testing.assert_close(three.fuse(three(x)), one.fuse(one(x)))
    torch.testing.assert_close(three.loss(three(x), y), one.loss(one(x), y))


def test_one_fine_branch_is_a_plain_classifier():
    """The degenerate case: with the identity, scores are the branch's own sigmoids."""
    model = head([torch.eye(11)])
    logits = model(vectors(5))
    torch.testing.assert_close(model.fuse(logits), logits[0].sigmoid())
    entropy = nn.functional.binary_cross_entropy_with_logits(logits[0], labels(5), reduction="sum")
    plain = head([torch.eye(11)], alpha=0.5, gamma=0.0)
    torch.testing.assert_close(2 * plain.loss(logits, labels(5)), entropy / 5)


def test_every_branch_may_have_vectors_of_its_own():
    model, x = head([COARSE, FINE]), vectors(5)
    first, second = model([x, 2 * x])
    assert torch.equal(first, model(x)[0])
    assert torch.equal(second, model(2 * x)[1])


def net(matrices=(COARSE, FINE), **options):
    with seeded(0, "net"):
        return HOIGraphNet(6, 4, list(matrices), hidden_dim=8, spatial_dim=8, **options).double()


def images(count=2, nodes=4):
    generator = torch_generator(0, "images")
    x = torch.randn(count, nodes, 6, generator=generator, dtype=torch.float64)
    corner = 20 * torch.rand(count, nodes, 2, generator=generator, dtype=torch.float64)
    size = 5 + 20 * torch.rand(count, nodes, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat([corner, corner + size], dim=-1)
    return x, pair_spatial_features(boxes, boxes, (64, 64))


PAIRS = torch.tensor([[0, 0, 1], [1, 2, 0], [0, 3, 2]])


def test_network_is_its_parts_put_together():
    model, (x, spatial) = net(), images()
    edge = model.embed_edge(spatial)
    shared = model.shared(x, edge)
    for number, logits in enumerate(model(x, spatial, PAIRS)):
        v = model.layers[number](shared, edge)
        for row, (b, i, j) in enumerate(PAIRS.tolist()):
            expected = model.head.branches[number](torch.cat([v[b, i], v[b, j], edge[b, i, j]]))
            torch.testing.assert_close(logits[row], expected)


def test_pairs_do_not_depend_on_other_images_or_padding():
    model, (x, spatial) = net(), images()
    for layer in (model.shared, *model.layers):
        layer.bias.data.fill_(0.5)
    whole = model(x, spatial, PAIRS)
    alone = model(x[1:], spatial[1:], torch.tensor([[0, 2, 0]]))
    wide, far = x.new_ones(2, 6, 6), spatial.new_ones(2, 6, 6, 16)
    wide[:, :4], far[:, :4, :4] = x, spatial
    padded = model(wide, far, PAIRS, torch.arange(6).expand(2, 6) < 4)
    for one, all_, more in zip(alone, whole, padded, strict=True):
        torch.testing.assert_close(one[0], all_[1])
        torch.testing.assert_close(more, all_)


def test_branches_share_one_layer_and_nothing_else():
    model, (x, spatial) = net(), images()
    first, _ = model(x, spatial, PAIRS)
    first.sum().backward()
    reached = {name for name, item in model.named_parameters() if item.grad is not None}
    assert {name.split(".")[0] for name in reached} == {"embed_edge", "shared", "layers", "head"}
    own = {name for name in reached if name.startswith(("layers", "head.branches"))}
    assert all(".0." in name.replace("head.branches", "head") for name in own)


def test_another_graph_layer_can_be_given():
    class Nothing(nn.Module):
        def __init__(self, in_dim, out_dim, _):
            super().__init__()
            self.linear = nn.Linear(in_dim, out_dim)

        def forward(self, x, *_):
            return self.linear(x)

    model, (x, spatial) = net(layer=Nothing), images()
    other = x.clone()
    other[0, 2] += 1.0
    first, second = model(x, spatial, PAIRS)[0], model(other, spatial, PAIRS)[0]
    assert torch.equal(first[0], second[0]), "without messages other nodes do not count"
    assert not torch.equal(net()(x, spatial, PAIRS)[0][0], net()(other, spatial, PAIRS)[0][0])


def test_parameters_are_the_papers():
    T = [FINE, COARSE]
    with torch.device("meta"):
        model = HOIGraphNet(2048, 512, T)

    def count(part):
        return sum(item.numel() for item in part.parameters())

    assert count(model.embed_edge) == 135_936
    assert count(model.shared) == 4_198_913
    assert [count(layer) for layer in model.layers] == [2_101_761] * 2
    assert [count(b) for b in model.head.branches] == [2_622_464 + 1025 * len(t) for t in T]


def test_the_network_learns_merged_labels():
    """From positions alone: which predicate holds is a matter of who is above whom."""
    model, (x, spatial) = net(), images(count=40, nodes=3)
    pairs = torch.tensor([[image, 0, 1] for image in range(40)])
    above = spatial[:, 0, 1, 1] < spatial[:, 0, 1, 5]
    y = torch.zeros(40, 11, dtype=torch.float64)
    y[above, 0], y[~above, -1] = 1.0, 1.0
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(80):
        loss = model.head.loss(model(x, spatial, pairs), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = model.head.fuse(model(x, spatial, pairs))
    assert float(((scores[:, 0] > scores[:, -1]) == above).double().mean()) > 0.95


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: head([]), ValueError, "MultiGranularityHead: label_matrices must hold at least"),
        (lambda: head([torch.ones(2, 3)]), ValueError, "one 1 in every column"),
        (lambda: head([torch.tensor([[1.0, 1.0], [0.0, 0.0]])]), ValueError, "in every row"),
        (lambda: head([FINE, torch.eye(3)]), ValueError, "label_matrices must have shape"),
        (lambda: head([FINE], alpha=1.5), ValueError, "alpha must lie in"),
        (lambda: head([FINE])([vectors(2)] * 2), ValueError, "one tensor per branch, 1; got 2"),
        (lambda: head([FINE]).fuse([]), ValueError, "one tensor per branch"),
        (lambda: head([FINE]).loss([torch.zeros(2, 11)], torch.zeros(2, 10)), ValueError, "y must"),
        (lambda: head([FINE]).loss([torch.zeros(2, 11)], 2 + labels(2)), ValueError, "in .0, 1."),
        (lambda: net()(*images(), PAIRS + 3), ValueError, "HOIGraphNet: pairs' images must lie"),
        (lambda: net()(*images(), PAIRS + torch.tensor([0, 2, 0])), ValueError, "pairs' nodes"),
        (
            lambda: net()(*images(), PAIRS, torch.arange(4).expand(2, 4) < 3),
            ValueError,
            "pairs must name nodes that are there",
        ),
        (lambda: net()(images()[0], images()[1][..., :4], PAIRS), ValueError, "spatial"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
