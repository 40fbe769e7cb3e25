r"""Convolution with a point-spread function by FFT, its adjoint, and regularised deconvolution.

A kernel's centre is the entry ``(kh // 2, kw // 2)``. Convolution flips the kernel, as in signal
processing: :math:`(k * x)_i = \sum_j k_j x_{i-j}`; ``torch.nn.functional.conv2d`` does not flip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional

from cv_core.checks import check_choice, check_floating, check_range, check_shape

Boundary = Literal["circular", "zero", "reflect", "replicate"]


def transfer_function(
    kernel: Float[Tensor, "... kh kw"], size: tuple[int, int]
) -> Complex[Tensor, "... h wf"]:
    """Return the half spectrum of a kernel whose centre is put at the origin.

    Args:
        kernel: Kernels; leading axes broadcast with those of the images they are used on.
        size: Height and width of the images, at least the kernel's.

    Returns:
        What ``torch.fft.rfft2`` of an image is multiplied with; ``wf`` is ``width // 2 + 1``.

    Raises:
        ValueError: If the kernel is larger than ``size``.
    """
    check_floating("transfer_function", "kernel", kernel)
    shape = check_shape("transfer_function", "kernel", kernel, "... kh kw")
    height, width = shape["kh"], shape["kw"]
    if height > size[0] or width > size[1]:
        raise ValueError(
            f"transfer_function: kernel must fit into {tuple(size)}; got {(height, width)}."
        )
    padded = functional.pad(kernel, (0, size[1] - width, 0, size[0] - height))
    centred = padded.roll((-(height // 2), -(width // 2)), dims=(-2, -1))
    return torch.fft.rfft2(centred)


def fft_convolve(
    image: Float[Tensor, "... h w"],
    kernel: Float[Tensor, "... kh kw"],
    *,
    boundary: Boundary = "circular",
) -> Float[Tensor, "... h w"]:
    """Convolve images with a kernel; the result has the images' size.

    Args:
        image: Images; leading axes broadcast with the kernel's.
        kernel: Kernels, at most as large as the images.
        boundary: What lies beyond the border: the other side, zeros, the mirrored image (without
            repeating the border; the kernel's half must be smaller than the image), or the border's
            value.

    Returns:
        The convolved images.
    """
    height, width = _check("fft_convolve", image, kernel)
    check_choice("fft_convolve", "boundary", boundary, ("circular", "zero", "reflect", "replicate"))
    top, left = kernel.shape[-2] // 2, kernel.shape[-1] // 2
    bottom, right = kernel.shape[-2] - 1 - top, kernel.shape[-1] - 1 - left
    if boundary == "circular":
        return _filter(image, transfer_function(kernel, (height, width)))
    if boundary == "zero":
        return _zero_padded(image, kernel, conjugate=False)
    # The flipped kernel reaches as far up as it lies below its centre.
    flat = image.reshape(1, -1, height, width)
    flat = functional.pad(flat, (right, left, bottom, top), mode=boundary)
    padded = flat.reshape(*image.shape[:-2], *flat.shape[-2:])
    spread = _filter(padded, transfer_function(kernel, (padded.shape[-2], padded.shape[-1])))
    return spread[..., bottom : bottom + height, right : right + width]


def fft_correlate(
    image: Float[Tensor, "... h w"],
    kernel: Float[Tensor, "... kh kw"],
    *,
    boundary: Literal["circular", "zero"] = "circular",
) -> Float[Tensor, "... h w"]:
    """Correlate images with a kernel: the adjoint of ``fft_convolve`` at the same boundary.

    Args:
        image: Images; leading axes broadcast with the kernel's.
        kernel: Kernels, at most as large as the images.
        boundary: ``"circular"`` or ``"zero"``.

    Returns:
        The correlated images.
    """
    height, width = _check("fft_correlate", image, kernel)
    check_choice("fft_correlate", "boundary", boundary, ("circular", "zero"))
    if boundary == "circular":
        return _filter(image, transfer_function(kernel, (height, width)).conj())
    return _zero_padded(image, kernel, conjugate=True)


def tikhonov_deconvolve(
    image: Float[Tensor, "... h w"],
    kernel: Float[Tensor, "... kh kw"],
    weight: float,
    *,
    penalties: Sequence[Float[Tensor, "_ _"]] | None = None,
) -> Float[Tensor, "... h w"]:
    r"""Deconvolve with a quadratic penalty, circular boundaries, in closed form.

    .. math::
        \arg\min_x \|k * x - y\|^2 + \lambda \sum_i \|r_i * x\|^2
        = \mathcal F^{-1} \frac{\bar K Y}{|K|^2 + \lambda \sum_i |R_i|^2}

    Args:
        image: Blurred images :math:`y`. Taper their edges first if they do not wrap around.
        kernel: The blur :math:`k`.
        weight: :math:`\lambda`, above 0.
        penalties: The kernels :math:`r_i`, such as difference filters; the identity by default.

    Returns:
        The restored images.

    Raises:
        ValueError: If some frequency is seen by neither the blur nor a penalty.
    """
    size = _check("tikhonov_deconvolve", image, kernel)
    check_range("tikhonov_deconvolve", "weight", weight, low=0.0, low_open=True)
    if penalties is None:
        return wiener_deconvolve(image, kernel, weight)
    spectra = [transfer_function(penalty, size).abs().square() for penalty in penalties]
    return _divide("tikhonov_deconvolve", image, kernel, weight * torch.stack(spectra).sum(dim=0))


def wiener_deconvolve(
    image: Float[Tensor, "... h w"],
    kernel: Float[Tensor, "... kh kw"],
    noise_to_signal: float | Float[Tensor, "... h wf"],
) -> Float[Tensor, "... h w"]:
    r"""Deconvolve by the Wiener filter, circular boundaries.

    .. math:: \mathcal F^{-1} \frac{\bar K Y}{|K|^2 + S_n / S_x}

    Args:
        image: Blurred images :math:`y`. Taper their edges first if they do not wrap around.
        kernel: The blur :math:`k`.
        noise_to_signal: Ratio of the power spectra of noise and image, above 0: one number, or one
            per frequency of ``torch.fft.rfft2``.

    Returns:
        The restored images.
    """
    height, width = _check("wiener_deconvolve", image, kernel)
    if not isinstance(noise_to_signal, Tensor):
        check_range("wiener_deconvolve", "noise_to_signal", noise_to_signal, low=0.0, low_open=True)
        noise_to_signal = torch.as_tensor(noise_to_signal, dtype=image.dtype, device=image.device)
    else:
        check_shape(
            "wiener_deconvolve",
            "noise_to_signal",
            noise_to_signal,
            "... h wf",
            h=height,
            wf=width // 2 + 1,
        )
    return _divide("wiener_deconvolve", image, kernel, noise_to_signal)


def _divide(owner: str, image: Tensor, kernel: Tensor, damping: Tensor) -> Tensor:
    size = (image.shape[-2], image.shape[-1])
    blur = transfer_function(kernel, size)
    power = blur.abs().square() + damping
    if bool((power <= 0.0).any()):
        raise ValueError(f"{owner}: a frequency is neither blurred nor damped; add a penalty.")
    return torch.fft.irfft2(torch.fft.rfft2(image) * (blur.conj() / power), s=size)


def _filter(image: Tensor, spectrum: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(image) * spectrum, s=image.shape[-2:])


def _zero_padded(image: Tensor, kernel: Tensor, *, conjugate: bool) -> Tensor:
    height, width = image.shape[-2], image.shape[-1]
    # Large enough that what wraps around only meets the padding.
    padded = functional.pad(image, (0, kernel.shape[-1] - 1, 0, kernel.shape[-2] - 1))
    spectrum = transfer_function(kernel, (padded.shape[-2], padded.shape[-1]))
    return _filter(padded, spectrum.conj() if conjugate else spectrum)[..., :height, :width]


def _check(owner: str, image: Tensor, kernel: Tensor) -> tuple[int, int]:
    check_floating(owner, "image", image)
    check_floating(owner, "kernel", kernel)
    size = check_shape(owner, "image", image, "... h w")
    inner = check_shape(owner, "kernel", kernel, "... kh kw")
    if inner["kh"] > size["h"] or inner["kw"] > size["w"]:
        raise ValueError(
            f"{owner}: kernel must be at most as large as image {(size['h'], size['w'])}; got "
            f"{(inner['kh'], inner['kw'])}."
        )
    return size["h"], size["w"]
