r"""Iterative attacks whose examples transfer to other models, and their combination.

With the gradient :math:`g_t` at a point near :math:`x_t`, all of them are

.. math:: m_{t+1} = \mu m_t + \frac{g_t}{\mathrm{mean}|g_t|}, \qquad
          x_{t+1} = \Pi\big(x_t + \alpha\,\mathrm{sign}(m_{t+1})\big)

and differ in where and how the gradient is taken:

- MI-FGSM, at :math:`x_t` with :math:`\mu = 1`: *Boosting Adversarial Attacks with Momentum*,
  Y. Dong, F. Liao, T. Pang, H. Su, J. Zhu, X. Hu and J. Li, CVPR 2018.
- NI-FGSM, at :math:`x_t + \alpha\mu m_t`; SI-NI-FGSM, as its mean over
  :math:`x / 2^i, i < m`: *Nesterov Accelerated Gradient and Scale Invariance for Adversarial
  Attacks*, J. Lin, C. Song, K. He, L. Wang and J. E. Hopcroft, ICLR 2020.
- DI-FGSM, through a random shrinking and padding of the image: *Improving Transferability of
  Adversarial Examples with Input Diversity*, C. Xie, Z. Zhang, Y. Zhou, S. Bai, J. Wang, Z. Ren and
  A. Yuille, CVPR 2019.
- TI-FGSM, blurred by a Gaussian: *Evading Defenses to Transferable Adversarial Examples by
  Translation-Invariant Attacks*, Y. Dong, T. Pang, H. Su and J. Zhu, CVPR 2019.

Deviations from the papers, and why:

- The gradient is divided by its mean size, as in the authors' programs, where the papers print its
  l1 norm. For MI this changes nothing; NI's look-ahead by momentum over an l1 norm, thousands of
  times smaller, would be lost.
- DI enlarges images of 299 to at most 330 pixels; here they shrink and are padded back to their own
  size, so that networks of a fixed input size can be attacked. One draw serves a whole batch.
- With several scales, all of them see the same random shrinking in one step.

Example:
    >>> import torch
    >>> from cv_adversarial.attacks.transfer import MIFGSM, TransferAttack
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3, bias=False))
    >>> x, y = torch.full((2, 1, 8, 8), 0.5), torch.tensor([0, 2])
    >>> MIFGSM(model, eps=8 / 255, decay=1.0)(x, y).shape
    torch.Size([2, 1, 8, 8])
    >>> strongest = TransferAttack(
    ...     model, nesterov=True, scales=5, diversity=0.7, kernel_size=7
    ... )
    >>> bool((strongest(x, y) - x).abs().max() <= 8 / 255)
    True
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from cv_core.checks import check_integer, check_odd, check_range, check_shape
from cv_core.imaging.filtering import filter_separable
from cv_core.imaging.kernels import gaussian_kernel1d
from jaxtyping import Float, Int
from torch import Tensor

from cv_adversarial.attacks.balls import LinfBall, check_ball, lengths, per_sample
from cv_adversarial.attacks.base import Attack, Goal, Model, Oracle
from cv_adversarial.attacks.objectives import cross_entropy

_TINY = 1e-37  # what a mean gradient is at least: no zero is divided by zero


class TransferAttack(Attack):
    """Momentum, Nesterov's look-ahead, scales, diverse inputs and blurred gradients in one.

    Args:
        model: Maps images with pixels in [0, 1] to logits.
        eps: Radius of the l-infinity ball, in pixel units; 8/255 by default.
        alpha: Length of a step; 2/255 by default.
        steps: Number of steps, 10 by default.
        decay: The momentum's factor ``mu``, at least 0; 1 by default.
        nesterov: Whether gradients are taken ahead, where the momentum leads.
        scales: Over how many copies ``x / 2^i`` gradients are averaged, 1 by default.
        diversity: Probability with which a step sees shrunk images, in [0, 1]; 0 by default.
        resize_rate: The least side of a shrunk image, as a part of the side, in (0, 1].
        kernel_size: Odd side of the Gaussian that blurs gradients, whose standard deviation is a
            third of the distance to its border; 1, the default, blurs nothing.
        seed: Of the random shrinking.

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
        decay: float = 1.0,
        nesterov: bool = False,
        scales: int = 1,
        diversity: float = 0.0,
        resize_rate: float = 0.9,
        kernel_size: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        check_ball(self._owner, "linf", eps)
        check_range(self._owner, "alpha", alpha, low=0.0, low_open=True)
        check_integer(self._owner, "steps", steps, low=1)
        check_range(self._owner, "decay", decay, low=0.0)
        check_integer(self._owner, "scales", scales, low=1)
        check_range(self._owner, "diversity", diversity, low=0.0, high=1.0)
        check_range(self._owner, "resize_rate", resize_rate, low=0.0, high=1.0, low_open=True)
        check_odd(self._owner, "kernel_size", kernel_size)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.decay = decay
        self.nesterov = nesterov
        self.scales = scales
        self.diversity = diversity
        self.resize_rate = resize_rate
        self.kernel_size = kernel_size

    def _perturb(self, x: Tensor, goal: Goal, oracle: Oracle, generator: torch.Generator) -> Tensor:
        if self.diversity > 0.0 or self.kernel_size > 1:
            check_shape(self._owner, "images", x, "b c h w")
        region = LinfBall(x, self.eps)
        z, momentum = x, torch.zeros_like(x)
        for _ in range(self.steps):
            ahead = z + self.alpha * self.decay * momentum if self.nesterov else z
            gradient = self._blurred(self._gradient(ahead, goal, oracle, generator))
            size = (lengths("l1", gradient) / gradient[0].numel()).clamp(min=_TINY)
            momentum = self.decay * momentum + gradient / per_sample(size, gradient)
            z = region.move(z, momentum, self.alpha)
        return z

    def _gradient(
        self, z: Tensor, goal: Goal, oracle: Oracle, generator: torch.Generator
    ) -> Tensor:
        """Return the gradient of the mean loss over the scales of a perhaps shrunk image."""
        z = z.detach().requires_grad_()
        seen = self._diverse(z, generator)
        scaled = torch.cat([seen / 2**i for i in range(self.scales)])
        wanted = goal.rows(torch.arange(len(z), device=z.device).repeat(self.scales))
        values = cross_entropy(oracle.logits(scaled), wanted)
        gradient = oracle.differentiate(values / self.scales, z)
        oracle.backwards += len(scaled) - len(z)  # which has counted one scale
        return gradient

    def _diverse(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Shrink to a random size and pad with zeros at random, with the given probability."""
        if self.diversity == 0.0:
            return z
        draw = torch.rand(4, generator=generator, device=generator.device).tolist()
        if draw[0] >= self.diversity:
            return z
        height, width = z.shape[-2:]
        ratio = self.resize_rate + (1.0 - self.resize_rate) * draw[1]
        small = max(1, int(ratio * height)), max(1, int(ratio * width))
        top = int(draw[2] * (height - small[0] + 1))
        left = int(draw[3] * (width - small[1] + 1))
        shrunk = F.interpolate(z, size=small, mode="nearest")
        beyond = (left, width - small[1] - left, top, height - small[0] - top)
        return F.pad(shrunk, beyond)

    def _blurred(self, gradient: Tensor) -> Tensor:
        if self.kernel_size == 1:
            return gradient
        line = gaussian_kernel1d(
            self.kernel_size // 2 / 3.0, self.kernel_size, dtype=gradient.dtype
        )
        return filter_separable(gradient, line, line, padding="zeros")


class MIFGSM(TransferAttack):
    """The momentum iterative method; ``decay=0`` makes it the basic iterative method.

    Args:
        model: Maps images with pixels in [0, 1] to logits.
        eps: Radius of the l-infinity ball, in pixel units; 8/255 by default.
        alpha: Length of a step; 2/255 by default.
        steps: Number of steps, 10 by default.
        decay: The momentum's factor, at least 0; 1 by default.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        *,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
    ) -> None:
        super().__init__(model, eps, alpha=alpha, steps=steps, decay=decay)


class NIFGSM(TransferAttack):
    """The Nesterov iterative method.

    Args:
        model: Maps images with pixels in [0, 1] to logits.
        eps: Radius of the l-infinity ball, in pixel units; 8/255 by default.
        alpha: Length of a step; 2/255 by default.
        steps: Number of steps, 10 by default.
        decay: The momentum's factor, at least 0; 1 by default.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        *,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
    ) -> None:
        super().__init__(model, eps, alpha=alpha, steps=steps, decay=decay, nesterov=True)


class SIFGSM(TransferAttack):
    """The scale-invariant Nesterov method (SI-NI-FGSM).

    Args:
        model: Maps images with pixels in [0, 1] to logits.
        eps: Radius of the l-infinity ball, in pixel units; 8/255 by default.
        alpha: Length of a step; 2/255 by default.
        steps: Number of steps, 10 by default.
        decay: The momentum's factor, at least 0; 1 by default.
        scales: Number of copies ``x / 2^i``, 5 by default.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        *,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
        scales: int = 5,
    ) -> None:
        super().__init__(
            model, eps, alpha=alpha, steps=steps, decay=decay, nesterov=True, scales=scales
        )


class DIFGSM(TransferAttack):
    """The diverse-inputs method, without momentum by default as in its paper.

    Args:
        model: Maps images with pixels in [0, 1] to logits.
        eps: Radius of the l-infinity ball, in pixel units; 8/255 by default.
        alpha: Length of a step; 2/255 by default.
        steps: Number of steps, 10 by default.
        decay: The momentum's factor, at least 0; 1 makes it M-DI-FGSM.
        diversity: Probability of a shrunk image, 0.5 by default.
        resize_rate: The least side of a shrunk image, as a part of the side.
        seed: Of the random shrinking.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        *,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 0.0,
        diversity: float = 0.5,
        resize_rate: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__(
            model,
            eps,
            alpha=alpha,
            steps=steps,
            decay=decay,
            diversity=diversity,
            resize_rate=resize_rate,
            seed=seed,
        )


class TIFGSM(TransferAttack):
    """The translation-invariant method, without momentum by default.

    Args:
        model: Maps images with pixels in [0, 1] to logits.
        eps: Radius of the l-infinity ball, in pixel units; 8/255 by default.
        alpha: Length of a step; 2/255 by default.
        steps: Number of steps, 10 by default.
        decay: The momentum's factor, at least 0; 0 by default.
        kernel_size: Odd side of the Gaussian; the paper's 15 by default.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        *,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 0.0,
        kernel_size: int = 15,
    ) -> None:
        super().__init__(model, eps, alpha=alpha, steps=steps, decay=decay, kernel_size=kernel_size)


def transfer_attack(
    model: Model,
    x: Float[Tensor, "b *image"],
    y: Int[Tensor, " b"],
    *,
    target: Int[Tensor, " b"] | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Float[Tensor, "b *image"]:
    """Attack images ``x`` of classes ``y``; the options are those of ``TransferAttack``."""
    return TransferAttack(model, **options)(x, y, target=target, generator=generator)
