import copy

import pytest
import torch
from cv_core.nn.attention import (
    Attention,
    NonLocalBlock,
    attention_map,
    axial_attention,
    criss_cross_attention,
    criss_cross_maps,
)


def _loops(query, key, value, scale):
    """Attention of one set of positions, (N, C), (M, C), (M, D), entry by entry."""
    out = torch.zeros(len(query), value.shape[1], dtype=value.dtype)
    for i in range(len(query)):
        logits = [scale * sum(query[i, c] * key[j, c] for c in range(query.shape[1]))
                  for j in range(len(key))]  # fmt: skip
        weights = [logit.exp() for logit in logits]
        for j in range(len(key)):
            out[i] += weights[j] / sum(weights) * value[j]
    return out


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(2, channels, 3, 5, dtype=torch.float64, generator=generator)
        for channels in (4, 4, 6)
    )


@pytest.mark.parametrize("scale", [None, 1.0])
def test_axial_attention_by_loops(qkv, scale):
    query, key, value = qkv
    factor = 0.5 if scale is None else scale  # four channels, one head
    across = axial_attention(query, key, value, axis="width", scale=scale)
    down = axial_attention(query, key, value, axis="height", scale=scale)
    for b in range(2):
        for row in range(3):
            expected = _loops(*(x[b, :, row].T for x in qkv), factor)
            torch.testing.assert_close(across[b, :, row].T, expected)
        for column in range(5):
            expected = _loops(*(x[b, :, :, column].T for x in qkv), factor)
            torch.testing.assert_close(down[b, :, :, column].T, expected)


def test_axes_are_exchanged_by_transposing_and_heads_are_separate(qkv):
    across = axial_attention(*qkv, axis="width", heads=2)
    turned = axial_attention(*(x.mT for x in qkv), axis="height", heads=2)
    torch.testing.assert_close(across, turned.mT)
    halves = [
        axial_attention(*(x.chunk(2, dim=1)[half] for x in qkv), axis="width") for half in (0, 1)
    ]
    torch.testing.assert_close(across, torch.cat(halves, dim=1))


def test_sums_of_bilinear_forms_are_one_call(qkv):
    query, key, value = qkv
    other, more = torch.randn_like(query), torch.randn_like(key)
    joined = axial_attention(
        torch.cat([query, other], 1), torch.cat([key, more], 1), value, axis="width", scale=1.0
    )
    logits = torch.einsum("bchi,bchj->bhij", query, key)
    logits = logits + torch.einsum("bchi,bchj->bhij", other, more)
    torch.testing.assert_close(joined, torch.einsum("bhij,bdhj->bdhi", logits.softmax(-1), value))


def test_axial_attention_refuses_what_does_not_fit(qkv):
    query, key, value = qkv
    with pytest.raises(ValueError, match="axis must be one of 'width', 'height'"):
        axial_attention(query, key, value, axis="rows")
    with pytest.raises(ValueError, match="heads must divide the channels of query; got 3"):
        axial_attention(query, key, value, axis="width", heads=3)
    with pytest.raises(ValueError, match="key must have shape"):
        axial_attention(query, key[:, :2], value, axis="width")
    with pytest.raises(ValueError, match="value must have shape"):
        axial_attention(query, key, value[..., :2], axis="width")


def test_criss_cross_attention_by_loops(qkv):
    query, key, value = qkv
    across, down = criss_cross_maps(query, key)
    found = criss_cross_attention(query, key, value)
    for b in range(2):
        for i in range(3):
            for j in range(5):
                cross = {(i, other) for other in range(5)} | {(other, j) for other in range(3)}
                assert len(cross) == 3 + 5 - 1
                places = sorted(cross)
                keys, values = (torch.stack([x[b, :, y, x_] for y, x_ in places])
                                for x in (key, value))  # fmt: skip
                expected = _loops(query[b, :, i, j][None], keys, values, 1.0)[0]
                torch.testing.assert_close(found[b, :, i, j], expected)
                weights = (keys @ query[b, :, i, j]).softmax(0)
                for (y, x_), weight in zip(places, weights, strict=True):
                    of_map = across[b, i, j, x_] if y == i else down[b, i, j, y]
                    torch.testing.assert_close(of_map, weight)
    torch.testing.assert_close(across.sum(3) + down.sum(3), torch.ones_like(across[..., 0]))
    assert not down.diagonal(dim1=1, dim2=3).any()


def test_criss_cross_attention_is_masked_attention_between_all_positions(qkv):
    query, key, value = qkv
    places = torch.cartesian_prod(torch.arange(3), torch.arange(5))
    cross = (places[:, None] == places[None]).any(2)
    weights = attention_map(query.flatten(2).mT, key.flatten(2).mT, scale=1.0, mask=cross)
    expected = (value.flatten(2) @ weights.mT).view_as(value)
    torch.testing.assert_close(criss_cross_attention(query, key, value), expected)
    with_residual = criss_cross_attention(query, key, value, residual=2 * value)
    torch.testing.assert_close(with_residual, 2 * value + expected)


def test_criss_cross_attention_on_one_line_is_axial_attention(qkv):
    row = [x[:, :, :1] for x in qkv]
    torch.testing.assert_close(
        criss_cross_attention(*row), axial_attention(*row, axis="width", scale=1.0)
    )
    column = [x[..., :1] for x in qkv]
    torch.testing.assert_close(
        criss_cross_attention(*column), axial_attention(*column, axis="height", scale=1.0)
    )


def test_criss_cross_attention_refuses_what_does_not_fit(qkv):
    query, key, value = qkv
    with pytest.raises(ValueError, match="criss_cross_attention: key must have shape"):
        criss_cross_maps(query, key[:, :2])
    with pytest.raises(ValueError, match="criss_cross_attention: value must have shape"):
        criss_cross_attention(query, key, value[..., :2])
    with pytest.raises(ValueError, match="criss_cross_attention: residual must have shape"):
        criss_cross_attention(query, key, value, residual=query)


@pytest.mark.parametrize("positions", [(6,), (2, 3), (3, 2, 2)])
def test_non_local_block_by_loops(positions):
    block = NonLocalBlock(4).double()
    x = torch.randn(2, 4, *positions, dtype=torch.float64)
    out = block(x).detach()
    for b in range(2):
        flat = x[b].flatten(1).T
        t, p, g = (flat @ conv.weight.detach()[:, :, 0].T + conv.bias.detach()
                   for conv in (block.t, block.p, block.g))  # fmt: skip
        mixed = _loops(t, p, g, 1.0)
        expected = flat + mixed @ block.z.weight.detach()[:, :, 0].T + block.z.bias.detach()
        torch.testing.assert_close(out[b].flatten(1).T, expected)


def test_non_local_maps_and_degenerate_cases():
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(NonLocalBlock(4, zero_init=True)(x), x)
    block = NonLocalBlock(4)
    torch.testing.assert_close(block.maps(x).sum(-1), torch.ones(2, 9))
    flat = x.flatten(2)
    mixed = block.z(block.g(flat) @ block.maps(x).mT)
    torch.testing.assert_close(block(x), x + mixed.view_as(x))
    for parameter in block.t.parameters():  # no query: every position gets the mean
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(block.maps(x), torch.full((2, 9, 9), 1 / 9))
    one = x[:, :, :1, :1]  # a single position sees itself
    torch.testing.assert_close(block(one), one + block.z(block.g(one.flatten(2))).view_as(one))
    # the size that the paper on clips counts: 512 channels, half of them hidden, all with biases
    assert sum(p.numel() for p in NonLocalBlock(512).parameters()) == 525_568


def test_attention_is_its_map_times_the_values():
    attention = Attention(8, 2).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    maps = attention.maps(x)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 2, 5, dtype=torch.float64))
    value = attention.qkv(x)[..., 16:].unflatten(2, (2, 4)).transpose(1, 2)
    mixed = (maps @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x), attention.proj(mixed))


def test_a_mask_hides_tokens():
    attention = Attention(8, 2).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    mask = torch.tensor([True, True, True, False, False])[None, None, None]
    torch.testing.assert_close(attention(x, mask)[:, :3], attention(x[:, :3]))
    assert (attention.maps(x, mask)[..., 3:] == 0).all()
    query, key = torch.randn(4, 3), torch.randn(5, 3)
    kept = torch.tensor([True, False, True, True, False])
    torch.testing.assert_close(
        attention_map(query, key, mask=kept)[:, kept], attention_map(query, key[kept])
    )


def test_dropout_works_in_training_only():
    attention = Attention(8, 2, attn_drop=0.5)
    x = torch.randn(2, 5, 8)
    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), copy.deepcopy(attention)(x))


def test_attention_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="heads must divide the channels of dim; got 3 heads"):
        Attention(8, 3)
    with pytest.raises(ValueError, match=r"attn_drop must lie in \[0, 1\)"):
        Attention(8, 2, attn_drop=1.0)
    with pytest.raises(ValueError, match="c=8"):
        Attention(8, 2)(torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="c=4"):
        NonLocalBlock(4)(torch.zeros(1, 3, 2))
