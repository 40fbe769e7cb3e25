from __future__ import annotations

import itertools

import pytest
import torch
from cv_pruning.masks import apply_masks, remove_masks
from cv_pruning.schedules import (
    CubicSchedule,
    IterativeSchedule,
    OneShotSchedule,
    Schedule,
    WeightSnapshot,
)
from torch import nn

SCHEDULES: list[Schedule] = [OneShotSchedule(0.7, start=5)] + [
    kind(final=final, steps=12, initial=initial, start=start, every=every)
    for kind, final, initial, start, every in itertools.product(
        (IterativeSchedule, CubicSchedule), (0.1, 0.9), (0.0, 0.1), (0, 5), (1, 4, 12)
    )
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_monotone_between_exact_endpoints(schedule: Schedule) -> None:
    start, final = schedule.start, schedule.final
    initial = getattr(schedule, "initial", final)
    ratios = [schedule.ratio(step) for step in range(40)]
    assert ratios == sorted(ratios)
    assert ratios[:start] == [0.0] * start
    assert ratios[start] == pytest.approx(initial, abs=1e-15)
    assert ratios[start + getattr(schedule, "steps", 0) :][0] == final == ratios[-1]


@pytest.mark.parametrize("every", [1, 4])
def test_cubic_against_zhu_and_guptas_formula(every: int) -> None:
    schedule = CubicSchedule(final=0.8, steps=20, initial=0.2, start=3, every=every)
    span = 20 // every  # their n, and every is their delta t
    for k in range(span + 1):
        step = 3 + k * every
        expected = 0.8 + (0.2 - 0.8) * (1 - (step - 3) / (span * every)) ** 3
        for later in range(every):
            assert schedule.ratio(step + later) == pytest.approx(expected)


def test_iterative_portions_are_equal() -> None:
    schedule = IterativeSchedule(final=0.6, steps=40, every=10, start=2)
    jumps = [schedule.ratio(step + 1) - schedule.ratio(step) for step in range(50)]
    taken = {step + 1: jump for step, jump in enumerate(jumps) if jump}
    assert list(taken) == [12, 22, 32, 42]
    assert list(taken.values()) == pytest.approx([0.15] * 4)


def test_rewinding_restores_weights_and_buffers_in_place() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    early = WeightSnapshot(model, ignored=["1.num_batches_tracked"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tensors = [id(parameter) for parameter in model.parameters()]
    for _ in range(2):
        model(
            torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        ).square().sum().backward()
        optimizer.step()
    assert not torch.equal(model[1].running_var, expected["1.running_var"])
    early.rewind(model)
    assert [id(parameter) for parameter in model.parameters()] == tensors
    counter = expected.pop("1.num_batches_tracked")
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)
    assert model[1].num_batches_tracked == counter + 2


@pytest.mark.parametrize("masked_before", [False, True])
def test_masks_stay_when_weights_are_rewound(masked_before: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    weight = model[0].weight.detach().clone()
    first, second = (
        torch.tensor(row).expand(2, 4) for row in ([True, False] * 2, [False, True] * 2)
    )
    if masked_before:
        apply_masks(model, {"0.weight": first})
    early = WeightSnapshot(model)
    apply_masks(model, {"0.weight": second})
    with torch.no_grad():
        model[0].parametrizations.weight.original.add_(1.0)
    early.rewind(model)
    assert torch.equal(model[0].weight, weight * second)
    remove_masks(model)
    early.rewind(model)
    assert torch.equal(model[0].weight, weight)


def test_errors() -> None:
    for kind in (IterativeSchedule, CubicSchedule):
        for options in (
            {"final": 1.0}, {"final": 0.0}, {"initial": 0.6}, {"steps": 0}, {"start": -1},
        ):  # fmt: skip
            with pytest.raises(ValueError, match=f"{kind.__name__}: {next(iter(options))} must"):
                kind(**{"final": 0.5, "steps": 10, **options})
        with pytest.raises(ValueError, match="every must divide steps = 10; got 3"):
            kind(final=0.5, steps=10, every=3)
        with pytest.raises(ValueError, match="step must be at least 0"):
            kind(final=0.5, steps=10).ratio(-1)
    model = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="ignored names nothing"):
        WeightSnapshot(model, ignored=["wieght"])
    before = model.weight.detach().clone()
    early = WeightSnapshot(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"'weight' had shape \(3, 2\); now \(3, 3\)"):
        early.rewind(model)
    with pytest.raises(ValueError, match=r"the model has no '0\.weight'"):
        WeightSnapshot(nn.Sequential(nn.Linear(3, 3))).rewind(model)
    assert torch.equal(model.weight, before)
