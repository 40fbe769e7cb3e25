"""Feature difference in timm's networks, against blocks run by hand."""

from __future__ import annotations

import pytest
import torch
from cv_attention.insertion import remove_attention
from cv_attention.methods.fd_module import (
    add_feature_difference,
    fd_placement,
    feature_difference,
)
from torch import Tensor, nn

timm = pytest.importorskip("timm", reason="the peer's networks are needed")


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):  # timm starts a block's last gain at zero
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return model


def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def basic_block(block: nn.Module, x: Tensor) -> Tensor:
    hidden = block.bn1(block.conv1(x)).relu()
    f = feature_difference(hidden, block.bn2(block.conv2(hidden)))
    if block.se is not None:
        f = block.se(f)
    return (f + (x if block.downsample is None else block.downsample(x))).relu()


def bottleneck(block: nn.Module, x: Tensor) -> Tensor:
    hidden = block.bn1(block.conv1(x)).relu()
    f = block.bn2(block.conv2(hidden))
    if f.shape == hidden.shape:
        f = feature_difference(hidden, f)
    out = block.bn3(block.conv3(f.relu()))
    if block.se is not None:
        out = block.se(out)
    return (out + (x if block.downsample is None else block.downsample(x))).relu()


@pytest.mark.parametrize(
    ("name", "reference", "places"),
    [
        ("resnet18", basic_block, 8),
        ("resnet26", bottleneck, 5),
        ("seresnet18", basic_block, 8),
        ("seresnext26t_32x4d", bottleneck, 5),
    ],
)
def test_residual_networks(name: str, reference, places: int) -> None:
    plain = network(name)
    assert len(fd_placement(plain).stages) == places
    model = add_feature_difference(plain)
    expected = plain.maxpool(plain.act1(plain.bn1(plain.conv1(images()))))
    for layer in (plain.layer1, plain.layer2, plain.layer3, plain.layer4):
        for block in layer:
            expected = reference(block, expected)
    torch.testing.assert_close(model(images()), plain.forward_head(expected))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert repr(remove_attention(model)) == repr(plain)


def test_mobilenet_takes_its_depthwise_convolutions() -> None:
    plain = network("mobilenetv2_050")
    places = fd_placement(plain)
    assert all(plain.get_submodule(stage.first).groups > 1 for stage in places.stages)
    assert len(places.stages) == 13
    assert len(places.skipped) == 4
    block = plain.blocks[0][0]
    x = torch.rand(1, block.conv_dw.in_channels, 8, 8)
    expected = feature_difference(x, block.bn1(block.conv_dw(x)))
    changed = add_feature_difference(plain).blocks[0][0]
    torch.testing.assert_close(changed.bn1(changed.conv_dw(x)), expected)
