r"""APGD: projected gradient ascent with momentum that chooses its own step lengths.

*Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks*,
F. Croce and M. Hein, ICML 2020, Algorithm 1. With the direction of steepest ascent :math:`d`,

.. math:: u_{k} = \Pi(x_k + \eta\, d(\nabla f(x_k))), \qquad
          x_{k+1} = \Pi\big(x_k + a (u_k - x_k) + (1 - a)(x_k - x_{k-1})\big),

:math:`a = 0.75` (1 in the first step). The step starts at :math:`\eta = 2\epsilon`. At a checkpoint
it is halved, and the search goes on from the best point, if fewer than 75 % of the steps since the
last checkpoint raised the objective, or if neither the step nor the best value has changed since.

Deviations from the paper, and why:

- Among the points met, one that fulfils the goal goes before one that does not, and then the higher
  objective counts: the loss may be highest where the class is still right. The authors' program
  returns the last such point.

Example:
    >>> import torch
    >>> from cv_adversarial.attacks.apgd import APGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3, bias=False))
    >>> x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 2])
    >>> result = APGD(model, eps=8 / 255, steps=10, loss="dlr").run(x, y)
    >>> bool((result.norm <= 8 / 255).all()), result.forwards, result.backwards
    (True, 22, 20)
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from cv_core.checks import check_choice, check_integer, check_range
from jaxtyping import Float, Int
from torch import Tensor

from cv_adversarial.attacks.balls import Ball, Norm, ball, check_ball, column, per_sample
from cv_adversarial.attacks.base import Attack, Goal, Model, Objective, Oracle
from cv_adversarial.attacks.objectives import cross_entropy, dlr

Loss = Literal["ce", "dlr"]
_OBJECTIVES: dict[Loss, Objective] = {"ce": cross_entropy, "dlr": dlr}
_MOMENTUM = 0.75


def checkpoints(steps: int) -> list[int]:
    """Return the steps after which the step length is judged (Section 3.2 of the paper).

    Example:
        >>> checkpoints(100)
        [22, 41, 57, 70, 80, 87, 93, 99]
    """
    # in hundredths, where the paper's recurrence is exact
    before, now, found = 0, 22, []
    while (step := math.ceil(now * steps / 100)) < steps:
        found.append(step)
        before, now = now, now + max(now - before - 3, 6)
    return sorted(set(found))


class StepSizes:
    """The step length of every image, halved at checkpoints.

    Args:
        first: The length to begin with.
        values: The objective at the starting points, ``(B,)``.
        rho: The share of steps that must raise the objective.
    """

    def __init__(self, first: float, values: Float[Tensor, " b"], *, rho: float = 0.75) -> None:
        self.size = torch.full_like(values, first)
        self._rho = rho
        self._raised = torch.zeros_like(values)
        self._count = 0
        self._best_before = values.clone()
        self._halved_before = torch.zeros_like(values, dtype=torch.bool)

    def record(self, raised: Tensor) -> None:
        """Note which images' objective the last step has raised."""
        self._raised += raised
        self._count += 1

    def judge(self, best: Tensor) -> Tensor:
        """Halve at a checkpoint where it is due, and tell where.

        Args:
            best: The highest objective so far, ``(B,)``.
        """
        seldom = self._raised < self._rho * self._count
        stuck = ~self._halved_before & (best == self._best_before)
        halved = seldom | stuck
        self.size = torch.where(halved, self.size / 2.0, self.size)
        self._halved_before, self._best_before = halved, best.clone()
        self._raised, self._count = torch.zeros_like(self._raised), 0
        return halved


class _Answers:
    """The point of each image to be returned: a success first, then the highest objective."""

    def __init__(self, z: Tensor, values: Tensor, reached: Tensor) -> None:
        self.z, self._values, self._reached = z, values, reached

    def offer(self, z: Tensor, values: Tensor, reached: Tensor) -> None:
        higher = (reached == self._reached) & (values > self._values)
        better = (reached & ~self._reached) | higher
        self.z = torch.where(column(better, z), z, self.z)
        self._values = torch.where(better, values, self._values)
        self._reached |= reached


class APGD(Attack):
    """Auto-PGD on the cross entropy (APGD-CE) or on the ratio of logit differences (APGD-DLR).

    Args:
        model: Maps images with pixels in [0, 1] to logits.
        eps: Radius of the ball in its norm, in pixel units; 8/255 by default.
        steps: Number of steps, 100 by default.
        loss: ``"ce"`` or ``"dlr"``, which is deaf to the logits' scale; it needs three classes,
            and four with a target.
        norm: ``"linf"`` or ``"l2"``.
        rho: The share of steps that must raise the objective; the paper's 0.75 by default.
        random_start: Whether to begin at a random point of the ball, as the paper does.
        seed: Of the random start.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        *,
        steps: int = 100,
        loss: Loss = "ce",
        norm: Norm = "linf",
        rho: float = 0.75,
        random_start: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        check_ball(self._owner, norm, eps)
        check_choice(self._owner, "norm", norm, ("linf", "l2"))
        check_choice(self._owner, "loss", loss, get_args(Loss))
        check_integer(self._owner, "steps", steps, low=1)
        check_range(self._owner, "rho", rho, low=0.0, high=1.0)
        self.eps = eps
        self.steps = steps
        self.loss: Loss = loss
        self.norm = norm
        self.rho = rho
        self.random_start = random_start

    def _perturb(self, x: Tensor, goal: Goal, oracle: Oracle, generator: torch.Generator) -> Tensor:
        region = ball(self.norm, x, self.eps)
        objective = _OBJECTIVES[self.loss]
        z = before = region.draw(generator) if self.random_start else x
        gradient, values, logits = oracle.ascend(z, goal, objective)
        best = (z, gradient, values)
        answers = _Answers(z, values, goal.reached(logits))
        sizes = StepSizes(2.0 * self.eps, values, rho=self.rho)
        judged = set(checkpoints(self.steps))
        for step in range(1, self.steps + 1):
            weight = 1.0 if step == 1 else _MOMENTUM
            z, before = self._step(region, z, before, gradient, sizes.size, weight), z
            if step == self.steps:
                logits = oracle.query(z)
                answers.offer(z, objective(logits, goal), goal.reached(logits))
                break
            last = values
            gradient, values, logits = oracle.ascend(z, goal, objective)
            answers.offer(z, values, goal.reached(logits))
            sizes.record(values > last)
            best = _choose(values > best[2], (z, gradient, values), best)
            if step in judged:
                restart = sizes.judge(best[2])
                z, gradient, values = _choose(restart, best, (z, gradient, values))
        return answers.z

    @staticmethod
    def _step(
        region: Ball, z: Tensor, before: Tensor, gradient: Tensor, size: Tensor, weight: float
    ) -> Tensor:
        ahead = region.move(z, gradient, per_sample(size, z))
        return region.project(z + weight * (ahead - z) + (1.0 - weight) * (z - before))


_State = tuple[Tensor, Tensor, Tensor]  # points, gradients and values


def _choose(mask: Tensor, first: _State, second: _State) -> _State:
    """Take ``first`` where the mask is set."""
    z, gradient, values = (
        torch.where(column(mask, one), one, other) for one, other in zip(first, second, strict=True)
    )
    return z, gradient, values


def apgd(
    model: Model,
    x: Float[Tensor, "b *image"],
    y: Int[Tensor, " b"],
    *,
    target: Int[Tensor, " b"] | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Float[Tensor, "b *image"]:
    """Attack images ``x`` of classes ``y``; the options are those of ``APGD`` and of its call."""
    return APGD(model, **options)(x, y, target=target, generator=generator)
