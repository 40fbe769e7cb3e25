"""Blur and band-pass kernels: odd sizes, centred, computed in float64.

Blur kernels sum to one, band-pass kernels to zero. Angles are in degrees, counter-clockwise as seen
on the screen (the row axis points down).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cv_core.checks import check_odd, check_range


def gaussian_kernel1d(
    sigma: float, size: int | None = None, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, " k"]:
    """Sample a Gaussian at whole numbers and divide by its sum.

    Args:
        sigma: Standard deviation in pixels, above 0.
        size: Odd number of taps; by default four standard deviations to each side.
        dtype: Type of the result.

    Returns:
        The kernel, which sums to one. Its outer product with itself is the 2-D kernel.

    Raises:
        ValueError: If ``sigma`` is not positive or ``size`` is even.
    """
    check_range("gaussian_kernel1d", "sigma", sigma, low=0.0, low_open=True)
    radius = _radius("gaussian_kernel1d", size, math.ceil(4.0 * sigma))
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    # the largest exponent is 0 at the centre: no sigma, however small, divides zero by zero
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    return (kernel / kernel.sum()).to(dtype)


def gaussian_kernel(
    sigma: float, size: int | None = None, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "k k"]:
    """Sample an isotropic Gaussian on a square grid; it sums to one.

    Args:
        sigma: Standard deviation in pixels, above 0.
        size: Odd side of the kernel; by default four standard deviations to each side.
        dtype: Type of the result.
    """
    line = gaussian_kernel1d(sigma, size, dtype=torch.float64)
    return torch.outer(line, line).to(dtype)


def difference_of_gaussians_kernel(
    sigma: float,
    size: int | None = None,
    *,
    ratio: float = 1.6,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "k k"]:
    r"""Sample a band-pass kernel, :math:`G_\sigma - G_{r\sigma}`; it sums to zero.

    Args:
        sigma: Standard deviation of the narrow lobe in pixels, above 0.
        size: Odd side; by default four standard deviations of the wide lobe to each side.
        ratio: Wide over narrow standard deviation, above 1; 1.6 comes closest to a Laplacian.
        dtype: Type of the result.
    """
    owner = "difference_of_gaussians_kernel"
    check_range(owner, "sigma", sigma, low=0.0, low_open=True)
    check_range(owner, "ratio", ratio, low=1.0, low_open=True)
    side = 2 * _radius(owner, size, math.ceil(4.0 * ratio * sigma)) + 1
    narrow = gaussian_kernel(sigma, side, dtype=torch.float64)
    return (narrow - gaussian_kernel(ratio * sigma, side, dtype=torch.float64)).to(dtype)


def motion_kernel(
    length: float,
    angle: float = 0.0,
    size: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "k k"]:
    """Draw the blur of a linear motion: an anti-aliased line through the centre.

    A pixel's weight is one minus its distance to the segment, and never below zero; the segment
    joins the centres of the first and the last pixel, so that an odd ``length`` at angle 0 gives
    exactly ``length`` equal taps.

    Args:
        length: Length of the motion in pixels, at least 1 (no motion).
        angle: Direction in degrees, counter-clockwise; 0 is horizontal.
        size: Odd side of the kernel; by default just large enough.
        dtype: Type of the result.

    Returns:
        The kernel, which sums to one and is symmetric about its centre.
    """
    check_range("motion_kernel", "length", length, low=1.0)
    check_range("motion_kernel", "angle", angle)
    half = (length - 1.0) / 2.0
    radius = _radius("motion_kernel", size, math.ceil(half))
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    down, right = torch.meshgrid(offset, offset, indexing="ij")
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along = right * cosine - down * sine
    across = right * sine + down * cosine
    beyond = (along.abs() - half).clamp_min(0.0)
    kernel = (1.0 - torch.hypot(across, beyond)).clamp_min(0.0)
    kernel[kernel < 1e-12] = 0.0  # rounding of the sine, not part of the line
    return (kernel / kernel.sum()).to(dtype)


def disk_kernel(
    radius: float, size: int | None = None, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "k k"]:
    """Draw the blur of a lens out of focus: the exact share of each pixel inside a circle.

    Args:
        radius: Radius of the circle in pixels, above 0.
        size: Odd side of the kernel; by default just large enough.
        dtype: Type of the result.

    Returns:
        The kernel, which sums to one.
    """
    check_range("disk_kernel", "radius", radius, low=0.0, low_open=True)
    reach = _radius("disk_kernel", size, max(0, math.ceil(radius - 0.5)))
    edges = torch.arange(-reach, reach + 2, dtype=torch.float64) - 0.5
    corner = _area_to_corner(edges[:, None], edges[None, :], radius)
    kernel = corner[1:, 1:] - corner[:-1, 1:] - corner[1:, :-1] + corner[:-1, :-1]
    return (kernel / kernel.sum()).to(dtype)


def _area_to_corner(x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Signed area that a circle about 0 shares with the rectangle between 0 and (x, y)."""
    sign = torch.sign(x) * torch.sign(y)
    x, y = x.abs().clamp_max(radius), y.abs().clamp_max(radius)
    # left of this abscissa the rectangle's top lies inside the circle, right of it the arc bounds
    meets = torch.minimum(x, torch.sqrt(radius**2 - y**2))
    return sign * (meets * y + _under_arc(x, radius) - _under_arc(meets, radius))


def _under_arc(x: Tensor, radius: float) -> Tensor:
    root = torch.sqrt((radius**2 - x**2).clamp_min(0.0))
    return 0.5 * (x * root + radius**2 * torch.asin((x / radius).clamp_max(1.0)))


def _radius(owner: str, size: int | None, default: int) -> int:
    if size is None:
        return default
    check_odd(owner, "size", size)
    return size // 2
