"""Blind deconvolution of one image with one kernel, coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
from cv_core.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_odd,
    check_range,
    check_shape,
)
from cv_core.imaging.saliency import sun_saliency
from cv_core.numerics.fourier import fft_convolve
from jaxtyping import Float
from sklearn.base import BaseEstimator
from torch import Tensor
from torch.nn import functional

from cv_factorization.deconvolution import (
    Prox,
    Solver,
    check_penalties,
    extend_periodic,
    split_bregman_latent,
)
from cv_factorization.kernel_estimation import (
    estimate_kernel,
    estimate_kernel_on_support,
    project_kernel,
)

KernelStep = Literal["support", "fourier"]
Saliency = Callable[[Tensor], Tensor]
"""Maps a batch (1, C, H, W) to weights (1, H, W) in [0, 1]."""

_STEPS = {"support": estimate_kernel_on_support, "fourier": estimate_kernel}
_LEAST_SHARE = 0.1  # of the first weights that the last ones keep


class BlindDeconvolver(BaseEstimator):
    r"""One kernel and a latent image from one blurred image, coarse to fine.

    On each level of a pyramid, sweeps of a latent image (``split_bregman_latent``), a kernel
    (``estimate_kernel_on_support``) and its projection (``project_kernel``).

    Args:
        kernel_size: Odd side of the kernel in pixels, at least 3 and the image's at most. It has to
            hold the blur with some room.
        alpha: Weight :math:`\alpha \ge 0` of the saliency term; 0 leaves it out, which is the
            intensity and gradient prior of Pan et al.
        beta: Weight :math:`\beta \ge 0` of the gradients.
        gamma: Weight :math:`\gamma > 0` of the intensity.
        lam: Ridge :math:`\lambda > 0` of the kernel.
        mu_max: Largest penalties of the three terms.
        prox: ``"hard"`` or, as printed, ``"soft"``.
        solver: ``"cg"`` or ``"fft"``; see ``LatentSystem.solve``.
        kernel_step: ``"support"`` or, as printed, ``"fourier"``.
        pyramid: Whether to begin with a small image and a kernel of 3 pixels.
        sweeps: Sweeps of latent image and kernel on each level.
        decay: What the three weights are divided by after each sweep, at least 1, down to a tenth,
            which for the defaults lies in the paper's ranges. What is strong enough to survive the
            first sweeps leads the kernel; the details come later.
        saliency: Makes P from a batch of one image.

    Attributes:
        kernel_: (kernel_size, kernel_size), non-negative, sums to one.
        latent_: (h, w) the latent image, flattened by its priors: for use as such, restore the
            image with ``kernel_`` instead.
        history_: One row a sweep: side of the kernel, and root mean square of
            :math:`k * x - y`.

    Example:
        >>> from cv_core.imaging.kernels import motion_kernel
        >>> from cv_core.numerics.fourier import fft_convolve
        >>> x = (torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) > 0.5).float()
        >>> x = x.repeat_interleave(4, 0).repeat_interleave(4, 1)
        >>> y = fft_convolve(x, motion_kernel(5.0))
        >>> BlindDeconvolver(7).fit(y[None]).kernel_.shape
        torch.Size([7, 7])
    """

    def __init__(
        self,
        kernel_size: int = 25,
        *,
        alpha: float = 2e-2,
        beta: float = 2e-2,
        gamma: float = 2e-2,
        lam: float = 2.0,
        mu_max: tuple[float, float, float] = (16.0, 1e3, 1e4),
        prox: Prox = "hard",
        solver: Solver = "cg",
        kernel_step: KernelStep = "support",
        pyramid: bool = True,
        sweeps: int = 5,
        decay: float = 1.1,
        saliency: Saliency = sun_saliency,
    ) -> None:
        self.kernel_size = kernel_size
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.lam = lam
        self.mu_max = mu_max
        self.prox = prox
        self.solver = solver
        self.kernel_step = kernel_step
        self.pyramid = pyramid
        self.sweeps = sweeps
        self.decay = decay
        self.saliency = saliency

    def fit(self, y: Float[Tensor, "c h w"]) -> BlindDeconvolver:
        """Estimate kernel and latent image.

        Args:
            y: Blurred image in [0, 1]; the kernel is estimated on the mean of its channels, the
                saliency on all of them.

        Raises:
            TypeError: If ``y`` is not floating.
            ValueError: If ``y`` is not finite or smaller than the kernel, or an option is out of
                range.
        """
        self._check(y)
        kernel = None
        share = 1.0
        self.history_: list[dict[str, float]] = []
        with torch.no_grad():
            for side, scale in _levels(self.kernel_size, pyramid=self.pyramid):
                small = resized(y, scale)
                P = extend_periodic(self.saliency(small[None])[0], side)
                blurred = extend_periodic(small.mean(dim=0), side)
                kernel = _first(side, y) if kernel is None else _enlarged(kernel, side)
                for _ in range(self.sweeps):
                    latent = self._latent(blurred, kernel, P, share)
                    kernel = self._kernel(latent, blurred, side)
                    share = max(share / self.decay, _LEAST_SHARE)
        assert kernel is not None  # noqa: S101 - there is at least one level
        self.kernel_ = kernel
        self.latent_ = latent[: y.shape[1], : y.shape[2]].clamp(0.0, 1.0)
        return self

    def _latent(self, blurred: Tensor, kernel: Tensor, P: Tensor, share: float) -> Tensor:
        return split_bregman_latent(
            blurred,
            kernel,
            P,
            alpha=share * self.alpha,
            beta=share * self.beta,
            gamma=share * self.gamma,
            mu_max=self.mu_max,
            prox=self.prox,
            solver=self.solver,
            tol=1e-3,
        )

    def _kernel(self, latent: Tensor, blurred: Tensor, side: int) -> Tensor:
        raw = _STEPS[self.kernel_step](latent, blurred, side, lam=self.lam)
        kernel = project_kernel(raw)
        misfit = fft_convolve(latent, kernel) - blurred
        self.history_.append({"side": side, "misfit": float(misfit.square().mean().sqrt())})
        return kernel

    def _check(self, y: Tensor) -> None:
        owner = type(self).__name__
        check_odd(owner, "kernel_size", self.kernel_size, low=3)
        check_penalties(
            owner, alpha=self.alpha, beta=self.beta, gamma=self.gamma, mu_max=self.mu_max
        )
        check_range(owner, "lam", self.lam, low=0.0, low_open=True)
        check_choice(owner, "prox", self.prox, get_args(Prox))
        check_choice(owner, "solver", self.solver, get_args(Solver))
        check_choice(owner, "kernel_step", self.kernel_step, get_args(KernelStep))
        check_integer(owner, "sweeps", self.sweeps, low=1)
        check_range(owner, "decay", self.decay, low=1.0)
        check_image(owner, y, least=self.kernel_size)


def check_image(owner: str, y: Tensor, *, least: int) -> None:
    """Refuse what is no floating, finite image (c, h, w) with sides of at least ``least``.

    Raises:
        TypeError: If ``y`` is not floating.
        ValueError: If it has another shape, is too small or not finite.
    """
    check_floating(owner, "y", y)
    check_shape(owner, "y", y, "c h w")
    check_finite(owner, "y", y)
    if min(y.shape[1:]) < least:
        raise ValueError(
            f"{owner}: y must have sides of at least {least} pixels; got {tuple(y.shape)}."
        )


def _levels(size: int, *, pyramid: bool) -> Iterator[tuple[int, float]]:
    """Yield the kernel's side and the image's scale, from the coarsest level on."""
    levels = [(size, 1.0)]
    while pyramid and levels[-1][0] > 3:
        scale = levels[-1][1] * math.sqrt(0.5)
        levels.append((odd_side(size * scale), scale))
    yield from reversed(levels)


def odd_side(size: float) -> int:
    """Round to the nearest odd whole number, at least 3."""
    return max(3, 2 * round((size - 1.0) / 2.0) + 1)


def resized(image: Tensor, scale: float) -> Tensor:
    """Resample an image (c, h, w) without aliasing."""
    if scale == 1.0:
        return image
    size = [max(3, round(side * scale)) for side in image.shape[-2:]]
    return functional.interpolate(image[None], size, mode="bicubic", antialias=True)[0]


def _enlarged(kernel: Tensor, side: int) -> Tensor:
    size = (side, side)
    return project_kernel(functional.interpolate(kernel[None, None], size, mode="bicubic")[0, 0])


def _first(side: int, like: Tensor) -> Tensor:
    """Return a short horizontal stroke: no blur at all would be a place to rest."""
    kernel = like.new_zeros(side, side)
    middle = side // 2
    kernel[middle, middle - 1 : middle + 2] = like.new_tensor([0.25, 0.5, 0.25])
    return kernel
