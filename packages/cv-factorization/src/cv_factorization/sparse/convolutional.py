r"""Convolutional sparse coding: an image as a sum of filters convolved with sparse maps.

A filter's centre is the entry ``(kh // 2, kw // 2)``, as in ``cv_core.numerics.fourier``: a 1 in a
map puts the filter's centre there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from cv_core.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_range,
    check_shape,
)
from cv_core.numerics.fourier import transfer_function
from jaxtyping import Complex, Float
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

Boundary = Literal["circular", "free"]

_CHECK_EVERY = 10
_RELAXATION = 1.8  # of ADMM; between 1.5 and 1.8 is the usual advice (Boyd et al., section 3.4.3)


@dataclass(frozen=True)
class ConvolutionalCodes:
    """What ``convolutional_codes`` returns.

    Args:
        codes: (n, m, h, w) the maps; with ``boundary="free"`` (n, m, h + kh - 1, w + kw - 1).
        objective: The objective of all images after 10, 20, ... iterations and at the end.
        iterations: How many were taken.
        converged: Whether the tolerance was reached.
    """

    codes: Float[Tensor, "n m H W"]
    objective: list[float]
    iterations: int
    converged: bool


@torch.no_grad()
def convolutional_codes(
    images: Float[Tensor, "n c h w"],
    filters: Float[Tensor, "m c kh kw"],
    weight: float | Float[Tensor, " m"],
    *,
    boundary: Boundary = "circular",
    max_iter: int = 500,
    tol: float = 1e-4,
) -> ConvolutionalCodes:
    r"""Sparse maps whose convolutions with the filters add up to the images, by ADMM and FFT.

    .. math::
        \min_z \tfrac12 \sum_c \Big\|s_c - \sum_m f_{mc} * z_m\Big\|^2
        + \sum_m \lambda_m \|z_m\|_1

    Wohlberg: Efficient Algorithms for Convolutional Sparse Representations, IEEE TIP 25(1), 2016.
    The step on the fit is diagonal in the Fourier domain but for the filters, where the identity of
    Sherman, Morrison and Woodbury leaves a c x c system per frequency. Iterations are over-relaxed
    and the penalty is balanced on the way; the maps returned are exactly sparse.

    Args:
        images: Images :math:`s`. Take away what is smooth first (``cv_core.imaging.filtering``):
            short filters can code it with many maps only.
        filters: Filters :math:`f`, at most as large as the images; one map serves all channels.
        weight: :math:`\lambda \ge 0`, one number or one per filter.
        boundary: ``"circular"`` joins opposite borders, which is fast but lets one edge answer for
            the other. ``"free"`` lets maps reach beyond the border by as much as a filter that
            still touches the image, and asks nothing of the pixels out there (mask decoupling:
            Heide, Heidrich, Wetzstein, CVPR 2015).
        max_iter: Most iterations.
        tol: Converged once primal and dual residual are at most this share of the maps and the
            multipliers; looked at every 10 iterations; 0 takes all iterations.

    Returns:
        Maps and the course of the objective, which ADMM lowers in the end but not in every step.

    Raises:
        ValueError: For shapes that do not fit, NaN, or options out of range.

    Warns:
        sklearn.exceptions.ConvergenceWarning: If ``max_iter`` was too few.

    Example:
        >>> image = torch.zeros(1, 1, 8, 8)
        >>> image[0, 0, 2, 3:5] = 1.0
        >>> found = convolutional_codes(image, torch.ones(1, 1, 1, 2), 0.1)
        >>> found.codes.nonzero().tolist()
        [[0, 0, 2, 4]]
    """
    weight = _checked(images, filters, weight, boundary, max_iter, tol)
    fit = (_Wrapped if boundary == "circular" else _Masked)(images, filters)
    solver = _Admm(fit, weight[:, None, None], images)
    objective: list[float] = []
    converged = False
    iterations = 0
    for residuals in solver.steps(max_iter):
        iterations += 1
        if residuals is None:
            continue
        objective.append(fit.misfit(solver.sparse) + solver.penalty())
        converged = tol > 0 and max(residuals) <= tol
        if converged:
            break
    if tol > 0 and not converged:
        warnings.warn(
            f"convolutional_codes: tol={tol:g} was not reached in max_iter={max_iter} iterations. "
            "Raise either, or set tol=0 to take all iterations.",
            ConvergenceWarning,
            stacklevel=3,
        )
    return ConvolutionalCodes(solver.sparse, objective, iterations, converged)


@torch.no_grad()
def convolutional_image(
    codes: Float[Tensor, "n m H W"],
    filters: Float[Tensor, "m c kh kw"],
    *,
    boundary: Boundary = "circular",
) -> Float[Tensor, "n c h w"]:
    r"""Return the images that maps stand for: :math:`\sum_m f_{mc} * z_m`.

    Args:
        codes: Maps.
        filters: Filters.
        boundary: As the codes were made: ``"free"`` cuts off what lies beyond the border.

    Returns:
        The images.
    """
    owner = "convolutional_image"
    check_floating(owner, "codes", codes)
    sizes = check_shape(owner, "codes", codes, "n m h w")
    kernel = check_shape(owner, "filters", filters, "m c kh kw", m=sizes["m"])
    check_choice(owner, "boundary", boundary, get_args(Boundary))
    size = (sizes["h"], sizes["w"])
    whole = torch.fft.irfft2(
        _synthesise(torch.fft.rfft2(codes), transfer_function(filters, size)), s=size
    )
    if boundary == "circular":
        return whole
    top, left = _margin(filters)
    height, width = sizes["h"] - kernel["kh"] + 1, sizes["w"] - kernel["kw"] + 1
    return whole[..., top : top + height, left : left + width]


def _margin(filters: Tensor) -> tuple[int, int]:
    """Rows and columns of the canvas of free codes that lie before the image."""
    height, width = filters.shape[-2:]
    return height - 1 - height // 2, width - 1 - width // 2


def _synthesise(
    maps: Complex[Tensor, "n m H Wf"], spectrum: Complex[Tensor, "m c H Wf"]
) -> Complex[Tensor, "n c H Wf"]:
    # filter by filter: no product of all of them is ever in memory
    total = maps[:, :1] * spectrum[0]
    for m in range(1, len(spectrum)):
        total.addcmul_(maps[:, m : m + 1], spectrum[m])
    return total


class _Fit:
    """The term of the data: what both boundaries have in common."""

    def __init__(self, filters: Tensor, size: tuple[int, int]) -> None:
        self.size = size
        self.spectrum = transfer_function(filters, size)
        self.conjugate = self.spectrum.conj().resolve_conj()
        # D D^H, c x c at every frequency
        self.outer = torch.einsum("mahw,mbhw->hwab", self.spectrum, self.conjugate)

    def inverse(self, shift: float) -> Complex[Tensor, "a c H Wf"]:
        """Return (shift I + D D^H)^-1 at every frequency."""
        eye = torch.eye(self.outer.shape[-1], dtype=self.outer.dtype, device=self.outer.device)
        return torch.linalg.inv(self.outer + shift * eye).permute(2, 3, 0, 1).contiguous()

    def correct_(self, maps: Tensor, target: Tensor, inverse: Tensor) -> None:
        """Turn z into z + D^H inverse (target - D z), in place and in the Fourier domain."""
        error = target - _synthesise(maps, self.spectrum)
        error = (inverse * error[:, None]).sum(dim=2)
        for c in range(error.shape[1]):
            maps.addcmul_(error[:, c : c + 1], self.conjugate[:, c])

    def step_(self, maps: Tensor, rho: float) -> None:
        """Turn the spectra of maps z into those of argmin fit(x) + rho/2 |x - z|^2, in place."""
        raise NotImplementedError

    def misfit(self, maps: Tensor) -> float:
        """Return the data's half of the objective."""
        raise NotImplementedError

    def rescale(self, factor: float) -> None:
        """Multiply multipliers of the fit's own by a factor, for a new rho."""

    def decode(self, maps: Tensor) -> Tensor:
        """Return the canvas that maps stand for."""
        return torch.fft.irfft2(_synthesise(torch.fft.rfft2(maps), self.spectrum), s=self.size)


class _Wrapped(_Fit):
    """The circular fit, whose proximal step is exact."""

    def __init__(self, images: Tensor, filters: Tensor) -> None:
        super().__init__(filters, (images.shape[-2], images.shape[-1]))
        self.images = images
        self.target = torch.fft.rfft2(images)
        self.rho = 0.0

    def step_(self, maps: Tensor, rho: float) -> None:
        if rho != self.rho:
            self.rho, self.shrunk = rho, self.inverse(rho)
        self.correct_(maps, self.target, self.shrunk)

    def misfit(self, maps: Tensor) -> float:
        return 0.5 * float((self.images - self.decode(maps)).square().sum())


class _Masked(_Fit):
    """The fit inside the border, with the canvas D x split off as a variable of its own."""

    def __init__(self, images: Tensor, filters: Tensor) -> None:
        height, width = images.shape[-2:]
        super().__init__(filters, (height + filters.shape[-2] - 1, width + filters.shape[-1] - 1))
        top, left = _margin(filters)
        self.mask = images.new_zeros(self.size)
        self.mask[top : top + height, left : left + width] = 1.0
        self.images = images.new_zeros(*images.shape[:2], *self.size)
        self.images[..., top : top + height, left : left + width] = images
        self.canvas = self.images.clone()
        self.multiplier = torch.zeros_like(self.canvas)
        self.shrunk = self.inverse(1.0)

    def step_(self, maps: Tensor, rho: float) -> None:
        self.correct_(maps, torch.fft.rfft2(self.canvas - self.multiplier), self.shrunk)
        decoded = torch.fft.irfft2(_synthesise(maps, self.spectrum), s=self.size)
        wanted = torch.lerp(self.canvas, decoded, _RELAXATION).add_(self.multiplier)
        self.canvas = (self.images + rho * wanted) / (self.mask + rho)
        self.multiplier = wanted - self.canvas

    def misfit(self, maps: Tensor) -> float:
        return 0.5 * float((self.mask * (self.images - self.decode(maps))).square().sum())

    def rescale(self, factor: float) -> None:
        self.multiplier *= factor


class _Admm:
    """Over-relaxed ADMM on the split x = y, x fitting the data and y sparse."""

    def __init__(self, fit: _Fit, weight: Tensor, images: Tensor) -> None:
        shape = (len(images), len(weight), *fit.size)
        self.fit = fit
        self.weight = weight
        self.sparse = images.new_zeros(shape)
        self.multiplier = images.new_zeros(shape)
        # the threshold weight / rho should be of the size of the codes, which is that of the images
        peak = float(images.abs().amax())
        self.rho = 1.0 + 50.0 * (float(weight.max()) / peak if peak > 0 else 0.0)

    def penalty(self) -> float:
        return float((self.weight * self.sparse.abs()).sum())

    def steps(self, count: int) -> Iterator[tuple[float, float] | None]:
        """Iterate; every tenth time and at the end, return the two residuals and balance rho."""
        for iteration in range(1, count + 1):
            maps = torch.fft.rfft2(self.sparse - self.multiplier)
            self.fit.step_(maps, self.rho)
            dense = torch.fft.irfft2(maps, s=self.fit.size)
            look = iteration % _CHECK_EVERY == 0 or iteration == count
            before = self.sparse
            # v = relaxed x + u falls into the soft threshold, the new y, and the clipped rest, u
            total = torch.lerp(before, dense, _RELAXATION).add_(self.multiplier)
            threshold = self.weight / self.rho
            self.multiplier = torch.clamp(total, min=-threshold, max=threshold)
            self.sparse = total.sub_(self.multiplier)
            if not look:
                yield None
                continue
            residuals = self._residuals(dense, before)
            yield residuals
            self._balance(*residuals)

    def _residuals(self, dense: Tensor, before: Tensor) -> tuple[float, float]:
        """Return primal and dual residual, each as a share."""
        norm = torch.linalg.vector_norm
        tiny = torch.finfo(dense.dtype).tiny
        primal = norm(dense - self.sparse) / max(float(norm(dense)), float(norm(self.sparse)), tiny)
        dual = norm(self.sparse - before) / max(float(norm(self.multiplier)), tiny)
        return float(primal), float(dual)

    def _balance(self, primal: float, dual: float) -> None:
        """Choose rho so that both residuals fall alike (Boyd et al., section 3.4.1)."""
        if primal == 0 or dual == 0 or 0.5 < primal / dual < 2.0:
            return
        factor = min(max((primal / dual) ** 0.5, 0.2), 5.0)
        self.rho *= factor
        self.multiplier /= factor
        self.fit.rescale(1.0 / factor)


def _checked(
    images: Tensor,
    filters: Tensor,
    weight: float | Tensor,
    boundary: str,
    max_iter: int,
    tol: float,
) -> Tensor:
    """Check all arguments; return one weight per filter."""
    owner = "convolutional_codes"
    check_floating(owner, "images", images)
    check_floating(owner, "filters", filters)
    sizes = check_shape(owner, "images", images, "n c h w")
    kernel = check_shape(owner, "filters", filters, "m c kh kw", c=sizes["c"])
    if kernel["kh"] > sizes["h"] or kernel["kw"] > sizes["w"]:
        raise ValueError(
            f"{owner}: filters must be at most as large as images {(sizes['h'], sizes['w'])}; got "
            f"{(kernel['kh'], kernel['kw'])}."
        )
    check_finite(owner, "images", images)
    check_finite(owner, "filters", filters)
    check_choice(owner, "boundary", boundary, get_args(Boundary))
    check_integer(owner, "max_iter", max_iter, low=1)
    check_range(owner, "tol", tol, low=0.0)
    if not isinstance(weight, Tensor):
        check_range(owner, "weight", weight, low=0.0)
        return images.new_full((len(filters),), weight)
    check_shape(owner, "weight", weight, "m", m=len(filters))
    check_finite(owner, "weight", weight)
    if bool((weight < 0).any()):
        raise ValueError(f"{owner}: weight must be at least 0; the least is {weight.min():g}.")
    return weight.to(images)
