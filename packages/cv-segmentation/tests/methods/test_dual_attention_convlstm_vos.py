"""The network: permuted objects, streaming, teacher forcing, sizes that do not halve evenly."""

import pytest
import torch
from cv_core.metrics.cost import count_parameters
from cv_segmentation.encoders import ConvEncoder
from cv_segmentation.methods.dual_attention_convlstm_vos import DualAttentionVOS
from cv_segmentation.video.attention import CrissCrossContext
from torch import nn


def network(widths=(4, 6, 8, 8), hidden=8, **options):
    return DualAttentionVOS(ConvEncoder(widths), hidden, **options).double().eval()


def clip(frames=4, objects=3, size=(18, 22), batch=2):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, frames, 3, *size, generator=generator, dtype=torch.float64)
    masks = torch.rand(batch, objects, *size, generator=generator, dtype=torch.float64)
    return images, (masks > 0.7).double()


def differ(one, other):
    """Far beyond rounding in float64, however little an untrained network makes of it."""
    return float((one - other).detach().abs().max()) > 1e-9


def test_objects_can_be_permuted_where_they_do_not_read_each_other():  # property 5
    frames, first = clip()
    order = torch.tensor([2, 0, 1])
    model = network(over_objects=False)
    torch.testing.assert_close(model(frames, first[:, order]), model(frames, first)[:, :, order])
    together = network()
    together.load_state_dict(model.state_dict())
    permuted = together(frames, first[:, order])
    assert differ(permuted, together(frames, first)[:, :, order])


def test_streaming_equals_the_whole_clip():
    frames, masks = clip()
    model = network()
    whole = model(frames, masks)
    memory = None
    for t in range(frames.shape[1]):
        masks, memory = model.step(frames[:, t], masks, memory)
        torch.testing.assert_close(masks, whole[:, t])


def test_masks_may_be_of_another_precision_than_the_frames():
    frames, masks = clip()
    model = network().float()
    expected = model(frames.float(), masks.float())
    for given in (masks, masks.half()):
        torch.testing.assert_close(model(frames.float(), given), expected, rtol=1e-4, atol=0.0)


def test_a_frame_knows_nothing_of_later_ones():
    frames, first = clip()
    model, later = network(), frames.clone()
    later[:, 2:] = later[:, 2:].flip(1)
    old, new = model(frames, first), model(later, first)
    torch.testing.assert_close(old[:, :2], new[:, :2])
    assert differ(old[:, 2:], new[:, 2:])


@pytest.mark.parametrize("over_time", [True, False])
def test_truth_takes_the_place_of_what_was_predicted(over_time):
    frames, first = clip()
    model = network(over_time=over_time)
    said = model.logits(frames, first)
    torch.testing.assert_close(model.logits(frames, first, said.sigmoid()), said)
    truth = torch.stack([first.roll(t, 3) for t in range(4)], dim=1)
    forced = model.logits(frames, first, truth)
    torch.testing.assert_close(forced[:, 0], said[:, 0])  # the first frame reads what is given
    if over_time:
        assert differ(forced[:, 1:], said[:, 1:])
        return
    # without memory the last mask is all that a frame knows of the past
    for t in range(1, 4):
        alone = model.logits(frames[:, t : t + 1], truth[:, t - 1])[:, 0]
        torch.testing.assert_close(forced[:, t], alone)


def test_levels_have_the_sizes_of_the_backbones_maps():
    model = network((2, 2, 2, 2, 2), hidden=8)  # five halvings: the paper's strides 4 to 32
    maps = model.encode(torch.zeros(1, 3, 240, 427, dtype=torch.float64))
    sizes = [(8, 14), (15, 27), (30, 54), (60, 107)]  # two of them are not doubles
    assert [tuple(item.shape[2:]) for item in maps] == sizes
    assert [item.shape[1] for item in maps] == [8, 4, 2, 1]
    assert model.context(torch.zeros(1, 3, 240, 427, dtype=torch.float64)).shape[2:] == (30, 54)


def test_parts_that_are_left_out_leave_no_weights():
    count = {
        name: count_parameters(network((4, 6, 8, 8), hidden=16, **options))
        for name, options in {
            "all": {},
            "one round": {"attention": lambda c: CrissCrossContext(c, rounds=1)},
            "branch": {"attention": lambda _: nn.Identity()},
            "no CAM": {"affinity": None},
            "no branch": {"attention": None},
        }.items()
    }
    assert count["all"] == count["one round"]
    assert count["all"] - count["branch"] == 2 * 16 * (16 // 8)  # query and key
    assert count["all"] - count["no CAM"] == 1  # beta
    assert count["no branch"] < count["branch"]


def test_channel_attention_starts_as_the_identity():
    frames, first = clip()
    model, without = network(), network(affinity=None)
    without.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(model(frames, first), without(frames, first))
    nn.init.ones_(model.channel_attention.beta)
    assert differ(model(frames, first), without(frames, first))
    deepest, *others = model.encode(frames[0])
    plain, *same = without.encode(frames[0])
    torch.testing.assert_close(deepest, model.channel_attention(plain))
    assert all(map(torch.equal, others, same))


def test_on_an_encoder_of_another_library():
    pytest.importorskip("segmentation_models_pytorch", reason="smp brings the paper's backbones")
    from cv_segmentation.encoders import build_encoder

    model = DualAttentionVOS(build_encoder("resnet18"), hidden=16).eval()
    with torch.no_grad():
        out = model(torch.rand(1, 2, 3, 50, 70), torch.zeros(1, 2, 50, 70))
    assert out.shape == (1, 2, 2, 50, 70)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x, y: m(x[0], y), ValueError, r"frames must have shape \(b, t, c, h, w\)"),
        (lambda m, x, y: m(x, y[:1]), ValueError, "first_masks must have shape .* b=2"),
        (lambda m, x, y: m(x, y[..., 1:]), ValueError, "first_masks must have shape .* w=22"),
        (lambda m, x, y: m(x, y.bool()), TypeError, "first_masks must be a floating-point"),
        (lambda m, x, y: m.logits(x, y, y), ValueError, "truth must have shape"),
        (lambda m, x, y: m.logits(x, y, y.bool()), TypeError, "DualAttentionVOS: truth must be a"),
        (lambda m, x, y: m(x, 255 * y), ValueError, r"first_masks must lie in \[0, 1\]; .* 255"),
        (lambda m, x, y: m(x, y / 0), ValueError, r"first_masks must lie in \[0, 1\]"),
        (lambda m, x, y: m.step(x[:, 0], 2 * y), ValueError, r"masks must lie in \[0, 1\]; .* 2"),
        (lambda m, x, y: m.step(x[:, 0], y.bool()), TypeError, "masks must be a floating-point"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(network(), *clip())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (4, 4, 4)}, "backbone must have at least 4 halvings"),
        ({"hidden": 4}, "hidden must be at least 8"),
        ({"affinity": "l2"}, "affinity must be one of"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)
