"""Descent over blocks of variables, and the multiplicative steps that such blocks often take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from cv_core.checks import (
    check_choice,
    check_floating,
    check_integer,
    check_range,
    check_same_shape,
)


@dataclass(frozen=True)
class Rise:
    """One block update that raised the objective.

    Args:
        sweep: The sweep, from 1 on.
        block: The block's name.
        amount: By how much.
    """

    sweep: int
    block: str
    amount: float


@dataclass(frozen=True)
class BlockDescent:
    """What ``block_coordinate_descent`` returns.

    Args:
        blocks: The last value of every block.
        objective: The objective at the start and after every sweep.
        sweeps: How many sweeps were done.
        converged: Whether the tolerance was reached before the sweeps ran out.
        rises: The updates that raised the objective; only the ends of sweeps are looked at (and
            named after the last block) unless every block is watched.
    """

    blocks: dict[str, Any]
    objective: list[float]
    sweeps: int
    converged: bool
    rises: list[Rise]

    @property
    def monotone(self) -> bool:
        """Whether the objective never rose."""
        return not self.rises


def block_coordinate_descent(
    blocks: Mapping[str, Any],
    updates: Mapping[str, Callable[[Mapping[str, Any]], Any]],
    objective: Callable[[Mapping[str, Any]], Tensor | float],
    *,
    max_sweeps: int = 100,
    tol: float = 1e-6,
    watch: Literal["sweep", "block"] = "sweep",
    slack: float = 1e-9,
) -> BlockDescent:
    """Minimise over one block of variables at a time, always with the newest of the others.

    Args:
        blocks: The start: a tensor (or whatever the callables agree on) by block name. The mapping
            is not changed; updates must return new values rather than write into old ones.
        updates: By block name, in the order of a sweep, the function that takes all blocks and
            returns the new value of its own. Blocks without an update stay as they are.
        objective: Takes all blocks.
        max_sweeps: Most sweeps, at least 1.
        tol: Stop when a sweep changes the objective by at most ``tol`` times its value; 0 never
            stops early.
        watch: Whether the objective is checked for rises after each sweep or after each block,
            which costs an evaluation per block and finds the update that is wrong.
        slack: Share of the objective's value by which it may rise without being noted.

    Returns:
        Blocks, history and the rises.

    Raises:
        ValueError: For bad options, or an update of an unknown block.
        FloatingPointError: If the objective becomes NaN or infinite.
    """
    owner = "block_coordinate_descent"
    check_integer(owner, "max_sweeps", max_sweeps, low=1)
    check_range(owner, "tol", tol, low=0.0)
    check_range(owner, "slack", slack, low=0.0)
    check_choice(owner, "watch", watch, ("sweep", "block"))
    if not updates:
        raise ValueError(f"{owner}: updates must not be empty.")
    for name in updates:
        check_choice(owner, "updates", name, blocks)
    state = dict(blocks)
    log = _Log(owner, lambda: _number(objective(state)), slack)
    history = [log.value]
    for sweep in range(1, max_sweeps + 1):
        for name, update in updates.items():
            state[name] = update(state)
            if watch == "block":
                log.look(sweep, name)
        if watch == "sweep":
            log.look(sweep, name)
        history.append(log.value)
        if tol > 0.0 and abs(history[-2] - history[-1]) <= tol * abs(history[-2]):
            return BlockDescent(state, history, sweep, converged=True, rises=log.rises)
    return BlockDescent(state, history, max_sweeps, converged=False, rises=log.rises)


def _number(value: Tensor | float) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)


class _Log:
    """The objective's last value, and what raised it."""

    def __init__(self, owner: str, evaluate: Callable[[], float], slack: float) -> None:
        self.owner = owner
        self.evaluate = evaluate
        self.slack = slack
        self.rises: list[Rise] = []
        self.value = evaluate()
        self._check("the start")

    def look(self, sweep: int, name: str) -> None:
        before, self.value = self.value, self.evaluate()
        self._check(f"sweep {sweep}, block {name!r}")
        if self.value - before > self.slack * abs(before):
            self.rises.append(Rise(sweep, name, self.value - before))

    def _check(self, where: str) -> None:
        if not math.isfinite(self.value):
            raise FloatingPointError(f"{self.owner}: the objective is {self.value} after {where}.")


def split_signs(
    x: Float[Tensor, "..."],
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Split into positive and negative part, both non-negative, whose difference is ``x``.

    Example:
        >>> import torch
        >>> split_signs(torch.tensor([2.0, -3.0]))
        (tensor([2., 0.]), tensor([0., 3.]))
    """
    check_floating("split_signs", "x", x)
    return x.clamp(min=0.0), (-x).clamp(min=0.0)


def multiplicative_update(
    factor: Float[Tensor, "..."],
    numerator: Float[Tensor, "..."],
    denominator: Float[Tensor, "..."],
    *,
    power: float = 1.0,
    eps: float = 1e-12,
) -> Float[Tensor, "..."]:
    r"""One multiplicative step on a non-negative factor, which keeps it non-negative.

    .. math:: F \leftarrow F \odot \left(\frac{N}{D + \epsilon}\right)^p

    The gradient is split as :math:`D - N` with both parts non-negative (``split_signs`` does so for
    matrices of mixed sign). Then a stationary point, where :math:`F \odot (D - N) = 0`, stays.

    Args:
        factor: Non-negative, any shape.
        numerator: The negative part :math:`N` of the gradient, same shape.
        denominator: The positive part :math:`D` of the gradient, same shape.
        power: Exponent, in (0, 1]: 1 for Lee and Seung's updates, 0.5 where mixed signs or a
            quartic objective need the square root.
        eps: Guards the division, above 0.

    Returns:
        The shape of ``factor``.

    Raises:
        ValueError: If shapes differ or an entry is negative.
    """
    owner = "multiplicative_update"
    check_range(owner, "power", power, low=0.0, high=1.0, low_open=True)
    check_range(owner, "eps", eps, low=0.0, low_open=True)
    check_same_shape(owner, factor=factor, numerator=numerator, denominator=denominator)
    for name, part in (
        ("factor", factor),
        ("numerator", numerator),
        ("denominator", denominator),
    ):
        if bool((part < 0.0).any()):
            raise ValueError(f"{owner}: {name} must be non-negative; split its signs first.")
    ratio = numerator / (denominator + eps)
    return factor * (ratio if power == 1.0 else ratio**power)
