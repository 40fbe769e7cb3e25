"""ANC: the spec's six properties, a slow reference, foreign bandwidths, bad input."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from cv_core.random import seeded, torch_generator
from cv_pruning.merging import NeuronClusters, merge_neurons, neuron_rows
from cv_pruning.methods.anc import (
    cluster_means,
    cluster_neurons,
    clusters_by_bandwidth,
    compress_by_clustering,
    kmeans_neurons,
    mean_shift,
)
from torch import Tensor, nn
from torch.nn import functional

DOUBLE = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch_generator(seed, "draw"), dtype=DOUBLE)


def slow_mean_shift(X: Tensor, bandwidth: float) -> tuple[Tensor, list[int]]:
    """Mean shift point by point, as the paper writes it; modes as scikit-learn keeps them."""
    ends = []
    for start in X:
        x = start
        while True:
            near = [row for row in X if float((row - x).norm()) <= bandwidth]
            mean = torch.stack(near).mean(0)
            if float((mean - x).norm()) <= 1e-9:
                break
            x = mean
        ends.append((len(near), tuple(mean.tolist())))
    kept: list[tuple[float, ...]] = []
    for _, mode in sorted(ends, reverse=True):
        place = torch.tensor(mode, dtype=DOUBLE)
        if all(float((place - torch.tensor(k, dtype=DOUBLE)).norm()) > bandwidth for k in kept):
            kept.append(mode)
    centers = torch.tensor(kept, dtype=DOUBLE)
    labels = [int((centers - row).norm(dim=1).argmin()) for row in X]
    return centers, labels


def groups(labels: Tensor) -> set[frozenset[int]]:
    return {
        frozenset(torch.nonzero(labels == cluster).flatten().tolist())
        for cluster in set(labels.tolist())
    }


# --- mean shift ---


@pytest.mark.parametrize("bandwidth", [0.5, 1.0, 1.6, 2.5])
def test_mean_shift_is_the_paper_s_loop(bandwidth):
    X = draw(40, 3)
    expected, labels = slow_mean_shift(X, bandwidth)
    centers, found = mean_shift(X, bandwidth)
    assert 1 <= len(expected) < 40
    torch.testing.assert_close(centers, expected)
    assert found.tolist() == labels


def test_mean_shift_finds_clumps_far_from_the_origin():
    middles = 1e4 + 10 * draw(5, 8)
    X = (middles[:, None] + 1e-3 * draw(5, 7, 8, seed=1)).flatten(0, 1)
    centers, labels = mean_shift(X, 0.1)
    assert groups(labels) == {frozenset(range(7 * c, 7 * c + 7)) for c in range(5)}
    torch.testing.assert_close(centers, cluster_means(X, labels))


def test_mean_shift_drops_a_mode_that_no_point_is_nearest_to_and_stops_in_time():
    for seed in range(20):
        X = draw(30, 2, seed=seed)
        centers, labels = mean_shift(X, 1.0)
        assert labels.unique().tolist() == list(range(len(centers)))
    one, _ = mean_shift(X, 1.0, max_iter=1)
    many, _ = mean_shift(X, 1.0)
    assert one.shape != many.shape or not torch.allclose(one, many)


# --- property 1: copies are merged without any change of the function ---


def with_copies(layer: nn.Module, factor: int = 3) -> None:
    """Make every neuron of the second half and so on a copy of one of the first part."""
    kept = len(layer.weight) // factor
    for tensor in (layer.weight, layer.bias):
        tensor.data.copy_(tensor.data[:kept].repeat(factor, *[1] * (tensor.ndim - 1)))


def networks() -> dict[str, tuple[nn.Sequential, Tensor]]:
    with seeded(0, "networks"):
        return {
            "linear": (
                nn.Sequential(
                    nn.Linear(7, 12), nn.GELU(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3)
                ),
                torch.rand(5, 7),
            ),
            "conv to conv": (
                nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten()),
                torch.rand(5, 2, 8, 8),
            ),
            "conv to flatten to linear": (
                nn.Sequential(
                    nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(),
                    nn.Linear(6 * 9, 6), nn.Sigmoid(), nn.Linear(6, 3),
                ),
                torch.rand(5, 2, 8, 8),
            ),
        }  # fmt: skip


@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_copies_are_merged_exactly(name, noise):
    model, x = networks()[name]
    model, x = model.double().eval(), x.double()
    hidden = [part for part in model if isinstance(part, nn.Conv2d | nn.Linear)][:-1]
    for number, layer in enumerate(hidden):
        with_copies(layer)
        layer.weight.data += noise * draw(*layer.weight.shape, seed=number)
    small, report = compress_by_clustering(model, x, relative_bandwidth=1e-4)
    assert [layer.clusters for layer in report.layers] == [len(part.weight) // 3 for part in hidden]
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-12 if noise == 0 else 1e-6)


# --- property 2: the limits of the bandwidth ---


def test_bandwidth_zero_keeps_the_distinct_neurons_and_a_huge_one_their_mean():
    weight, bias = draw(10, 4, 3, 3), draw(10, seed=1)
    weight[7], bias[7] = weight[2], bias[2]
    weight[8], bias[8] = weight[3], bias[3] + 1e-9
    found = cluster_neurons(weight, bias, bandwidth=0)
    alone = {frozenset({neuron}) for neuron in range(10) if neuron not in (2, 7)}
    assert groups(found.labels) == {frozenset({2, 7}), *alone}
    torch.testing.assert_close(
        found.centers[found.labels], neuron_rows(weight, bias), rtol=0, atol=1e-14
    )
    found = cluster_neurons(weight, bias, bandwidth=1e6)
    assert found.labels.tolist() == [0] * 10
    torch.testing.assert_close(found.centers[0], neuron_rows(weight, bias).mean(0))


def test_tiny_bandwidth_changes_no_network():
    model, x = networks()["conv to flatten to linear"]
    small, report = compress_by_clustering(model.eval(), x, bandwidth=1e-7)
    assert all(layer.clusters == layer.neurons for layer in report.layers)
    assert report.parameters[0] == report.parameters[1]
    torch.testing.assert_close(small(x), model(x))


# --- properties 3 and 4: what the next layer receives ---


def pairs() -> dict[str, tuple[nn.Module, nn.Module, int]]:
    with seeded(0, "pairs"):
        return {
            "linear": (nn.Linear(5, 9).double(), nn.Linear(9, 4).double(), 1),
            "conv": (nn.Conv2d(2, 9, 3).double(), nn.Conv2d(9, 4, (3, 2)).double(), 6),
            "flatten": (nn.Conv2d(2, 9, 3).double(), nn.Linear(9 * 6, 4).double(), 6),
            "no bias": (nn.Conv2d(2, 9, 3, bias=False).double(), nn.Conv2d(9, 4, 1).double(), 1),
        }


LABELS = torch.tensor([0, 1, 2, 0, 0, 1, 3, 3, 0])


@pytest.mark.parametrize("name", pairs())
def test_outgoing_weights_are_conserved_and_summed_as_a_loop_does(name):
    layer, following, spatial = pairs()[name]
    rows = neuron_rows(layer.weight, layer.bias)
    before = copy.deepcopy([*layer.state_dict().values(), *following.state_dict().values()])
    small, reading = merge_neurons(
        layer, following, NeuronClusters(LABELS, cluster_means(rows, LABELS))
    )
    after = [*layer.state_dict().values(), *following.state_dict().values()]
    assert all(map(torch.equal, before, after))
    old = following.weight.detach().reshape(4, 9, spatial)
    new = reading.weight.detach().reshape(4, 4, spatial)
    torch.testing.assert_close(new.sum(1), old.sum(1))
    for out, p, place in itertools.product(range(4), range(4), range(spatial)):
        expected = sum(old[out, j, place] for j in range(9) if LABELS[j] == p)
        torch.testing.assert_close(new[out, p, place], expected)
    torch.testing.assert_close(neuron_rows(small.weight, small.bias), cluster_means(rows, LABELS))
    assert torch.equal(reading.bias, following.bias)


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh, functional.gelu, torch.cos])
def test_next_pre_activation_changes_by_the_weighted_change_of_the_activations(activation):
    layer, following, _ = pairs()["linear"]
    centers = draw(4, 6, seed=3)  # any centres
    small, reading = merge_neurons(layer, following, NeuronClusters(LABELS, centers))
    x = draw(7, 5, seed=4)
    was, now = activation(layer(x)), activation(small(x))
    expected = (now[:, LABELS] - was) @ following.weight.T
    torch.testing.assert_close(reading(now) - following(was), expected)


# --- property 5: the order of the neurons ---


def test_order_of_neurons_does_not_matter():
    weight = draw(30, 6)
    weight[20:] = weight[5:15]  # ties of support, too
    order = torch.randperm(30, generator=torch_generator(0, "order"))
    for options in ({"relative_bandwidth": 0.6}, {"quantile": 0.2}, {"bandwidth": 2.0}):
        labels, centers = cluster_neurons(weight, **options)
        moved, again = cluster_neurons(weight[order], **options)
        assert 1 < len(centers) < 20
        assert torch.equal(moved, labels[order])
        torch.testing.assert_close(again, centers, rtol=0, atol=1e-14)


# --- property 6: parameters ---


def test_parameters_are_counted_by_the_widths():
    model, x = networks()["linear"]
    _, report = compress_by_clustering(model, x, relative_bandwidth=0.85)
    (first, second) = (layer.clusters for layer in report.layers)
    assert (first, second) != (12, 6)
    widths = [7, first, second, 3]
    expected = sum(a * b + b for a, b in itertools.pairwise(widths))
    assert report.parameters == (7 * 12 + 12 + 12 * 6 + 6 + 6 * 3 + 3, expected)
    macs = sum(a * b for a, b in itertools.pairwise(widths))
    assert report.macs[1] == 5 * macs


# --- bandwidths, centres, k-means ---


def test_relative_bandwidth_does_not_depend_on_the_scale_and_defaults_to_a_half():
    weight = draw(25, 3)
    labels, centers = cluster_neurons(weight)
    small, tiny = cluster_neurons(1e-6 * weight, relative_bandwidth=0.5)
    assert torch.equal(labels, small)
    torch.testing.assert_close(tiny, 1e-6 * centers, rtol=1e-6, atol=0)
    distances = sorted(float((a - b).norm()) for a, b in itertools.combinations(weight, 2))
    median = distances[(len(distances) - 1) // 2]
    assert torch.equal(cluster_neurons(weight, bandwidth=0.5 * median).labels, labels)


def test_center_mean_is_nearest_to_the_merged_neurons():
    weight = draw(40, 3)
    mode, mean = (
        cluster_neurons(weight, relative_bandwidth=0.7, center=c) for c in ("mode", "mean")
    )
    assert torch.equal(mode.labels, mean.labels)
    errors = [
        float((weight - found.centers[found.labels]).square().sum()) for found in (mode, mean)
    ]
    assert errors[1] < errors[0] - 1e-3
    for cluster, center in enumerate(mean.centers):
        torch.testing.assert_close(center, weight[mode.labels == cluster].mean(0))


def test_distances_concentrate_so_that_independent_neurons_merge_all_at_once():
    """What the spec says of 120 Gaussian rows of length 785."""
    counts = clusters_by_bandwidth(draw(120, 785), shares=[0.5, 0.9, 0.95, 1.2])
    assert counts == [120, 120, 1, 1]


def test_clumps_give_a_plateau():
    weight = (draw(6, 1, 50) + 0.05 * draw(6, 10, 50, seed=1)).flatten(0, 1)
    assert clusters_by_bandwidth(weight, shares=[0.1, 0.2, 0.4, 0.7]) == [6] * 4


def test_kmeans_centres_are_means_and_leave_the_generators_alone():
    import numpy as np

    weight, bias = draw(20, 3), draw(20, seed=1)
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002 - looked at
    found = kmeans_neurons(weight, bias, n_clusters=6, seed=3)
    again = kmeans_neurons(weight, bias, n_clusters=6, seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]  # noqa: NPY002 - looked at
    assert torch.equal(found.labels, again.labels)
    torch.testing.assert_close(
        found.centers, cluster_means(neuron_rows(weight, bias), found.labels)
    )


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bandwidth": -1.0}, "bandwidth must lie in"),
        ({"relative_bandwidth": float("nan")}, "relative_bandwidth must lie in"),
        ({"quantile": 0.0}, "quantile must lie in"),
        ({"quantile": 1.5}, "quantile must lie in"),
        ({"bandwidth": 1.0, "quantile": 0.5}, "only one bandwidth"),
        ({"center": "median"}, "center must be one of"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=f"cluster_neurons: {words}"):
        cluster_neurons(draw(4, 3), **options)
    with pytest.raises(ValueError, match=f"compress_by_clustering: {words}"):
        compress_by_clustering(networks()["linear"][0], torch.rand(1, 7), **options)


def test_bad_neurons_are_refused():
    weight = draw(4, 3)
    with pytest.raises(ValueError, match="cluster_neurons: weight must be finite"):
        cluster_neurons(torch.full_like(weight, float("nan")))
    with pytest.raises(ValueError, match="cluster_neurons: bias must have shape"):
        cluster_neurons(weight, draw(5))
    with pytest.raises(ValueError, match="one row per neuron"):
        cluster_neurons(draw(4))
    with pytest.raises(TypeError, match="weight must be a floating-point"):
        cluster_neurons(torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="n_clusters must be at least 1 and at most 4"):
        kmeans_neurons(weight, n_clusters=5)
    with pytest.raises(ValueError, match="shares must lie in"):
        clusters_by_bandwidth(weight, shares=[0.5, -1.0])
    with pytest.raises(ValueError, match="mean_shift: X must have shape"):
        mean_shift(draw(4), 1.0)
    with pytest.raises(ValueError, match="mean_shift: max_iter"):
        mean_shift(weight, 1.0, max_iter=0)
