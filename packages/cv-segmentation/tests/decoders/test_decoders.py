import pytest
import torch
from cv_segmentation.decoders.deeplab import ASPP, DeepLabV3PlusDecoder
from cv_segmentation.decoders.fpn import FPNDecoder
from cv_segmentation.decoders.unet import UNetDecoder
from cv_segmentation.encoders import ConvEncoder
from torch import nn
from torch.nn import functional

DECODERS = {
    "unet": UNetDecoder,
    "fpn": lambda channels: FPNDecoder(channels, 8),
    "deeplab": lambda channels: DeepLabV3PlusDecoder(channels, 8, (1, 2), skip_channels=4),
}


def maps(channels, size, batch=2):
    return [
        torch.rand(batch, width, -(-size[0] // 2**scale), -(-size[1] // 2**scale))
        for scale, width in enumerate(channels)
    ]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    "channels",
    [(3, 4), (3, 4, 6), (3, 4, 6, 8), (3, 4, 6, 8, 10, 12), (1, 0, 6, 8), (1, 0, 0, 8)],
)
@pytest.mark.parametrize("size", [(97, 131), (8, 32), (5, 3)])
def test_any_depth_and_any_size(name, channels, size):
    decoder = DECODERS[name](channels)
    features = maps(channels, size)
    out = decoder(features)
    assert out.shape == (2, decoder.out_channels, *(-(-side // decoder.stride) for side in size))
    assert out.isfinite().all()
    wide = min(size) > 5  # rectifiers behind a single pixel may be shut
    out.sum().backward()
    reached = [p for p in decoder.parameters() if p.grad is not None]
    assert len(reached) == len(list(decoder.parameters()))
    assert not wide or all(p.grad.abs().sum() > 0 for p in reached if p.ndim == 4)


@pytest.mark.parametrize("name", DECODERS)
def test_every_map_counts(name):
    """The finest map that a decoder uses changes its output; so does the coarsest."""
    channels = (3, 4, 6, 8)
    decoder = DECODERS[name](channels).eval()
    features = maps(channels, (33, 40))
    used = {"unet": (1, 2, 3), "fpn": (2, 3), "deeplab": (2, 3)}[name]
    with torch.no_grad():
        before = decoder(features)
        for scale in range(4):
            changed = list(features)
            changed[scale] = torch.rand_like(features[scale])
            assert torch.equal(decoder(changed), before) == (scale not in used)


@pytest.mark.parametrize("name", DECODERS)
def test_one_image_is_enough_for_training(name):
    encoder = ConvEncoder((4, 6, 8))
    out = DECODERS[name](encoder.out_channels).train()(encoder(torch.rand(1, 3, 40, 40)))
    assert out.isfinite().all()


def test_unet_by_hand():
    """Identity convolutions: sums over channels of what is joined, from the coarsest up."""
    decoder = UNetDecoder((1, 1, 1), (1, 1), block=lambda c, k: nn.Conv2d(c, k, 1, bias=False))
    for stage in decoder.stages:
        nn.init.ones_(stage.weight)
    features = maps((1, 1, 1), (10, 12))
    up = functional.interpolate(features[2], (5, 6), mode="bilinear") + features[1]
    expected = functional.interpolate(up, (10, 12), mode="bilinear")
    torch.testing.assert_close(decoder(features), expected)


def test_unet_widths():
    assert UNetDecoder((3, 64, 64, 128, 256, 512)).out_channels == 32
    assert UNetDecoder((3, 0, 0, 24)).out_channels == 3  # 24, 12, 6, 3
    assert UNetDecoder((3, 4, 8), (5, 6)).out_channels == 5


def test_fpn_by_hand():
    """Laterals that pass on, top-down sums, heads that sum the channels."""
    decoder = FPNDecoder((1, 1, 1, 1, 1), 1, 1)
    for lateral in decoder.laterals:
        nn.init.ones_(lateral.weight)
        nn.init.zeros_(lateral.bias)
    for head in decoder.heads:
        for step in head:
            nn.init.dirac_(step.conv.weight)
            step.norm = nn.Identity()
    f = maps((1,) * 5, (48, 64))
    p4 = f[4]
    p3 = f[3] + functional.interpolate(p4, f[3].shape[2:], mode="nearest")
    p2 = f[2] + functional.interpolate(p3, f[2].shape[2:], mode="nearest")

    def up(x, like):
        return functional.interpolate(x, like.shape[2:], mode="bilinear")

    expected = p2 + up(p3, f[2]) + up(up(p4, f[3]), f[2])
    torch.testing.assert_close(decoder(f), expected)
    assert decoder.stride == 4


def test_aspp_by_a_loop():
    """Every branch computed pixel by pixel from its nine taps, in evaluation mode."""
    torch.manual_seed(0)
    aspp = ASPP(2, 3, (1, 2)).eval().double()
    x = torch.rand(1, 2, 5, 4, dtype=torch.float64)
    norm = (1 + 1e-5) ** -0.5
    branches = []
    with torch.no_grad():
        for branch, rate in zip(aspp.branches, (0, 1, 2), strict=True):
            out = torch.zeros(1, 3, 5, 4, dtype=torch.float64)
            weight = branch.conv.weight
            reach = 0 if rate == 0 else 1
            for row in range(5):
                for column in range(4):
                    for i in range(-reach, reach + 1):
                        for j in range(-reach, reach + 1):
                            a, b = row + i * rate, column + j * rate
                            if 0 <= a < 5 and 0 <= b < 4:
                                tap = weight[:, :, i + reach, j + reach]
                                out[0, :, row, column] += tap @ x[0, :, a, b]
            branches.append((out * norm).relu())
        mean = aspp.mean.conv.weight[:, :, 0, 0] @ x[0].mean((1, 2)) + aspp.mean.conv.bias
        branches.append(mean.relu()[None, :, None, None].expand(1, 3, 5, 4))
        join = torch.einsum(
            "ok,bkhw->bohw", aspp.join.conv.weight[:, :, 0, 0], torch.cat(branches, 1)
        )
        torch.testing.assert_close(aspp(x), (join * norm).relu())


@pytest.mark.parametrize("name", DECODERS)
def test_bad_use(name):
    with pytest.raises(ValueError, match=r"at least one map; got \(3,\)"):
        DECODERS[name]((3,))
    with pytest.raises(ValueError, match="the last of encoder_channels must be at least 1"):
        DECODERS[name]((3, 4, 0))
    decoder = DECODERS[name]((3, 4, 6))
    with pytest.raises(ValueError, match="must be 3 maps, the image first; got 2"):
        decoder(maps((4, 6), (8, 8)))
    with pytest.raises(ValueError, match=r"features\[1\] must have shape \(b, 4, h, w\)"):
        decoder(maps((3, 5, 6), (8, 8)))


def test_bad_options():
    with pytest.raises(ValueError, match="widths must have 2 entries"):
        UNetDecoder((3, 4, 6), (4,))
    with pytest.raises(ValueError, match="widths must be at least 1"):
        UNetDecoder((3, 4, 6), (4, 0))
    with pytest.raises(ValueError, match="channels must be at least 1"):
        FPNDecoder((3, 4, 6), 0)
    with pytest.raises(ValueError, match="rates must be at least 1"):
        ASPP(4, 4, (0,))
    with pytest.raises(ValueError, match="dropout must lie in"):
        ASPP(4, 4, dropout=1.0)
    with pytest.raises(ValueError, match="skip_channels must be at least 1"):
        DeepLabV3PlusDecoder((3, 4, 6), skip_channels=0)
