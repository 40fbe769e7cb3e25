"""Ours beside torch-pruning: the same groups, scores and widths; each runs in the other."""

from __future__ import annotations

import copy

import pytest
import torch
from cv_core.random import seeded
from cv_pruning.pruning.groups import channel_groups, trace
from cv_pruning.pruning.importance import (
    CRITERIA,
    FILTERS,
    Importance,
    RandomImportance,
    fpgm,
    l1,
    l2,
    taylor,
)
from cv_pruning.pruning.narrowing import is_depthwise, layers, widths
from cv_pruning.pruning.structural import ROOTS, prune
from torch import nn

from .networks import ALL, Chain, image, randomised

tp = pytest.importorskip("torch_pruning")
pytest.importorskip("torchvision")
NETWORKS = ["resnet18", "mobilenet_v3_small", "densenet121", "unet", "vit", "convnext_atto"]


def build(name):
    with seeded(0, "weights"):
        return randomised(ALL[name]()).eval()


def their_graph(model, x):
    return tp.DependencyGraph().build_dependency(model, (x,), verbose=False)


def their_groups(model, x):
    return {
        id(g[0].dep.target.module): g
        for g in their_graph(model, x).get_all_groups(root_module_types=list(ROOTS))
    }


def our_groups(model, x):
    return {id(g.members[0].layer): g for g in channel_groups(trace(model, (x,)), ROOTS)}


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_have_the_same_layers_sides_and_channels(name):
    model, x = build(name), image()
    ours, theirs = our_groups(model, x), their_groups(model, x)
    assert ours.keys() == theirs.keys()
    for key, group in ours.items():
        mine = {
            (id(m.layer), m.side): set(zip(m.index.tolist(), m.root.tolist(), strict=True))
            for m in group.members
            if widths(m.layer) and isinstance(m.layer, nn.Module)
        }
        peer = {}
        for item in theirs[key].items:
            side = "out" if item.dep.handler.__name__ == "prune_out_channels" else "in"
            layer = item.dep.target.module
            if isinstance(layer, nn.Module) and widths(layer):
                peer[id(layer), side] = set(zip(item.idxs, item.root_idxs, strict=True))
        assert mine == peer


PAIRS = {
    "l1": (Importance(l1), lambda: tp.importance.GroupMagnitudeImportance(p=1)),
    "l2": (Importance(l2), lambda: tp.importance.GroupMagnitudeImportance(p=2)),
    "l2 sum": (
        Importance(l2, reduction="sum", normalizer="max"),
        lambda: tp.importance.GroupMagnitudeImportance(
            p=2, group_reduction="sum", normalizer="max"
        ),
    ),
    "l1 max": (
        Importance(l1, reduction="max", normalizer="none"),
        lambda: tp.importance.GroupMagnitudeImportance(p=1, group_reduction="max", normalizer=None),
    ),
    "l1 first": (
        Importance(l1, reduction="first"),
        lambda: tp.importance.GroupMagnitudeImportance(p=1, group_reduction="first"),
    ),
    "bn_scale": (CRITERIA["bn_scale"](), tp.importance.BNScaleImportance),
    "lamp": (CRITERIA["lamp"](), tp.importance.LAMPImportance),
    # Theirs leaves BatchNorm out of its Taylor scores.
    "taylor": (
        Importance(taylor, layers=FILTERS),
        tp.importance.GroupTaylorImportance,
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", ["resnet18", "unet"])
def test_scores_equal_on_the_same_groups(name, pair):
    model, x = build(name), image()
    model(x).square().sum().backward()
    ours, theirs = PAIRS[pair][0], PAIRS[pair][1]()
    for group in their_groups(model, x).values():
        mine, peer = ours(group), theirs(group)
        if peer is None:
            assert mine is None
        else:
            torch.testing.assert_close(mine, peer, rtol=1e-4, atol=1e-6)


def test_fpgm_equals_where_theirs_compares_the_filters_themselves():
    """Theirs raises weights to a power first: for positive weights and power one, they agree."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    for group in their_groups(model, image(8)).values():
        torch.testing.assert_close(
            CRITERIA["fpgm"]()(group), tp.importance.FPGMImportance(p=1)(group), rtol=1e-4, atol=0
        )
    assert fpgm(model[0].weight).shape == (8,)


def all_widths(model):
    return {name: widths(layer) for name, layer in layers(model).items()}


def by_theirs(model, x, importance, output, **options):
    tp.pruner.BasePruner(
        model, (x,), importance=importance, ignored_layers=[output], **options
    ).step()
    return model


OUTPUT = {
    "resnet18": lambda m: m.fc,
    "mobilenet_v3_small": lambda m: m.classifier[3],
    "densenet121": lambda m: m.classifier,
    "unet": lambda m: m.head,
    "convnext_atto": lambda m: m.head.fc,
}


@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == "densenet121" else ()) for n in OUTPUT],
)
def test_widths_equal_theirs(name):
    model, x = build(name), image()
    theirs = copy.deepcopy(model)
    by_theirs(theirs, x, tp.importance.GroupMagnitudeImportance(p=2), OUTPUT[name](theirs))
    prune(model, x, criterion="l2")
    assert all_widths(model) == all_widths(theirs)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_same_channels_stay(scope):
    model, x = build("resnet18"), image()
    theirs = copy.deepcopy(model)
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    by_theirs(theirs, x, importance, theirs.fc, global_pruning=scope == "global")
    prune(model, x, criterion="l2", scope=scope)
    assert all_widths(model) == all_widths(theirs)
    pairs = zip(model.state_dict().items(), theirs.state_dict().values(), strict=True)
    assert all(torch.equal(mine, peer) for (_, mine), peer in pairs)


def test_theirs_run_in_ours():
    mine, other, x = build("unet"), build("unet"), image()
    prune(mine, x, criterion=tp.importance.GroupMagnitudeImportance(p=2))
    prune(other, x, criterion="l2")
    states = zip(mine.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


@pytest.mark.parametrize("name", [*CRITERIA, "random"])
def test_ours_run_in_theirs(name):
    model, x = Chain(), image(8)
    model(x).square().sum().backward()
    generator = torch.Generator().manual_seed(0)
    ours = RandomImportance(generator) if name == "random" else CRITERIA[name]()
    by_theirs(model, x, ours, model.head)
    assert model.stem.out_channels == 5
    assert model.inner.out_channels == (6 if name == "bn_scale" else 3)  # it has no BatchNorm
    assert model(x).shape == (2, 4)


def test_a_depthwise_filter_counts_in_ours_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    assert is_depthwise(model[1])
    group = next(g for g in their_groups(model, image(8)).values() if len(g[0].idxs) == 4)
    ours = Importance(l1, reduction="sum", normalizer="none")(group)
    theirs = tp.importance.GroupMagnitudeImportance(p=1, group_reduction="sum", normalizer=None)
    torch.testing.assert_close(ours - theirs(group), l1(model[1].weight))
