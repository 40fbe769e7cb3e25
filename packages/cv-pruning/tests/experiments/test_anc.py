"""ANC's experiment: the controls, the search for one bandwidth, the measures of structure."""

from __future__ import annotations

import pytest
import torch
from cv_core.experiment.trial import Trial, merge_settings
from cv_core.metrics.cost import count_parameters
from cv_core.random import torch_generator
from cv_pruning.experiments.anc import (
    EXPERIMENT,
    MLP,
    VGG,
    VGG16,
    build,
    clusters_at,
    fall,
    from_scratch,
    images_of,
    largest_l1,
    merged,
    merged_by_kmeans,
    merged_by_lot,
    network,
    plateau,
    pruned_by_l1,
    widths,
)
from cv_pruning.merging import NeuronClusters, neuron_rows
from cv_pruning.methods.anc import cluster_means
from torch import nn


def smoke_trial(case: str = MLP, arm: str = "ANC") -> Trial:
    settings = merge_settings(EXPERIMENT.settings["smoke"], EXPERIMENT.case(case).settings)
    return Trial(arm=arm, case=case, seed=0, budget="smoke", source="digits", settings=settings)


def test_networks_of_the_full_budget_are_the_paper_s():
    """The parameters that the paper prints: 1.67 and 33.65 million."""
    settings = merge_settings(EXPERIMENT.settings["full"], {})
    with torch.device("meta"):
        dbn = build((1, 28, 28), 10, settings.convolutions, settings.hidden)
        settings = merge_settings(settings, EXPERIMENT.case(VGG16).settings)
        vgg = build((3, 32, 32), 10, settings.convolutions, settings.hidden)
    assert count_parameters(dbn) == 1_665_010
    assert count_parameters(vgg) == 33_646_666


def test_given_widths_replace_the_case_s_in_order():
    model = build((3, 8, 8), 5, (4, "M", 6, "M"), (7,), (3, 2, 9))
    shapes = [tuple(part.weight.shape) for part in model if isinstance(part, nn.Conv2d | nn.Linear)]
    assert shapes == [(3, 3, 3, 3), (2, 3, 3, 3), (9, 8), (5, 9)]
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize("case", [MLP, VGG])
def test_search_finds_the_smallest_bandwidth_and_all_arms_have_its_widths(case):
    trial = smoke_trial(case)
    trial.settings["halvings"] = 7
    images = images_of(trial)
    model = network(trial, images).eval()
    found, report, share = widths(trial, model, images)
    removed = 1 - report.parameters[1] / report.parameters[0]
    _, less = clusters_at(model, images.train_x[:1], share - 2 / 2**7)
    assert 1 - less.parameters[1] / less.parameters[0] < trial.settings.removed <= removed
    counts = [len(clusters.centers) for clusters in found.values()]
    for shrink in (merged, merged_by_kmeans, merged_by_lot, pruned_by_l1, from_scratch):
        small = shrink(trial, model, found)
        layers = [part for part in small if isinstance(part, nn.Conv2d | nn.Linear)]
        assert [len(part.weight) for part in layers] == [*counts, 10]
        assert any(isinstance(p, nn.BatchNorm2d) for p in small) == (
            shrink is from_scratch and case == VGG
        )


def test_lot_keeps_the_sizes_of_the_clusters():
    trial = smoke_trial()
    model = network(trial, images_of(trial))
    found = {}
    for name, count in (("1", 32), ("3", 16)):
        labels = torch.arange(count).sqrt().long()  # clusters of 1, 3, 5, ... neurons
        layer = model.get_submodule(name)
        rows = neuron_rows(layer.weight, layer.bias)
        found[name] = NeuronClusters(labels, cluster_means(rows, labels))
    name, sizes = "1", found["1"].labels.bincount()
    assert sizes.tolist() == [1, 3, 5, 7, 9, 7]
    layer = merged_by_lot(trial, model, found).get_submodule(name)
    rows = neuron_rows(model.get_submodule(name).weight, model.get_submodule(name).bias)
    merged_rows = neuron_rows(layer.weight, layer.bias)
    assert not torch.allclose(merged_rows, found[name].centers)
    # the sum of all neurons is that of the means, each as often as its cluster has neurons
    torch.testing.assert_close((sizes[:, None] * merged_rows).sum(0), rows.sum(0))


def test_largest_l1_against_a_loop():
    weight = torch.randn(6, 2, 3, 3, generator=torch_generator(0, "w"))
    found = largest_l1(weight, None, 4)
    norms = [float(weight[i].abs().sum()) for i in range(6)]
    dropped = sorted(range(6), key=norms.__getitem__)[:2]
    assert [i for i in range(6) if found.labels[i] == -1] == sorted(dropped)
    for i in set(range(6)) - set(dropped):
        assert torch.equal(found.centers[found.labels[i]], weight[i].flatten())


def test_fall_and_plateau_of_known_curves():
    grid = [1.0, 1.1, 1.2, 1.5, 2.0, 3.0]
    assert fall(grid, [100, 100, 100, 1, 1, 1], 100) == 0
    assert fall(grid, [100, 90, 50, 40, 10, 1], 100) == pytest.approx(100 * (2.0 / 1.1 - 1))
    assert fall(grid, [100, 80, 50, 40, 30, 20], 100) == pytest.approx(100 * (3.0 / 1.1 - 1))
    assert plateau(grid, [100, 100, 100, 1, 1, 1], 100) == 0
    assert plateau(grid, [100, 42, 40, 40, 39, 1], 100) == pytest.approx(100 * (2.0 / 1.1 - 1))
    assert plateau(grid, [99, 98, 97, 1, 1, 1], 100) == 0


@pytest.mark.parametrize("case", [MLP, VGG])
def test_a_trial_of_the_method_is_repeatable_and_leaves_what_the_report_shows(case):
    trial, again = smoke_trial(case), smoke_trial(case)
    found = EXPERIMENT.arm("ANC").run(trial)
    assert EXPERIMENT.arm("ANC").run(again) == found
    everything = {metric.name for metric in EXPERIMENT.metrics}
    assert everything - set(found) <= {"parameters removed, convolutions"}
    assert found["parameters removed"] >= 70
    assert trial.record.costs["steps"] > 0
    (picture,) = trial.record.pictures.values()
    assert max(picture.shape) <= 512
    assert sum("neurons left" in name for name in trial.record.curves) == 2 * (
        2 if case == MLP else 4
    )


@pytest.mark.parametrize("arm", [arm.name for arm in EXPERIMENT.arms if arm.role != "paper"])
def test_other_arms_return_accuracies_and_the_same_steps(arm):
    trial, paper = smoke_trial(arm=arm), smoke_trial()
    found = EXPERIMENT.arm(arm).run(trial)
    EXPERIMENT.arm("ANC").run(paper)
    names = {"accuracy at once", "accuracy after tuning"}
    assert set(found) == (names if arm != "from scratch" else {"accuracy after tuning"})
    assert trial.record.costs["steps"] == paper.record.costs["steps"]
    same = trial.record.costs["parameters"] == paper.record.costs["parameters"]
    assert same == (arm != "original")
