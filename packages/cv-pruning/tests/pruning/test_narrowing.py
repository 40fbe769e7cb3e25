from __future__ import annotations

import pytest
import torch
from cv_core.random import torch_generator
from cv_pruning.pruning.narrowing import apply, layers, leading, narrow, widths
from torch import nn

X = torch.randn(2, 6, 5, 5, dtype=torch.float64, generator=torch_generator(0, "x"))
OUT, INTO = torch.tensor([0, 2, 3]), torch.tensor([1, 2, 5])


def double(layer):
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5, generator=torch_generator(1, "weights"))
    return layer.double().eval()


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_narrow_convolution_is_the_wide_one_on_fewer_channels(kind):
    layer = double(kind(6, 4, 3))
    x = torch.zeros_like(X)
    x[:, INTO] = X[:, INTO]
    expected = layer(x)[:, OUT]
    apply(narrow("conv", layer, {"out": OUT, "in": INTO}))
    torch.testing.assert_close(layer(X[:, INTO]), expected)
    assert (layer.out_channels, layer.in_channels) == (3, 3)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_groups_of_a_convolution_lose_the_same_offsets(kind):
    layer = double(kind(6, 4, 3, groups=2))
    out, into = torch.tensor([1, 3]), torch.tensor([0, 2, 3, 5])
    x = torch.zeros_like(X)
    x[:, into] = X[:, into]
    expected = layer(x)[:, out]
    apply(narrow("conv", layer, {"out": out, "in": into}))
    torch.testing.assert_close(layer(X[:, into]), expected)


def test_a_depthwise_convolution_has_one_side():
    layer = double(nn.Conv2d(6, 6, 3, groups=6))
    expected = layer(X)[:, INTO]
    assert widths(layer) == {"out": 6}
    apply(narrow("depthwise", layer, {"out": INTO}))
    torch.testing.assert_close(layer(X[:, INTO]), expected)
    assert (layer.groups, layer.in_channels, layer.out_channels) == (3, 3, 3)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(6),
        nn.BatchNorm2d(6, affine=False),
        nn.InstanceNorm2d(6, affine=True),
        nn.PReLU(6),
    ],
    ids=str,
)
def test_channelwise_layers_keep_what_they_do_to_a_channel(layer):
    layer = double(layer)
    expected = layer(X)[:, INTO]
    apply(narrow("norm", layer, {"out": INTO}))
    torch.testing.assert_close(layer(X[:, INTO]), expected)
    assert widths(layer) == {"out": 3}


def test_group_norm_keeps_groups_of_equal_size():
    layer = double(nn.GroupNorm(2, 6))
    index = torch.tensor([0, 2, 3, 5])
    weight, bias = layer.weight.detach()[index], layer.bias.detach()[index]
    apply(narrow("norm", layer, {"out": index}))
    expected = nn.functional.group_norm(X[:, index], 2, weight, bias)
    torch.testing.assert_close(layer(X[:, index]), expected)


def test_layer_norm_linear_and_embedding():
    x = X[:, :, 0, 0]
    norm, linear, table = (
        double(layer) for layer in (nn.LayerNorm(6), nn.Linear(6, 4), nn.Embedding(7, 6))
    )
    expected = nn.functional.layer_norm(x[:, INTO], (3,), norm.weight[INTO], norm.bias[INTO])
    zeroed = torch.zeros_like(x)
    zeroed[:, INTO] = x[:, INTO]
    product, rows = linear(zeroed)[:, OUT], table(torch.tensor([0, 6]))[:, INTO]
    apply(narrow("norm", norm, {"out": INTO}))
    apply(narrow("linear", linear, {"out": OUT, "in": INTO}))
    apply(narrow("table", table, {"out": INTO}))
    torch.testing.assert_close(norm(x[:, INTO]), expected)
    torch.testing.assert_close(linear(x[:, INTO]), product)
    torch.testing.assert_close(table(torch.tensor([0, 6])), rows)


def test_attention_keeps_its_heads_apart():
    """Against attention computed head by head with the kept rows and columns."""
    layer = double(nn.MultiheadAttention(8, 2, batch_first=True))
    keep = torch.tensor([0, 2, 3, 4, 6, 7])  # offsets 0, 2, 3 of both heads
    x = X[:, :, :, 0][..., :3].reshape(2, 3, 6)
    query, key, value = (part[keep][:, keep] for part in layer.in_proj_weight.detach().chunk(3))
    bias_q, bias_k, bias_v = (part[keep] for part in layer.in_proj_bias.detach().chunk(3))
    heads = []
    for rows in (slice(0, 3), slice(3, 6)):
        q, k, v = (
            x @ w[rows].T + b[rows] for w, b in ((query, bias_q), (key, bias_k), (value, bias_v))
        )
        heads.append(torch.softmax(q @ k.transpose(1, 2) / 3**0.5, dim=-1) @ v)
    out = layer.out_proj.weight.detach()[keep][:, keep]
    expected = torch.cat(heads, -1) @ out.T + layer.out_proj.bias.detach()[keep]
    apply(narrow("attention", layer, {"out": keep}))
    torch.testing.assert_close(layer(x, x, x, need_weights=False)[0], expected)


def test_unequal_groups_are_refused_with_the_layers_name():
    with pytest.raises(ValueError, match=r"'block\.conv' has 2 groups"):
        narrow("block.conv", nn.Conv2d(4, 4, 1, groups=2), {"out": torch.tensor([0, 1])})


def test_edits_are_taken_back_to_the_same_objects():
    layer = nn.Conv2d(6, 4, 3)
    weight, bias, state = layer.weight, layer.bias, dict(layer.__dict__)
    undo = apply(narrow("conv", layer, {"out": OUT, "in": INTO}))
    assert layer.weight is not weight
    apply(undo)
    assert layer.weight is weight
    assert layer.bias is bias
    assert layer.__dict__.keys() == state.keys()
    assert (layer.out_channels, layer.in_channels) == (4, 6)


def test_gradients_are_cut_and_frozen_stays_frozen():
    layer = nn.Linear(6, 4)
    layer(X[:, :, 0, 0].float()).sum().backward()
    layer.bias.requires_grad_(False)
    grad = layer.weight.grad
    apply(narrow("linear", layer, {"out": OUT, "in": INTO}))
    assert torch.equal(layer.weight.grad, grad[OUT][:, INTO])
    assert not layer.bias.requires_grad
    assert layer.weight.requires_grad


def test_leading_indices_fit_groups():
    assert leading(nn.Conv2d(8, 8, 1, groups=2), "out", 4).tolist() == [0, 1, 4, 5]
    for width, message in ((0, "does not lie"), (9, "does not lie"), (3, "2 groups")):
        with pytest.raises(ValueError, match=message):
            leading(nn.Conv2d(8, 8, 1, groups=2), "out", width)


def test_layers_counts_an_attention_as_one():
    assert list(layers(nn.TransformerEncoderLayer(8, 2))) == [
        "self_attn",
        "linear1",
        "linear2",
        "norm1",
        "norm2",
    ]
