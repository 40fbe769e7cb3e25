from __future__ import annotations

import math

import pytest
import torch
from cv_attention.modules.criss_cross import CrissCrossAttention
from torch import Tensor
from torch.nn import functional


def attention(channels: int, **options: bool) -> CrissCrossAttention:
    return CrissCrossAttention(channels, reduction=2, **options).double()


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def one_pass_by_loops(module: CrissCrossAttention, x: Tensor) -> Tensor:
    query, key, value = (layer(x).detach() for layer in (module.query, module.key, module.value))
    out = x.clone()
    batch, _, height, width = x.shape
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                cross = {(i, other) for other in range(width)}
                cross |= {(other, j) for other in range(height)}
                assert len(cross) == height + width - 1
                weight = {
                    place: math.exp(float(query[b, :, i, j] @ key[b, :, place[0], place[1]]))
                    for place in cross
                }
                total = sum(weight.values())
                for (row, column), w in weight.items():
                    out[b, :, i, j] += w / total * value[b, :, row, column]
    return out


def test_slow_reference() -> None:
    module, x = attention(4), maps(2, 4, 3, 5)
    once = one_pass_by_loops(module, x)
    torch.testing.assert_close(module(x), one_pass_by_loops(module, once))
    module.recurrence = 1
    torch.testing.assert_close(module(x), once)


def test_on_one_row_it_is_self_attention() -> None:
    module, x = attention(4, recurrence=1), maps(2, 4, 1, 6)
    tokens = [layer(x).flatten(2).mT for layer in (module.query, module.key, module.value)]
    plain = functional.scaled_dot_product_attention(*tokens, scale=1.0)
    torch.testing.assert_close(module(x), x + plain.mT.reshape(x.shape))
    torch.testing.assert_close(module(x.mT), module(x).mT)
    pixel = x[..., :1]
    torch.testing.assert_close(module(pixel), pixel + module.value(pixel))


def test_weights_sum_to_one_and_count_each_position_once() -> None:
    across, down = attention(4).maps(maps(2, 4, 3, 5))
    assert across.shape == (2, 3, 5, 5)
    assert down.shape == (2, 3, 5, 3)
    torch.testing.assert_close(across.sum(3) + down.sum(3), torch.ones_like(across[..., 0]))
    assert not down.diagonal(dim1=1, dim2=3).any()
    assert (across > 0).all()


@pytest.mark.parametrize(("recurrence", "all_seen"), [(1, False), (2, True)])
def test_twice_connects_all_positions(recurrence: int, all_seen: bool) -> None:
    module, x = attention(4, recurrence=recurrence), maps(1, 4, 4, 5).requires_grad_()
    (slope,) = torch.autograd.grad(module(x)[0, :, 1, 2].sum(), x)
    seen = slope[0].abs().sum(0) > 0
    on_cross = torch.zeros(4, 5, dtype=torch.bool)
    on_cross[1], on_cross[:, 2] = True, True
    assert torch.equal(seen, torch.ones_like(seen) if all_seen else on_cross)


def test_zero_init_is_the_identity_and_can_learn() -> None:
    module, x = attention(4, zero_init=True), maps(2, 4, 3, 5)
    assert torch.equal(module(x), x)
    module(x).square().sum().backward()
    assert module.value.weight.grad.abs().sum() > 0
    module.reset_parameters()
    assert torch.equal(module(x), x)
    assert not torch.equal(attention(4)(x), x)


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="CrissCrossAttention: recurrence must be at least 1"):
        CrissCrossAttention(8, recurrence=0)
    with pytest.raises(ValueError, match=r"CrissCrossAttention: x must have shape .* c=8; got"):
        CrissCrossAttention(8)(maps(2, 4, 3, 3).float())
