import json

import pytest
import torch
from cv_segmentation.encoders import (
    ConvEncoder,
    Encoder,
    TimmEncoder,
    build_encoder,
    normalization,
)
from torch import nn


def halved(sides, times):
    for _ in range(times):
        sides = tuple((side + 1) // 2 for side in sides)
    return sides


@pytest.mark.parametrize("size", [(97, 131), (64, 32), (1, 1), (2, 3)])
def test_every_stage_halves_the_sides_rounding_up(size):
    encoder = ConvEncoder((4, 6, 8, 10), in_channels=2).eval()
    assert isinstance(encoder, Encoder)
    assert encoder.out_channels == (2, 4, 6, 8, 10)
    x = torch.rand(2, 2, *size)
    features = encoder(x)
    assert features[0] is x
    for scale, (item, channels) in enumerate(zip(features, encoder.out_channels, strict=True)):
        assert item.shape == (2, channels, *halved(size, scale))


def test_stages_are_residual_blocks():
    """Without their convolutions, the stages hand on what the shortcut keeps: every other pixel."""
    encoder = ConvEncoder((1, 1), in_channels=1, blocks=2).eval()
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1.0 if module.kernel_size == (1, 1) else 0.0)
    x = torch.rand(1, 1, 7, 6)
    scale = (1.0 + 1e-5) ** -0.5  # of a batch normalisation that has seen nothing
    torch.testing.assert_close(encoder(x)[1], x[..., ::2, ::2] * scale)
    torch.testing.assert_close(encoder(x)[2], x[..., ::4, ::4] * scale**2)
    count = sum(isinstance(module, nn.Conv2d) for module in encoder.modules())
    assert count == 2 * (3 + 2)


def test_small_has_as_many_stages_as_asked_for():
    assert build_encoder("small", depth=5).out_channels == (3, 16, 32, 64, 128, 256)
    assert build_encoder("small", depth=2, in_channels=1).out_channels == (1, 16, 32)


def test_encoder_of_smp():
    smp = pytest.importorskip("segmentation_models_pytorch.encoders", reason="the extra smp")
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", depth=4, in_channels=2).eval()
    torch.manual_seed(0)
    theirs = smp.get_encoder("resnet18", depth=4, in_channels=2, weights=None).eval()
    assert tuple(encoder.out_channels) == (2, 64, 64, 128, 256)
    x = torch.rand(1, 2, 97, 131)
    with torch.no_grad():
        features, expected = encoder(x), theirs(x)
    for scale, (item, wanted) in enumerate(zip(features, expected, strict=True)):
        assert item.shape[2:] == halved((97, 131), scale)
        torch.testing.assert_close(item, wanted)


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="the extra timm")


@pytest.mark.parametrize("depth", [2, 5])
def test_encoder_of_timm(timm, depth):
    encoder = build_encoder("timm/resnet18", depth=depth).eval()
    whole = timm.create_model("resnet18", features_only=True).eval()
    missing = whole.load_state_dict(encoder.model.state_dict(), strict=False)
    assert not missing.unexpected_keys
    x = torch.rand(1, 3, 97, 131)
    with torch.no_grad():
        features, expected = encoder(x), whole(x)
    assert features[0] is x
    assert len(features) == depth + 1
    for item, wanted, channels in zip(
        features[1:], expected, encoder.out_channels[1:], strict=False
    ):
        torch.testing.assert_close(item, wanted)
        assert item.shape[1] == channels


def test_layers_that_no_map_needs_are_left_out(timm):
    sizes = [
        sum(p.numel() for p in TimmEncoder("resnet18", depth=depth).parameters())
        for depth in (1, 3, 5)
    ]
    assert sizes[0] == 64 * 3 * 49 + 2 * 64
    assert sizes[0] < sizes[1] < sizes[2]


def test_a_scale_without_a_map_has_one_without_channels(timm):
    encoder = TimmEncoder("convnext_atto", depth=4, in_channels=1).eval()
    assert encoder.out_channels == (1, 0, 40, 80, 160)
    with torch.no_grad():
        features = encoder(torch.rand(2, 1, 97, 131))
    assert [tuple(item.shape[1:]) for item in features[:3]] == [
        (1, 97, 131),
        (0, 49, 66),
        (40, 24, 32),
    ]


def test_maps_with_channels_last_are_turned(timm):
    encoder = TimmEncoder("swin_tiny_patch4_window7_224", depth=3).eval()
    assert encoder.out_channels == (3, 0, 96, 192)
    with torch.no_grad():
        features = encoder(torch.rand(1, 3, 224, 224))
        plain = encoder.model(torch.rand(1, 3, 224, 224))
    assert plain[0].shape == (1, 56, 56, 96)
    assert features[2].shape == (1, 96, 56, 56)
    assert features[3].shape == (1, 192, 28, 28)


def test_normalization_of_timm_s_weights(timm):
    assert normalization("timm/resnet18", "a1_in1k") == (
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )


def test_normalization_of_smp_s_weights(tmp_path, monkeypatch):
    smp = pytest.importorskip("segmentation_models_pytorch.encoders", reason="the extra smp")
    facts = {"input_range": [0, 255], "mean": [51.0] * 3, "std": [102.0] * 3}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    monkeypatch.setattr(smp, "hf_hub_download", lambda _, filename, **__: tmp_path / filename)
    assert normalization("resnet18", "imagenet") == ((0.2,) * 3, (0.4,) * 3)


def test_normalization_refuses_unknown_weights(timm):
    with pytest.raises(ValueError, match=r"normalization: weights must be one of .* got 'nope'"):
        normalization("timm/resnet18", "nope")
    pytest.importorskip("segmentation_models_pytorch.encoders", reason="the extra smp")
    with pytest.raises(ValueError, match=r"weights must be one of .* got 'nope'"):
        normalization("resnet18", "nope")
    with pytest.raises(ValueError, match=r"name must be .* got 'small'"):
        normalization("small", "imagenet")


def test_bad_options():
    with pytest.raises(ValueError, match="at least one stage"):
        ConvEncoder(())
    with pytest.raises(ValueError, match="widths must be at least 1; got 0"):
        ConvEncoder((4, 0))
    with pytest.raises(ValueError, match="blocks must be at least 1"):
        ConvEncoder(blocks=0)
    with pytest.raises(ValueError, match="c=3"):
        ConvEncoder((4,))(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match="weights must be None for 'small'; got 'imagenet'"):
        build_encoder("small", weights="imagenet")
    with pytest.raises(ValueError, match="depth must be at least 1"):
        build_encoder("small", depth=0)


def test_unknown_names(timm):
    pytest.importorskip("segmentation_models_pytorch", reason="the extra smp")
    with pytest.raises(ValueError, match=r"got 'resnet81'\. Did you mean 'resnet18'"):
        build_encoder("resnet81")
    with pytest.raises(ValueError, match="weights must be one of 'imagenet'"):
        build_encoder("resnet18", weights="imagnet")
    with pytest.raises(ValueError, match=r"got 'resnet1888'\. Did you mean 'resnet18"):
        build_encoder("timm/resnet1888")
    with pytest.raises(ValueError, match="weights must be one of"):
        build_encoder("timm/resnet18", weights="nonsense")
    with pytest.raises(ValueError, match=r"are 4, 8, 16, 32; got 1, stride 2"):
        build_encoder("timm/convnext_atto", depth=1)
