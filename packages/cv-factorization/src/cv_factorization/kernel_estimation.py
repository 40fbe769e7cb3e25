"""Blur kernels: their estimate from a sharp and a blurred image, projection and comparison.

Kernels have odd sides, are centred, and sum to one.
"""

from __future__ import annotations

import math

import torch
from cv_core.checks import (
    check_floating,
    check_integer,
    check_odd,
    check_range,
    check_same_shape,
    check_shape,
)
from cv_core.metrics.images import ssim
from cv_core.numerics.fourier import transfer_function
from cv_core.numerics.linear import conjugate_gradient
from jaxtyping import Float
from torch import Tensor

from cv_factorization.deconvolution import laplacian_spectrum


def estimate_kernel(
    x: Float[Tensor, "h w"], y: Float[Tensor, "h w"], size: int, *, lam: float = 2.0
) -> Float[Tensor, "size size"]:
    r"""Estimate the kernel between a sharp and a blurred image from their gradients.

    .. math::
        \hat k = \frac{\sum_d \overline{\mathcal F(\partial_d x)} \mathcal F(\partial_d y)}
        {\sum_d |\mathcal F(\partial_d x)|^2 + \lambda}, \qquad \hat k(0) = 1

    Gradients have no mean: the kernel's is not observed and is set so that its sum is one.

    Args:
        x: Sharp image, periodic.
        y: Blurred image.
        size: Odd side of the part that is returned, at most the image's.
        lam: The :math:`\lambda` of the ridge, above 0.

    Returns:
        The kernel, which may be negative in places: see ``project_kernel``.
    """
    _check_kernel_step("estimate_kernel", x, y, size, lam)
    products, energy = _gradient_spectra(x, y)
    spectrum = products / (energy + lam)
    spectrum[0, 0] = 1.0
    return _centre_part(spectrum, size, (x.shape[0], x.shape[1]))


def estimate_kernel_on_support(
    x: Float[Tensor, "h w"],
    y: Float[Tensor, "h w"],
    size: int,
    *,
    lam: float = 2.0,
    max_iter: int = 20,
) -> Float[Tensor, "size size"]:
    r"""Estimate the kernel as ``estimate_kernel`` does, among those that vanish outside a square.

    .. math:: \min_k \sum_d \|\partial_d x * k - \partial_d y\|^2 + \lambda \|k\|^2

    The closed formula minimises this over kernels as large as the image, of which cutting a square
    out is not the best small one. Here the square's entries alone are the unknowns.

    Args:
        x: Sharp image, periodic.
        y: Blurred image.
        size: Odd side of the square, at most the image's.
        lam: The :math:`\lambda` of the ridge, above 0.
        max_iter: Most iterations of conjugate gradients.

    Returns:
        The kernel, which may be negative in places: see ``project_kernel``.
    """
    _check_kernel_step("estimate_kernel_on_support", x, y, size, lam)
    full = (x.shape[0], x.shape[1])
    products, energy = _gradient_spectra(x, y)

    def normal(k: Tensor) -> Tensor:
        return _centre_part(transfer_function(k, full) * energy, size, full) + lam * k

    b = _centre_part(products, size, full)
    return conjugate_gradient(normal, b, max_iter=max_iter, tol=1e-5).solution


def _gradient_spectra(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross spectrum of the gradients of x and y, and the power spectrum of x's."""
    X, Y = torch.fft.rfft2(x), torch.fft.rfft2(y)
    # both differences turn into one factor, the spectrum of the Laplacian
    L = laplacian_spectrum(x)
    return X.conj() * Y * L, X.abs().square() * L


def _centre_part(spectrum: Tensor, size: int, full: tuple[int, int]) -> Tensor:
    kernel = torch.fft.irfft2(spectrum, s=full)
    return kernel.roll((size // 2, size // 2), dims=(0, 1))[:size, :size]


def _check_kernel_step(owner: str, x: Tensor, y: Tensor, size: int, lam: float) -> None:
    check_floating(owner, "x", x)
    check_shape(owner, "x", x, "h w")
    check_same_shape(owner, x=x, y=y)
    check_odd(owner, "size", size)
    check_integer(owner, "size", size, high=min(x.shape))
    check_range(owner, "lam", lam, low=0.0, low_open=True)


def project_kernel(kernel: Float[Tensor, "h w"], *, floor: float = 0.05) -> Float[Tensor, "h w"]:
    """Make a kernel non-negative, drop its faint entries, move its centre to the middle, sum to 1.

    Args:
        kernel: Any; where no entry is positive, no blur is returned.
        floor: Entries below this share of the largest one are dropped, in [0, 1).

    Returns:
        The kernel, whose centre of mass lies within half a pixel of the middle.
    """
    check_floating("project_kernel", "kernel", kernel)
    check_shape("project_kernel", "kernel", kernel, "h w")
    check_range("project_kernel", "floor", floor, low=0.0, high=1.0, high_open=True)
    largest = kernel.max()
    if not bool(largest > 0.0):
        none = torch.zeros_like(kernel)
        none[kernel.shape[0] // 2, kernel.shape[1] // 2] = 1.0
        return none
    kept = torch.where(kernel >= floor * largest, kernel, 0.0).clamp_min(0.0)
    kept = centre_kernel(kept / kept.sum())
    return kept / kept.sum()


def centre_kernel(kernel: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """Move a non-negative kernel by whole pixels so that its centre of mass is in the middle.

    What leaves the frame is lost.
    """
    moved = kernel
    for axis in (0, 1):
        length = kernel.shape[axis]
        mass = kernel.sum(dim=1 - axis)
        place = torch.arange(length, device=kernel.device, dtype=kernel.dtype)
        step = length // 2 - math.floor(float((mass * place).sum() / mass.sum()) + 0.5)
        moved = moved.roll(step, dims=axis)
        lost = slice(0, step) if step >= 0 else slice(length + step, length)
        moved = moved.clone()
        moved.narrow(axis, lost.start, lost.stop - lost.start).zero_()
    return moved


def kernel_ssim(first: Float[Tensor, "h w"], second: Float[Tensor, "h2 w2"]) -> float:
    """Return the structural similarity of two kernels, at most 1.

    Both are centred by their mass, put on one square of at least 11 pixels, and scaled so that
    their largest entry is 1.

    Args:
        first: A kernel, non-negative and not all 0.
        second: Another, of any size.
    """
    for name, kernel in (("first", first), ("second", second)):
        check_floating("kernel_ssim", name, kernel)
        check_shape("kernel_ssim", name, kernel, "h w")
        if bool((kernel < 0.0).any()) or not bool((kernel > 0.0).any()):
            raise ValueError(f"kernel_ssim: {name} must be non-negative and not all 0.")
    side = max(11, *first.shape, *second.shape)
    side += 1 - side % 2
    pair = [_framed(centre_kernel(kernel), side) for kernel in (first, second.to(first))]
    one, other = ((kernel / kernel.max())[None, None] for kernel in pair)
    return float(ssim(one, other))


def _framed(kernel: Tensor, side: int) -> Tensor:
    """Put a kernel into the middle of a square that is at least as large, both middles together."""
    square = kernel.new_zeros(side, side)
    top, left = side // 2 - kernel.shape[0] // 2, side // 2 - kernel.shape[1] // 2
    square[top : top + kernel.shape[0], left : left + kernel.shape[1]] = kernel
    return square
