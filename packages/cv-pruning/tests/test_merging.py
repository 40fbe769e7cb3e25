"""Merging in whole networks: exactness, normalisations, residual blocks, what is left alone."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torchvision
from cv_core.metrics.cost import count_macs, count_parameters
from cv_core.models.small import SmallCNN
from cv_core.random import seeded, torch_generator
from cv_pruning.chains import find_chains
from cv_pruning.merging import NeuronClusters, merge_network, merge_neurons, neuron_rows
from cv_pruning.methods.anc import compress_by_clustering
from torch import Tensor, nn


def every_one(_name: str, weight: Tensor, bias: Tensor | None) -> NeuronClusters:
    """Leave every neuron its own cluster, in the opposite order."""
    return NeuronClusters(torch.arange(len(weight)).flip(0), neuron_rows(weight, bias).flip(0))


def halves(_name: str, weight: Tensor, bias: Tensor | None) -> NeuronClusters:
    """Merge each neuron with the one half of the layer behind it."""
    count = len(weight) // 2
    return NeuronClusters(torch.arange(len(weight)) % count, neuron_rows(weight, bias)[:count])


def draw_norms(model: nn.Module, seed: int = 0) -> None:
    generator = torch_generator(seed, "norms")
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)


def copy_halves(model: nn.Module, x: Tensor) -> None:
    """Make the second half of every chain's neurons copies of the first, norms included."""
    for chain in find_chains(model, x)[0]:
        parts = [model.get_submodule(name) for name in (chain.layer, chain.norm) if name]
        for part in parts:
            for name, tensor in part.state_dict().items():
                if tensor.ndim:
                    count = len(tensor) // 2
                    tensor[count:] = tensor[:count]
                    assert torch.equal(part.state_dict()[name], tensor)


def foreign(name: str) -> tuple[nn.Module, Tensor]:
    generator = torch_generator(0, "x")
    with seeded(0, name):
        if name == "SmallCNN":
            model, size = SmallCNN(3, 4, width=4), 12
        elif name == "linear with norm":
            model, size = (
                nn.Sequential(
                    nn.Flatten(), nn.Linear(48, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(),
                    nn.Linear(8, 6), nn.BatchNorm1d(6, affine=False), nn.ELU(), nn.Linear(6, 4),
                ),
                4,
            )  # fmt: skip
        elif name == "vgg":
            layers = torchvision.models.vgg.make_layers([8, "M", 16, 16, "M", 8], batch_norm=True)
            head = (nn.Linear(8 * 9, 12), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(12, 4))
            pool = nn.AdaptiveAvgPool2d(3)
            model, size = nn.Sequential(layers, pool, nn.Flatten(), nn.Sequential(*head)), 16
        else:
            model, size = getattr(torchvision.models, name)(num_classes=4), 32
    for part in model.modules():  # an affine norm, if any
        if isinstance(part, nn.BatchNorm1d) and not part.affine:
            part.running_mean.uniform_(0.5, 1.5, generator=generator)
    x = torch.rand(2, 3, size, size, generator=generator)
    draw_norms(nn.ModuleList(p for p in model.modules() if getattr(p, "affine", False)))
    return model.double(), x.double()


NETWORKS = ["SmallCNN", "linear with norm", "resnet18", "resnet50", "vgg", "densenet121"]


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_in_foreign_networks_are_merged_exactly(name):
    model, x = foreign(name)
    copy_halves(model, x)
    expected = model.eval()(x)
    small, report = merge_network(model, x, halves)
    assert all(layer.clusters == layer.neurons // 2 for layer in report.layers)
    assert report.parameters == (count_parameters(model), count_parameters(small))
    assert report.macs == (count_macs(model, x), count_macs(small, x))
    assert report.macs[1] < 0.8 * report.macs[0]
    torch.testing.assert_close(small(x), expected, rtol=1e-9, atol=1e-9)
    layers = {n for n, part in model.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    assert layers == {layer.name for layer in report.layers} | set(report.skipped)


def test_inside_of_every_residual_block_is_merged_and_the_stream_left_alone():
    # the stem of a bottleneck network is read by convolutions only, not added to anything
    cases = {"resnet18": ([], ["conv1"]), "resnet50": (["conv1"], ["conv1", "conv2"])}
    for name, (stem, inner) in cases.items():
        model = getattr(torchvision.models, name)(num_classes=4)
        _, report = merge_network(model, torch.rand(1, 3, 32, 32), every_one)
        blocks = [
            f"layer{i}.{j}"
            for i in range(1, 5)
            for j in range(len(model.get_submodule(f"layer{i}")))
        ]
        assert [layer.name for layer in report.layers] == stem + [
            f"{b}.{c}" for b in blocks for c in inner
        ]
        last = "conv2" if name == "resnet18" else "conv3"
        assert "add" in report.skipped[f"layer2.0.{last}"]
        assert report.skipped["fc"] == "the network puts it out"


def test_own_clusters_only_fold_the_norms_and_change_nothing():
    model, x = foreign("SmallCNN")
    before = copy.deepcopy(model.state_dict())
    model.train().bn2.eval()
    small, report = merge_network(model, x, every_one)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {name for name, part in model.named_modules() if not part.training} == {"bn2"}
    assert {name for name, part in small.named_modules() if not part.training} == {"bn2"}
    assert all(type(small.get_submodule(f"bn{i}")) is nn.Identity for i in (1, 2, 3))
    torch.testing.assert_close(small.eval()(x), model.eval()(x))
    norms = sum(count_parameters(model.get_submodule(f"bn{i}")) for i in (1, 2, 3))
    widths = 4 + 8 + 16  # the folded convolutions have biases
    assert report.parameters[1] == report.parameters[0] - norms + widths
    assert report.layers[0].parameters == (3 * 4 * 9 + 8, 3 * 4 * 9 + 4)
    again = pickle.loads(pickle.dumps(small))  # noqa: S301 - our own bytes
    assert torch.equal(again(x), small(x))


def test_small_network_can_be_trained_and_tells_its_widths():
    model, x = foreign("SmallCNN")
    model.conv1.weight.requires_grad_(False)
    small, _ = merge_network(model, x, halves)
    assert (small.conv2.in_channels, small.conv2.out_channels) == (2, 4)
    assert (small.fc.in_features, small.fc.out_features) == (8, 4)
    small(x).sum().backward()
    missing = {name for name, p in small.named_parameters() if p.grad is None}
    assert missing == {"conv1.weight"}


def test_neurons_labelled_minus_one_are_pruned_as_if_they_were_silent():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).double()
    x = torch.rand(2, 2, 5, 5, generator=torch_generator(0, "x"), dtype=torch.float64)

    def first_and_last(_name, weight, bias):
        return NeuronClusters(torch.tensor([0, -1, -1, 1]), neuron_rows(weight, bias)[[0, 3]])

    small, report = merge_network(model, x, first_and_last)
    assert report.layers[0].clusters == 2
    silent = model[1](model[0](x))
    silent[:, 1:3] = 0
    torch.testing.assert_close(small(x), model[3](silent.flatten(1)))


def test_skipped_layers_keep_their_neurons():
    model, x = foreign("SmallCNN")
    small, report = merge_network(model, x, halves, skip="conv2")
    assert report.skipped["conv2"] == "as asked for"
    assert small.conv2.weight.shape[:2] == (8, 2)
    assert isinstance(small.bn2, nn.BatchNorm2d)
    assert [layer.name for layer in report.layers] == ["conv1", "conv3"]
    with pytest.raises(ValueError, match="selects no module"):
        merge_network(model, x, halves, skip="conv9")
    with pytest.raises(ValueError, match=r"merge_network: model must have .* has none"):
        merge_network(model, x, halves, skip=nn.Conv2d)


def test_report_counts_the_dead_and_can_be_read():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight[:2] *= 1e-4
        model[0].bias[:2] *= 1e-4
    _, report = compress_by_clustering(model, torch.rand(1, 3), relative_bandwidth=0.01)
    assert (report.layers[0].neurons, report.layers[0].clusters, report.layers[0].dead) == (6, 5, 2)
    assert str(report).splitlines() == [
        "0: 6 -> 5 neurons (2 dead)",
        "2: skipped, the network puts it out",
        "parameters: 38 -> 32 (-15.8%)",
        "MACs: 30 -> 25 (-16.7%)",
    ]


def test_several_inputs_are_a_tuple():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x, y):
            return self.out(self.b(self.a(x).relu()) * y)

    small, report = merge_network(Sum(), (torch.rand(2, 3), torch.rand(2, 4)), halves)
    assert [layer.name for layer in report.layers] == ["a"]
    assert small(torch.rand(5, 3), torch.rand(5, 4)).shape == (5, 2)


# --- bad input ---


def test_what_does_not_fit_is_refused():
    layer, following = nn.Linear(3, 4), nn.Linear(4, 2)
    rows = neuron_rows(layer.weight, layer.bias)
    labels = torch.arange(4)
    good = NeuronClusters(labels, rows)
    for wrong, words in (
        (NeuronClusters(labels[:3], rows), "clusters.labels must have shape"),
        (NeuronClusters(labels + 1, rows), r"clusters.labels must lie in \[0, 3\]; got 4"),
        (NeuronClusters(labels, rows[:, :3]), "clusters.centers must have shape"),
    ):
        with pytest.raises(ValueError, match=f"merge_neurons: {words}"):
            merge_neurons(layer, following, wrong)
        model = nn.Sequential(layer, nn.ReLU(), following)
        with pytest.raises(ValueError, match=f"merge_network: {words}"):
            merge_network(model, torch.rand(1, 3), lambda *_, wrong=wrong: wrong)
    with pytest.raises(TypeError, match=r"clusters.labels must hold class indices"):
        merge_neurons(layer, following, NeuronClusters(labels.double(), rows))
    with pytest.raises(ValueError, match="next_layer must read the 4 neurons of layer; it reads 8"):
        merge_neurons(layer, nn.Linear(8, 2), good)
    with pytest.raises(ValueError, match="next_layer must read the 4 neurons"):
        merge_neurons(nn.Conv2d(3, 4, 1), nn.Linear(6, 2), good)
    with pytest.raises(TypeError, match="layer must be a Conv2d or Linear; got Conv1d"):
        merge_neurons(nn.Conv1d(3, 4, 1), following, good)
    with pytest.raises(ValueError, match="next_layer must have groups=1"):
        merge_neurons(layer, nn.Conv2d(4, 4, 1, groups=2), good)


def test_weights_that_are_not_finite_are_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"merge_network: 0.weight must be finite"):
        merge_network(model, torch.rand(1, 3), halves)
