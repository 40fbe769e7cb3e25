r"""MAI-FGPLM: transferable attacks that move most pixels by less than a sign step would.

*Learning Indistinguishable and Transferable Adversarial Examples*, Zhang, Zou, Duan, Zhou and Pan,
PRCV 2021, LNCS 13022, pp. 152-164.

With the gradient :math:`g_t` at the mixed image
:math:`\tau\, V * z + (1 - \tau)\, z`, where :math:`z` is :math:`x_t` or lies ahead of it,

.. math:: m_{t+1} = m_t + \mu_1\, W * g_t + \gamma_1\, g_t, \qquad
          v_{t+1} = v_t + \mu_2\, (W * g_t)^2 + \gamma_2\, g_t^2,

.. math:: x_{t+1} = \Pi\big(x_t + \alpha_t\, \mathrm{PL}(\lambda m_{t+1} /
          (\sqrt{v_{t+1}} + r))\big), \qquad
          \mathrm{PL}(u) = \rho u \text{ for } |u| < 3, \text{ else } \mathrm{sign}(u),

and :math:`\alpha_t = \epsilon q_t / \sum_s q_s` with
:math:`q_t = (1 - \beta_1^{t+1}) / \sqrt{1 - \beta_2^{t+1}}`. :math:`W` and :math:`V` are Gaussians.
AI-FGTM is the same with tanh for PL, :math:`\gamma_1 = \gamma_2 = 0` and :math:`\tau = 0`: *Making
Adversarial Examples More Transferable and Indistinguishable*, J. Zou, Y. Duan, B. Li, W. Zhang,
Y. Pan and Z. Pan, AAAI 2022.

A smaller step, not a better one, may be all that lowers the mean change; compare attacks at an
equal mean change (``average_perturbation_size``) before one is called less visible.

Deviations from the paper, and why:

- The steps' sizes, their :math:`\beta_1 = 0.9` and :math:`\beta_2 = 0.99` are AI-FGTM's; the paper
  takes them over without printing them.
- PL jumps from :math:`3 \rho` to 1. This is kept, so that for the default :math:`\rho = 1/2` it
  exceeds 1 on (2, 3); :math:`\rho = 1/3` makes it continuous.
- Nesterov's look-ahead uses MI-FGSM's momentum, which this method does not have. Here it is
  :math:`m_t` over its mean size, times :math:`\mu \epsilon / T`: the printed l1 norm would leave
  no look-ahead at all.
- As in Algorithm 1 the gradient is the one with respect to the mixed image, not through the blur.
- :math:`V` reflects the image at its border, where zeros would darken it; :math:`W` pads with
  zeros, as translation-invariant attacks do.

Example:
    >>> import torch
    >>> from cv_adversarial.methods.mai_fgplm import MAIFGPLM
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3, bias=False))
    >>> x, y = torch.full((2, 1, 16, 16), 0.5), torch.tensor([0, 2])
    >>> attack = MAIFGPLM(model, eps=16 / 255, nesterov=True, kernel_size=9, diversity=1.0)
    >>> bool((attack(x, y) - x).abs().max() <= 16 / 255)
    True
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cv_core.checks import (
    check_floating,
    check_integer,
    check_odd,
    check_range,
    check_same_shape,
    check_shape,
)
from cv_core.imaging.filtering import filter_separable
from cv_core.imaging.kernels import gaussian_kernel1d
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float
from torch import Tensor, nn

from cv_adversarial.attacks.balls import LinfBall, lengths, per_sample
from cv_adversarial.attacks.base import Goal, Model, Oracle
from cv_adversarial.attacks.transfer import TransferAttack

Direction = Callable[[Tensor], Tensor]
"""Maps the ratio of the moments to a step in units of its size, entry by entry; odd."""

_BETA1, _BETA2 = 0.9, 0.99


def piecewise_linear(
    z: Float[Tensor, "*any"], rho: float = 0.5, *, threshold: float = 3.0
) -> Float[Tensor, "*any"]:
    """Shrink what is small and take the sign of the rest.

    Args:
        z: Any shape.
        rho: Slope below the threshold, above 0; ``1 / threshold`` makes the function continuous.
        threshold: From which size on the sign is taken, above 0.

    Returns:
        ``rho * z`` where ``|z| < threshold``, else the sign.

    Example:
        >>> piecewise_linear(torch.tensor([-4.0, -1.0, 0.5, 2.5, 3.0]))
        tensor([-1.0000, -0.5000,  0.2500,  1.2500,  1.0000])
    """
    check_floating("piecewise_linear", "z", z)
    check_range("piecewise_linear", "rho", rho, low=0.0, low_open=True)
    check_range("piecewise_linear", "threshold", threshold, low=0.0, low_open=True)
    return torch.where(z.abs() < threshold, rho * z, z.sign())


def mixed_input(
    x: Float[Tensor, "b c h w"], tau: float = 0.5, kernel_size: int = 9
) -> Float[Tensor, "b c h w"]:
    """Mix images with their blurred copies, ``tau * blurred + (1 - tau) * x``.

    Args:
        x: Images.
        tau: Share of the blurred copy, in [0, 1]; 0 returns ``x`` itself.
        kernel_size: Odd side of the Gaussian, whose standard deviation is a third of the distance
            to its border; 1 returns ``x`` itself.

    Returns:
        The mixtures; constant images stay as they are.
    """
    check_shape("mixed_input", "x", x, "b c h w")
    check_range("mixed_input", "tau", tau, low=0.0, high=1.0)
    check_odd("mixed_input", "kernel_size", kernel_size)
    if tau == 0.0 or kernel_size == 1:
        return x
    line = gaussian_kernel1d(kernel_size // 2 / 3.0, kernel_size, dtype=x.dtype)
    return torch.lerp(x, filter_separable(x, line, line, padding="reflect"), tau)


def step_sizes(eps: float, steps: int) -> list[float]:
    """Return the increasing sizes of the steps, which sum to ``eps``.

    Example:
        >>> [round(size, 4) for size in step_sizes(1.0, 3)]
        [0.2551, 0.3436, 0.4012]
    """
    check_integer("step_sizes", "steps", steps, low=1)
    ratios = [(1.0 - _BETA1**t) / (1.0 - _BETA2**t) ** 0.5 for t in range(1, steps + 1)]
    return [eps * ratio / sum(ratios) for ratio in ratios]


class AdamRatioAttack(TransferAttack):
    """What AI-FGTM and MAI-FGPLM share: steps along a function of the ratio of two moments.

    Args:
        model: Maps images with pixels in [0, 1] to logits; a ``LogitEnsemble`` for several.
        eps: Radius of the l-infinity ball, in pixel units, which the steps' sizes sum to.
        direction: Makes the step of the ratio: ``torch.tanh``, ``piecewise_linear`` or any other
            odd function of a tensor.
        steps: Number of steps.
        lam: The ratio's factor, above 0.
        mu1: Weight of the blurred gradient in the first moment, at least 0.
        mu2: Weight of its square in the second moment, at least 0.
        gamma1: Weight of the gradient itself in the first moment, at least 0.
        gamma2: Weight of its square in the second moment, at least 0.
        tau: Share of the blurred copy in the image at which gradients are taken, in [0, 1].
        mix_kernel_size: Odd side of that copy's Gaussian.
        nesterov: Whether gradients are taken ahead, where the first moment leads.
        decay: The look-ahead's factor ``mu``, in steps of ``eps / steps``.
        diversity: Probability with which a step sees shrunk images, in [0, 1].
        resize_rate: The least side of a shrunk image, as a part of the side, in (0, 1].
        kernel_size: Odd side of the Gaussian that blurs gradients; 1 blurs nothing.
        floor: The ``r`` that keeps the ratio finite where no gradient has been, above 0.
        seed: Of the random shrinking.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 16 / 255,
        *,
        direction: Direction,
        steps: int = 10,
        lam: float = 1.3,
        mu1: float = 1.5,
        mu2: float = 1.9,
        gamma1: float = 0.0,
        gamma2: float = 0.0,
        tau: float = 0.0,
        mix_kernel_size: int = 9,
        nesterov: bool = False,
        decay: float = 1.0,
        diversity: float = 0.0,
        resize_rate: float = 0.9,
        kernel_size: int = 1,
        floor: float = 1e-8,
        seed: int = 0,
    ) -> None:
        super().__init__(
            model, eps, steps=steps, decay=decay, nesterov=nesterov, diversity=diversity,
            resize_rate=resize_rate, kernel_size=kernel_size, seed=seed,
        )  # fmt: skip
        weights = {"mu1": mu1, "mu2": mu2, "gamma1": gamma1, "gamma2": gamma2}
        for name, weight in weights.items():
            check_range(self._owner, name, weight, low=0.0)
        for name, value in {"lam": lam, "floor": floor}.items():
            check_range(self._owner, name, value, low=0.0, low_open=True)
        check_range(self._owner, "tau", tau, low=0.0, high=1.0)
        check_odd(self._owner, "mix_kernel_size", mix_kernel_size)
        self.alpha = eps / steps  # of the look-ahead only
        self.direction = direction
        self.lam = lam
        self.mu1, self.mu2 = mu1, mu2
        self.gamma1, self.gamma2 = gamma1, gamma2
        self.tau = tau
        self.mix_kernel_size = mix_kernel_size
        self.floor = floor

    def _perturb(self, x: Tensor, goal: Goal, oracle: Oracle, generator: torch.Generator) -> Tensor:
        blurs = self.tau > 0.0 and self.mix_kernel_size > 1
        if blurs or self.diversity > 0.0 or self.kernel_size > 1:
            check_shape(self._owner, "images", x, "b c h w")
        region = LinfBall(x, self.eps)
        z, moments = x, (torch.zeros_like(x), torch.zeros_like(x))
        for size in step_sizes(self.eps, self.steps):
            seen = self._ahead(z, moments[0])
            if blurs:
                seen = mixed_input(seen, self.tau, self.mix_kernel_size)
            gradient = self._gradient(seen, goal, oracle, generator)
            moments = self._accumulated(moments, gradient)
            ratio = self.lam * moments[0] / (moments[1].sqrt() + self.floor)
            z = region.project(z + size * self.direction(ratio))
        return z

    def _ahead(self, z: Tensor, moment: Tensor) -> Tensor:
        if not self.nesterov:
            return z
        mean = (lengths("l1", moment) / moment[0].numel()).clamp(min=torch.finfo(z.dtype).tiny)
        return z + self.alpha * self.decay * moment / per_sample(mean, moment)

    def _accumulated(
        self, moments: tuple[Tensor, Tensor], gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        blurred = self._blurred(gradient)
        first = moments[0] + self.mu1 * blurred + self.gamma1 * gradient
        second = moments[1] + self.mu2 * blurred.square() + self.gamma2 * gradient.square()
        return first, second


class AIFGTM(AdamRatioAttack):
    """AI-FGTM, the predecessor: the hyperbolic tangent for a direction.

    ``nesterov=True, diversity=1.0, kernel_size=9`` make it NI-TI-DI-AITM.

    Args:
        model: Maps images with pixels in [0, 1] to logits; a ``LogitEnsemble`` for several.
        eps: Radius of the l-infinity ball, in pixel units; 16/255 by default.
        steps: Number of steps, 10 by default.
        **options: Further ones of ``AdamRatioAttack``.
    """

    def __init__(
        self, model: Model, eps: float = 16 / 255, *, steps: int = 10, **options: Any
    ) -> None:
        super().__init__(model, eps, direction=torch.tanh, steps=steps, **options)


class MAIFGPLM(AdamRatioAttack):
    """MAI-FGPLM, the paper's method.

    ``nesterov=True, diversity=1.0, kernel_size=9`` make it NI-TI-DI-MAILM, its strongest form.

    Args:
        model: Maps images with pixels in [0, 1] to logits; a ``LogitEnsemble`` for several.
        eps: Radius of the l-infinity ball, in pixel units; 16/255 by default.
        steps: Number of steps, 10 by default.
        rho: Slope of the piecewise-linear direction, above 0; 1/2 by default.
        gamma1: Weight of the gradient itself in the first moment, 0.12 by default.
        gamma2: Weight of its square in the second moment, 0.12 by default.
        tau: Share of the blurred copy in the image at which gradients are taken, 1/2 by default.
        **options: Further ones of ``AdamRatioAttack``.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 16 / 255,
        *,
        steps: int = 10,
        rho: float = 0.5,
        gamma1: float = 0.12,
        gamma2: float = 0.12,
        tau: float = 0.5,
        **options: Any,
    ) -> None:
        check_range(self._owner, "rho", rho, low=0.0, low_open=True)
        super().__init__(
            model,
            eps,
            direction=partial(piecewise_linear, rho=rho),
            steps=steps,
            gamma1=gamma1,
            gamma2=gamma2,
            tau=tau,
            **options,
        )


def average_perturbation_size(
    x: Float[Tensor, "b *image"], x_adv: Float[Tensor, "b *image"], *, scale: float = 255.0
) -> Float[Tensor, " b"]:
    """Return the mean absolute change of each image's values, the paper's APS.

    Args:
        x: Images, pixels in [0, 1].
        x_adv: Changed images.
        scale: Unit of the result: grey levels for 255, the images' own for 1, and ``1 / eps`` makes
            it a share of the greatest change allowed.

    Returns:
        One value per image.
    """
    owner = "average_perturbation_size"
    check_floating(owner, "x", x)
    check_same_shape(owner, x=x, x_adv=x_adv)
    check_range(owner, "scale", scale, low=0.0, low_open=True)
    return scale * (x_adv - x).abs().flatten(1).mean(1)


def _examples() -> list[Example]:
    def call(
        build: Callable[[Model], AdamRatioAttack], model: nn.Module, x: Tensor, y: Tensor
    ) -> Tensor:
        return build(model)(x, y)

    def inputs(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(3 * 36, 4))
        for item in model.parameters():
            item.data = 0.3 * torch.randn(item.shape, generator=generator)
        x = torch.rand(3, 1, 8, 8, generator=generator)
        return model.eval(), x, torch.randint(4, (3,), generator=generator)

    full: dict[str, Any] = {
        "nesterov": True,
        "diversity": 1.0,
        "kernel_size": 3,
        "mix_kernel_size": 3,
    }
    return [
        Example(build=lambda: partial(call, MAIFGPLM), inputs=inputs),
        Example(build=lambda: partial(call, partial(MAIFGPLM, **full)), inputs=inputs),
        Example(build=lambda: partial(call, AIFGTM), inputs=inputs),
    ]


CARD = Card(
    slug="mai-fgplm",
    title="MAI-FGPLM: transferable attacks with a smaller mean change",
    reference=Reference(
        title="Learning Indistinguishable and Transferable Adversarial Examples",
        authors="Zhang, Zou, Duan, Zhou, Pan",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="152-164",
    ),
    kind="attack",
    objects=(
        "cv_adversarial.methods.mai_fgplm.MAIFGPLM",
        "cv_adversarial.methods.mai_fgplm.AIFGTM",
        "cv_adversarial.methods.mai_fgplm.AdamRatioAttack",
        "cv_adversarial.methods.mai_fgplm.piecewise_linear",
        "cv_adversarial.methods.mai_fgplm.mixed_input",
        "cv_adversarial.methods.mai_fgplm.average_perturbation_size",
        "cv_adversarial.attacks.ensemble.LogitEnsemble",
    ),
    examples=_examples,
)
