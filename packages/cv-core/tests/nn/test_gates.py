import math

import pytest
import torch
from cv_core.nn.folding import scale_into_batchnorm
from cv_core.nn.gates import (
    CBAM,
    ChannelAttention,
    ChannelGate,
    EfficientChannelAttention,
    SpatialAttention,
    SqueezeExcitation,
)
from cv_core.nn.surgery import insert_after, out_channels, remove, replace
from torch import nn


def _sigmoid(value):
    return 1.0 / (1.0 + math.exp(-value))


def test_a_channel_gate_starts_open_learns_and_folds_away():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU()).double().eval()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    plain = model(x)
    made = insert_after(model, nn.BatchNorm2d, lambda bn: ChannelGate(out_channels(bn)))
    assert torch.equal(model(x), plain)
    model(x).sum().backward()
    # at weight 1 the slope of channel c is the sum of its outputs behind the ReLU
    torch.testing.assert_close(made["1"].weight.grad, plain.sum((0, 2, 3)).detach())
    with torch.no_grad():
        made["1"].weight.copy_(torch.tensor([0.0, 0.5, -2.0]))
    gated = model(x)
    assert torch.equal(gated[:, 0], torch.zeros_like(plain[:, 0]))
    remove(model)
    for name, gate in made.items():
        replace(model, name, scale_into_batchnorm(model.get_submodule(name), gate.weight))
    torch.testing.assert_close(model(x), gated)


def test_squeeze_excitation_by_loops():
    gate = SqueezeExcitation(4, reduction=2).double()
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    w1, b1 = gate.fc1.weight.detach()[:, :, 0, 0], gate.fc1.bias.detach()
    w2, b2 = gate.fc2.weight.detach()[:, :, 0, 0], gate.fc2.bias.detach()
    out = gate(x).detach()
    for b in range(2):
        means = [float(x[b, c].mean()) for c in range(4)]
        hidden = [
            max(0.0, float(b1[j]) + sum(float(w1[j, c]) * means[c] for c in range(4)))
            for j in range(2)
        ]
        for c in range(4):
            weight = _sigmoid(float(b2[c]) + sum(float(w2[c, j]) * hidden[j] for j in range(2)))
            torch.testing.assert_close(out[b, c], weight * x[b, c])


def test_eca_sees_neighbouring_channels_only():
    gate = EfficientChannelAttention(6, kernel_size=3).double()
    x = torch.randn(1, 6, 2, 2, dtype=torch.float64)
    kernel = gate.conv.weight.detach().flatten().tolist()
    means = [0.0, *x.mean((2, 3))[0].tolist(), 0.0]
    expected = [_sigmoid(sum(kernel[k] * means[c + k] for k in range(3))) for c in range(6)]
    torch.testing.assert_close(
        gate.gate(x).flatten().detach(), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize(("channels", "size"), [(1, 3), (16, 3), (64, 3), (128, 5), (512, 5)])
def test_eca_chooses_its_kernel_by_the_channels(channels, size):
    assert EfficientChannelAttention(channels).conv.kernel_size == (size,)


def test_cbam_is_its_two_gates_in_order():
    block = CBAM(4, reduction=2, kernel_size=3).double().eval()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    channel, spatial = block.channel, block.spatial
    pooled = [x.mean((2, 3)), x.amax((2, 3))]
    w1, w2 = channel.fc1.weight[:, :, 0, 0], channel.fc2.weight[:, :, 0, 0]
    weights = sum((p @ w1.T).clamp(min=0) @ w2.T for p in pooled).sigmoid()
    gated = x * weights[:, :, None, None]
    torch.testing.assert_close(channel(x), gated)
    maps = torch.stack([gated.mean(1), gated.amax(1)], dim=1)
    scores = spatial.bn(spatial.conv(maps))
    torch.testing.assert_close(block(x), gated * scores.sigmoid())


@pytest.mark.parametrize(
    "make",
    [
        lambda: SqueezeExcitation(4, reduction=64),
        lambda: EfficientChannelAttention(4),
        lambda: ChannelAttention(4),
        lambda: SpatialAttention(3),
        lambda: CBAM(4),
    ],
)
def test_zero_weights_halve_the_map_and_gradients_are_right(make):
    block = make().double().eval()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, x)
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    factor = 0.25 if isinstance(block, CBAM) else 0.5
    assert torch.equal(block(x), factor * x)


def test_bad_options_and_inputs_are_refused():
    with pytest.raises(ValueError, match="kernel_size must be odd; got 4"):
        EfficientChannelAttention(8, kernel_size=4)
    with pytest.raises(ValueError, match="kernel_size must be odd; got 2"):
        SpatialAttention(2)
    with pytest.raises(ValueError, match="reduction must be at least 1"):
        SqueezeExcitation(8, reduction=0)
    with pytest.raises(ValueError, match=r"x must have shape \(b, c, h, w\) with c=8"):
        ChannelGate(8)(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match=r"x must have shape \(b, c, h, w\) with c=8"):
        SqueezeExcitation(8)(torch.zeros(1, 4, 2, 2))
