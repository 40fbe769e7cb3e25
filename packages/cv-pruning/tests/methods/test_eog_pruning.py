"""EOG-Pruning: the spec's properties, slow references, foreign networks, bad input."""

import copy
import math
import pickle

import pytest
import torch
from cv_core.metrics.cost import count_macs, count_parameters
from cv_core.models.cell_operations import ZeroEdge
from cv_core.models.cells import CellNetwork
from cv_core.models.genotypes import DARTS_V1, DARTS_V2, P_DARTS, PC_DARTS, PC_DARTS_IMAGENET
from cv_core.nn.hooks import tap
from cv_core.nn.surgery import remove
from cv_core.random import seeded, torch_generator
from cv_pruning.methods.eog_pruning import (
    GatedEdge,
    ScaledEdge,
    attach_edge_factors,
    drop_unused_inputs_,
    edge_factors,
    edge_param_groups,
    fold_edge_factors_,
    global_edge_prune_,
    non_skip_edges,
    project_edge_factors_,
    remove_edges_,
    smallest_edges,
)
from torch import nn
from torch.nn import functional


def images(count=3, size=12):
    generator = torch_generator(0, "images")
    return torch.rand(count, 1, size, size, generator=generator, dtype=torch.float64)


def network(genotype=PC_DARTS, cells=4, seed=0):
    """A small network whose norms have statistics and gains other than 0 and 1."""
    with seeded(seed, "init"):
        model = CellNetwork(genotype, cells, 4, 10, in_channels=1)
    generator = torch_generator(seed, "norms")
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.double().eval()


def gated(genotype=PC_DARTS, cells=4, init=0.5):
    model = network(genotype, cells)
    return model, attach_edge_factors(model, non_skip_edges(model), init)


def randomise(gates, seed=0):
    generator = torch_generator(seed, "factors")
    for gate in gates.values():
        gate.alpha.data.uniform_(0, 1, generator=generator)


# --- 1: nothing changes where nothing should ---


@pytest.mark.parametrize("genotype", [DARTS_V1, DARTS_V2, P_DARTS, PC_DARTS])
def test_factors_of_one_change_nothing_bit_for_bit(genotype):
    plain = network(genotype)
    model, _ = gated(genotype, init=1.0)
    assert torch.equal(model(images()), plain(images()))
    assert torch.equal(model.train()(images()), plain.train()(images()))


def test_rate_zero_removes_nothing():
    model, gates = gated()
    randomise(gates)
    expected = model(images())
    report = global_edge_prune_(model, 0.0)
    assert report.removed == ()
    assert math.isnan(report.threshold)
    assert report.kept == tuple(gates) == tuple(report.alphas)
    assert torch.equal(model(images()), expected)


# --- 2: the gradient of a factor ---


def test_gradient_of_a_factor_is_the_product_of_node_gradient_and_edge_output():
    model, gates = gated()
    randomise(gates)
    with tap(model, list(gates)) as outputs:
        loss = model(images()).square().sum()
    for place in ("cells.0.edges.0", "cells.1.edges.3", "cells.3.edges.7"):
        # a node is a sum, so the gradient of an edge's output is the gradient of the node
        (at_node,) = torch.autograd.grad(loss, outputs[place].output, retain_graph=True)
        (got,) = torch.autograd.grad(loss, gates[place].alpha, retain_graph=True)
        gate, x = gates[place], outputs[place].input
        torch.testing.assert_close(got, (at_node * gate.inner(x)).sum())


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.3, 1.0, 1.5])
def test_clip_is_equation_1_and_an_edge_at_its_ends_can_come_back(alpha):
    gate = GatedEdge(nn.Identity(), 0.5)
    gate.alpha.data.fill_(alpha)
    out = gate(torch.full((2, 3), 2.0))
    assert torch.equal(out, torch.full((2, 3), 2 * min(max(alpha, 0.0), 1.0)))
    out.sum().backward()
    assert float(gate.alpha.grad) == 12


# --- 3: how many, which, and no skip ---


@pytest.mark.parametrize(
    ("genotype", "edges", "convolutions", "pools"),
    [
        (DARTS_V1, 100, 403, 10),
        (DARTS_V2, 118, 439, 10),
        (P_DARTS, 124, 435, 4),
        (PC_DARTS, 142, 459, 20),
    ],
)
def test_counts_of_table_1(genotype, edges, convolutions, pools):
    model = CellNetwork(genotype, 20, 2, 10)
    gates = attach_edge_factors(model, non_skip_edges(model), 0.5)
    assert len(gates) == edges
    assert sum(isinstance(part, nn.Conv2d) for part in model.modules()) == convolutions
    assert sum(isinstance(p, nn.MaxPool2d | nn.AvgPool2d) for p in model.modules()) == pools
    report = global_edge_prune_(model, 0.5)
    assert (len(report.removed), len(report.kept)) == (edges // 2, edges // 2)
    assert len(edge_factors(model)) == edges // 2


@pytest.mark.parametrize(("rate", "left"), [(0.3, 57), (0.5, 41)])
def test_counts_of_table_1_on_imagenet(rate, left):
    model = CellNetwork(DARTS_V2, 14, 2, 10, stem="imagenet")
    assert sum(isinstance(part, nn.Conv2d) for part in model.modules()) == 298
    gates = attach_edge_factors(model, non_skip_edges(model), 1 - rate)
    assert len(gates) == 82
    assert len(global_edge_prune_(model, rate).kept) == left


def test_the_smallest_go_and_no_skip_does():
    model, gates = gated()
    randomise(gates)
    skips = {place for place, edge in model.edges().items() if edge.operation == "skip_connect"}
    report = global_edge_prune_(model, 0.4)
    assert len(report.removed) == math.ceil(0.4 * len(gates))
    assert not skips & set(report.removed)
    assert report.threshold == max(report.alphas[name] for name in report.removed)
    assert report.threshold <= min(report.alphas[name] for name in report.kept)
    assert set(report.kept) | set(report.removed) == set(gates)
    zeros = [name for name, part in model.named_modules() if isinstance(part, ZeroEdge)]
    assert sorted(zeros) == sorted(report.removed)


def test_a_cell_network_inside_another_one_is_found():
    outer = nn.ModuleDict({"first": network(cells=1), "body": nn.Sequential(network(cells=2))})
    alone = [list(gated(cells=cells)[1]) for cells in (1, 2)]
    gates = attach_edge_factors(outer, non_skip_edges(outer), 0.5)
    expected = [f"first.{name}" for name in alone[0]] + [f"body.0.{name}" for name in alone[1]]
    assert list(gates) == expected


def test_skips_of_reduction_cells_have_convolutions_and_stay():
    model = CellNetwork(PC_DARTS_IMAGENET, 3, 4, 10)
    skips = [place for place, edge in model.edges().items() if edge.operation == "skip_connect"]
    assert any(list(model.get_submodule(place).parameters()) for place in skips)
    gates = attach_edge_factors(model, non_skip_edges(model), 0.5)
    assert set(gates) == set(model.edges()) - set(skips)


@pytest.mark.parametrize(
    ("number", "rate", "expected"),
    [(100, 0.07, 7), (100, 0.071, 8), (82, 0.3, 25), (3, 0.5, 2), (10, 0.0, 0), (10, 0.99, 10)],
)
def test_the_count_is_rounded_up_with_a_guard(number, rate, expected):
    assert len(smallest_edges({str(k): float(k) for k in range(number)}, rate)) == expected


def test_ranking_against_a_loop_and_ties_in_order():
    scores = {"a": 0.5, "b": 0.2, "c": 0.5, "d": 0.0, "e": 0.2, "f": 1.0}
    left, expected = list(scores), []
    for _ in range(4):
        least = left[0]
        for name in left:
            if scores[name] < scores[least]:
                least = name
        left.remove(least)
        expected.append(least)
    assert smallest_edges(scores, 4 / 6) == tuple(expected) == ("d", "b", "e", "a")


# --- 4: a removed edge is a factor of zero ---


@pytest.mark.parametrize("genotype", [DARTS_V2, PC_DARTS])
def test_pruned_network_is_the_gated_one_with_zeros(genotype):
    model, gates = gated(genotype)
    randomise(gates)
    zeroed = copy.deepcopy(model)
    report = global_edge_prune_(model, 0.6)
    for name in report.removed:
        edge_factors(zeroed)[name].alpha.data.zero_()
    left = {name: float(gate.alpha.detach()) for name, gate in edge_factors(model).items()}
    assert left == {name: report.alphas[name] for name in report.kept}
    torch.testing.assert_close(model(images()), zeroed(images()))
    assert count_macs(model, images(1)) < count_macs(zeroed, images(1))
    assert count_parameters(model) < count_parameters(zeroed)


def test_a_node_without_edges_is_zero_and_still_concatenated():
    model, gates = gated()
    first = [name for name in gates if name in ("cells.0.edges.0", "cells.0.edges.1")]
    remove_edges_(model, ["cells.0.edges.0", *gates])  # whatever there is, named twice
    assert first
    with tap(model, "cells.0") as seen:
        out = model(images())
    assert seen["cells.0"].output.shape[1] == 16
    assert not seen["cells.0"].output[:, 8:12].any()  # node 4: a sep_conv and a sep_conv
    assert torch.isfinite(out).all()


# --- 5: folding ---


@pytest.mark.parametrize("genotype", [DARTS_V1, PC_DARTS])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_folding_changes_nothing_and_leaves_no_factor(genotype, rate):
    model, gates = gated(genotype)
    randomise(gates)
    global_edge_prune_(model, rate)
    expected = model(images())
    alphas = {name: float(gate.alpha.detach()) for name, gate in edge_factors(model).items()}
    fold_edge_factors_(model)
    torch.testing.assert_close(model(images()), expected, rtol=1e-10, atol=1e-12)
    assert not any(isinstance(part, GatedEdge) for part in model.modules())
    edges = model.edges()
    for name, alpha in alphas.items():
        part = model.get_submodule(name)
        is_pool = "pool" in edges[name].operation
        assert isinstance(part, ScaledEdge) == is_pool
        if is_pool:
            assert float(part.scale) == alpha
    train = copy.deepcopy(model).train()
    assert torch.isfinite(train(images())).all()


def test_folding_takes_up_the_factor_wherever_the_normalisation_is():
    with seeded(0, "init"):
        model = nn.Sequential(
            nn.BatchNorm2d(3, affine=False),
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3))),
            nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()),
            nn.Sequential(),
        ).double()
    model.eval()
    attach_edge_factors(model, lambda name, _: name in ("0", "1", "2", "3"), 0.25)
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    expected = model(x)
    fold_edge_factors_(model)
    torch.testing.assert_close(model(x), expected)
    kinds = [type(part) for part in model]
    assert kinds == [nn.BatchNorm2d, nn.Sequential, ScaledEdge, ScaledEdge]


# --- 6: projection and training ---


def test_factors_stay_in_the_interval_through_training():
    model, gates = gated(cells=3)
    model.train()
    groups = edge_param_groups(model, lr_w=0.01, lr_alpha=20.0, weight_decay=3e-4)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    target, seen, outside = torch.tensor([1, 2, 3]), set(), False
    for _ in range(6):
        optimizer.zero_grad()
        functional.cross_entropy(model(images()), target).backward()
        optimizer.step()
        outside |= any(not 0 <= gate.alpha.detach() <= 1 for gate in gates.values())
        project_edge_factors_(model)
        values = [float(gate.alpha.detach()) for gate in gates.values()]
        assert all(0 <= value <= 1 for value in values)
        seen |= set(values)
    assert outside  # else the projection has been tested by nothing
    assert {0.0, 1.0} <= seen


def test_one_level_step_is_plain_gradient_descent_on_both_groups():
    model, gates = gated(cells=3)
    model.train()
    groups = edge_param_groups(model, 0.1, 0.3, weight_decay=0.01, weight_decay_alpha=0.0)
    owned = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(owned) == sorted(id(parameter) for parameter in model.parameters())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    functional.cross_entropy(model(images()), torch.tensor([1, 2, 3])).backward()
    torch.optim.SGD(groups).step()
    for name, parameter in model.named_parameters():
        rate, decay = (0.3, 0.0) if name.endswith("alpha") else (0.1, 0.01)
        expected = before[name] - rate * (parameter.grad + decay * before[name])
        torch.testing.assert_close(parameter.detach(), expected)
    assert edge_param_groups(model, 0.1, 0.3, 0.02)[1]["weight_decay"] == 0.02
    assert len(groups[1]["params"]) == len(gates)


def test_factors_are_constants_after_pruning_unless_wanted():
    for trainable in (False, True):
        model, _ = gated()
        global_edge_prune_(model, 0.5, trainable=trainable)
        model(images()).sum().backward()
        assert all((g.alpha.grad is not None) == trainable for g in edge_factors(model).values())


# --- what a user does with a network ---


def test_checkpoints_of_the_plain_network_load_and_gates_come_off():
    plain = network(seed=0)
    with seeded(5, "init"):
        model = CellNetwork(PC_DARTS, 4, 4, 10, in_channels=1).double().eval()
    attach_edge_factors(model, non_skip_edges(model), 1.0)
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith(".alpha") for key in missing.missing_keys)
    assert torch.equal(model(images()), plain(images()))
    remove(model, GatedEdge)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert torch.equal(model(images()), plain(images()))


def test_a_pruned_network_can_be_copied_and_saved():
    model, gates = gated()
    randomise(gates)
    report = global_edge_prune_(model, 0.5)
    expected = model(images())
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))  # noqa: S301 - our own bytes
    assert torch.equal(again(images()), expected)
    fresh, _ = gated()
    remove_edges_(fresh, report.removed)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh(images()), expected)


def test_unused_inputs_go_without_a_trace():
    model, gates = gated()
    randomise(gates)
    reading = {}
    for place, edge in model.edges().items():
        reading.setdefault((edge.cell, edge.source), []).append((place, edge.operation))
    dead = [
        (cell, source)
        for (cell, source), edges in reading.items()
        if source < 2 and all(operation != "skip_connect" for _, operation in edges)
    ]
    assert dead
    remove_edges_(model, [place for key in dead for place, _ in reading[key]])
    expected, size = model(images()), count_parameters(model)
    removed = drop_unused_inputs_(model)
    assert sorted(removed) == sorted(f"cells.{cell}.preprocess{source}" for cell, source in dead)
    assert torch.equal(model(images()), expected)
    assert count_parameters(model) < size
    assert drop_unused_inputs_(model) == []


def test_a_foreign_network_is_gated_and_pruned():
    import torchvision

    with seeded(0, "init"):
        plain = torchvision.models.resnet18(num_classes=5).eval()
    model = copy.deepcopy(plain)
    blocks = {f"layer{k}.1.{part}" for k in (1, 2, 3, 4) for part in ("bn1", "bn2")}
    gates = attach_edge_factors(model, lambda name, _: name in blocks, 1.0)
    x = torch.rand(2, 3, 64, 64, generator=torch_generator(0, "x"))
    assert torch.equal(model(x), plain(x))
    gates["layer3.1.bn2"].alpha.data.fill_(0.0)
    with torch.no_grad():
        zeroed = model(x)
    report = global_edge_prune_(model, 0.1)
    assert report.removed == ("layer3.1.bn2",)
    with torch.no_grad():
        torch.testing.assert_close(model(x), zeroed)


def test_device_type_and_mode_of_what_is_put_in():
    model = network()
    model.cells[0].eval()
    model.cells[1].train()
    attach_edge_factors(model, non_skip_edges(model), 0.5)
    assert all(gate.alpha.dtype == torch.float64 for gate in edge_factors(model).values())
    modes = {name: part.training for name, part in model.named_modules()}
    global_edge_prune_(model, 0.9)
    for name, part in model.named_modules():
        assert part.training == modes[name]
    fold_edge_factors_(model)
    assert model(images()).dtype == torch.float64


# --- bad input ---


def test_bad_choices_are_refused_before_anything_changes():
    model = network()
    before = repr(model)
    with pytest.raises(ValueError, match="select chose none of CellNetwork's modules"):
        attach_edge_factors(model, lambda *_: False, 0.5)
    with pytest.raises(ValueError, match=r"init must lie in \[0, 1\]; got 1.5"):
        attach_edge_factors(model, non_skip_edges(model), 1.5)
    with pytest.raises(ValueError, match=r"cells.0.edges.0 is inside a chosen or gated edge"):
        attach_edge_factors(model, lambda name, _: name in ("cells.0", "cells.0.edges.0"), 0.5)
    shared = nn.ReLU()
    with pytest.raises(ValueError, match="sits in two places"):
        attach_edge_factors(nn.Sequential(shared, shared), lambda *_: True, 0.5)
    with pytest.raises(ValueError, match="model must hold a CellNetwork; got Linear"):
        non_skip_edges(nn.Linear(2, 2))
    assert repr(model) == before
    attach_edge_factors(model, non_skip_edges(model), 0.5)
    with pytest.raises(ValueError, match="is inside a chosen or gated edge"):
        attach_edge_factors(model, non_skip_edges(model), 0.5)


def test_bad_pruning_is_refused_before_anything_changes():
    with pytest.raises(ValueError, match=r"no gated edge; got Linear.*attach_edge_factors"):
        global_edge_prune_(nn.Linear(2, 2), 0.5)
    model, gates = gated()
    before = repr(model)
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\); got 1.0"):
        global_edge_prune_(model, 1.0)
    with pytest.raises(ValueError, match=r"names must be gated edges; got cells\.0"):
        remove_edges_(model, [*gates, "cells.0"])
    gates["cells.0.edges.0"].alpha.data.fill_(math.nan)
    with pytest.raises(ValueError, match=r"smallest_edges: cells\.0\.edges\.0 must lie"):
        global_edge_prune_(model, 0.5)
    assert repr(model) == before
    with pytest.raises(ValueError, match=r"lr_alpha must lie in \[0, inf\)"):
        edge_param_groups(model, 0.1, -0.1)
    foreign = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 1, 3))
    attach_edge_factors(foreign, lambda name, _: name in ("0", "1"), 0.5)
    with pytest.raises(ValueError, match="operation must divide the sides by a whole number"):
        global_edge_prune_(foreign, 0.9)
    assert not any(isinstance(part, ZeroEdge) for part in foreign.modules())
