r"""Deconvolution on the torus: latent image, kernel, and what photographs need before and after.

The parts of blind deconvolution by half-quadratic and split Bregman methods: a latent image under
sparse penalties, a kernel by least squares on gradients, and total-variation restoration with a
known kernel. Images are (H, W) or (..., H, W) in [0, 1]; kernels have odd sides, are centred, and
sum to one. Borders are periodic: ``extend_periodic`` makes a photograph so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, get_args

import torch
from cv_core.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_range,
    check_same_shape,
    check_shape,
)
from cv_core.numerics.fourier import transfer_function
from cv_core.numerics.linear import conjugate_gradient
from cv_core.numerics.proximal import prox_group, prox_l0, prox_l1
from jaxtyping import Float
from torch import Tensor

Prox = Literal["soft", "hard"]
Solver = Literal["cg", "fft"]

_PROXES: Mapping[Prox, Callable[[Tensor, float], Tensor]] = MappingProxyType(
    {"soft": prox_l1, "hard": prox_l0}
)


def differences(x: Float[Tensor, "... h w"]) -> Float[Tensor, "2 ... h w"]:
    """Return the periodic forward differences of images, across first, then down."""
    return torch.stack([x.roll(-1, -1) - x, x.roll(-1, -2) - x])


def differences_adjoint(d: Float[Tensor, "2 ... h w"]) -> Float[Tensor, "... h w"]:
    """Apply the adjoint of ``differences``, minus the divergence."""
    return d[0].roll(1, -1) - d[0] + d[1].roll(1, -2) - d[1]


def extend_periodic(image: Float[Tensor, "... h w"], margin: int) -> Float[Tensor, "... h2 w2"]:
    """Add rows below and columns to the right that fade from the last ones into the first ones.

    The result joins to itself without a step, so that a convolution on the torus does to it what
    an open one does, except close to the border.

    Args:
        image: Images.
        margin: Least number of rows and columns to add, at least 0; a few more are added where the
            Fourier transform of the sum is faster.

    Returns:
        The images, unchanged in ``[..., :h, :w]``.
    """
    check_floating("extend_periodic", "image", image)
    check_shape("extend_periodic", "image", image, "... h w")
    check_integer("extend_periodic", "margin", margin, low=0)
    tall = _extend_columns(image.mT, margin).mT
    return _extend_columns(tall, margin)


def _extend_columns(image: Tensor, margin: int) -> Tensor:
    from scipy.fft import next_fast_len

    width = image.shape[-1]
    count = next_fast_len(width + margin, real=True) - width
    if count == 0:
        return image
    place = torch.arange(count, device=image.device)
    period = max(1, 2 * (width - 1))

    def mirrored(index: Tensor) -> Tensor:
        folded = index.remainder(period)
        return image[..., torch.minimum(folded, period - folded)]

    share = (place + 1.0).to(image) / (count + 1)
    share = share.square() * (3.0 - 2.0 * share)
    band = (1.0 - share) * mirrored(width + place) + share * mirrored(place - count)
    return torch.cat([image, band], dim=-1)


def laplacian_spectrum(like: Float[Tensor, "... h w"]) -> Float[Tensor, "h w2"]:
    r"""Return :math:`\sum_d |\mathcal F(\partial_d)|^2` on an image's half spectrum."""
    height, width = like.shape[-2:]
    down = torch.fft.fftfreq(height, dtype=like.dtype, device=like.device)
    right = torch.fft.rfftfreq(width, dtype=like.dtype, device=like.device)
    rows, columns = ((2.0 * math.pi * f).cos() for f in (down, right))
    return 4.0 - 2.0 * rows[:, None] - 2.0 * columns[None, :]


class LatentSystem:
    r"""The quadratic part of a latent image's problem, whose minimiser is the x-step.

    .. math::
        (2 K^\top K + \mu_1 P^2 + \mu_2 \nabla^\top \nabla + \mu_3) x
        = 2 K^\top y + \mu_1 P t_1 + \mu_2 \nabla^\top t_2 + \mu_3 t_3

    with targets :math:`t_i = d_i - q_i`. Only :math:`P^2` is no convolution.

    Args:
        y: Blurred image.
        kernel: The blur k, with :math:`K x = k * x` on the torus.
        saliency: P, one weight per pixel.
    """

    def __init__(
        self,
        y: Float[Tensor, "h w"],
        kernel: Float[Tensor, "kh kw"],
        saliency: Float[Tensor, "h w"],
    ) -> None:
        self.size = (y.shape[0], y.shape[1])
        self.saliency = saliency
        blur = transfer_function(kernel, self.size)
        self._data = 2.0 * torch.fft.irfft2(blur.conj() * torch.fft.rfft2(y), s=self.size)
        self._power = 2.0 * blur.abs().square()
        self._laplacian = laplacian_spectrum(y)

    def split(self, x: Float[Tensor, "h w"]) -> list[Tensor]:
        """Return what is made sparse: P x, the differences of x, and x."""
        return [self.saliency * x, differences(x), x]

    def right_side(self, targets: Sequence[Tensor], mu: Sequence[float]) -> Float[Tensor, "h w"]:
        """Return the right-hand side for targets and penalties."""
        gradient = differences_adjoint(targets[1])
        return (
            self._data + mu[0] * self.saliency * targets[0] + mu[1] * gradient + mu[2] * targets[2]
        )

    def apply(self, x: Float[Tensor, "h w"], mu: Sequence[float]) -> Float[Tensor, "h w"]:
        """Apply the matrix on the left-hand side."""
        convolved = self._filter(x, self._convolutions(mu))
        return convolved + mu[0] * self.saliency.square() * x

    def solve(
        self,
        b: Float[Tensor, "h w"],
        mu: Sequence[float],
        start: Float[Tensor, "h w"],
        *,
        solver: Solver = "cg",
        tol: float = 1e-6,
    ) -> Float[Tensor, "h w"]:
        """Solve for x: by conjugate gradients, or by one step that puts the largest P^2 for all.

        Args:
            b: Right-hand side.
            mu: Penalties, at least 0, the last one above 0.
            start: First iterate.
            solver: ``"cg"``, preconditioned by the transform with the mean of P^2, or ``"fft"``,
                which is exact for constant P and else only lowers the objective.
            tol: Relative residual at which conjugate gradients stop.
        """
        squared = self.saliency.square()
        convolutions = self._convolutions(mu)
        if solver == "fft":
            largest = float(squared.max())
            moved = b + mu[0] * (largest - squared) * start
            return self._filter(moved, 1.0 / (convolutions + mu[0] * largest))
        inverse = 1.0 / (convolutions + mu[0] * float(squared.mean()))
        solved = conjugate_gradient(
            lambda x: self._filter(x, convolutions) + mu[0] * squared * x,
            b,
            start=start,
            preconditioner=lambda r: self._filter(r, inverse),
            tol=tol,
        )
        return solved.solution

    def _convolutions(self, mu: Sequence[float]) -> Tensor:
        return self._power + mu[1] * self._laplacian + mu[2]

    def _filter(self, x: Tensor, spectrum: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * spectrum, s=self.size)


def split_bregman_latent(
    y: Float[Tensor, "h w"],
    kernel: Float[Tensor, "kh kw"],
    saliency: Float[Tensor, "h w"],
    *,
    alpha: float,
    beta: float,
    gamma: float,
    mu_max: tuple[float, float, float] = (16.0, 1e3, 1e4),
    prox: Prox = "hard",
    solver: Solver = "cg",
    start: Float[Tensor, "h w"] | None = None,
    tol: float = 1e-4,
) -> Float[Tensor, "h w"]:
    r"""Restore an image that is sparse in saliency-weighted intensity, gradient and intensity.

    .. math::
        \min_x \|k * x - y\|^2 + \alpha \|P x\|_0 + \beta \|\nabla x\|_0 + \gamma \|x\|_0

    Each pass solves for x, thresholds :math:`d_1 \approx Px, d_2 \approx \nabla x, d_3 \approx x`
    and updates the Bregman variables q. The penalties :math:`\mu_i` begin at twice the weights and
    double from pass to pass up to their largest values; q, which is scaled by them, is halved.

    Args:
        y: Blurred image, periodic.
        kernel: The blur k.
        saliency: P, one weight in [0, 1] per pixel.
        alpha: Weight of the saliency term, at least 0; 0 leaves it out.
        beta: Weight of the gradients, at least 0.
        gamma: Weight of the intensity, above 0.
        mu_max: Largest penalties of the three terms, above 0.
        prox: ``"hard"`` thresholds as the counts above ask for, ``"soft"`` as the sums of absolute
            values would.
        solver: How x is solved for; see ``LatentSystem.solve``.
        start: First image; y by default.
        tol: Relative residual of each solve.

    Returns:
        The image.
    """
    owner = "split_bregman_latent"
    _check_image(owner, y)
    check_same_shape(owner, y=y, saliency=saliency)
    check_penalties(owner, alpha=alpha, beta=beta, gamma=gamma, mu_max=mu_max)
    check_choice(owner, "prox", prox, get_args(Prox))
    check_choice(owner, "solver", solver, get_args(Solver))
    system = LatentSystem(y, kernel, saliency)
    x = y if start is None else start
    weights = (alpha, beta, gamma)
    mu = [min(2.0 * weight, most) for weight, most in zip(weights, mu_max, strict=True)]
    d = system.split(x)
    q = [torch.zeros_like(part) for part in d]
    while True:
        targets = [part - shift for part, shift in zip(d, q, strict=True)]
        x = system.solve(system.right_side(targets, mu), mu, x, solver=solver, tol=tol)
        d, q = _threshold(system.split(x), q, weights, mu, prox)
        grown = [
            min(2.0 * value, most) if value else 0.0 for value, most in zip(mu, mu_max, strict=True)
        ]
        if grown == mu:
            return x
        q = [
            shift * (old / new if new else 0.0)
            for shift, old, new in zip(q, mu, grown, strict=True)
        ]
        mu = grown


def _threshold(
    parts: Sequence[Tensor],
    q: Sequence[Tensor],
    weights: Sequence[float],
    mu: Sequence[float],
    prox: Prox,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return d and the next q; a term of weight 0 has no part in either."""
    shrink = _PROXES[prox]
    d, grown = [], []
    for part, shift, weight, penalty in zip(parts, q, weights, mu, strict=True):
        moved = part + shift
        d.append(shrink(moved, weight / penalty) if penalty else moved)
        grown.append(moved - d[-1])
    return d, grown


def tv_deconvolve(
    y: Float[Tensor, "... h w"],
    kernel: Float[Tensor, "kh kw"],
    *,
    weight: float = 2e-3,
    max_iter: int = 30,
) -> Float[Tensor, "... h w"]:
    r"""Deconvolve with a known kernel under isotropic total variation, periodic borders.

    .. math:: \min_x \tfrac12 \|k * x - y\|^2 + w \sum_i \|(\nabla x)_i\|_2

    by the alternating direction method of multipliers with closed steps.

    Args:
        y: Blurred images; see ``extend_periodic``.
        kernel: The blur k.
        weight: The w, above 0.
        max_iter: Iterations, at least 1.

    Returns:
        The restored images.
    """
    owner = "tv_deconvolve"
    check_floating(owner, "y", y)
    check_finite(owner, "y", y)
    sizes = check_shape(owner, "y", y, "... h w")
    check_range(owner, "weight", weight, low=0.0, low_open=True)
    check_integer(owner, "max_iter", max_iter, low=1)
    size = (sizes["h"], sizes["w"])
    blur = transfer_function(kernel, size)
    data = blur.conj() * torch.fft.rfft2(y)
    # thresholds of a few grey values: converges fast, and the minimiser does not depend on it
    rho = 50.0 * weight
    inverse = 1.0 / (blur.abs().square() + rho * laplacian_spectrum(y) + 1e-12)
    d = differences(y)
    q = torch.zeros_like(d)
    x = y
    for _ in range(max_iter):
        pull = torch.fft.rfft2(differences_adjoint(d - q))
        x = torch.fft.irfft2((data + rho * pull) * inverse, s=size)
        moved = differences(x) + q
        d = prox_group(moved, weight / rho, dim=0)
        q = moved - d
    return x


def check_penalties(
    owner: str, *, alpha: float, beta: float, gamma: float, mu_max: tuple[float, float, float]
) -> None:
    """Refuse weights and penalties with which the passes cannot be done.

    Raises:
        ValueError: If a weight is negative, ``gamma`` is 0, or a penalty is not above 0.
    """
    check_range(owner, "alpha", alpha, low=0.0)
    check_range(owner, "beta", beta, low=0.0)
    check_range(owner, "gamma", gamma, low=0.0, low_open=True)
    if len(mu_max) != 3:
        raise ValueError(f"{owner}: mu_max must hold three penalties; got {mu_max!r}.")
    for value in mu_max:
        check_range(owner, "mu_max", value, low=0.0, low_open=True)


def _check_image(owner: str, y: Tensor) -> None:
    check_floating(owner, "y", y)
    check_shape(owner, "y", y, "h w")
    check_finite(owner, "y", y)
