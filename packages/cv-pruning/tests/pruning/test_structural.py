"""The mathematics of ``prune``: the narrow network equals the wide one with channels silenced."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from cv_core.metrics.cost import count_macs, count_parameters, state_bytes
from cv_core.nn.gates import SqueezeExcitation
from cv_core.random import seeded, torch_generator
from cv_pruning.pruning.importance import Importance, RandomImportance, l1
from cv_pruning.pruning.narrowing import layers, widths
from cv_pruning.pruning.structural import prune
from torch import nn

from .networks import ALL, BATCH_NORM, Chain, image, randomised

pytest.importorskip("torch_pruning")


def build(name):
    pytest.importorskip("torchvision")
    with seeded(0, "weights"):
        return randomised(ALL[name]()).eval()


def silenced(model, kept):
    """Zero every channel that the report says is gone, where the wide network makes it."""

    def silence(index):
        def hook(_module, _inputs, output):
            mask = torch.zeros(output.shape[1])
            mask[list(index)] = 1.0
            return output * mask.view(1, -1, *[1] * (output.ndim - 2))

        return hook

    for name, index in kept.items():
        model.get_submodule(name).register_forward_hook(silence(index))
    return model


@pytest.mark.parametrize("name", BATCH_NORM)
def test_narrow_network_is_the_wide_one_with_channels_silenced(name):
    model, x = build(name), image()
    wide = copy.deepcopy(model)
    report = prune(model, x[:1], ratio=0.4)
    with torch.no_grad():
        torch.testing.assert_close(model(x), silenced(wide, report.kept)(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in ALL if name != "vgg16"])  # see the slow test
def test_widths_and_costs_are_accounted_for_and_the_network_trains(name):
    model, x = build(name), image()
    wide = copy.deepcopy(model)
    report = prune(model, x, ratio=0.3)
    before, after = layers(wide), layers(model)
    for layer, index in report.kept.items():
        n, now = widths(before[layer])["out"], widths(after[layer])["out"]
        assert report.widths[layer]["out"].before == n
        assert report.widths[layer]["out"].after == now == len(index)
        assert list(index) == sorted(set(index))
        assert 0 <= index[0] <= index[-1] < n
    for layer, module in after.items():
        expected = {side: c.after for side, c in report.widths.get(layer, {}).items()}
        assert widths(module) == {**widths(before[layer]), **expected}
    assert report.parameters.before == count_parameters(wide)
    assert report.parameters.after == count_parameters(model)
    assert report.macs.after == count_macs(model, x) < count_macs(wide, x) == report.macs.before
    assert report.bytes.after == state_bytes(model)
    assert len(report.untouched) == 1  # the classifier, or the head of the U-Net
    with torch.no_grad():
        shape = wide(x).shape
    out = model.train()(x)
    assert out.shape == shape
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "unet"])
def test_convolutions_keep_the_floor(name):
    model = build(name)
    wide = copy.deepcopy(model)
    report = prune(model, image(), ratio=0.3)
    checked = 0
    for layer in report.kept:
        if isinstance(wide.get_submodule(layer), nn.Conv2d):
            n = widths(wide.get_submodule(layer))["out"]
            assert report.widths[layer]["out"].after == math.floor(n * 0.7 + 1e-9)
            checked += 1
    assert checked >= 10


@pytest.mark.slow
def test_vgg16_is_flattened_into_its_linear_layer():
    model, x = build("vgg16"), image()
    wide = copy.deepcopy(model)
    report = prune(model, x[:1], ratio=0.3)
    assert report.widths["classifier.0"]["in"].before == 25088
    assert report.widths["classifier.0"]["in"].after == 358 * 49  # floor(0.7 * 512) maps of 7 x 7
    with torch.no_grad():
        expected = silenced(wide, report.kept)(x)
        torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)
    model.train()(x).square().sum().backward()


def test_the_lowest_channels_leave_in_a_network_followed_by_hand():
    model = randomised(Chain())
    wide = copy.deepcopy(model)
    report = prune(model, image(8), criterion=Importance(l1, reduction="sum"), ratio=0.4)
    inner = wide.inner.weight.detach().abs().sum((1, 2, 3))
    inner += wide.outer.weight.detach().abs().sum((0, 2, 3))
    best = inner.sort(descending=True).indices[:3].sort().values  # floor(0.6 * 6)
    assert report.kept["inner"] == tuple(best.tolist())
    stem = torch.tensor(report.kept["stem"])
    assert report.kept["outer"] == report.kept["norm"] == tuple(stem.tolist())
    assert torch.equal(model.inner.weight, wide.inner.weight[best][:, stem])
    assert torch.equal(model.head.weight, wide.head.weight[:, stem])
    assert torch.equal(model.norm.running_var, wide.norm.running_var[stem])
    assert report.channels.before == 16
    assert report.channels.after == 9
    assert report.channels.removed == pytest.approx(7 / 16)


class Gated(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.gate = SqueezeExcitation(10, reduction=2)

    def forward(self, x):
        x = self.gate(self.norm(self.stem(x)))
        return self.head((x + self.outer(torch.relu(self.inner(x)))).mean((2, 3)))


def test_widths_that_modules_state_again_are_kept_true():
    model = Gated().eval()
    wide = copy.deepcopy(model)
    report = prune(model, image(8))
    assert model.gate.channels == 5
    with torch.no_grad():
        torch.testing.assert_close(model(image(8)), silenced(wide, report.kept)(image(8)))
    unet = build("unet")
    prune(unet, image())
    assert unet.decoder.in_channels == (8, 16, 32)


def test_the_same_call_gives_the_same_network():
    first, second = build("resnet18"), build("resnet18")
    assert prune(first, image()).kept == prune(second, image()).kept


def test_global_scope_spends_one_budget():
    model = build("resnet18")
    report = prune(model, image(), scope="global", ratio=0.4)
    assert report.channels.after == math.floor(0.6 * report.channels.before)
    shares = {round(c["out"].removed, 2) for c in report.widths.values() if "out" in c}
    assert len(shares) > 3  # layers differ


def test_round_to_holds_for_every_narrowed_layer():
    report = prune(build("resnet18"), image(), ratio=0.3, round_to=8)
    assert all(len(index) % 8 == 0 for index in report.kept.values())


def test_heads_and_token_width_stay_divisible():
    model = build("vit")
    prune(model, image(), ratio=0.3)
    attention = model.encoder.layers[0].self_attention
    assert attention.embed_dim == 4 * math.floor(0.7 * 16)
    assert attention.head_dim == math.floor(0.7 * 16)
    assert model.hidden_dim == model.encoder.pos_embedding.shape[-1] == attention.embed_dim


def test_ratios_by_pattern_leave_the_rest_whole():
    model = build("resnet18")
    report = prune(model, image(), ratio={"layer1.*.conv1": 0.25, "layer2.0.conv1": 0.5})
    kept = {name: len(index) for name, index in report.kept.items() if "conv" in name}
    assert kept == {"layer1.0.conv1": 48, "layer1.1.conv1": 48, "layer2.0.conv1": 64}
    assert "matched by no pattern" in report.untouched["layer3.0.conv1"]


@pytest.mark.parametrize("ignored", ["layer2", "by module", ("conv1", "layer2.*.conv2")])
def test_ignored_layers_keep_their_outputs(ignored):
    model = build("resnet18")
    choice = model.layer2 if ignored == "by module" else ignored
    report = prune(model, image(), ignored=choice)
    assert model.layer2[0].conv2.out_channels == 128
    assert not any(name.startswith("layer2.0.conv2") for name in report.kept)
    if ignored == "layer2":
        assert model.layer2[0].conv1.in_channels == 32  # what feeds it was pruned
        assert model.layer2[0].conv1.out_channels == 128


def test_everything_else_is_as_before():
    model = build("resnet18")
    model.train()
    model.layer1.eval()
    model(image()).sum().backward()
    model.conv1.weight.requires_grad_(False)
    flags = {name: module.training for name, module in model.named_modules()}
    modules = dict(model.named_modules())
    hooks = {name: list(m._forward_hooks) for name, m in model.named_modules()}
    handle = model.layer1.register_forward_hook(lambda *_: None)
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    statistics = model.bn1.running_mean.clone()
    random_state, grad_mode = torch.get_rng_state(), torch.is_grad_enabled()
    report = prune(model, image())
    handle.remove()
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert all(modules[name] is module for name, module in model.named_modules())
    assert {name: list(m._forward_hooks) for name, m in model.named_modules()} == hooks
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled() == grad_mode
    assert not model.conv1.weight.requires_grad
    kept = list(report.kept["conv1"])
    assert torch.equal(model.conv1.weight.grad, grads["conv1.weight"][kept])
    assert torch.equal(model.bn1.running_mean, statistics[kept])
    assert model.fc.bias.grad.equal(grads["fc.bias"])


def test_works_under_no_grad_and_on_a_frozen_network():
    model = build("resnet18").requires_grad_(False)
    with torch.no_grad():
        report = prune(model, image())
    assert report.kept == prune(build("resnet18"), image()).kept
    assert not any(p.requires_grad for p in model.parameters())


def test_taylor_removes_what_the_gradient_says():
    model = build("unet")
    model(image()).square().sum().backward()
    report = prune(model, image(), criterion="taylor")
    assert report.channels.removed == pytest.approx(0.5)


def test_pruning_again_goes_on_from_there():
    model = build("resnet18")
    prune(model, image(), ratio=0.5)
    assert prune(model, image(), ratio=0.5).widths["conv1"]["out"].before == 32
    assert model.conv1.out_channels == 16


def test_half_precision_and_batch_of_one_keep_their_type():
    model = build("resnet18").to(torch.bfloat16)
    prune(model, image(batch=1).to(torch.bfloat16))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_random_control_differs_by_seed_at_equal_widths():
    reports = [
        prune(build("unet"), image(), criterion=RandomImportance(torch_generator(s, "control")))
        for s in (0, 1)
    ]
    assert reports[0].widths == reports[1].widths
    assert reports[0].kept != reports[1].kept


def test_report_reads_as_a_table():
    model = Chain()
    before = count_parameters(model)
    text = str(prune(model, image(8)))
    assert "stem" in text
    assert "10 -> 5" in text
    assert "channels: 16 -> 8 (50.0% removed)" in text
    assert f"parameters: {before:,} -> {count_parameters(model):,} (" in text
    assert "untouched: head reaches the network's output" in text
