"""AGLNet: the spec's exact properties, and the attention forms by loops."""

import pytest
import torch
from cv_adversarial.methods.aglnet import (
    AGLNet,
    ChannelNonLocalBlock,
    SpatioTemporalAttention,
    TemporalAttention,
    _Tiny,
    efficientnet_b4_taps,
)
from cv_core.metrics.cost import count_parameters
from cv_core.nn.attention import NonLocalBlock
from cv_core.nn.convlstm import ConvLSTM
from torch import nn

FORMS = [NonLocalBlock, ChannelNonLocalBlock]


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(**options):
    return AGLNet(_Tiny(), 4, 5, conv_hidden=4, fc_hidden=6, **options).double()


@pytest.mark.parametrize("form", FORMS)
def test_forms_by_loops(form):
    block, x = form(6).double(), draws(2, 6, 5)
    theta, phi, g = block.t(x), block.p(x), block.g(x)
    out = torch.empty_like(x)
    for clip in range(2):
        mixed = torch.zeros_like(g[clip])
        if form is NonLocalBlock:  # positions look at positions
            for i in range(5):
                logits = torch.stack([theta[clip, :, i] @ phi[clip, :, j] for j in range(5)])
                for j in range(5):
                    mixed[:, i] += logits.softmax(0)[j] * g[clip, :, j]
        else:  # channels look at channels
            for i in range(3):
                logits = torch.stack([theta[clip, i] @ phi[clip, j] for j in range(3)])
                for j in range(3):
                    mixed[i] += logits.softmax(0)[j] * g[clip, j]
        out[clip] = block.z(mixed[None])[0] + x[clip]
    torch.testing.assert_close(block(x), out)


@pytest.mark.parametrize("form", FORMS)
def test_without_the_last_map_it_is_the_plain_recurrent_network(form):  # property 1
    model, clips = network(attention=form), draws(2, 3, 3, 8, 8)
    for block in (model.stam.block, model.stam.time.block, model.tam.block):
        for item in block.z.parameters():
            nn.init.zeros_(item)
        x = draws(2, block.channels, 7)
        assert torch.equal(block(x), x)
    maps, vectors = model.features(clips)
    pooled = model.convlstm(maps)[0].mean((1, 3, 4)), model.lstm(vectors)[0].mean(1)
    torch.testing.assert_close(model(clips), model.fc(torch.cat(pooled, dim=1)))
    plain = network(attention=lambda _: nn.Identity())
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(plain(clips), model(clips))


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_the_weights_sum_to_one(form):  # property 2
    rows = form(6).double().maps(3 * draws(2, 6, 4, 3)).sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


@pytest.mark.parametrize("silenced", ["t", "p"])
def test_equal_keys_or_no_queries_average_all_positions(silenced):  # property 2
    block, x = NonLocalBlock(6).double(), draws(2, 6, 5)
    nn.init.zeros_(getattr(block, silenced).weight)
    if silenced == "t":
        nn.init.zeros_(block.t.bias)
    mean = block.g(x).mean(2, keepdim=True).expand(-1, -1, 5)
    torch.testing.assert_close(block(x), block.z(mean) + x)


def test_a_constant_query_weighs_all_alike_but_not_evenly():  # property 2, its limit
    block, x = NonLocalBlock(6).double(), draws(2, 6, 5)
    nn.init.zeros_(block.t.weight)
    maps = block.maps(x)
    torch.testing.assert_close(maps, maps[:, :1].expand_as(maps))
    assert float(maps.detach().std()) > 1e-3


def test_order_of_frames_does_not_matter_to_attention():  # property 3
    tam, x = TemporalAttention(6).double(), draws(2, 5, 6)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(tam(x[:, order]), tam(x))
    torch.testing.assert_close(tam.block(x[:, order].mT), tam.block(x.mT)[:, :, order])
    # it does to the recurrence
    model, clips = network(), draws(2, 5, 3, 8, 8)
    assert not torch.allclose(model(clips[:, order]), model(clips))


def test_one_frame_passes_the_values_on():  # property 4
    tam, x = TemporalAttention(6).double(), draws(2, 1, 6)
    block = tam.block
    torch.testing.assert_close(tam(x), (block.z(block.g(x.mT)) + x.mT).squeeze(2))


def test_convlstm_on_pixels_is_lstm():  # property 5
    ours, theirs = ConvLSTM(3, 4, kernel_size=1).double(), nn.LSTM(3, 4, batch_first=True).double()
    cell = ours.cells[0]
    with torch.no_grad():
        cell.conv_x.weight.copy_(theirs.weight_ih_l0[:, :, None, None])
        cell.conv_h.weight.copy_(theirs.weight_hh_l0[:, :, None, None])
        cell.conv_x.bias.copy_(theirs.bias_ih_l0 + theirs.bias_hh_l0)
    x = draws(2, 5, 3)
    torch.testing.assert_close(ours(x[..., None, None])[0][..., 0, 0], theirs(x)[0])


def test_sizes_and_parameters_of_the_paper():  # properties 6 and 7
    with torch.device("meta"):
        assert SpatioTemporalAttention(512)(torch.empty(3, 10, 512, 14, 14)).shape == (3, 512)
        model = AGLNet(_Tiny(), 160, 1024)
    assert count_parameters(model.convlstm) == 12_388_352
    assert count_parameters(model.lstm) == 16_793_600
    assert count_parameters(model.tam) == 2_099_712
    assert count_parameters(model.stam.block) == count_parameters(model.stam.time) == 525_568
    assert model.fc.in_features == 512 + 1024


@pytest.mark.parametrize("form", FORMS)
def test_maps_of_one_pixel_are_vectors(form):  # property 8
    stam, x = SpatioTemporalAttention(6, form).double(), draws(2, 5, 6)
    expected = stam.time(stam.block(x.mT).mT)
    torch.testing.assert_close(stam(x[..., None, None]), expected)


@pytest.mark.slow
def test_the_papers_backbone():
    backbone = efficientnet_b4_taps(feat_dim=16).eval()
    with torch.no_grad():
        maps, vector = backbone(torch.zeros(1, 3, 224, 224))
    assert maps.shape == (1, 160, 14, 14)
    assert vector.shape == (1, 16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AGLNet(_Tiny(), 0, 5), "AGLNet: mid_channels must be at least 1"),
        (lambda: TemporalAttention(0), "TemporalAttention: channels must be at least 1"),
        (lambda: network()(draws(2, 3, 8, 8)), r"AGLNet: clips must have shape \(b, t, c, h, w\)"),
        (lambda: network()(draws(2, 0, 3, 8, 8)), "AGLNet: clips is empty along axis 't'"),
        (
            lambda: AGLNet(_Tiny(), 7, 5, conv_hidden=4, fc_hidden=6)(torch.zeros(1, 2, 3, 8, 8)),
            r"the backbone's map must have shape \(n, m, h, w\) with m=7",
        ),
        (
            lambda: AGLNet(_Tiny(), 4, 9, conv_hidden=4, fc_hidden=6)(torch.zeros(1, 2, 3, 8, 8)),
            r"the backbone's vector must have shape \(n, f\) with f=9",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
