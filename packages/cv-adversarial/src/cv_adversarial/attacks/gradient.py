r"""FGSM and PGD: ascent on the loss within a ball around the image.

*Explaining and Harnessing Adversarial Examples*, I. Goodfellow, J. Shlens and C. Szegedy, ICLR 2015
(FGSM); *Towards Deep Learning Models Resistant to Adversarial Attacks*, A. Madry, A. Makelov,
L. Schmidt, D. Tsipras and A. Vladu, ICLR 2018 (PGD). With the loss :math:`L` and the direction of
steepest ascent :math:`d`, which is the gradient's sign in the l-infinity norm,

.. math:: x_{t+1} = \Pi\big(x_t + \alpha\, d(\nabla_x L(x_t, y))\big),

where :math:`\Pi` projects onto the ball and the pixel range. A targeted attack lowers the target's
loss instead.

Deviations from the papers, and why:

- In the l1 norm the plain steepest step moves one pixel. As in *Adversarial Training and Robustness
  for Multiple Perturbations* (F. Tramer and D. Boneh, NeurIPS 2019) a step moves the 1 % of the
  entries with the largest gradients, and the projection is onto ball and pixel range at once.
- Points are rounded into the ball, not only to it: see ``cv_adversarial.attacks.balls``.

Example:
    >>> import torch
    >>> from cv_adversarial.attacks.gradient import PGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3, bias=False))
    >>> x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 2])
    >>> attack = PGD(model, eps=8 / 255, alpha=2 / 255, steps=10)
    >>> bool((attack(x, y) - x).abs().max() <= 8 / 255)
    True
"""

from __future__ import annotations

from typing import Any

import torch
from cv_core.checks import check_integer, check_range
from jaxtyping import Float, Int
from torch import Tensor

from cv_adversarial.attacks.balls import Norm, ball, check_ball
from cv_adversarial.attacks.base import Attack, Goal, Model, Oracle
from cv_adversarial.attacks.objectives import cross_entropy


class FGSM(Attack):
    """The fast gradient sign method: one step from the image to the ball's surface.

    Args:
        model: Maps images with pixels in [0, 1] to logits.
        eps: Radius of the ball and length of the step, in pixel units; 8/255 by default.
        norm: ``"linf"`` (the paper's), ``"l2"`` or ``"l1"``.

    Raises:
        TypeError: If ``eps`` is not a number.
        ValueError: If an option is out of range.
    """

    def __init__(self, model: Model, eps: float = 8 / 255, *, norm: Norm = "linf") -> None:
        super().__init__(model)
        check_ball(self._owner, norm, eps)
        self.eps = eps
        self.norm = norm

    def _perturb(self, x: Tensor, goal: Goal, oracle: Oracle, generator: torch.Generator) -> Tensor:
        del generator
        gradient, _, _ = oracle.ascend(x, goal, cross_entropy)
        return ball(self.norm, x, self.eps).move(x, gradient, self.eps)


class PGD(Attack):
    """Projected gradient ascent on the cross entropy.

    Args:
        model: Maps images with pixels in [0, 1] to logits.
        eps: Radius of the ball in its norm, in pixel units; 8/255 by default.
        alpha: Length of a step in that norm; 2/255 by default.
        steps: Number of steps, 10 by default.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        random_start: Whether to begin at a random point of the ball; otherwise at the image
            (the basic iterative method, I-FGSM).
        stop_on_success: Whether images that the model gets wrong leave the batch, which saves
            their remaining steps. They are then as the first success left them.
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
        alpha: float = 2 / 255,
        steps: int = 10,
        norm: Norm = "linf",
        random_start: bool = True,
        stop_on_success: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        check_ball(self._owner, norm, eps)
        check_range(self._owner, "alpha", alpha, low=0.0, low_open=True)
        check_integer(self._owner, "steps", steps, low=1)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.norm = norm
        self.random_start = random_start
        self.stop_on_success = stop_on_success

    def _perturb(self, x: Tensor, goal: Goal, oracle: Oracle, generator: torch.Generator) -> Tensor:
        region = ball(self.norm, x, self.eps)
        z = region.draw(generator) if self.random_start else x
        adv, rows = z.clone(), torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            gradient, _, logits = oracle.ascend(z, goal, cross_entropy)
            if self.stop_on_success:
                going = ~goal.reached(logits)
                rows, z, gradient = rows[going], z[going], gradient[going]
                region, goal = region.rows(going), goal.rows(going)
                if len(rows) == 0:
                    break
            z = region.move(z, gradient, self.alpha)
            if self.stop_on_success:
                adv[rows] = z
        return adv if self.stop_on_success else z


def fgsm(
    model: Model,
    x: Float[Tensor, "b *image"],
    y: Int[Tensor, " b"],
    *,
    target: Int[Tensor, " b"] | None = None,
    **options: Any,
) -> Float[Tensor, "b *image"]:
    """Attack images ``x`` of classes ``y``; the options are those of ``FGSM``."""
    return FGSM(model, **options)(x, y, target=target)


def pgd(
    model: Model,
    x: Float[Tensor, "b *image"],
    y: Int[Tensor, " b"],
    *,
    target: Int[Tensor, " b"] | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Float[Tensor, "b *image"]:
    """Attack images ``x`` of classes ``y``; the options are those of ``PGD`` and of its call."""
    return PGD(model, **options)(x, y, target=target, generator=generator)
