from __future__ import annotations

import math

import pytest
import torch
from cv_attention.modules.coordinate import CoordinateAttention
from torch import Tensor, nn


def attention(channels: int, **options: int) -> CoordinateAttention:
    module = CoordinateAttention(channels, **options).double().eval().requires_grad_(False)
    nn.init.uniform_(module.bn1.weight, 0.5, 1.5)
    nn.init.uniform_(module.bn1.running_mean, -0.5, 0.5)
    return module


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_loops(module: CoordinateAttention, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    first, norm = module.conv1, module.bn1
    spread = (norm.running_var + norm.eps).sqrt()

    def gate(mean: list[float], last: nn.Conv2d) -> list[float]:
        hidden = []
        for j in range(first.out_channels):
            f = sum(float(first.weight[j, c]) * mean[c] for c in range(channels))
            f += float(first.bias[j]) - float(norm.running_mean[j])
            f = f / float(spread[j]) * float(norm.weight[j]) + float(norm.bias[j])
            hidden.append(f * min(max(f + 3, 0.0), 6.0) / 6)
        scores = [
            float(last.bias[c]) + sum(float(last.weight[c, j]) * f for j, f in enumerate(hidden))
            for c in range(channels)
        ]
        return [1 / (1 + math.exp(-score)) for score in scores]

    out = torch.empty_like(x)
    for b in range(batch):
        rows = [
            gate([float(x[b, c, i].mean()) for c in range(channels)], module.conv_h)
            for i in range(height)
        ]
        columns = [
            gate([float(x[b, c, :, j].mean()) for c in range(channels)], module.conv_w)
            for j in range(width)
        ]
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    out[b, c, i, j] = x[b, c, i, j] * rows[i][c] * columns[j][c]
    return out


def test_slow_reference() -> None:
    module, x = attention(6, reduction=2, low=1), maps(2, 6, 3, 5)
    assert module.conv1.out_channels == 3
    torch.testing.assert_close(module(x), by_loops(module, x))


def test_one_pixel_and_one_row() -> None:
    module = attention(6)
    for shape in ((1, 6, 1, 1), (1, 6, 1, 4), (2, 6, 4, 1)):
        torch.testing.assert_close(module(maps(*shape)), by_loops(module, maps(*shape)))


def test_turning_the_map_swaps_the_two_gates() -> None:
    module, turned, x = attention(6), attention(6), maps(2, 6, 3, 5)
    state = module.state_dict()
    for one, other in (("conv_h", "conv_w"), ("conv_w", "conv_h")):
        for part in ("weight", "bias"):
            state[f"{one}.{part}"] = module.state_dict()[f"{other}.{part}"]
    turned.load_state_dict(state)
    torch.testing.assert_close(turned(x.mT), module(x).mT)


def test_width_of_the_hidden_layer() -> None:
    assert CoordinateAttention(64).conv1.out_channels == 8  # the least
    assert CoordinateAttention(512).conv1.out_channels == 16
    assert CoordinateAttention(64, low=1).conv1.out_channels == 2


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="CoordinateAttention: reduction must be at least 1"):
        CoordinateAttention(8, reduction=0)
    with pytest.raises(ValueError, match=r"CoordinateAttention: x must have shape .* c=8; got"):
        CoordinateAttention(8)(maps(2, 6, 3, 3).float())
    with pytest.raises(TypeError, match="CoordinateAttention: x must be a floating-point tensor"):
        CoordinateAttention(8)(torch.ones(2, 8, 3, 3, dtype=torch.long))
