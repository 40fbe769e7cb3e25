from __future__ import annotations

import pytest
import torch
from cv_attention.methods.mranet import RCB, MRANet, RecursiveGroup, ResidualAttentionBlock
from cv_core.metrics.cost import count_parameters
from cv_core.nn.gates import SqueezeExcitation
from cv_core.nn.surgery import find, replace
from torch import nn
from torch.nn.functional import conv2d, prelu


def _x(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def _small(**options: int | bool) -> MRANet:
    return MRANet(width=8, groups=2, blocks=1, reduction=2, **options).double()


def test_property_1_without_its_last_convolution_the_image_comes_back() -> None:
    model = _small()
    x = _x(2, 1, 9, 11)
    assert not torch.equal(model(x), x)
    _zero(model.last)
    assert torch.equal(model(x), x)


def test_property_2_channel_attention_scales_by_gates_and_halves_without_weights() -> None:
    model = _small()
    with torch.no_grad():
        for name, module in find(model, SqueezeExcitation).items():
            x = _x(2, module.channels, 4, 5)
            factor = module(x) / x
            assert bool(((factor > 0) & (factor < 1)).all()), name
            torch.testing.assert_close(factor, factor[:, :, :1, :1].expand_as(factor))
            _zero(module.fc2)
            assert torch.equal(module(x), x / 2), name


def test_property_3_without_its_convolution_a_group_is_the_identity() -> None:
    group = RecursiveGroup(8, 2, reduction=2).double()
    u = _x(2, 8, 6, 7)
    assert not torch.allclose(group(u), u)
    _zero(group.body[-1])
    assert torch.equal(group(u), u)


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (16, 9)])
def test_property_6_any_size_is_taken(size: tuple[int, int]) -> None:
    x = _x(1, 1, *size)
    assert _small()(x).shape == x.shape


def _without_attention(model: MRANet) -> MRANet:
    for name in find(model, SqueezeExcitation):
        replace(model, name, nn.Identity())
    return model


def test_property_6_translation_is_followed_only_without_attention() -> None:
    x = _x(1, 1, 80, 80)
    reach = 2 + 2 * 6 + 1  # convolutions one after the other, and a pixel from each
    inner = (..., slice(reach + 5, -reach), slice(reach, -reach))
    moved = x.roll(5, dims=2)
    moved[..., :5, :] = 3.0  # what comes in from outside is something else
    for model, follows in ((_small(), False), (_without_attention(_small()), True)):
        with torch.no_grad():
            expected = model(x).roll(5, dims=2)[inner]
            assert torch.allclose(model(moved)[inner], expected, rtol=0, atol=1e-9) is follows


def _conv(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    return conv2d(x, layer.weight, layer.bias, padding=1)


def _attended(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    mean = x.mean((2, 3))
    hidden = (mean @ layer.fc1.weight[..., 0, 0].T + layer.fc1.bias).relu()
    gate = (hidden @ layer.fc2.weight[..., 0, 0].T + layer.fc2.bias).sigmoid()
    return x * gate[..., None, None]


def _slow_rab(u: torch.Tensor, block: ResidualAttentionBlock) -> torch.Tensor:
    *convolutions, attention = [layer for layer in block.body if not isinstance(layer, nn.ReLU)]
    inside = _conv(u, convolutions[0]).relu()
    if len(convolutions) == 2:
        inside = _conv(inside, convolutions[1])
    return u + _attended(inside, attention)


def _slow_network(x: torch.Tensor, model: MRANet) -> torch.Tensor:
    """Compute Eq. 1 to 5 line by line."""
    first = now = _conv(_conv(x, model.shallow[0]), model.shallow[1])
    outputs = []
    for group in model.groups:
        *blocks, last = group.body
        inside = now
        for block in blocks:
            one, two, activation, convolution, _, attention = block.body
            a = prelu(_slow_rab(_slow_rab(inside, one), two), activation.weight)
            inside = inside + _attended(_conv(a, convolution).relu(), attention)
        now = now + _conv(inside, last)
        outputs.append(now)
    if model.long_skip:
        outputs[-1] = outputs[-1] + first
    return x - _conv(_attended(torch.cat(outputs, 1), model.attention), model.last)


@pytest.mark.parametrize("convs", [1, 2])
@pytest.mark.parametrize("long_skip", [False, True])
def test_the_network_is_its_equations(convs: int, long_skip: bool) -> None:
    model = _small(in_channels=2, convs_per_rab=convs, long_skip=long_skip)
    x = _x(2, 2, 7, 9)
    torch.testing.assert_close(model(x), _slow_network(x, model))
    torch.testing.assert_close(x - model(x), model.residual(x))


@pytest.mark.parametrize(("convs", "millions"), [(2, 5.8), (1, 3.6)])
def test_the_papers_network_has_the_stated_size(convs: int, millions: float) -> None:
    with torch.device("meta"):
        model = MRANet(convs_per_rab=convs)
    # by hand: 64 channels, 3 groups of 10 blocks of 2 convs + 1 convolutions and 3 attentions
    convolution, attention = 64 * 64 * 9 + 64, 64 * 8 + 8 + 8 * 64 + 64
    inside = 3 * (10 * ((2 * convs + 1) * convolution + 3 * attention + 1) + convolution)
    ends = (9 * 64 + 64) + convolution + (192 * 24 + 24 + 24 * 192 + 192) + (192 * 9 + 1)
    assert count_parameters(model) == inside + ends
    assert round(count_parameters(model) / 1e6, 1) == millions


def test_blocks_alone() -> None:
    u = _x(1, 6, 5, 5)
    for convs in (1, 2):
        block = ResidualAttentionBlock(6, reduction=2, convs=convs).double()
        torch.testing.assert_close(block(u), _slow_rab(u, block))
    block = RCB(6, reduction=2).double()
    _zero(block.body[3])
    assert torch.equal(block(u), u)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="MRANet: groups must be at least 1"):
        MRANet(groups=0)
    with pytest.raises(ValueError, match="RecursiveGroup: blocks must be at least 1"):
        MRANet(blocks=0)
    with pytest.raises(ValueError, match="convs must be at least 1 and at most 2"):
        MRANet(convs_per_rab=3)
    with pytest.raises(ValueError, match=r"MRANet: x must have shape .* with c=1"):
        MRANet(width=8, blocks=1)(torch.rand(1, 3, 8, 8))
