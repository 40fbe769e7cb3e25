import tomllib
from collections import OrderedDict
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("typer", reason="the command line is the extra lab")

from cv_attention.commands import METHODS, _channels_first, _last_maps
from cv_attention.overlays import overlay
from cv_core.cli import app
from cv_core.explain.cams import LayerCAM
from cv_core.random import seeded
from PIL import Image
from torch import nn
from torchvision import models

MODEL = "shufflenet_v2_x0_5"
CLASSES = ["--classes", "7"]


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """The command as the package announces it, whatever was announced when it was installed."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    announced = tomllib.loads(text)["project"]["entry-points"]["cvlab.commands"]
    points = [EntryPoint(name, value, app.COMMANDS) for name, value in announced.items()]
    monkeypatch.setattr(app, "_added", lambda: points)


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    path = tmp_path / "dots.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def network():
    with seeded(5):
        return models.get_model(MODEL, num_classes=7).eval()


def test_it_draws_what_the_explainer_says(capsys, tmp_path, picture, network):
    file = tmp_path / "weights.pt"
    torch.save(network.state_dict(), file)
    options = ["--weights", str(file), *CLASSES, "--method", "layer-cam", "--out", str(tmp_path)]
    assert app.run_app(["explain", MODEL, str(picture), *options, "--target", "3"]) == 0
    said = capsys.readouterr().out
    assert "random weights" not in said
    assert "target: class 3" in said
    assert "layer: conv5" in said
    path = tmp_path / "dots-layer-cam.png"
    assert said.splitlines()[-1] == str(path)

    middle = (
        Image.open(picture).crop((25, 0, 175, 150)).resize((224, 224), Image.Resampling.BICUBIC)
    )
    pixels = torch.from_numpy(np.array(middle)).permute(2, 0, 1)[None].float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = (pixels - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        logit = float(network(inputs)[0, 3])
    assert f"logit {logit:.3f}" in said
    (layer,) = [name for name, module in network.named_modules() if module is network.conv5[2]]
    heat = LayerCAM(network, layer).attribute(inputs, 3)[0]
    drawn = np.array(Image.open(path)).astype(int)
    expected = np.round(overlay(pixels[0], heat) * 255).astype(int)
    assert np.abs(drawn - expected).mean() < 0.5


def test_several_methods_are_shown_side_by_side(capsys, tmp_path, picture):
    out = tmp_path / "new" / "folder"
    methods = ["--method", "gradients", "--method", "grad-cam", "--method", "gradients"]
    assert app.run_app(["explain", MODEL, str(picture), *methods, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{MODEL} has random weights (no --weights): the maps show no knowledge."
    names = ["dots-gradients.png", "dots-grad-cam.png", "dots-all.png"]
    assert lines[-3:] == [str(out / name) for name in names]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    state = torch.get_rng_state()
    assert app.run_app(["explain", MODEL, str(picture), *methods, "--out", str(out)]) == 0
    assert torch.equal(torch.get_rng_state(), state)
    again = {path.name: path.read_bytes() for path in out.iterdir()}
    assert again == first  # the random weights are the same in every call


@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
def test_weights_come_from_checkpoints_too(capsys, tmp_path, picture, network, nested):
    from safetensors.torch import save_file

    file = tmp_path / ("weights.pth" if nested else "weights.safetensors")
    if nested:
        torch.save({nested: network.state_dict(), "epoch": 3}, file)
    else:
        save_file(network.state_dict(), file)
    options = ["--method", "gradients", "--out", str(tmp_path), "--weights", str(file), *CLASSES]
    assert app.run_app(["explain", MODEL, str(picture), *options]) == 0
    assert "random" not in capsys.readouterr().out


class Trap:
    """What a pickle could do to who loads it."""

    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["resnet81", "dots.png"], "MODEL 'resnet81'"),
        ([MODEL, "none.png"], "IMAGE none.png: No such file or directory"),
        ([MODEL, "notes.txt"], "IMAGE notes.txt is no picture"),
        ([MODEL, "dots.png", "--method", "gradcam"], "Did you mean 'grad-cam'"),
        ([MODEL, "dots.png", "--target", "1000"], "target must lie in [0, 999]; got 1000"),
        ([MODEL, "dots.png", "--target", "-1"], "target must lie in [0, 999]; got -1"),
        ([MODEL, "dots.png", "--layer", "conv55"], "Nearest: 'conv5"),
        ([MODEL, "dots.png", "--layer", "fc"], "--layer fc has no maps"),
        ([MODEL, "dots.png", "--method", "rollout"], "no module that is called attention"),
        ([MODEL, "dots.png", "--classes", "0"], "--classes must be at least 1"),
        ([MODEL, "dots.png", "--out", "notes.txt"], "notes.txt is no folder"),
        ([MODEL, "dots.png", "--out", "notes.txt/sub"], "notes.txt is no folder"),
        ([MODEL, "dots.png", "--weights", "none.pt"], "--weights none.pt: No such file"),
        ([MODEL, "dots.png", "--weights", "notes.txt"], "notes.txt is no file of plain tensors"),
        ([MODEL, "dots.png", "--weights", "trap.pt"], "trap.pt is no file of plain tensors"),
        ([MODEL, "dots.png", "--weights", "list.pt"], "list.pt holds no state dict"),
        (
            [MODEL, "dots.png", "--weights", "seven.pt"],
            "2 tensors are of another shape (another --",
        ),
        ([MODEL, "dots.png", "--weights", "other.pt"], "1 tensors are unknown, such as 'x'"),
        ([MODEL], "Missing argument"),
    ],
)
def test_bad_use_is_one_line(capsys, tmp_path, monkeypatch, picture, network, arguments, wanted):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("no picture", encoding="utf-8")
    torch.save(Trap(), "trap.pt")
    torch.save([1, 2], "list.pt")
    torch.save(network.state_dict(), "seven.pt")
    torch.save({"x": torch.zeros(1)}, "other.pt")
    before = sorted(tmp_path.iterdir())
    assert app.run_app(["explain", *arguments]) == 2
    said = capsys.readouterr()
    assert wanted in said.err
    assert said.err.count("\n") == 1
    assert not said.out
    assert sorted(tmp_path.iterdir()) == before


def test_help_names_the_methods(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert app.run_app(["explain", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in METHODS)


def test_the_last_layer_with_maps():
    class Flat(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), Flat())
    assert _last_maps(net, torch.rand(1, 3, 8, 8)) == "1"
    with seeded(0):
        vit = models.VisionTransformer(16, 8, 2, 2, 8, 8).eval()
        swin = models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [4, 4]).eval()
    assert _last_maps(vit, torch.rand(1, 3, 16, 16)) == "encoder.layers.encoder_layer_1.ln_1"
    assert _last_maps(swin, torch.rand(1, 3, 64, 64)) == "permute"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vit.modules())


class Tokens(nn.Module):
    """Patches of 4 x 4 pixels, a block, their mean."""

    def __init__(self, block):
        super().__init__()
        self.stem, self.norm, self.block = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), block
        self.last, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.stem(x).flatten(2).mT)
        return self.head(self.last(x + self.block(x)).mean(1))


class Gpsa(nn.Module):
    """Attention that its class does not call so, with its weights in a layer of four axes."""

    def __init__(self):
        super().__init__()
        self.attn_drop = nn.Dropout(0.1)

    def forward(self, x):
        heads = x.unflatten(2, (2, -1)).transpose(1, 2)
        weights = self.attn_drop((heads @ heads.mT).softmax(-1))
        return (weights @ heads).transpose(1, 2).flatten(2)


class AttentionPool(Gpsa):
    """Keys in a layer of four axes: heads, tokens and channels."""

    def __init__(self):
        super().__init__()
        self.k_norm = nn.LayerNorm(4)

    def forward(self, x):
        keys = self.k_norm(x.unflatten(2, (2, -1)).transpose(1, 2))
        return keys.transpose(1, 2).flatten(2)


def test_what_stands_inside_attention_is_no_map():
    x = torch.rand(1, 3, 16, 16)
    by_name = nn.Sequential(OrderedDict(attn=Gpsa()))
    for block in (by_name, AttentionPool()):
        assert _last_maps(Tokens(block).eval(), x) == "norm"


def test_tokens_without_attention_are_maps():
    assert _last_maps(Tokens(nn.Linear(8, 8)).eval(), torch.rand(1, 3, 16, 16)) == "last"


def test_a_tag_that_timm_does_not_know(capsys, picture):
    pytest.importorskip("timm", reason="needs timm")
    assert app.run_app(["explain", "timm/resnet18.nonsense", str(picture)]) == 2
    said = capsys.readouterr().err
    assert "MODEL 'resnet18.nonsense'" in said
    assert said.count("\n") == 1


def test_maps_with_channels_last_are_turned():
    last = torch.rand(2, 3, 6, 5)  # three rows of six, as an image of 32 x 64 has them
    assert torch.equal(_channels_first(last, (32, 64)), last.permute(0, 3, 1, 2))
    first = torch.rand(2, 5, 3, 6)
    assert torch.equal(_channels_first(first, (32, 64)), first)


def test_every_method_explains_a_transformer(capsys, tmp_path, picture, monkeypatch):
    """Every name of the list stands for an explainer that takes a transformer."""
    from cv_attention import commands

    with seeded(0):
        vit = models.VisionTransformer(16, 8, 2, 2, 8, 8, num_classes=4).eval()
    nn.init.normal_(vit.heads.head.weight, generator=torch.Generator().manual_seed(0))
    network = commands.Network(vit, (16, 16), (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setattr(commands, "_build", lambda _name, _classes: network)
    chosen = [word for name in METHODS for word in ("--method", name)]
    assert app.run_app(["explain", "vit", str(picture), *chosen, "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("dots-*.png"))) == len(METHODS) + 1
    assert "layer: encoder.layers.encoder_layer_1.ln_1" in capsys.readouterr().out
