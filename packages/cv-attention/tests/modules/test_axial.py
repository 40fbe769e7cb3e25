from __future__ import annotations

import math

import pytest
import torch
from cv_attention.modules.axial import AxialAttention
from torch import Tensor


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def down_columns_by_loops(qkv: Tensor, heads: int) -> Tensor:
    query, key, value = qkv.chunk(3, dim=1)
    out = torch.zeros_like(value)
    batch, channels, height, width = value.shape
    size = channels // heads
    for b in range(batch):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for j in range(width):
                for i in range(height):
                    logits = [
                        float(query[b, part, i, j] @ key[b, part, k, j]) for k in range(height)
                    ]
                    weights = [math.exp(logit / math.sqrt(size)) for logit in logits]
                    for k in range(height):
                        share = weights[k] / sum(weights)
                        out[b, part, i, j] += share * value[b, part, k, j]
    return out


def test_slow_reference() -> None:
    module, x = AxialAttention(4, heads=2, hidden=6).double(), maps(2, 4, 3, 5)
    seen = down_columns_by_loops(module.height(x).detach(), heads=2)
    seen = down_columns_by_loops(module.width(seen).detach().mT, heads=2).mT
    torch.testing.assert_close(module(x), x + module.proj(seen))


def test_one_pixel_passes_its_value() -> None:
    module, x = AxialAttention(4, heads=2).double(), maps(2, 4, 1, 1)
    value = module.height(x).chunk(3, dim=1)[2]
    torch.testing.assert_close(module(x), x + module.proj(module.width(value).chunk(3, dim=1)[2]))


def test_two_steps_connect_all_positions() -> None:
    module, x = AxialAttention(4, heads=2).double(), maps(1, 4, 3, 5).requires_grad_()
    (slope,) = torch.autograd.grad(module(x)[0, :, 1, 2].sum(), x)
    assert (slope.abs().sum(1) > 0).all()


def test_zero_init_is_the_identity_and_can_learn() -> None:
    module, x = AxialAttention(4, heads=2, zero_init=True).double(), maps(2, 4, 3, 5)
    assert torch.equal(module(x), x)
    module(x).square().sum().backward()
    assert module.proj.weight.grad.abs().sum() > 0


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match=r"heads must divide hidden=12; got heads=8"):
        AxialAttention(12)
    with pytest.raises(ValueError, match=r"AxialAttention: x must have shape .* c=8; got"):
        AxialAttention(8)(maps(2, 4, 3, 3).float())
