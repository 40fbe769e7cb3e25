import copy

import pytest
import torch
from cv_core.nn.transformer import TransformerBlock, TransformerEncoder
from cv_core.random import seeded
from torch import nn


@pytest.fixture
def encoder():
    with seeded(0):
        return TransformerEncoder(8, depth=2, heads=2).double()


def test_torchs_own_encoder_layer_agrees(encoder):
    layer = nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True,
        norm_first=True, dtype=torch.float64,
    )  # fmt: skip
    block = encoder.blocks[0]
    for ours, theirs in (
        (block.attn.proj, layer.self_attn.out_proj),
        (block.mlp.fc1, layer.linear1),
        (block.mlp.fc2, layer.linear2),
    ):
        theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(block.attn.qkv.weight)
        layer.self_attn.in_proj_bias.copy_(block.attn.qkv.bias)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x), layer(x))


def test_permuting_the_tokens_permutes_the_output(encoder):
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(encoder(x[:, order]), encoder(x)[:, order])


def test_maps_are_those_that_forward_applies(encoder):
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    start, maps = x, encoder.maps(x)
    for block, weights in zip(encoder.blocks, maps, strict=True):
        normal = block.norm1(x)
        value = block.attn.qkv(normal)[..., 16:].unflatten(2, (2, 4)).transpose(1, 2)
        x = x + block.attn.proj((weights @ value).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(encoder.norm(x), encoder(start))


def test_padding_does_not_change_the_other_tokens(encoder):
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    valid = torch.tensor([[True] * 4 + [False] * 2] * 2)
    out = encoder(x, valid[:, None, None])
    torch.testing.assert_close(out[:, :4], encoder(x[:, :4]))


def test_depth_zero_is_the_normalisation_and_every_parameter_learns(encoder):
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    empty = TransformerEncoder(8, depth=0, heads=2).double()
    torch.testing.assert_close(empty(x), nn.functional.layer_norm(x, (8,), eps=1e-6))
    assert empty.maps(x) == []
    weights = torch.randn(2, 3, 8, dtype=torch.float64)
    (encoder(x) * weights).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())
    assert torch.equal(copy.deepcopy(encoder)(x), encoder(x))


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="depth must be at least 0"):
        TransformerEncoder(8, depth=-1, heads=2)
    with pytest.raises(ValueError, match="heads must divide"):
        TransformerEncoder(8, depth=1, heads=3)
    with pytest.raises(ValueError, match="mlp_ratio must lie in"):
        TransformerBlock(8, 2, mlp_ratio=0.0)
