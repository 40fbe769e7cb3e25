"""Schedules: their closed forms, and torch's own where the two meet."""

import math

import pytest
import torch
from cv_core.engine.schedule import cosine_with_warmup, milestones_with_warmup
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR


def optimizer(rate: float = 2.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def rates(scheduler: LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_cosine_without_warmup_is_torchs():
    ours = rates(cosine_with_warmup(optimizer(), 20, floor=0.1), 21)
    peer = rates(CosineAnnealingLR(optimizer(), 20, eta_min=0.2), 21)
    assert ours == pytest.approx(peer, rel=1e-12)


def test_cosine_with_warmup():
    found = rates(cosine_with_warmup(optimizer(), 10, warmup=4, floor=0.5), 13)
    assert found[:4] == [0.5, 1.0, 1.5, 2.0]
    middle = 2.0 * (0.5 + 0.5 * 0.5 * (1 + math.cos(math.pi * 3 / 6)))
    assert found[7] == pytest.approx(middle)
    assert found[10:] == [1.0, 1.0, 1.0]  # the floor, kept


def test_milestones_without_warmup_are_torchs():
    ours = rates(milestones_with_warmup(optimizer(), [3, 7], gamma=0.5), 10)
    assert ours == pytest.approx(rates(MultiStepLR(optimizer(), [3, 7], gamma=0.5), 10))


def test_milestones_with_warmup():
    found = rates(milestones_with_warmup(optimizer(4.0), [5], gamma=0.25, warmup=4), 7)
    assert found == [1.0, 2.0, 3.0, 4.0, 4.0, 1.0, 1.0]


def test_state_goes_on():
    first = cosine_with_warmup(optimizer(), 10, warmup=2)
    whole = rates(cosine_with_warmup(optimizer(), 10, warmup=2), 8)
    assert rates(first, 4) == whole[:4]
    second = cosine_with_warmup(optimizer(), 10, warmup=2)
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert rates(second, 4) == whole[4:]


def test_refuses():
    with pytest.raises(ValueError, match="warmup must be at least 0 and at most 9"):
        cosine_with_warmup(optimizer(), 10, warmup=10)
    with pytest.raises(ValueError, match=r"floor must lie in \[0, 1\]"):
        cosine_with_warmup(optimizer(), 10, floor=2.0)
    with pytest.raises(ValueError, match=r"milestones must rise; got \[3, 3\]"):
        milestones_with_warmup(optimizer(), [3, 3])
    with pytest.raises(ValueError, match=r"gamma must lie in \(0, 1\]"):
        milestones_with_warmup(optimizer(), [3], gamma=0.0)
