"""SARG: the spec's exact properties, the whole network by loops, the loss by loops."""

import math

import pytest
import torch
from cv_graph.methods.sarg import SARG, group_activity_loss
from cv_graph.relations import actor_relation_graph
from torch import nn
from torch.nn import functional

FUSIONS = ["max", "add", "net"]
ENCODERS = ["gcn", "fc"]


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scenes(batch=2, actors=6, dim=5):
    return draws(batch, actors, dim), draws(batch, actors, 2, seed=1)


def network(num_graphs=2, **options):
    options = {"mu": 1.5, "num_activities": 3, "num_actions": 4, **options}
    return SARG(5, num_graphs, **options).double()


def by_loops(model, x, c):
    """Z and Z' of one scene, as the equations are printed."""
    n, d = x.shape
    kept_actors = math.ceil(n / 2)
    Z = torch.zeros(n, d, dtype=x.dtype) if model.fusion == "net" else x.clone()
    for graph in model.graphs:
        A = torch.zeros(n, n, dtype=x.dtype)
        for i in range(n):
            for j in range(n):
                if math.dist(c[i].tolist(), c[j].tolist()) <= model.mu:
                    A[i, j] = torch.exp(
                        graph.theta(x[i]) @ graph.phi(x[j]) / math.sqrt(len(graph.theta(x[i])))
                    )
            A[i] = A[i] / A[i].sum()
        H = torch.relu(A @ x @ graph.gcn.weight.T)
        Ha = H @ graph.pool.actions.weight.T + graph.pool.actions.bias
        if graph.pool.encoder == "gcn":
            S = torch.sigmoid((A + torch.eye(n, dtype=x.dtype)) @ Ha @ graph.pool.theta.weight.T)[
                :, 0
            ]
        else:
            S = graph.pool.theta(Ha)[:, 0]
        idx = sorted(range(n), key=lambda i: -S[i].detach())[:kept_actors]
        scattered = torch.zeros(n, d, dtype=x.dtype)
        for i in idx:
            scattered[i] = S[i] * H[i]
        for i in range(n):
            if model.fusion == "net":
                Z[i] = Z[i] + torch.relu(graph.fuse(torch.cat([x[i], H[i], scattered[i]])))
            else:
                Z[i] = Z[i] + H[i] + scattered[i]
    pooled = [max(Z[:, k]) if model.fusion == "max" else sum(Z[:, k]) for k in range(d)]
    return Z, torch.stack(pooled)


@pytest.mark.parametrize("embed_dim", [None, 3])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_by_loops(encoder, fusion, embed_dim):
    model = network(encoder=encoder, fusion=fusion, embed_dim=embed_dim)
    x, c = scenes()
    features, pooled = model.features(x, c)
    activity, action = model(x, c)
    for b in range(2):
        Z, scene = by_loops(model, x[b], c[b])
        torch.testing.assert_close(features[b], Z)
        torch.testing.assert_close(pooled[b], scene)
        torch.testing.assert_close(activity[b], model.activity(scene))
        torch.testing.assert_close(action[b], model.action(Z))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_order_of_actors_does_not_matter(encoder, fusion):  # property 2
    model, (x, c) = network(encoder=encoder, fusion=fusion), scenes()
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    Z, scene = model.features(x, c)
    moved, same = model.features(x[:, order], c[:, order])
    torch.testing.assert_close(moved, Z[:, order])
    torch.testing.assert_close(same, scene)
    torch.testing.assert_close(
        model.key_actor_scores(x[:, order], c[:, order]), model.key_actor_scores(x, c)[:, order]
    )


class Constant(nn.Module):
    """Scores that are the same for all."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, Ha):
        return torch.full_like(Ha[..., :1], self.value)


def graph_features(model, x, c):
    A = actor_relation_graph(x, c, model.mu)
    return sum(torch.relu(A @ x @ graph.gcn.weight.T) for graph in model.graphs)


@pytest.mark.parametrize("fusion", ["max", "add"])
def test_without_scores_it_is_the_actor_relation_graph(fusion):  # property 3
    model, (x, c) = network(encoder="fc", fusion=fusion), scenes()
    for graph in model.graphs:
        graph.pool.theta = Constant(0.0)
    Z, scene = model.features(x, c)
    expected = x + graph_features(model, x, c)
    torch.testing.assert_close(Z, expected)
    torch.testing.assert_close(scene, expected.amax(1) if fusion == "max" else expected.sum(1))


def test_with_all_scores_one_the_graph_counts_twice():  # property 3
    model, (x, c) = network(encoder="fc", fusion="add", ratio=1.0), scenes()
    for graph in model.graphs:
        graph.pool.theta = Constant(1.0)
    Z, _ = model.features(x, c)
    torch.testing.assert_close(Z, x + 2 * graph_features(model, x, c))


def test_graphs_share_no_parameters():
    model = network(3, embed_dim=4)
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == 3 * 9 + 4  # theta 2, phi 1, gcn 1, FC 2, Theta 1, fusion 2; two heads
    first, second, _ = model.graphs
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert not torch.equal(one, other)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_padding_changes_nothing(encoder, fusion):  # property 6
    model, (x, c) = network(encoder=encoder, fusion=fusion, embed_dim=3), scenes(3)
    sizes = (6, 5, 2)
    mask = torch.arange(6) < torch.tensor(sizes)[:, None]
    x = x.masked_fill(~mask.unsqueeze(2), math.nan).requires_grad_()
    activity, action = model(x, c, mask)
    scores, parts = model.key_actor_scores(x, c, mask), model.subgraphs(x, c, mask)
    for b, n in enumerate(sizes):
        alone = x[b : b + 1, :n], c[b : b + 1, :n]
        torch.testing.assert_close(activity[b], model(*alone)[0][0])
        torch.testing.assert_close(action[b, :n], model(*alone)[1][0])
        torch.testing.assert_close(scores[b, :n], model.key_actor_scores(*alone)[0])
        for part, other in zip(parts, model.subgraphs(*alone), strict=True):
            k = math.ceil(n / 2)
            assert part.nodes[b].tolist() == other.nodes[0].tolist() + [-1] * (3 - k)
    (activity.sum() + action[mask].sum()).backward()
    assert torch.isfinite(x.grad).all()
    assert not x.grad[~mask].any()


def test_key_actor_scores_are_the_graphs_mean():
    model, (x, c) = network(3), scenes()
    parts = model.subgraphs(x, c)
    assert len(parts) == 3
    expected = (parts[0].scores + parts[1].scores + parts[2].scores) / 3
    torch.testing.assert_close(model.key_actor_scores(x, c), expected)


def test_frames_reach_the_pooling():
    x, c = scenes(actors=8)
    for part in network(frames=2).subgraphs(x, c):
        assert torch.equal((part.nodes < 4).sum(1), torch.tensor([2, 2]))


def loss_by_loops(group, action, y_group, y_action, lam, mask):
    values = []
    for b in range(len(group)):
        there = [i for i in range(action.shape[1]) if mask[b, i] and y_action[b, i] != -100]
        each = [functional.cross_entropy(action[b, i], y_action[b, i]) for i in there]
        actions = sum(each) / len(each) if each else 0.0
        values.append(functional.cross_entropy(group[b], y_group[b]) + lam * actions)
    return torch.stack(values)


def labels(batch, actors):
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randint(3, (batch,), generator=generator),
        torch.randint(4, (batch, actors), generator=generator),
    )


def test_loss_by_loops():
    group, action = draws(3, 3), draws(3, 5, 4, seed=1)
    y_group, y_action = labels(3, 5)
    y_action[0, 1] = -100
    mask = torch.arange(5) < torch.tensor([[5], [2], [4]])
    y_action[1, 3] = 77  # padding, whatever it holds
    expected = loss_by_loops(group, action, y_group, y_action, 0.3, mask)
    for reduction, value in (
        ("none", expected), ("mean", expected.mean()), ("sum", expected.sum()),
    ):  # fmt: skip
        loss = group_activity_loss(
            group, action, y_group, y_action, lam=0.3, mask=mask, reduction=reduction
        )
        torch.testing.assert_close(loss, value)


def test_loss_of_scenes_alike_is_the_usual_sum():
    group, action = draws(3, 3), draws(3, 5, 4, seed=1)
    y_group, y_action = labels(3, 5)
    usual = functional.cross_entropy(group, y_group) + 2 * functional.cross_entropy(
        action.flatten(0, 1), y_action.flatten()
    )
    torch.testing.assert_close(
        group_activity_loss(group, action, y_group, y_action, lam=2.0), usual
    )


def test_labels_that_do_not_count():
    group, action = draws(2, 3), draws(2, 5, 4, seed=1)
    y_group, y_action = labels(2, 5)
    none = torch.full_like(y_action, -100)
    only_groups = group_activity_loss(group, action, y_group, none)
    torch.testing.assert_close(only_groups, functional.cross_entropy(group, y_group))
    y_group[0] = -100
    both = group_activity_loss(group, action, y_group, none)
    torch.testing.assert_close(both, functional.cross_entropy(group[1:], y_group[1:]))


def test_on_a_torchvision_backbone():
    """Boxes on a ResNet's map, by RoIAlign; the loss reaches the backbone's first layer."""
    models = pytest.importorskip("torchvision.models")
    ops = pytest.importorskip("torchvision.ops")
    backbone = nn.Sequential(*list(models.resnet18().children())[:-2]).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 96, 128, generator=generator)
    corner = torch.rand(2, 4, 2, generator=generator) * torch.tensor([80.0, 48.0])
    boxes = torch.cat([corner, corner + 40], dim=2)
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    crops = ops.roi_align(backbone(images), list(boxes), 3, spatial_scale=1 / 32, aligned=True)
    embed = nn.Linear(512 * 9, 16)
    x = embed(crops.flatten(1)).relu().unflatten(0, (2, 4))
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    model = SARG(16, 2, mu=128 / 5, num_activities=3, num_actions=4)
    y_group, y_action = labels(2, 4)
    loss = group_activity_loss(*model(x, centers, mask), y_group, y_action, mask=mask)
    loss.backward()
    assert backbone[0].weight.grad.abs().sum() > 0
    # the padded box has no say
    other = crops.unflatten(0, (2, 4)).clone()
    other[1, 3] = -1.0
    again = embed(other.flatten(0, 1).flatten(1)).relu().unflatten(0, (2, 4))
    torch.testing.assert_close(model(again, centers, mask)[0], model(x, centers, mask)[0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: network(0), ValueError, "SARG: num_graphs must be at least 1"),
        (lambda: network(mu=-1.0), ValueError, "SARG: mu must lie in"),
        (lambda: network(fusion="sum"), ValueError, "SARG: fusion must be one of"),
        (lambda: network(embed_dim=0), ValueError, "SARG: embed_dim must be at least 1"),
        (lambda: network(ratio=1.5), ValueError, "ratio must lie in"),
        (lambda: network()(*scenes(dim=4)), ValueError, r"SARG: x must have shape .* with d=5"),
        (lambda: network(frames=4)(*scenes()), ValueError, "SARG: frames=4 must divide"),
        (
            lambda: group_activity_loss(draws(2, 3), draws(2, 5, 4), *labels(2, 4)),
            ValueError,
            "group_activity_loss: y_action must have shape",
        ),
        (
            lambda: group_activity_loss(draws(2, 3), draws(2, 5, 4), *labels(2, 5), lam=-1.0),
            ValueError,
            "group_activity_loss: lam must lie in",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
