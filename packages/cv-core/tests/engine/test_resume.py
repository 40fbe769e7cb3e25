"""An interrupted training goes on from its checkpoint and ends with the same bits."""

import pytest
import torch
from cv_core.engine.early_stopping import EarlyStopping
from cv_core.engine.ema import EMA
from cv_core.engine.loader import TensorLoader
from cv_core.engine.loop import FitResult, fit
from cv_core.engine.schedule import cosine_with_warmup
from cv_core.engine.task import SupervisedTask
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class InterruptionError(Exception):
    """Stands for a kill: the training ends where it is."""


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(50, 5, generator=generator), torch.randint(3, (50,), generator=generator)


class Interrupted(SupervisedTask):
    """Fails at one call of ``step``, or of ``evaluate_step``, counted from the beginning."""

    def __init__(self, model: nn.Module, at: int | None, validating: int | None) -> None:
        super().__init__(model)
        self.at = at
        self.validating = validating
        self.calls = 0
        self.evaluations = 0

    def step(self, batch):
        self.calls += 1
        if self.calls == self.at:
            raise InterruptionError
        return super().step(batch)

    def evaluate_step(self, batch):
        self.evaluations += 1
        if self.evaluations == self.validating:
            raise InterruptionError
        return super().evaluate_step(batch)


def train(
    folder, *, at=None, validating=None, data="tensors", kind="sgd", **options
) -> tuple[FitResult, dict, EMA]:
    """Build everything anew, as a new process would, and train."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
        )
    if kind == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = tensors()

    def noise(batch, generator):
        return batch[0] + 0.1 * torch.randn(batch[0].shape, generator=generator), batch[1]

    if data == "tensors":
        loader = TensorLoader(x, y, batch_size=8, shuffle=True, seed=5, transform=noise)
    elif data == "loader":
        loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    else:
        own = torch.Generator().manual_seed(3)
        loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, generator=own)
    ema = EMA(model, decay=0.9)
    result = fit(
        Interrupted(model, at, validating),
        loader,
        optimizer,
        scheduler=cosine_with_warmup(optimizer, 60, warmup=5),
        ema=ema,
        clip_norm=1.0,
        validate=TensorLoader(x[:20], y[:20], batch_size=6),
        early_stopping=EarlyStopping(patience=4),
        checkpoint=folder,
        **options,
    )
    return result, model.state_dict(), ema


def assert_same(left, right) -> None:
    (result, weights, ema), (other, others, average) = left, right
    assert result.history.steps == other.history.steps
    assert result.history.epochs == other.history.epochs
    assert (result.steps, result.epochs, result.stopped) == (
        other.steps,
        other.epochs,
        other.stopped,
    )
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert all(torch.equal(ema.average[name], average.average[name]) for name in ema.average)


@pytest.mark.parametrize("data", ["tensors", "loader", "loader with generator"])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_three_epochs_and_four_more_are_seven(tmp_path, data, kind):
    whole = train(None, epochs=7, data=data, kind=kind)
    train(tmp_path, epochs=3, data=data, kind=kind)
    assert_same(train(tmp_path, epochs=7, data=data, kind=kind), whole)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("every", [1, 3, None])
@pytest.mark.parametrize("at", [6, 9])
def test_interrupted_inside_an_epoch(tmp_path, accumulate, every, at):
    options = {"epochs": 2, "accumulate": accumulate, "checkpoint_every": every}
    whole = train(None, epochs=2, accumulate=accumulate)
    with pytest.raises(InterruptionError):
        train(tmp_path / "cut", at=at, **options)
    assert_same(train(tmp_path / "cut", **options), whole)


@pytest.mark.parametrize("every", [1, 7, None])
def test_interrupted_while_validating(tmp_path, every):
    whole = train(None, epochs=3)
    with pytest.raises(InterruptionError):
        train(tmp_path, validating=6, epochs=3, checkpoint_every=every)  # the second epoch's
    assert_same(train(tmp_path, epochs=3, checkpoint_every=every), whole)


def test_interrupted_again_and_again(tmp_path):
    options = {"epochs": 4, "checkpoint_every": 2}
    whole = train(None, epochs=4)
    for at in (3, 5, 8):  # calls since the last interruption
        with pytest.raises(InterruptionError):
            train(tmp_path, at=at, **options)
    assert_same(train(tmp_path, **options), whole)


@pytest.mark.parametrize(("first", "second"), [(10, 25), (14, 15), (7, 20)])
def test_more_steps(tmp_path, first, second):
    whole = train(None, max_steps=second)
    train(tmp_path, max_steps=first)
    assert_same(train(tmp_path, max_steps=second), whole)


def test_a_finished_training_is_not_repeated(tmp_path):
    options = {"epochs": 3, "checkpoint_every": 100}
    whole = train(tmp_path, **options)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = train(tmp_path, at=1, **options)  # would fail at its first step
    assert_same(again, whole)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_stops_early_after_a_continuation_as_without(tmp_path):
    whole = train(None, epochs=60)
    assert whole[0].stopped == "early_stopping"
    train(tmp_path, epochs=whole[0].epochs - 2)
    assert_same(train(tmp_path, epochs=60), whole)


def test_a_checkpoint_leaves_the_global_generator_alone(tmp_path):
    train(tmp_path, epochs=1)
    torch_state = torch.get_rng_state()
    train(tmp_path, epochs=2)
    assert torch.equal(torch_state, torch.get_rng_state())
