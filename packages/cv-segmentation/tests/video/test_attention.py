"""Criss-cross context and channel affinity: the paper's properties, by loops and by dense masks."""

import math

import pytest
import torch
from cv_segmentation.video.attention import ChannelAffinityAttention, CrissCrossContext
from torch.nn import functional


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context(channels=4, **options):
    return CrissCrossContext(channels, reduction=2, **options).double()


@pytest.mark.parametrize(("rounds", "all_seen"), [(1, False), (2, True)])
def test_one_round_sees_the_cross_and_two_see_everything(rounds, all_seen):  # property 1
    x = draw(1, 4, 4, 5).requires_grad_()
    (slope,) = torch.autograd.grad(context(rounds=rounds)(x)[0, :, 1, 2].sum(), x)
    seen = slope[0].abs().sum(0) > 0
    cross = torch.zeros(4, 5, dtype=torch.bool)
    cross[1], cross[:, 2] = True, True
    assert int(cross.sum()) == 4 + 5 - 1
    assert torch.equal(seen, torch.ones_like(seen) if all_seen else cross)


def one_round_by_masked_attention(module, x):
    """Dense attention between all places in which only those of the cross count."""
    height, width = x.shape[2:]
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    cross = (places[:, None] == places[None]).any(2)
    query, key, value = (item.flatten(2) for item in (module.query(x), module.key(x), x))
    weights = (query.mT @ key).masked_fill(~cross, -torch.inf).softmax(2)
    return x + (value @ weights.mT).view_as(x), weights


def test_rounds_equal_masked_full_attention_with_shared_weights():  # property 2
    module, x = context(), draw(2, 4, 3, 5)
    once, weights = one_round_by_masked_attention(module, x)
    twice, _ = one_round_by_masked_attention(module, once)
    torch.testing.assert_close(module(x), twice)
    across, down = module.maps(x)
    torch.testing.assert_close(across.sum(3) + down.sum(3), torch.ones_like(across[..., 0]))
    dense = weights.view(2, 3, 5, 3, 5)
    for i in range(3):
        for j in range(5):  # the place itself counts once, in its row
            torch.testing.assert_close(across[:, i, j], dense[:, i, j, i])
            assert not down[:, i, j, i].any()
    assert {name for name, _ in module.named_parameters()} == {"query.weight", "key.weight"}


@pytest.mark.parametrize("silent", ["query", "key"])
def test_without_queries_or_keys_it_adds_the_mean_of_the_cross(silent):  # property 7
    module, x = context(rounds=1), draw(2, 4, 3, 5)
    torch.nn.init.zeros_(getattr(module, silent).weight)
    found = module(x)
    for i in range(3):
        for j in range(5):
            cross = [x[:, :, i, other] for other in range(5)]
            cross += [x[:, :, other, j] for other in range(3) if other != i]
            mean = torch.stack(cross).mean(0)
            torch.testing.assert_close(found[:, :, i, j], x[:, :, i, j] + mean)


def test_on_one_row_it_is_dense_attention():  # property 7
    module, x = context(rounds=1), draw(2, 4, 1, 6)
    query, key, value = (item.flatten(2).mT for item in (module.query(x), module.key(x), x))
    dense = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
    torch.testing.assert_close(module(x), x + dense.mT.reshape(x.shape))
    torch.testing.assert_close(module(x.mT), module(x).mT)


@pytest.mark.parametrize("affinity", ["dot", "cosine", "danet"])
def test_channel_affinity_by_loops(affinity):
    module, x = ChannelAffinityAttention(affinity).double(), 0.5 * draw(2, 4, 2, 3)
    assert torch.equal(module(x), x)  # property 3: beta is 0
    module.beta.data.fill_(0.7)
    out, maps = module(x), module.maps(x)
    for b in range(2):
        rows = [x[b, c].flatten() for c in range(4)]
        for j in range(4):
            likeness = [float(rows[j] @ rows[i]) for i in range(4)]
            if affinity == "cosine":
                lengths = [float(row.norm()) for row in rows]
                likeness = [e / lengths[i] / lengths[j] for i, e in enumerate(likeness)]
            if affinity == "danet":
                likeness = [max(likeness) - e for e in likeness]
            weights = [math.exp(e) for e in likeness]
            mixed = sum(w / sum(weights) * row for w, row in zip(weights, rows, strict=True))
            torch.testing.assert_close(out[b, j].flatten(), rows[j] + 0.7 * mixed)
            assert maps[b, j].tolist() == pytest.approx([w / sum(weights) for w in weights])
    torch.testing.assert_close(maps.sum(2), torch.ones_like(maps[..., 0]))


@pytest.mark.parametrize("affinity", ["dot", "cosine", "danet"])
def test_channel_affinity_follows_a_permutation_of_the_channels(affinity):  # property 3
    module, x = ChannelAffinityAttention(affinity).double(), draw(2, 5, 3, 3)
    module.beta.data.fill_(0.7)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order])


def test_dot_saturates_cosine_does_not_and_danet_reverses_the_order():
    x = draw(1, 6, 12, 12)
    x[:, 1] = x[:, 0] + 0.5 * x[:, 1]  # two channels that are alike
    dot, cosine, danet = (ChannelAffinityAttention(kind).maps(x)[0] for kind in
                          ("dot", "cosine", "danet"))  # fmt: skip
    torch.testing.assert_close(dot[2:, 2:], torch.eye(4, dtype=x.dtype))
    assert float(cosine.max()) < 0.4
    assert int(cosine[2].argmax()) == 2
    for row in range(6):
        likeness = x[0].flatten(1) @ x[0, row].flatten()
        assert int(danet[row].argmax()) == int(likeness.argmin())
    scaled = ChannelAffinityAttention("cosine").maps(5 * x)
    torch.testing.assert_close(scaled[0], cosine)


@pytest.mark.parametrize("affinity", ["dot", "cosine", "danet"])
def test_channel_affinity_of_large_maps_in_half_precision(affinity):
    module = ChannelAffinityAttention(affinity)
    module.beta.data.fill_(0.7)
    x = 40.0 * draw(1, 4, 15, 27).half()  # the products sum to 6e5, beyond float16
    expected = module(x.float())
    with torch.autocast("cpu", dtype=torch.float16):
        torch.testing.assert_close(module(x).float(), expected, rtol=5e-3, atol=0.1)
    torch.testing.assert_close(module.half()(x).float(), expected, rtol=5e-3, atol=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CrissCrossContext(8, rounds=0), "CrissCrossContext: rounds must be at least 1"),
        (lambda: context()(draw(1, 3, 2, 2)), r"CrissCrossContext: x must have shape .* c=4"),
        (lambda: ChannelAffinityAttention("l2"), "affinity must be one of 'dot', 'cosine', 'da"),
        (lambda: ChannelAffinityAttention()(draw(2, 3)), "ChannelAffinityAttention: x must have"),
    ],
)
def test_bad_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
