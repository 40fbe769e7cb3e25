"""Selection of the best epoch."""

import pytest
import torch
from cv_core.engine.early_stopping import EarlyStopping
from torch import nn


def show(stopping: EarlyStopping, values: list[float]) -> tuple[list[bool], nn.Module]:
    model = nn.Linear(1, 1)
    ends = []
    for epoch, value in enumerate(values, 1):
        nn.init.constant_(model.weight, float(epoch))
        stopping.update(epoch, {"m": value}, model)
        ends.append(stopping.exhausted)
    return ends, model


def test_patience_counts_epochs_without_improvement():
    stopping = EarlyStopping("m", patience=2)
    ends, model = show(stopping, [3.0, 2.0, 2.5, 1.0, 1.0, 1.5])
    assert ends == [False, False, False, False, False, True]
    assert (stopping.best, stopping.best_epoch) == (1.0, 4)
    stopping.restore(model)
    assert model.weight.item() == 4.0


def test_higher_and_least():
    stopping = EarlyStopping("m", better="higher", least=0.5)
    show(stopping, [1.0, 1.4, 1.5, 1.6, 2.0, 1.0])
    # 1.4 and 1.5 gain at most 0.5 on 1.0; 1.6 does; 2.0 gains less than 0.5 on that
    assert (stopping.best, stopping.best_epoch) == (1.6, 4)
    assert not stopping.exhausted


def test_nan_is_never_best():
    nan = float("nan")
    stopping = EarlyStopping("m", patience=2)
    ends, model = show(stopping, [nan, 2.0, nan, nan])
    assert ends == [False, False, False, True]
    assert stopping.best_epoch == 2
    fresh = EarlyStopping("m", patience=1)
    ends, model = show(fresh, [nan])
    assert ends == [True]
    fresh.restore(model)  # nothing to restore
    assert model.weight.item() == 1.0


def test_state_goes_on():
    stopping = EarlyStopping("m", patience=2)
    show(stopping, [1.0, 2.0])
    other = EarlyStopping("m", patience=2)
    other.load_state_dict(stopping.state_dict())
    model = nn.Linear(1, 1)
    other.update(3, {"m": 2.0}, model)
    assert other.exhausted
    other.restore(model)
    assert model.weight.item() == 1.0


def test_refuses():
    with pytest.raises(ValueError, match="better must be one of 'lower', 'higher'"):
        EarlyStopping(better="low")  # type: ignore[arg-type] # on purpose
    with pytest.raises(ValueError, match="patience must be at least 1"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match="metric must be one of 'loss'; got 'm'"):
        EarlyStopping("m").update(1, {"loss": 1.0}, nn.Linear(1, 1))
    assert torch.is_grad_enabled()
