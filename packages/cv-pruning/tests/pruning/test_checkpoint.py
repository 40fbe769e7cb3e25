from __future__ import annotations

import json
import struct
import subprocess
import sys

import pytest
import torch
from cv_core.random import seeded
from cv_pruning.pruning.checkpoint import load_pruned, save_pruned
from cv_pruning.pruning.structural import prune
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from .networks import ALL, Chain, image, randomised


def narrow_chain(tmp_path):
    pytest.importorskip("torch_pruning")
    model = randomised(Chain()).eval()
    prune(model, image(8))
    return model, save_pruned(model, tmp_path / "chain.safetensors")


@pytest.mark.parametrize(
    "name", [n for n in ALL if n not in ("vgg16", "resnet50")]
)  # which are built of the same layers
def test_a_narrow_network_comes_back_bit_for_bit(name, tmp_path):
    pytest.importorskip("torch_pruning")
    pytest.importorskip("torchvision")
    with seeded(0, "weights"):
        model = randomised(ALL[name]()).eval()
    prune(model, image(), ratio=0.4)
    path = save_pruned(model, tmp_path / "model.safetensors")
    again = load_pruned(ALL[name], path).eval()
    with torch.no_grad():
        assert torch.equal(again(image()), model(image()))
    assert {n: m.extra_repr() for n, m in again.named_modules()} == {
        n: m.extra_repr() for n, m in model.named_modules()
    }
    again.train()(image()).sum().backward()


def test_a_network_that_was_never_pruned_comes_back(tmp_path):
    model = Chain()
    again = load_pruned(Chain, save_pruned(model, tmp_path / "wide"))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_shared_memory_and_frozen_weights(tmp_path):
    def build():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        model[0].bias.requires_grad_(False)
        return model

    model = build()
    again = load_pruned(build, save_pruned(model, tmp_path / "tied"))
    assert again[1].weight is again[0].weight
    assert torch.equal(again[0].weight, model[0].weight)
    assert not again[0].bias.requires_grad


def test_loading_needs_no_torch_pruning(tmp_path):
    _, path = narrow_chain(tmp_path)
    code = (
        "import sys; sys.modules['torch_pruning'] = None\n"
        "from torch import nn\n"
        "from cv_pruning.pruning.checkpoint import load_pruned\n"
        "try: load_pruned(lambda: nn.Linear(2, 2), sys.argv[1])\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "does not fit what model_fn makes" in done.stdout, done.stderr


def test_what_is_no_tensor_is_refused(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    with pytest.raises(TypeError, match="_extra_state' is a dict"):
        save_pruned(Extra(1, 1), tmp_path / "x")


def changed(path, recipe=lambda r: r, tensors=lambda t: t):
    """Write the file anew with another recipe or other tensors."""
    with safe_open(path, framework="pt") as file:
        old = json.loads(file.metadata()["cv-pruning"])
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors(content), path, {"cv-pruning": json.dumps(recipe(old))})
    return path


def width(layer, side, value):
    def edit(recipe):
        recipe["layers"][layer][side] = value
        return recipe

    return edit


HOSTILE = {
    "absurd": (width("stem", "out", 10**12), "layer 'stem': a width of 1000000000000 does not lie"),
    "zero": (width("stem", "out", 0), "layer 'stem': a width of 0"),
    "negative": (width("head", "in", -5), "layer 'head': a width of -5"),
    "text": (width("stem", "out", "5"), "layer 'stem': widths .* are not whole numbers"),
    "truth": (width("stem", "out", True), "layer 'stem': widths .* are not whole numbers"),
    "other side": (width("norm", "in", 5), "layer 'norm': widths"),
    "not its tensors": (width("inner", "out", 2), "tensor 'inner.weight'"),
    "foreign layer": (
        lambda r: {**r, "layers": {**r["layers"], "evil": {"out": 1}}},
        "layer 'evil' is not in the network",
    ),
    "missing layer": (
        lambda r: {**r, "layers": {k: v for k, v in r["layers"].items() if k != "head"}},
        "layer 'head' is not in the file",
    ),
    "bare": (lambda r: {**r, "parameters": {"w": [1]}}, "parameter 'w' is not in the network"),
    "stated": (lambda r: {**r, "stated": {"w": 1}}, "attribute 'w' is not in the network"),
    "format": (lambda r: {**r, "format": 2}, "no recipe of format 1"),
    "list": (lambda r: [r], "no recipe of format 1"),
    "null": (lambda r: {**r, "layers": None}, "no recipe of format 1"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_recipe_is_refused_before_the_network_is_touched(case, tmp_path):
    edit, message = HOSTILE[case]
    _, path = narrow_chain(tmp_path)
    model = Chain()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_pruned(lambda: model, changed(path, recipe=edit))
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert model.stem.out_channels == 10


TENSORS = {
    "shape": (lambda t: {**t, "stem.bias": torch.zeros(10**4)}, r"tensor 'stem.bias'.*\[10000\]"),
    "type": (lambda t: {**t, "stem.bias": t["stem.bias"].double()}, "float64.*float32"),
    "foreign": (lambda t: {**t, "evil": torch.zeros(1)}, "tensor 'evil' is not in the network"),
    "missing": (
        lambda t: {k: v for k, v in t.items() if k != "head.bias"},
        "tensor 'head.bias' is not in the file",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused(case, tmp_path):
    edit, message = TENSORS[case]
    _, path = narrow_chain(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_pruned(Chain, changed(path, tensors=edit))


def test_other_files_are_refused(tmp_path):
    pickled, plain, huge = (tmp_path / name for name in ("pickle", "plain", "huge"))
    torch.save({"a": torch.zeros(1)}, pickled)
    save_file({"a": torch.zeros(1)}, plain)
    huge.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    for path in (pickled, plain, huge):
        with pytest.raises(ValueError, match="was not written by save_pruned"):
            load_pruned(Chain, path)
    with pytest.raises(OSError, match="absent"):
        load_pruned(Chain, tmp_path / "absent")


def test_bare_parameters_are_held_to_the_network(tmp_path):
    class Scaled(nn.Module):
        def __init__(self, n=4):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(n, 1))

    again = load_pruned(Scaled, save_pruned(Scaled(2), tmp_path / "x"))
    assert again.scale.shape == (2, 1)
    with pytest.raises(ValueError, match=r"parameter 'scale': \[8, 1\] where at most \[4, 1\]"):
        load_pruned(Scaled, save_pruned(Scaled(8), tmp_path / "x"))
