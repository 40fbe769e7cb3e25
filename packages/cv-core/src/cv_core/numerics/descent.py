"""Proximal-gradient descent, plain and accelerated, with the history of its objective.

The loops are generic: they know tensors, callables and stopping, and leave the mathematics to the
caller. They run in the caller's autograd mode; wrap a long loop in ``torch.no_grad()`` if what the
callables use requires gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cv_core.checks import (
    check_choice,
    check_floating,
    check_integer,
    check_range,
)

Objective = Callable[[Tensor], Tensor | float]
Prox = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Descent:
    """What a proximal-gradient loop returns.

    Args:
        solution: The last iterate.
        objective: The objective at the start and after every iteration; empty if none was given.
        iterations: How many iterations were done.
        converged: Whether the tolerance was reached before the iterations ran out.
        step: The step size at the end; below the first one if it was searched for.
    """

    solution: Tensor
    objective: list[float]
    iterations: int
    converged: bool
    step: float


def ista(
    start: Float[Tensor, "..."],
    gradient: Callable[[Tensor], Tensor],
    prox: Prox,
    *,
    step: float,
    objective: Objective | None = None,
    smooth: Objective | None = None,
    max_iter: int = 100,
    tol: float = 1e-6,
) -> Descent:
    r"""Minimise :math:`f(x) + g(x)` by proximal gradient steps.

    .. math:: x \leftarrow \mathrm{prox}_{t g}\left(x - t \nabla f(x)\right)

    Args:
        start: The first iterate, any shape; it is not changed.
        gradient: Returns :math:`\nabla f`.
        prox: Called with a point and the step size; returns the proximal point.
        step: Step size :math:`t`, above 0. The objective falls in every iteration if it is at most
            1/L, where L is the Lipschitz constant of the gradient.
        objective: Returns :math:`f + g`, for the history.
        smooth: Returns :math:`f`. If given, the step is halved whenever :math:`f` exceeds its
            quadratic model, so that ``step`` may start too large.
        max_iter: Most iterations, at least 1.
        tol: Stop when an iteration moves by at most ``tol`` times the iterate's length (or ``tol``,
            for iterates shorter than 1); 0 never stops early.

    Returns:
        Solution, history and whether it converged.

    Raises:
        ValueError: For bad options.
        FloatingPointError: If the iterates or the objective become NaN or infinite.
    """
    loop = _Loop("ista", gradient, prox, objective, smooth, max_iter, tol)
    return loop.run(start, step, _no_momentum)


def fista(
    start: Float[Tensor, "..."],
    gradient: Callable[[Tensor], Tensor],
    prox: Prox,
    *,
    step: float,
    objective: Objective | None = None,
    smooth: Objective | None = None,
    restart: Literal["never", "gradient"] = "never",
    max_iter: int = 100,
    tol: float = 1e-6,
) -> Descent:
    r"""Minimise :math:`f(x) + g(x)` by accelerated proximal gradient steps.

    Beck and Teboulle, A fast iterative shrinkage-thresholding algorithm, SIAM Journal on Imaging
    Sciences 2, 2009. With :math:`\theta_0 = 1`:

    .. math::
        x_k = \mathrm{prox}_{t g}(y_k - t \nabla f(y_k)), \quad
        \theta_{k+1} = \tfrac12 \left(1 + \sqrt{1 + 4\theta_k^2}\right), \quad
        y_{k+1} = x_k + \tfrac{\theta_k - 1}{\theta_{k+1}} (x_k - x_{k-1})

    Args:
        start: The first iterate, any shape; it is not changed.
        gradient: Returns :math:`\nabla f`.
        prox: Called with a point and the step size; returns the proximal point.
        step: Step size :math:`t`, above 0; at most 1/L for convergence.
        objective: Returns :math:`f + g`, for the history. It need not fall in every iteration.
        smooth: Returns :math:`f`. If given, the step is halved whenever :math:`f` exceeds its
            quadratic model.
        restart: ``"gradient"`` drops the momentum when it points uphill (O'Donoghue and Candès,
            Foundations of Computational Mathematics 15, 2015).
        max_iter: Most iterations, at least 1.
        tol: Stop when an iteration moves by at most ``tol`` times the iterate's length (or ``tol``,
            for iterates shorter than 1); 0 never stops early.

    Returns:
        Solution, history and whether it converged.

    Raises:
        ValueError: For bad options.
        FloatingPointError: If the iterates or the objective become NaN or infinite.
    """
    check_choice("fista", "restart", restart, ("never", "gradient"))
    loop = _Loop("fista", gradient, prox, objective, smooth, max_iter, tol)
    return loop.run(start, step, _Momentum(restart == "gradient"))


Extrapolate = Callable[[Tensor, Tensor, Tensor], Tensor]  # (query, new, old) -> next query


def _no_momentum(query: Tensor, new: Tensor, old: Tensor) -> Tensor:  # noqa: ARG001 - one signature
    return new


@dataclass
class _Momentum:
    restarts: bool
    theta: float = 1.0

    def __call__(self, query: Tensor, new: Tensor, old: Tensor) -> Tensor:
        if self.restarts and _number(torch.sum((query - new) * (new - old))) > 0.0:
            self.theta = 1.0
            return new
        previous, self.theta = self.theta, 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * self.theta**2))
        return new + ((previous - 1.0) / self.theta) * (new - old)


@dataclass
class _Loop:
    owner: str
    gradient: Callable[[Tensor], Tensor]
    prox: Prox
    objective: Objective | None
    smooth: Objective | None
    max_iter: int
    tol: float
    history: list[float] = field(default_factory=list)

    def run(self, start: Tensor, step: float, extrapolate: Extrapolate) -> Descent:
        check_floating(self.owner, "start", start)
        check_range(self.owner, "step", step, low=0.0, low_open=True)
        check_integer(self.owner, "max_iter", self.max_iter, low=1)
        check_range(self.owner, "tol", self.tol, low=0.0)
        old = query = start
        self._note(old, 0)
        for iteration in range(1, self.max_iter + 1):
            new, step = self._step(query, step, iteration)
            query = extrapolate(query, new, old)
            self._note(new, iteration)
            if self.tol > 0.0 and self._settled(new, old, iteration):
                return Descent(new, self.history, iteration, converged=True, step=step)
            old = new
        return Descent(old, self.history, self.max_iter, converged=False, step=step)

    def _step(self, query: Tensor, step: float, iteration: int) -> tuple[Tensor, float]:
        slope = self.gradient(query)
        if self.smooth is None:
            return self.prox(query - step * slope, step), step
        value = _number(self.smooth(query))
        while step > 1e-30:  # far below any useful step: f is not smooth, or not a number
            new = self.prox(query - step * slope, step)
            move = new - query
            model = _number(torch.sum(slope * move) + torch.sum(move * move) / (2.0 * step))
            # Near the solution f changes by less than its own rounding, which must halve nothing.
            slack = 100.0 * torch.finfo(query.dtype).eps * abs(value)
            if _number(self.smooth(new)) <= value + model + slack:
                return new, step
            step *= 0.5
        raise FloatingPointError(
            f"{self.owner}: found no step that descends, iteration {iteration}."
        )

    def _note(self, point: Tensor, iteration: int) -> None:
        if self.objective is not None:
            value = _number(self.objective(point))
            _check_value(self.owner, value, f"iteration {iteration}")
            self.history.append(value)

    def _settled(self, new: Tensor, old: Tensor, iteration: int) -> bool:
        moved = _number(torch.linalg.vector_norm(new - old))
        _check_value(self.owner, moved, f"iteration {iteration}")
        return moved <= self.tol * max(1.0, _number(torch.linalg.vector_norm(old)))


def _number(value: Tensor | float) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)


def _check_value(owner: str, value: float, where: str) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(f"{owner}: {value} at {where}; a smaller step may help.")
