import copy

import pytest
import torch
from cv_core.models.resnet import (
    BasicBlock,
    PadShortcut,
    PreActivatedBlock,
    cifar_preactivated_resnet,
    cifar_resnet,
)
from cv_core.nn.hooks import tap
from cv_core.random import seeded
from torch import nn
from torch.nn import functional


def _count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def _expected_parameters(depth, classes=10, in_channels=3):
    """Count by hand: 3x3 kernels, two affine numbers per channel, one linear layer."""
    blocks = (depth - 2) // 6
    total, fan_in = 9 * in_channels * 16 + 2 * 16, 16
    for channels in (16, 32, 64):
        for _ in range(blocks):
            total += 9 * channels * (fan_in + channels) + 4 * channels
            fan_in = channels
    return total + 64 * classes + classes


def test_the_published_sizes():
    assert _count(cifar_resnet(44, 10)) == 658_586
    assert _count(cifar_resnet(56, 10)) == 853_018


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 110])
def test_parameters_and_layers_follow_the_depth(depth):
    model = cifar_resnet(depth, 10)
    assert _count(model) == _expected_parameters(depth)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth


def test_the_shortcut_subsamples_and_pads():
    x = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    out = PadShortcut(3, 5, stride=2)(x)
    for b in range(2):
        for c in range(5):
            for i in range(2):
                for j in range(2):
                    expected = float(x[b, c, 2 * i, 2 * j]) if c < 3 else 0.0
                    assert float(out[b, c, i, j]) == expected
    assert PadShortcut(3, 3)(x) is x


@pytest.mark.parametrize("block", [BasicBlock, PreActivatedBlock])
def test_a_block_whose_last_kernel_is_zero_is_its_shortcut(block):
    layer = block(4, 8, 2).eval()
    nn.init.zeros_(layer.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 4))
    expected = shortcut.relu() if block is BasicBlock else shortcut
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("make", [cifar_resnet, cifar_preactivated_resnet])
def test_stages_halve_the_sides_and_every_parameter_learns(make):
    with seeded(0):
        model = make(8, 4, in_channels=1, width=0.25)
    with tap(model, "layer?") as taps:
        model(torch.rand(2, 1, 16, 16)).square().sum().backward()
    shapes = [tuple(taps[f"layer{n}"].output.shape[1:]) for n in (1, 2, 3)]
    assert shapes == [(4, 16, 16), (8, 8, 8), (16, 4, 4)]
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("make", [cifar_resnet, cifar_preactivated_resnet])
def test_no_relu_is_shared_or_in_place(make):
    model = make(14)
    relus = [m for _, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.ReLU)]
    assert len(relus) == len({id(relu) for relu in relus}) == 1 + 2 * 6
    assert not any(relu.inplace for relu in relus)
    twin = copy.deepcopy(model).eval()
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(model.eval()(x), twin(x))


def test_the_preactivated_network_has_the_same_kernels():
    plain, pre = cifar_resnet(20), cifar_preactivated_resnet(20)
    kernels = {k: v.shape for k, v in plain.state_dict().items() if "conv" in k}
    assert kernels == {k: v.shape for k, v in pre.state_dict().items() if "conv" in k}


def test_bad_options_and_inputs_are_refused():
    with pytest.raises(ValueError, match=r"6n \+ 2 .* got 18\. The nearest are 14 and 20"):
        cifar_resnet(18)
    with pytest.raises(ValueError, match="width must lie in"):
        cifar_resnet(20, width=0.0)
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        cifar_resnet(20, 0)
    with pytest.raises(ValueError, match="c=3"):
        cifar_resnet(8)(torch.zeros(1, 1, 8, 8))
