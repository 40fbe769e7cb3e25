"""Learning-rate schedules with a warm-up; torch has the rest (``MultiStepLR``, ``PolynomialLR``).

Each is a ``LambdaLR``: the rate of step t is the optimiser's own rate times a factor of t.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cv_core.checks import check_integer, check_range


def cosine_with_warmup(
    optimizer: Optimizer, total: int, *, warmup: int = 0, floor: float = 0.0
) -> LambdaLR:
    r"""Rise linearly for some steps, then fall along half a cosine.

    .. math::

        f(t) = \frac{t + 1}{W} \; (t < W), \qquad
        f(t) = \phi + (1 - \phi) \tfrac12 \bigl(1 + \cos \pi \tfrac{t - W}{T - W}\bigr) \; (t \ge W)

    Args:
        optimizer: Its learning rates are the highest ones.
        total: Number of steps T; the floor is reached there and kept.
        warmup: Number of steps W of the rise, in [0, T).
        floor: The lowest factor :math:`\phi`, in [0, 1].

    Raises:
        ValueError: If an option lies outside its range.
    """
    owner = "cosine_with_warmup"
    check_integer(owner, "total", total, low=1)
    check_integer(owner, "warmup", warmup, low=0, high=total - 1)
    check_range(owner, "floor", floor, low=0, high=1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / (total - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)


def milestones_with_warmup(
    optimizer: Optimizer, milestones: Sequence[int], *, gamma: float = 0.1, warmup: int = 0
) -> LambdaLR:
    r"""Rise linearly for some steps, then multiply by gamma at every milestone.

    .. math:: f(t) = \min\bigl(1, \tfrac{t + 1}{W}\bigr) \, \gamma^{|\{m : m \le t\}|}

    Args:
        optimizer: Its learning rates are the highest ones.
        milestones: Steps at which the rate falls, in rising order.
        gamma: Factor of each fall, in (0, 1].
        warmup: Number of steps W of the rise, at least 0.

    Raises:
        ValueError: If an option lies outside its range or the milestones do not rise.
    """
    owner = "milestones_with_warmup"
    check_integer(owner, "warmup", warmup, low=0)
    check_range(owner, "gamma", gamma, low=0, low_open=True, high=1)
    falls = [int(step) for step in milestones]
    if any(later <= earlier for earlier, later in pairwise(falls)):
        raise ValueError(f"{owner}: milestones must rise; got {falls}.")

    def factor(step: int) -> float:
        rise = 1.0 if step >= warmup else (step + 1) / warmup
        return rise * gamma ** bisect_right(falls, step)

    return LambdaLR(optimizer, factor)
