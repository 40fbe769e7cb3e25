"""Checkpoints: exact, plain, whole at any moment, and clear about what is wrong."""

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from cv_core.engine import checkpoint
from cv_core.engine.checkpoint import CheckpointError
from cv_core.engine.rng import RandomState
from torch import nn


def filled(value: float) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
    return model


def trained(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(2, 3) * torch.tensor([[1.0], [2.0]])).sum().backward()
    optimizer.step()
    return optimizer


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_everything_comes_back(tmp_path):
    model = filled(0.5)
    optimizer = trained(model)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
    extra = {"a": [1, 2.5, "x", None], "b": {"t": torch.arange(3)}, "o": OrderedDict(k=(1, 2))}
    parts = {"optimizer": optimizer, "scheduler": scheduler, "ema": None}
    checkpoint.save(tmp_path, model=model, step=7, extra=extra, **parts)

    other = filled(0.0)
    adam = torch.optim.Adam(other.parameters(), lr=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, [1])
    loaded = checkpoint.load(tmp_path, model=other, optimizer=adam, scheduler=schedule)
    assert loaded.step == 7
    assert torch.equal(loaded.extra["b"].pop("t"), torch.arange(3))
    assert loaded.extra == {**extra, "b": {}}
    assert equal(model.state_dict(), other.state_dict())
    assert str(adam.state_dict()) == str(optimizer.state_dict())
    assert schedule.state_dict() == scheduler.state_dict()
    assert equal(checkpoint.read_weights(tmp_path), dict(model.state_dict()))


def test_files_are_safetensors_and_plain(tmp_path):
    from safetensors.torch import load_file

    model = filled(0.5)
    checkpoint.save(tmp_path, model=model, optimizer=trained(model))
    (weights,) = tmp_path.glob("*.safetensors")
    (state,) = tmp_path.glob("*.pt")
    assert equal(load_file(weights), dict(model.state_dict()))
    assert torch.load(state, weights_only=True)["parts"].keys() == {"optimizer"}
    checkpoint.save(tmp_path, model=filled(1.0))  # the old version is cleaned away
    assert len(list(tmp_path.iterdir())) == 3


def test_tensors_that_share_memory(tmp_path):
    class Tied(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)
            self.b = nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight  # one parameter, two names
            base = torch.full((6,), value)
            self.register_buffer("whole", base)
            self.register_buffer("part", base[2:4])  # a view
            self.register_buffer("turned", torch.arange(6.0).view(2, 3).t() * value)
            self.register_buffer("empty", torch.zeros(0))
            nn.init.constant_(self.a.weight, value)

    model, other = Tied(3.0), Tied(0.0)
    checkpoint.save(tmp_path, model=model)
    checkpoint.load(tmp_path, model=other)
    assert equal(dict(model.state_dict()), dict(other.state_dict()))
    assert other.b.weight is other.a.weight
    (weights,) = tmp_path.glob("*.safetensors")
    assert weights.stat().st_size < 1000  # the shared matrix once: 64 bytes, and a header


def test_channels_last_and_extra_state(tmp_path):
    class Counted(nn.Conv2d):
        seen = 0

        def get_extra_state(self):
            return {"seen": self.seen}

        def set_extra_state(self, state):
            self.seen = state["seen"]

    model = Counted(3, 4, 3).to(memory_format=torch.channels_last)
    model.seen = 5
    checkpoint.save(tmp_path, model=model)
    other = Counted(3, 4, 3).to(memory_format=torch.channels_last)
    checkpoint.load(tmp_path, model=other)
    assert torch.equal(model.weight, other.weight)
    assert other.weight.is_contiguous(memory_format=torch.channels_last)
    assert other.seen == 5


def test_random_state(tmp_path):
    with torch.random.fork_rng(devices=[]):
        checkpoint.save(tmp_path, model=nn.Linear(1, 1), random=RandomState())
        expected = torch.rand(5)
        torch.rand(100)
        checkpoint.load(tmp_path, model=nn.Linear(1, 1), random=RandomState())
        assert torch.equal(torch.rand(5), expected)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"path": Path("x")}, r"state\['extra'\]\['path'\] must hold tensors and plain types"),
        ({"a": [1, {2: {"b": object()}}]}, r"state\['extra'\]\['a'\]\[1\]\[2\]\['b'\]"),
        ({("k", len): 1}, "a key of"),
    ],
)
def test_refuses_what_is_not_plain(tmp_path, extra, message):
    checkpoint.save(tmp_path, model=filled(1.0), step=1)
    with pytest.raises(TypeError, match=message):
        checkpoint.save(tmp_path, model=filled(2.0), step=2, extra=extra)
    assert checkpoint.load(tmp_path, model=filled(0.0)).step == 1


@pytest.mark.parametrize("pattern", ["*.safetensors", "*.pt"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_file_is_named_and_nothing_is_restored(tmp_path, pattern, damage):
    checkpoint.save(tmp_path, model=filled(1.0))
    (path,) = tmp_path.glob(pattern)
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-9] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    model = filled(0.0)
    with pytest.raises(
        CheckpointError, match=f"(damaged|missing).*{path.name}|{path.name} is damaged"
    ):
        checkpoint.load(tmp_path, model=model)
    assert equal(dict(model.state_dict()), dict(filled(0.0).state_dict()))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"format": 1}', '{"format": "x", "files": {"a": "b"}}']
)
def test_a_foreign_manifest_is_named(tmp_path, content):
    (tmp_path / "checkpoint.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is no checkpoint's manifest"):
        checkpoint.load(tmp_path, model=filled(0.0))


def test_another_format_an_empty_folder_and_a_foreign_model(tmp_path):
    assert not checkpoint.exists(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        checkpoint.load(tmp_path, model=filled(0.0))
    checkpoint.save(tmp_path, model=filled(1.0))
    assert checkpoint.exists(tmp_path)
    other = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(1, 1))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"does not fit the model: 2.weight is missing"):
        checkpoint.load(tmp_path, model=other)
    assert equal(before, dict(other.state_dict()))
    with pytest.raises(CheckpointError, match="must hold the state of optimizer; it has none"):
        checkpoint.load(tmp_path, model=filled(0.0), optimizer=trained(filled(1.0)))
    manifest = json.loads((tmp_path / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps({**manifest, "format": "cv-core 9"}))
    with pytest.raises(CheckpointError, match="must have format 'cv-core checkpoint 1'"):
        checkpoint.load(tmp_path, model=filled(0.0))


class Crash(BaseException):
    """Stands for a kill between two calls of the operating system."""


def test_old_or_new_whatever_call_fails(tmp_path, monkeypatch):
    """Let every single call that touches the disk fail, before and after its effect."""
    found = set()
    for late in (False, True):
        for failing in range(100):
            folder = tmp_path / f"{late}-{failing}"
            checkpoint.save(folder, model=filled(1.0), step=1)
            calls = 0

            def failing_call(real, *arguments, late=late, failing=failing, **options):
                nonlocal calls
                calls += 1
                if calls - 1 == failing and not late:
                    raise Crash
                result = real(*arguments, **options)
                if calls - 1 == failing and late:
                    raise Crash
                return result

            with monkeypatch.context() as patch:
                for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "chmod")):
                    real = getattr(owner, name)
                    patch.setattr(owner, name, lambda *a, r=real, **k: failing_call(r, *a, **k))
                try:
                    checkpoint.save(folder, model=filled(2.0), step=2)
                    finished = True
                except Crash:
                    finished = False
            model = filled(0.0)
            step = checkpoint.load(folder, model=model).step
            assert equal(dict(model.state_dict()), dict(filled(float(step)).state_dict()))
            checkpoint.save(folder, model=filled(3.0), step=3)  # and it can go on from there
            assert len(list(folder.iterdir())) == 3
            found.add((finished, step))
            if finished:
                break
    assert found == {(False, 1), (False, 2), (True, 2)}


KILLED = """
import os, random, signal, sys, time
import torch
from torch import nn
from cv_core.engine import checkpoint

torch.set_num_threads(1)
folder = sys.argv[1]


def filled(value):
    model = nn.Linear(300, 300)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(value)
    return model


checkpoint.save(folder, model=filled(0.0), step=0, extra={"all": torch.zeros(1000)})
delays = random.Random(0)
steps = []
for _ in range(12):
    begin = steps[-1] if steps else 0
    child = os.fork()
    if child == 0:
        for step in range(begin + 1, begin + 10_000):
            extra = {"all": torch.full((1000,), float(step))}
            checkpoint.save(folder, model=filled(float(step)), step=step, extra=extra)
        os._exit(1)
    while checkpoint.load(folder, model=filled(-1.0)).step == begin:  # also a reader meanwhile
        time.sleep(0.001)
    time.sleep(delays.uniform(0.0, 0.02))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    model = filled(-1.0)
    loaded = checkpoint.load(folder, model=model)
    for tensor in (*model.parameters(), loaded.extra["all"]):
        assert (tensor == loaded.step).all(), (loaded.step, tensor)
    steps.append(loaded.step)
assert steps == sorted(steps) and steps[-1] >= 12, steps
print("whole", len(steps))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_saving(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(tmp_path / "checkpoint")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "whole 12\n"
