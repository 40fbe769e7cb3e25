"""Filtering of image batches: depth-wise, separable and by FFT, with the adjoint of the latter.

``filter2d`` and ``filter_separable`` correlate (the kernel is not flipped), as
``torch.nn.Conv2d`` does. ``fft_convolve`` is the periodic convolution of restoration models,
``y = k * x``; its kernel's centre tap sits on the pixel. For symmetric kernels the two agree.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from jaxtyping import Complex, Float
from torch import Tensor

from cv_core.checks import check_choice, check_floating, check_integer, check_shape
from cv_core.imaging.kernels import gaussian_kernel1d

Padding = Literal["reflect", "replicate", "circular", "zeros"]
"""What lies beyond the border, in the words of ``torch.nn.Conv2d``."""


def pad_image(
    image: Float[Tensor, "b c h w"], rows: int, columns: int, *, padding: Padding = "reflect"
) -> Float[Tensor, "b c h2 w2"]:
    """Extend an image to all sides; reflection and repetition may go beyond the image's own size.

    Args:
        image: A batch of images.
        rows: How many rows to add above and below.
        columns: How many columns to add left and right.
        padding: What the border is filled with. ``reflect`` mirrors about the outermost pixel.

    Returns:
        The batch with ``2 * rows`` more rows and ``2 * columns`` more columns.
    """
    check_floating("pad_image", "image", image)
    height, width = _size("pad_image", image)
    check_integer("pad_image", "rows", rows, low=0)
    check_integer("pad_image", "columns", columns, low=0)
    check_choice("pad_image", "padding", padding, get_args(Padding))
    if padding == "zeros":
        return F.pad(image, (columns, columns, rows, rows))
    down = _beyond(height, rows, padding, image.device)
    right = _beyond(width, columns, padding, image.device)
    return image.index_select(2, down).index_select(3, right)


def filter2d(
    image: Float[Tensor, "b c h w"],
    kernel: Float[Tensor, "kh kw"],
    *,
    padding: Padding = "reflect",
) -> Float[Tensor, "b c h w"]:
    """Correlate every channel with one kernel.

    Args:
        image: A batch of images.
        kernel: Odd sides; cast to the image's type and device.
        padding: What lies beyond the border.

    Returns:
        The filtered batch, of the same shape.
    """
    sides = _kernel_sides("filter2d", kernel)
    padded = pad_image(image, sides[0] // 2, sides[1] // 2, padding=padding)
    return _depthwise(padded, kernel)


def filter_separable(
    image: Float[Tensor, "b c h w"],
    vertical: Float[Tensor, " kh"],
    horizontal: Float[Tensor, " kw"],
    *,
    padding: Padding = "reflect",
) -> Float[Tensor, "b c h w"]:
    """Correlate every channel with ``torch.outer(vertical, horizontal)``, one axis after the other.

    Args:
        image: A batch of images.
        vertical: Odd number of taps along the rows' axis.
        horizontal: Odd number of taps along the columns' axis.
        padding: What lies beyond the border.

    Returns:
        The filtered batch, of the same shape.
    """
    rows = _kernel_sides("filter_separable", vertical[:, None])[0]
    columns = _kernel_sides("filter_separable", horizontal[None, :])[1]
    # one axis is padded right before it is filtered, so that no padded border is filtered twice
    tall = pad_image(image, rows // 2, 0, padding=padding)
    wide = pad_image(_depthwise(tall, vertical[:, None]), 0, columns // 2, padding=padding)
    return _depthwise(wide, horizontal[None, :])


def gaussian_blur(
    image: Float[Tensor, "b c h w"], sigma: float, *, padding: Padding = "reflect"
) -> Float[Tensor, "b c h w"]:
    """Blur with a Gaussian cut off at four standard deviations.

    Args:
        image: A batch of images.
        sigma: Standard deviation in pixels, above 0.
        padding: What lies beyond the border.
    """
    check_floating("gaussian_blur", "image", image)
    line = gaussian_kernel1d(sigma, dtype=image.dtype)
    return filter_separable(image, line, line, padding=padding)


def transfer_function(
    kernel: Float[Tensor, "kh kw"], height: int, width: int
) -> Complex[Tensor, "h w2"]:
    """Return the half spectrum of a kernel whose centre tap is moved to the origin.

    Args:
        kernel: Odd sides, at most the image's.
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        What ``torch.fft.rfft2`` gives for the kernel on the image's grid: (height, width // 2 + 1).

    Raises:
        ValueError: If the kernel has an even side or is larger than the image.
    """
    rows, columns = _kernel_sides("transfer_function", kernel)
    if rows > height or columns > width:
        raise ValueError(
            f"transfer_function: kernel must fit into the image ({height}, {width}); got "
            f"({rows}, {columns}). Crop the kernel or pad the image."
        )
    canvas = F.pad(kernel, (0, width - columns, 0, height - rows))
    return torch.fft.rfft2(canvas.roll((-(rows // 2), -(columns // 2)), dims=(0, 1)))


def fft_convolve(
    image: Float[Tensor, "b c h w"], kernel: Float[Tensor, "kh kw"]
) -> Float[Tensor, "b c h w"]:
    """Convolve every channel with a kernel on the torus: ``A x = k * x`` with periodic borders.

    Args:
        image: A batch of images.
        kernel: Odd sides, at most the image's.
    """
    return _multiply_spectrum("fft_convolve", image, kernel, conjugate=False)


def fft_convolve_adjoint(
    image: Float[Tensor, "b c h w"], kernel: Float[Tensor, "kh kw"]
) -> Float[Tensor, "b c h w"]:
    """Apply the adjoint of ``fft_convolve``: ``<A x, y> = <x, A' y>`` for all x and y.

    Args:
        image: A batch of images.
        kernel: Odd sides, at most the image's.
    """
    return _multiply_spectrum("fft_convolve_adjoint", image, kernel, conjugate=True)


def _multiply_spectrum(owner: str, image: Tensor, kernel: Tensor, *, conjugate: bool) -> Tensor:
    check_floating(owner, "image", image)
    height, width = _size(owner, image)
    spectrum = transfer_function(kernel.to(image), height, width)
    if conjugate:
        spectrum = spectrum.conj()
    return torch.fft.irfft2(torch.fft.rfft2(image) * spectrum, s=(height, width))


def _depthwise(padded: Tensor, kernel: Tensor) -> Tensor:
    batch, channels, height, width = padded.shape
    # channels become samples: one plain convolution is faster than a grouped one on a CPU
    flat = padded.reshape(batch * channels, 1, height, width)
    out = F.conv2d(flat, kernel.to(padded)[None, None])
    return out.reshape(batch, channels, out.shape[2], out.shape[3])


def _size(owner: str, image: Tensor) -> tuple[int, int]:
    sizes = check_shape(owner, "image", image, "b c h w")
    return sizes["h"], sizes["w"]


def _kernel_sides(owner: str, kernel: Tensor) -> tuple[int, int]:
    check_floating(owner, "kernel", kernel)
    sizes = check_shape(owner, "kernel", kernel, "kh kw")
    if sizes["kh"] % 2 == 0 or sizes["kw"] % 2 == 0:
        raise ValueError(f"{owner}: kernel must have odd sides; got {tuple(kernel.shape)}.")
    return sizes["kh"], sizes["kw"]


def _beyond(length: int, amount: int, padding: str, device: torch.device) -> Tensor:
    """Return which pixel of the image stands at each place from -amount to length + amount - 1."""
    place = torch.arange(-amount, length + amount, device=device)
    if padding == "replicate":
        return place.clamp(0, length - 1)
    if padding == "circular":
        return place.remainder(length)
    period = max(1, 2 * (length - 1))
    folded = place.remainder(period)
    return torch.minimum(folded, period - folded) if length > 1 else torch.zeros_like(place)
