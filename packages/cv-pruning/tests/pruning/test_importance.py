from __future__ import annotations

import pytest
import torch
from cv_core.random import torch_generator
from cv_pruning.pruning.groups import channel_groups, trace
from cv_pruning.pruning.importance import (
    CRITERIA,
    Importance,
    RandomImportance,
    _channels,
    fpgm,
    l1,
    l2,
    lamp,
    taylor,
)
from cv_pruning.pruning.structural import ROOTS
from torch import nn

from .networks import Chain, image, randomised

WEIGHT = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch_generator(0, "weight"))
GRAD = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch_generator(1, "grad"))


def by_loops(kind, dim):
    """Scores of the slices along ``dim``, one number at a time."""
    slices = [WEIGHT.select(dim, c).flatten().tolist() for c in range(WEIGHT.shape[dim])]
    grads = [GRAD.select(dim, c).flatten().tolist() for c in range(WEIGHT.shape[dim])]
    if kind == "l1":
        return [sum(abs(w) for w in row) for row in slices]
    if kind == "l2":
        return [sum(w * w for w in row) for row in slices]
    if kind == "taylor":
        return [
            sum(abs(w * g) for w, g in zip(*pair, strict=True))
            for pair in zip(slices, grads, strict=True)
        ]
    return [
        sum(sum((a - b) ** 2 for a, b in zip(row, other, strict=True)) ** 0.5 for other in slices)
        for row in slices
    ]


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("score", [l1, l2, taylor, fpgm])
def test_score_equals_loops(score, dim):
    expected = torch.tensor(by_loops(score.__name__, dim), dtype=torch.float64)
    torch.testing.assert_close(score(WEIGHT, dim=dim, grad=GRAD), expected)


@pytest.mark.parametrize("score", [l1, l2, taylor, fpgm])
def test_a_vector_has_one_score_per_entry(score):
    assert score(torch.tensor([1.0, -2.0]), grad=torch.ones(2)).shape == (2,)


def test_taylor_needs_a_gradient():
    with pytest.raises(ValueError, match=r"call loss\.backward"):
        taylor(WEIGHT)


def test_fpgm_is_lowest_at_the_geometric_median():
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [0.0, 0.1], [1.0, -1.0], [1.0, 1.0]])
    assert int(fpgm(corners).argmin()) == 2


def test_lamp_equals_its_definition():
    scores = torch.tensor([4.0, 1.0, 3.0, 2.0])
    expected = [float(s / sum(o for o in scores if o >= s)) for s in scores]
    torch.testing.assert_close(lamp(scores), torch.tensor(expected))


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"taylor"}))
def test_weights_of_zero_score_zero(name):
    model = Chain()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    for group in groups_of(model):
        scores = CRITERIA[name]()(group)
        assert scores is None or scores.tolist() == [0.0] * group.channels


def groups_of(model):
    return channel_groups(trace(model, (image(8),)), ROOTS)


def test_group_score_sums_the_weights_that_leave_with_a_channel():
    model = randomised(Chain()).double().requires_grad_(False)
    groups = channel_groups(trace(model, (image(8).double(),)), ROOTS)
    (group,) = (g for g in groups if g.channels == 10)
    expected = [
        sum(
            float(part.square().sum())
            for part in (
                model.stem.weight[c],
                model.norm.weight[c],
                model.inner.weight[:, c],
                model.outer.weight[c],
                model.head.weight[:, c],
            )
        )
        for c in range(10)
    ]
    actual = Importance(l2, reduction="sum", normalizer="none")(group)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


def test_reductions_of_two_layers():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    group = channel_groups(trace(model, (torch.rand(2, 3),)), ROOTS)
    (group,) = (g for g in group if g.channels == 4)
    a, b = l1(model[0].weight), l1(model[1].weight, dim=1)
    expected = {"sum": a + b, "mean": (a + b) / 2, "max": torch.maximum(a, b), "prod": a * b}
    for reduction, scores in expected.items():
        actual = Importance(l1, reduction=reduction, normalizer="none")(group)
        torch.testing.assert_close(actual, scores)
    first = Importance(l1, reduction="first", normalizer="none")(group)
    torch.testing.assert_close(first, a if group.members[0].layer is model[0] else b)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("side", ["out", "in"])
def test_rows_of_a_grouped_convolution_hold_what_touches_a_channel(kind, side):
    layer = kind(4, 6, 3, groups=2, bias=False)
    rows = _channels(layer, side, layer.weight)
    for channel, row in enumerate(rows):
        x = torch.zeros(1, 4, 5, 5).requires_grad_()
        with torch.no_grad():
            x[0, channel if side == "in" else slice(None)] = torch.rand(5, 5)
        y = layer(x)
        (y if side == "in" else y[:, channel]).sum().backward()
        touched = layer.weight.grad
        layer.weight.grad = None
        assert row.numel() == int((touched != 0).sum())
        torch.testing.assert_close(
            row.sort().values, layer.weight.detach()[touched != 0].sort().values
        )


def test_batch_norm_criterion_looks_at_scales_alone():
    model = randomised(Chain())
    group = next(g for g in groups_of(model) if g.channels == 10)
    scale = model.norm.weight.detach().abs()
    torch.testing.assert_close(CRITERIA["bn_scale"]()(group), scale / scale.mean())
    assert CRITERIA["bn_scale"]()(next(g for g in groups_of(model) if g.channels == 6)) is None


def test_a_cache_changes_nothing():
    model, cache = randomised(Chain()), {}
    for group in groups_of(model) * 2:
        torch.testing.assert_close(Importance()(group, cache), Importance()(group), rtol=0, atol=0)


def test_random_scores_repeat_with_their_generator_and_leave_the_global_one():
    group, state = groups_of(Chain())[0], torch.get_rng_state()
    first, again, other = (RandomImportance(torch_generator(s, "scores"))(group) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="reduction must be one of"):
        Importance(reduction="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="normalizer must be one of"):
        Importance(normalizer="sum")
