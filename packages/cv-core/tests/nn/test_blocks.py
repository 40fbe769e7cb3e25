import pytest
import torch
from cv_core.nn.blocks import (
    AdaIN,
    ConvNormAct,
    ResidualBlock,
    adaptive_instance_norm,
    channel_statistics,
)
from torch import nn
from torch.nn import functional


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_size_is_kept_and_the_layers_are_in_order(size, dilation):
    layer = ConvNormAct(2, 4, kernel_size=size, dilation=dilation).eval()
    nn.init.normal_(layer.norm.running_mean)
    x = torch.randn(2, 2, 9, 8)
    conv = functional.conv2d(
        x, layer.conv.weight, padding=dilation * (size // 2), dilation=dilation
    )
    assert conv.shape[2:] == x.shape[2:]
    torch.testing.assert_close(layer(x), layer.norm(conv).clamp(min=0))


def test_parts_may_be_left_out():
    bare = ConvNormAct(2, 3, norm=None, activation=None)
    assert [name for name, _ in bare.named_children()] == ["conv"]
    assert bare.conv.bias is not None
    assert ConvNormAct(2, 3).conv.bias is None
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        ConvNormAct(1, 1, kernel_size=2)


def test_a_residual_block_without_residual_is_its_shortcut():
    x = torch.randn(2, 4, 6, 6)
    plain = ResidualBlock(4, norm=None, last_activation=None)
    nn.init.zeros_(plain.conv2.conv.weight)
    nn.init.zeros_(plain.conv2.conv.bias)
    assert torch.equal(plain(x), x)
    changed = ResidualBlock(4, 6, stride=2, norm=nn.InstanceNorm2d)
    nn.init.zeros_(changed.conv2.conv.weight)
    expected = functional.conv2d(x, changed.shortcut.conv.weight, stride=2)
    torch.testing.assert_close(changed(x), functional.instance_norm(expected).clamp(min=0))


def test_a_residual_block_by_its_layers():
    block = ResidualBlock(3, norm=nn.BatchNorm2d, activation=nn.LeakyReLU).eval()
    x = torch.randn(2, 3, 5, 5)
    hidden = functional.leaky_relu(block.conv1.norm(block.conv1.conv(x)), 0.01)
    torch.testing.assert_close(block(x), (block.conv2.norm(block.conv2.conv(hidden)) + x).relu())


def test_channel_statistics_by_loops():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mean, deviation = channel_statistics(x, eps=1e-3)
    for b in range(2):
        for c in range(3):
            values = x[b, c].flatten().tolist()
            centre = sum(values) / 20
            variance = sum((v - centre) ** 2 for v in values) / 20
            assert float(mean[b, c]) == pytest.approx(centre, abs=1e-12)
            assert float(deviation[b, c]) == pytest.approx((variance + 1e-3) ** 0.5)


def test_adain_gives_the_wanted_statistics_and_its_own_are_the_identity():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    scale, shift = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    out = adaptive_instance_norm(x, scale, shift, eps=0.0)
    mean, deviation = channel_statistics(out, eps=0.0)
    torch.testing.assert_close(mean, shift)
    torch.testing.assert_close(deviation, scale.abs())
    mean, deviation = channel_statistics(x)
    torch.testing.assert_close(adaptive_instance_norm(x, deviation, mean), x)
    ones, zeros = torch.ones_like(scale), torch.zeros_like(scale)
    torch.testing.assert_close(
        adaptive_instance_norm(x, ones, zeros), functional.instance_norm(x, eps=1e-5)
    )
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: adaptive_instance_norm(x, scale, shift), x)


def test_a_constant_channel_becomes_the_shift():
    shift = torch.tensor([[2.0, -1.0]])
    out = adaptive_instance_norm(torch.full((1, 2, 3, 3), 7.0), torch.ones(1, 2), shift)
    assert torch.equal(out, shift[..., None, None].expand(1, 2, 3, 3))


def test_the_module_starts_near_instance_normalisation_and_reads_its_code():
    layer, x = AdaIN(3, 4), torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(layer(x, torch.zeros(2, 4)), functional.instance_norm(x))
    code = torch.randn(2, 4)
    scale, shift = (code @ layer.affine.weight.T + layer.affine.bias).split(3, dim=1)
    torch.testing.assert_close(layer(x, code), adaptive_instance_norm(x, scale, shift))
    with pytest.raises(ValueError, match="scale must have shape"):
        adaptive_instance_norm(x, torch.zeros(2, 2), torch.zeros(2, 3))
