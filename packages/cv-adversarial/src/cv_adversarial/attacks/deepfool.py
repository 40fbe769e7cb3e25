r"""DeepFool: the shortest way out of a class, by walking to the nearest linearised boundary.

*DeepFool: A Simple and Accurate Method to Fool Deep Neural Networks*, S.-M. Moosavi-Dezfooli,
A. Fawzi and P. Frossard, CVPR 2016. With the gaps :math:`g_k = z_k - z_y` between logits, a step
goes to the nearest boundary of the model made linear at the point (Eqs. 8 and 9), and :math:`\eta`
beyond it:

.. math:: l = \arg\min_{k \ne y} \frac{|g_k|}{\|\nabla g_k\|_2}, \qquad
          x_{t+1} = \mathrm{clip}\Big(x_t
              + (1 + \eta) \frac{|g_l|}{\|\nabla g_l\|_2^2} \nabla g_l\Big).

For an affine classifier one step finds the shortest perturbation, times :math:`1 + \eta`.

Deviations from the paper, and why:

- Images that have left their class leave the batch, so that only unfinished ones cost anything.
- An image that the model gets wrong anyway stays as it is. With a target, only the boundary between
  the class that holds the point and the target is looked at.
- Points are clipped to [0, 1] in every step, which the paper leaves open.
- A gap below 1e-4 counts as 1e-4, as a point on the boundary itself would not move.

Example:
    >>> import torch
    >>> from cv_adversarial.attacks.deepfool import DeepFool
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> _ = torch.nn.init.eye_(model.weight)
    >>> DeepFool(model)(torch.tensor([[0.6, 0.2]]), torch.tensor([0]))
    tensor([[0.3960, 0.4040]])
"""

from __future__ import annotations

from typing import Any

import torch
from cv_core.checks import check_integer, check_range
from jaxtyping import Float, Int
from torch import Tensor

from cv_adversarial.attacks.balls import Norm, lengths, per_sample
from cv_adversarial.attacks.base import Attack, Goal, Model, Oracle
from cv_adversarial.attacks.boundary import nearest_boundary, rivals

_LEAST_GAP = 1e-4


class DeepFool(Attack):
    """Minimal l2 perturbations, batched over the images that are not fooled yet.

    Args:
        model: Maps images with pixels in [0, 1] to logits.
        steps: Most steps, 50 by default.
        overshoot: How far beyond the boundary a step goes, as a part of its length, at least 0;
            the paper's 0.02 by default.
        candidates: How many of the likeliest wrong classes are looked at; 10 by default, ``None``
            for all. A step takes one backward pass for each.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    norm: Norm = "l2"

    def __init__(
        self,
        model: Model,
        steps: int = 50,
        *,
        overshoot: float = 0.02,
        candidates: int | None = 10,
    ) -> None:
        super().__init__(model)
        check_integer(self._owner, "steps", steps, low=1)
        check_range(self._owner, "overshoot", overshoot, low=0.0)
        if candidates is not None:
            check_integer(self._owner, "candidates", candidates, low=1)
        self.steps = steps
        self.overshoot = overshoot
        self.candidates = candidates

    def _perturb(self, x: Tensor, goal: Goal, oracle: Oracle, generator: torch.Generator) -> Tensor:
        del generator
        adv = x.clone()
        logits = oracle.query(x)
        classes = rivals(logits, goal, self.candidates)
        rows = torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            going = ~goal.rows(rows).reached(logits)
            rows = rows[going]
            if len(rows) == 0:
                break
            z = self._step(adv[rows], goal.rows(rows), classes[rows], oracle)
            adv[rows] = z
            # one pass without gradients spares the fooled images a backward pass for every class
            logits = oracle.query(z)
        return adv

    def _step(self, z: Tensor, goal: Goal, classes: Tensor, oracle: Oracle) -> Tensor:
        gap, slope = nearest_boundary(oracle, z, goal, classes, self.norm)
        square = lengths("l2", slope).square().clamp(min=torch.finfo(z.dtype).tiny)
        size = (1.0 + self.overshoot) * gap.abs().clamp(min=_LEAST_GAP) / square
        return (z + slope * per_sample(size, z)).clamp(0.0, 1.0)


def deepfool(
    model: Model,
    x: Float[Tensor, "b *image"],
    y: Int[Tensor, " b"],
    *,
    target: Int[Tensor, " b"] | None = None,
    **options: Any,
) -> Float[Tensor, "b *image"]:
    """Attack images ``x`` of classes ``y``; the options are those of ``DeepFool``."""
    return DeepFool(model, **options)(x, y, target=target)
