r"""Carlini and Wagner's l2 attack: distance and misclassification weighed by a constant found.

*Towards Evaluating the Robustness of Neural Networks*, N. Carlini and D. Wagner, IEEE Symposium on
Security and Privacy 2017. With images written as :math:`x' = (\tanh w + 1) / 2`, which stay in
[0, 1] by themselves, Adam minimises

.. math:: \|x' - x\|_2^2 + c \cdot \max\big(z_y - \max_{k \ne y} z_k,\; -\kappa\big)

(for a target ``t`` the first entry is :math:`\max_{k \ne t} z_k - z_t`). A binary search finds,
for each image, the least :math:`c` that succeeds; the nearest success met is returned.

Deviations from the paper, and why:

- 200 steps of length 0.02 for each of nine constants instead of up to 10,000 of 0.01.
- Pixels start drawn in by half a percent of the range. From the authors' 0.999999 on the scale of
  tanh, which is flat there, black and white pixels hardly move in so few steps: on digits that
  alone makes perturbations half as long again.
- An image that the model already gets wrong, by ``confidence``, stays as it is.
- A search ends when a tenth of its steps has not lowered the total, as in the authors' program.

Example:
    >>> import torch
    >>> from cv_adversarial.attacks.carlini_wagner import CarliniWagner
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> _ = torch.nn.init.eye_(model.weight)
    >>> result = CarliniWagner(model).run(torch.tensor([[0.6, 0.2]]), torch.tensor([0]))
    >>> round(float(result.norm), 2)  # the boundary lies at 0.2828
    0.28
"""

from __future__ import annotations

from typing import Any

import torch
from cv_core.checks import check_integer, check_range
from jaxtyping import Float, Int
from torch import Tensor

from cv_adversarial.attacks.balls import Norm, column
from cv_adversarial.attacks.base import Attack, Goal, Model, Oracle
from cv_adversarial.attacks.objectives import margin

_INSIDE = 0.99
_STALLED = 0.9999


class CarliniWagner(Attack):
    """Small l2 perturbations by optimisation.

    An image for which no constant succeeds comes back unchanged; ``run`` tells which.

    Args:
        model: Maps images with pixels in [0, 1] to logits.
        steps: Most steps of Adam for each constant, 200 by default.
        search_steps: Constants tried for each image, 9 by default.
        lr: Adam's step length in ``w``, 0.02 by default.
        c: The first constant, 0.001 by default.
        confidence: The paper's kappa, the lead in logits that the wrong class must have; at least
            0, the default.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    norm: Norm = "l2"

    def __init__(
        self,
        model: Model,
        steps: int = 200,
        *,
        search_steps: int = 9,
        lr: float = 0.02,
        c: float = 0.001,
        confidence: float = 0.0,
    ) -> None:
        super().__init__(model)
        check_integer(self._owner, "steps", steps, low=1)
        check_integer(self._owner, "search_steps", search_steps, low=1)
        check_range(self._owner, "lr", lr, low=0.0, low_open=True)
        check_range(self._owner, "c", c, low=0.0, low_open=True)
        check_range(self._owner, "confidence", confidence, low=0.0)
        self.steps = steps
        self.search_steps = search_steps
        self.lr = lr
        self.c = c
        self.confidence = confidence

    def _perturb(self, x: Tensor, goal: Goal, oracle: Oracle, generator: torch.Generator) -> Tensor:
        del generator
        # the distance carries a gradient whatever the model does: only here would it be missed
        _, _, logits = oracle.ascend(x, goal, margin)
        going = ~self._enough(logits, goal)
        adv = x.clone()
        if bool(going.any()):
            adv[going] = self._search(x[going], goal.rows(going), oracle)
        return adv

    def _search(self, x: Tensor, goal: Goal, oracle: Oracle) -> Tensor:
        """Search for the least constant of each image, between failures and successes."""
        best = _Best(x)
        c = torch.full((len(x),), self.c, dtype=x.dtype, device=x.device)
        low, high = torch.zeros_like(c), torch.full_like(c, float("inf"))
        for _ in range(self.search_steps):
            success = self._minimise(x, goal, oracle, c, best)
            high = torch.where(success, c, high)
            low = torch.where(success, low, c)
            c = torch.where(torch.isinf(high), 10.0 * c, 0.5 * (low + high))
        return best.adv

    def _minimise(self, x: Tensor, goal: Goal, oracle: Oracle, c: Tensor, best: _Best) -> Tensor:
        """Run Adam with given constants and return for which images it succeeded."""
        w = torch.atanh((2.0 * x - 1.0) * _INSIDE)
        adam = _Adam(w, self.lr)
        success = torch.zeros_like(goal.labels, dtype=torch.bool)
        lowest = float("inf")
        for step in range(self.steps):
            w = w.detach().requires_grad_()
            z = 0.5 * (torch.tanh(w) + 1.0)
            logits = oracle.logits(z)
            square = (z - x).square().flatten(1).sum(1)
            total = square - c * margin(logits, goal).clamp(max=self.confidence)
            found = self._enough(logits.detach(), goal)
            success |= found
            best.offer(z.detach(), square.detach(), found)
            if step % max(1, self.steps // 10) == 0:
                now = float(total.detach().sum())
                if now > lowest - (1.0 - _STALLED) * abs(lowest):
                    break
                lowest = now
            w = adam.step(w.detach(), oracle.differentiate(total, w))
        return success

    def _enough(self, logits: Tensor, goal: Goal) -> Tensor:
        return goal.reached(logits) & (margin(logits, goal) >= self.confidence)


class _Best:
    """The nearest success of each image; the image itself before there is one."""

    def __init__(self, x: Tensor) -> None:
        self.adv = x
        self._square = torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device)

    def offer(self, z: Tensor, square: Tensor, found: Tensor) -> None:
        better = found & (square < self._square)
        self._square = torch.where(better, square, self._square)
        self.adv = torch.where(column(better, z), z, self.adv)


class _Adam:
    """Adam (Kingma and Ba, ICLR 2015) for one tensor."""

    def __init__(self, like: Tensor, lr: float) -> None:
        self._lr = lr
        self._mean, self._square = torch.zeros_like(like), torch.zeros_like(like)
        self._count = 0

    def step(self, w: Tensor, gradient: Tensor) -> Tensor:
        self._count += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.999 * self._square + 0.001 * gradient.square()
        mean = self._mean / (1.0 - 0.9**self._count)
        square = self._square / (1.0 - 0.999**self._count)
        return w - self._lr * mean / (square.sqrt() + 1e-8)


def carlini_wagner(
    model: Model,
    x: Float[Tensor, "b *image"],
    y: Int[Tensor, " b"],
    *,
    target: Int[Tensor, " b"] | None = None,
    **options: Any,
) -> Float[Tensor, "b *image"]:
    """Attack images ``x`` of classes ``y``; the options are those of ``CarliniWagner``."""
    return CarliniWagner(model, **options)(x, y, target=target)
