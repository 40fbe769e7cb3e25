"""How much is pruned when: schedules that know nothing of the criterion, and the rewind of weights.

Example:
    >>> schedule = CubicSchedule(final=0.9, steps=4)
    >>> [round(schedule.ratio(step), 3) for step in range(5)]
    [0.0, 0.52, 0.787, 0.886, 0.9]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from cv_core.checks import check_integer, check_range
from torch import Tensor, nn


class Schedule(Protocol):
    """What a training loop asks: ``ratio(step)``, the share that is pruned from that step on."""

    def ratio(self, step: int) -> float:
        """Return the share of the whole that is pruned from a step on, in [0, 1)."""
        ...


def _check(owner: str, final: float, initial: float, steps: int, start: int) -> None:
    check_range(owner, "final", final, low=0.0, high=1.0, low_open=True, high_open=True)
    check_range(owner, "initial", initial, low=0.0, high=final)
    check_integer(owner, "steps", steps, low=1)
    check_integer(owner, "start", start, low=0)


@dataclass(frozen=True)
class OneShotSchedule:
    """Nothing before a step, everything from it on.

    Args:
        final: Share pruned in the end, in (0, 1).
        start: The step.
    """

    final: float
    start: int = 0

    def __post_init__(self) -> None:
        _check("OneShotSchedule", self.final, 0.0, 1, self.start)

    def ratio(self, step: int) -> float:
        """Return the share that is pruned from a step on."""
        check_integer("OneShotSchedule", "step", step, low=0)
        return self.final if step >= self.start else 0.0


@dataclass(frozen=True, kw_only=True)
class IterativeSchedule:
    r"""Equal portions of the whole, :math:`s_0 + (s_T - s_0) \lfloor t / e \rfloor e / T`.

    Args:
        final: Share :math:`s_T` pruned in the end, in (0, 1).
        steps: Steps :math:`T` between the first portion and the last.
        initial: Share :math:`s_0` pruned at once, at most ``final``.
        start: The step that counts as :math:`t = 0`; before it nothing is pruned.
        every: Steps :math:`e` between two portions; a divisor of ``steps``.

    Example:
        >>> schedule = IterativeSchedule(final=0.6, steps=30, every=10)
        >>> [round(schedule.ratio(step), 3) for step in (0, 9, 10, 29, 30, 99)]
        [0.0, 0.0, 0.2, 0.4, 0.6, 0.6]
    """

    final: float
    steps: int
    initial: float = 0.0
    start: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        _check("IterativeSchedule", self.final, self.initial, self.steps, self.start)
        _check_every("IterativeSchedule", self.every, self.steps)

    def ratio(self, step: int) -> float:
        """Return the share that is pruned from a step on."""
        check_integer("IterativeSchedule", "step", step, low=0)
        if step < self.start:
            return 0.0
        left = 1.0 - _done(step - self.start, self.every, self.steps)
        return self.final - (self.final - self.initial) * left


@dataclass(frozen=True, kw_only=True)
class CubicSchedule:
    r"""Automated gradual pruning of Zhu and Gupta, *To prune, or not to prune*, ICLR workshop 2018.

    .. math:: s_t = s_T + (s_0 - s_T) \Bigl(1 - \frac{t}{T}\Bigr)^3

    Much is pruned early, where much is redundant.

    Args:
        final: Share :math:`s_T` pruned in the end, in (0, 1).
        steps: Steps :math:`T`; in the paper its :math:`n \Delta t`.
        initial: Share :math:`s_0` pruned at once, at most ``final``.
        start: The step that counts as :math:`t = 0`; before it nothing is pruned.
        every: Steps :math:`\Delta t` between two updates; a divisor of ``steps``.
    """

    final: float
    steps: int
    initial: float = 0.0
    start: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        _check("CubicSchedule", self.final, self.initial, self.steps, self.start)
        _check_every("CubicSchedule", self.every, self.steps)

    def ratio(self, step: int) -> float:
        """Return the share that is pruned from a step on."""
        check_integer("CubicSchedule", "step", step, low=0)
        if step < self.start:
            return 0.0
        left = 1.0 - _done(step - self.start, self.every, self.steps)
        return self.final - (self.final - self.initial) * left**3


def _check_every(owner: str, every: int, steps: int) -> None:
    check_integer(owner, "every", every, low=1)
    if steps % every:
        raise ValueError(f"{owner}: every must divide steps = {steps}; got {every}.")


def _done(step: int, every: int, steps: int) -> float:
    return min(1.0, step // every * every / steps)


class WeightSnapshot:
    """Weights of an early step, to go back to: lottery tickets (Frankle et al., ICML 2020).

    Train, take a snapshot early, train on, prune, ``rewind``, and train what is left again. Masks
    (``cv_pruning.masks``) are not rewound: taken before or after the snapshot, they stay.

    Args:
        model: The network. Parameters and buffers are copied.
        ignored: Names left out, as in ``state_dict``, such as counters.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> early = WeightSnapshot(model)
        >>> before = model.weight.clone()
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(1.0)
        >>> early.rewind(model)
        >>> bool((model.weight == before).all())
        True
    """

    def __init__(self, model: nn.Module, *, ignored: Iterable[str] = ()) -> None:
        left_out = set(ignored)
        state = _weights(model)
        unknown = sorted(left_out - state.keys())
        if unknown:
            raise ValueError(f"WeightSnapshot: ignored names nothing in the model: {unknown}.")
        self._state = {k: v.detach().clone() for k, v in state.items() if k not in left_out}

    def rewind(self, model: nn.Module) -> None:
        """Write the snapshot into a network, in place, so that optimisers keep their tensors.

        Raises:
            ValueError: If a name or a shape does not fit; nothing has been written then.
        """
        state = _weights(model)
        for name, value in self._state.items():
            if name not in state:
                raise ValueError(f"WeightSnapshot: the model has no {name!r}.")
            if state[name].shape != value.shape:
                raise ValueError(
                    f"WeightSnapshot: {name!r} had shape {tuple(value.shape)}; now "
                    f"{tuple(state[name].shape)}. Rewinding needs masks, not removed channels."
                )
        with torch.no_grad():
            for name, value in self._state.items():
                state[name].copy_(value)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and saved buffers without masks, under the names they have without."""
    plain = {}
    for name, value in model.state_dict(keep_vars=True).items():
        path, parametrized, tail = name.rpartition("parametrizations.")
        attribute, _, rest = tail.partition(".")
        if parametrized and rest.endswith(".mask"):
            continue
        plain[path + attribute if parametrized and rest == "original" else name] = value
    return plain
