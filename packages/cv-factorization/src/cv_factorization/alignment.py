"""Fidelity after the best alignment: blind deconvolution knows image and kernel up to a shift."""

from __future__ import annotations

import math

import torch
from cv_core.checks import check_integer, check_same_shape, check_shape
from cv_core.metrics.images import psnr
from jaxtyping import Float
from torch import Tensor

from cv_factorization.deconvolution import extend_periodic


def shift_image(
    image: Float[Tensor, "... h w"], down: float, right: float
) -> Float[Tensor, "... h w"]:
    """Move images by a fraction of pixels through their Fourier transform, periodic borders."""
    height, width = image.shape[-2:]
    rows = torch.fft.fftfreq(height, dtype=image.dtype, device=image.device)[:, None]
    columns = torch.fft.rfftfreq(width, dtype=image.dtype, device=image.device)[None, :]
    turn = torch.exp(-2j * math.pi * (rows * down + columns * right))
    return torch.fft.irfft2(torch.fft.rfft2(image) * turn, s=(height, width))


def aligned_psnr(
    image: Float[Tensor, "c h w"],
    reference: Float[Tensor, "c h w"],
    *,
    max_shift: int = 3,
    crop_border: int = 0,
) -> float:
    """Return the PSNR in dB after the shift that makes it largest, to a quarter of a pixel.

    As Levin, Weiss, Durand and Freeman (CVPR 2009) judge: a kernel moved one way and an image
    moved the other way explain a blurred image as well.

    Args:
        image: What is judged, in [0, 1].
        reference: What it should be.
        max_shift: Largest whole shift tried along each axis; it should not exceed ``crop_border``,
            which keeps what wraps around out of sight.
        crop_border: Pixels left out at each side.

    Returns:
        The value at the best of all whole shifts, refined by halves and quarters around it.
    """
    owner = "aligned_psnr"
    check_shape(owner, "image", image, "c h w")
    check_same_shape(owner, image=image, reference=reference)
    check_integer(owner, "max_shift", max_shift, low=0)
    height, width = image.shape[-2:]
    torus = extend_periodic(image, 8 * max_shift)

    def value(down: float, right: float) -> tuple[float, float, float]:
        moved = shift_image(torus, down, right)[..., :height, :width].clamp(0.0, 1.0)
        return float(psnr(moved[None], reference[None], crop_border=crop_border)), down, right

    whole = range(-max_shift, max_shift + 1)
    best = max(value(down, right) for down in whole for right in whole)
    if max_shift:
        for step in (0.5, 0.25):
            near = [(a * step, b * step) for a in (-1, 0, 1) for b in (-1, 0, 1)]
            best = max(value(best[1] + down, best[2] + right) for down, right in near)
    return best[0]


def kernel_similarity(kernel: Float[Tensor, "h w"], reference: Float[Tensor, "h2 w2"]) -> float:
    r"""Return the largest normalised correlation of two kernels over all whole shifts.

    .. math:: \max_s \frac{\sum_z k(z) r(z + s)}{\|k\| \|r\|}

    The measure of Hu and Yang, "Good regions to deblur", ECCV 2012: 1 for kernels that differ by a
    shift and a positive factor.

    Args:
        kernel: A kernel, not all 0.
        reference: Another, of any size.
    """
    check_shape("kernel_similarity", "kernel", kernel, "h w")
    check_shape("kernel_similarity", "reference", reference, "h w")
    reference = reference.to(kernel)
    size = tuple(a + b for a, b in zip(kernel.shape, reference.shape, strict=True))
    spectra = [torch.fft.rfft2(item, s=size) for item in (kernel, reference)]
    correlation = torch.fft.irfft2(spectra[0] * spectra[1].conj(), s=size)
    return float(correlation.max() / (kernel.norm() * reference.norm()))
