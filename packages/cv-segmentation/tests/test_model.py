import json

import pytest
import torch
from cv_segmentation.decoders.unet import UNetDecoder
from cv_segmentation.encoders import ConvEncoder, build_encoder
from cv_segmentation.model import (
    ModelConfig,
    SegmentationModel,
    _assembled,
    build_model,
    load_model,
    read_notes,
    save_model,
)
from torch import nn

NAMES = ["unet", "fpn", "deeplab"]


@pytest.mark.parametrize("decoder", NAMES)
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_logits_have_the_size_of_the_image(decoder, depth):
    model = build_model("small", decoder, classes=5, depth=depth, in_channels=1).eval()
    for size in ((97, 131), (32, 64), (3, 2)):
        with torch.no_grad():
            out = model(torch.rand(1, 1, *size))
        assert out.shape == (1, 5, *size)
        assert out.isfinite().all()


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18"])
def test_foreign_encoders_for_odd_sizes(name):
    library = "timm" if name.startswith("timm/") else "segmentation_models_pytorch"
    pytest.importorskip(library, reason="an extra")
    model = build_model(name, "unet", classes=3).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 97, 131)).shape == (1, 3, 97, 131)


def test_normalisation_is_the_model_s():
    encoder = ConvEncoder((4, 8))
    decoder = UNetDecoder(encoder.out_channels)
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.4)
    plain = SegmentationModel(encoder, decoder, 2).eval()
    model = SegmentationModel(encoder, decoder, 2, mean=mean, std=std).eval()
    model.head = plain.head
    x = torch.rand(1, 3, 12, 10)
    seen = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(model(x), plain(seen))
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_a_network_learns_where_the_bright_half_is():
    model = build_model("small", "unet", classes=2, depth=2)
    x = torch.rand(4, 3, 16, 16) * 0.5
    x[:2, :, :, :8] += 0.5
    x[2:, :, 8:] += 0.5
    mask = (x.mean(1) > 0.5).long()
    mask[:2, :, :8], mask[:2, :, 8:], mask[2:, 8:], mask[2:, :8] = 1, 0, 1, 0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), mask).backward()
        optimizer.step()
    with torch.no_grad():
        assert (model(x).argmax(1) == mask).float().mean() > 0.95


@pytest.mark.parametrize("decoder", NAMES)
def test_saved_and_loaded(tmp_path, decoder):
    model = build_model("small", decoder, classes=4, depth=3)
    x = torch.rand(2, 3, 21, 34)
    model(x)  # moves the running means
    model.eval()
    folder = save_model(model, tmp_path / "a" / "net", notes={"classes": ["sky", "é"]})
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    state = torch.get_rng_state()
    again = load_model(folder)
    assert not again.training
    assert again.config == model.config
    assert read_notes(folder) == {"classes": ["sky", "é"]}
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_saved_with_its_normalisation(tmp_path):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    config = ModelConfig("small", "unet", classes=2, depth=2, mean=mean, std=std)
    model = _assembled(build_encoder("small", depth=2), config).eval()
    again = load_model(save_model(model, tmp_path))
    assert again.config == config
    assert again.mean.flatten().tolist() == pytest.approx(mean)
    assert again.std.flatten().tolist() == pytest.approx(std)
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_saved_anew_in_the_same_folder(tmp_path):
    for depth in (3, 2):
        model = build_model("small", classes=2, depth=depth)
        save_model(model, tmp_path, notes={"depth": depth})
    assert read_notes(tmp_path) == {"depth": 2}
    assert load_model(tmp_path).config.depth == 2


def test_only_what_can_be_made_anew_is_saved(tmp_path):
    encoder = ConvEncoder((4,))
    model = SegmentationModel(encoder, UNetDecoder(encoder.out_channels), 2)
    with pytest.raises(ValueError, match="model must come from build_model"):
        save_model(model, tmp_path / "net")
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_model(build_model(classes=2, depth=1), tmp_path / "net", notes={"x": torch.ones(1)})
    assert not (tmp_path / "net").exists()


def test_damaged_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model \(config.json\)"):
        load_model(tmp_path)
    folder = save_model(build_model(classes=2, depth=1), tmp_path / "net")
    good = (folder / "config.json").read_text()
    other = json.loads(good)
    other["model"]["classes"] = 3
    (folder / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"model.safetensors does not fit .*config.json"):
        load_model(folder)
    for content in ("{", "[]", good.replace("classes", "klasses"), good.replace(" 1", " 7")):
        (folder / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json"):
            load_model(folder)
    (folder / "config.json").write_text(good)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        load_model(folder)


def test_bad_options():
    with pytest.raises(ValueError, match="Did you mean 'unet'"):
        build_model("small", "unett", classes=2)
    with pytest.raises(ValueError, match="classes must be at least 1"):
        build_model(classes=0)
    encoder = ConvEncoder((4, 8))
    with pytest.raises(ValueError, match=r"\(3, 4, 8\); got one for \(3, 4\)"):
        SegmentationModel(encoder, UNetDecoder((3, 4)), 2)
    with pytest.raises(ValueError, match="mean must have one value, or 3"):
        SegmentationModel(encoder, UNetDecoder((3, 4, 8)), 2, mean=(0.5, 0.5))
    with pytest.raises(ValueError, match="c=3"):
        build_model(classes=2, depth=1)(torch.rand(1, 1, 8, 8))
