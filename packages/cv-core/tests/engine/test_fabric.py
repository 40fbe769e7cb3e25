"""Fabric: the same bits on one process, the same numbers on two, clear refusals."""

import os
import subprocess
import sys

import pytest
import torch
from cv_core.engine.ema import EMA
from cv_core.engine.fabric import launch, make_fabric
from cv_core.engine.loader import TensorLoader
from cv_core.engine.loop import evaluate, fit
from cv_core.engine.task import FunctionTask, SupervisedTask
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(50, 5, generator=generator), torch.randint(3, (50,), generator=generator)


def train(fabric, folder=None, data="tensors", accumulate=2, epochs=3):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
        )
    x, y = tensors()
    if data == "tensors":
        loader = TensorLoader(x, y, batch_size=8, shuffle=True)
    else:
        loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    ema = EMA(model, decay=0.9)
    result = fit(
        SupervisedTask(model),
        loader,
        torch.optim.Adam(model.parameters(), lr=0.01),
        epochs=epochs,
        accumulate=accumulate,
        clip_norm=0.5,
        ema=ema,
        validate=TensorLoader(x[:20], y[:20], batch_size=6),
        checkpoint=folder,
        fabric=fabric,
    )
    return result.history, {**model.state_dict(), **ema.average}


@pytest.fixture(scope="module")
def cpu():
    return make_fabric("cpu")


@pytest.mark.parametrize("data", ["tensors", "loader"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_process_equals_plain_torch_bit_for_bit(cpu, data, accumulate):
    history, weights = train(None, data=data, accumulate=accumulate)
    other, others = train(cpu, data=data, accumulate=accumulate)
    assert history.steps == other.steps
    assert history.epochs == other.epochs
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_plain_and_fabric_continue_each_others_checkpoints(cpu, tmp_path):
    history, weights = train(None)
    train(cpu, tmp_path, epochs=2)
    other, others = train(None, tmp_path)
    assert history.epochs == other.epochs
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_mixed_precision_rounds_the_network_and_not_the_targets():
    seen = {}

    def step(model, batch):
        x, target = batch
        seen["target"] = target
        output = model(x)
        seen["output"] = output.dtype
        return {"loss": (output.float() - target).square().mean()}

    x, _ = tensors()
    target = torch.full((50, 1), 1000.25)  # bfloat16 would make it 1000
    model = nn.Linear(5, 1)
    task = FunctionTask(model, step)
    loader = TensorLoader(x, target, batch_size=50)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    fabric = make_fabric("cpu", precision="bf16-mixed")
    fit(task, loader, optimizer, epochs=1, fabric=fabric)
    assert seen["output"] == torch.bfloat16
    assert torch.equal(seen["target"], target)
    assert model.weight.dtype == torch.float32
    seen.clear()
    evaluate(task, loader, fabric=fabric)
    assert seen["output"] == torch.bfloat16
    assert torch.equal(seen["target"], target)


def test_double_precision(cpu):
    x, y = tensors()
    model = nn.Linear(5, 3)
    fabric = make_fabric("cpu", precision="64-true")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(
        SupervisedTask(model), TensorLoader(x, y, batch_size=50), optimizer, epochs=1, fabric=fabric
    )
    hand = nn.Linear(5, 3)
    assert model.weight.dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32
    assert hand.weight.dtype == torch.float32


def test_refuses():
    with pytest.raises(ValueError, match=r"device must be one of .* Did you mean 'cuda'"):
        make_fabric("cud")  # type: ignore[arg-type] # on purpose
    with pytest.raises(ValueError, match=r"strategy must be one of .* Did you mean 'ddp'"):
        make_fabric("cpu", strategy="dp")  # type: ignore[arg-type] # on purpose
    with pytest.raises(ValueError, match="strategy 'fsdp' needs device 'cuda'"):
        make_fabric("cpu", strategy="fsdp")
    with pytest.raises(ValueError, match="precision '16-mixed' needs device 'cuda'"):
        make_fabric("cpu", precision="16-mixed")
    with pytest.raises(ValueError, match="devices must be at least 1"):
        make_fabric("cpu", devices=0)
    with pytest.raises(ValueError, match="devices must be at most the CUDA devices here"):
        make_fabric("cuda", devices=1000)


def test_launch_leaves_the_environment_alone(cpu):
    before = dict(os.environ)
    assert launch(cpu, lambda fabric, a, b: (fabric is cpu, a + b), 1, 2) == (True, 3)
    assert dict(os.environ) == before


TWO = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from cv_core.engine.early_stopping import EarlyStopping
from cv_core.engine.ema import EMA
from cv_core.engine.fabric import launch, make_fabric
from cv_core.engine.loader import TensorLoader
from cv_core.engine.loop import evaluate, fit
from cv_core.engine.task import SupervisedTask


def train(fabric, folder, epochs, accumulate):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (50,), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    task, ema = SupervisedTask(model), EMA(model, decay=0.9)
    rows = []
    result = fit(
        task,
        TensorLoader(x, y, batch_size=10, shuffle=True),
        torch.optim.Adam(model.parameters(), lr=0.01),
        epochs=epochs,
        accumulate=accumulate,
        clip_norm=0.5,
        ema=ema,
        validate=TensorLoader(x[:20], y[:20], batch_size=7),  # three batches for two processes
        early_stopping=EarlyStopping(),
        on_epoch=rows.append,
        checkpoint=folder,
        fabric=fabric,
    )
    one_batch = evaluate(task, TensorLoader(x, y, batch_size=50), fabric=fabric)
    rank = 0 if fabric is None else fabric.global_rank
    return rank, len(rows), result.history.epochs, result.history.steps, one_batch, {
        name: tensor.tolist() for name, tensor in {**model.state_dict(), **ema.average}.items()
    }


def everything(fabric, folder):
    assert fabric.world_size == 2 and torch.distributed.get_backend() == "gloo"
    found = {k: train(fabric, None, 3, k) for k in (1, 2)}
    train(fabric, folder, 2, 1)
    found["continued"] = train(fabric, folder, 3, 1)
    return found


def close(one, two):
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(close(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(close, one, two))
    return abs(one - two) <= 1e-12 * max(1, abs(one))


if __name__ == "__main__":
    fabric = make_fabric("cpu", devices=2)
    two = launch(fabric, everything, sys.argv[1])
    for accumulate in (1, 2):
        assert close(train(None, None, 3, accumulate), two[accumulate]), two[accumulate]
    assert two["continued"][2:] == two[1][2:]  # bit for bit
    print("equal")
"""


@pytest.mark.slow
def test_two_processes_equal_one_on_the_joined_batch(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "checkpoint")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "equal"
