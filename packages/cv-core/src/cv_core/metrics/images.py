"""Fidelity of images to a reference: MAE, PSNR and SSIM, one value per image.

The range of the values is never guessed: ``data_range`` is 1 for images in [0, 1]. ``crop_border``
leaves out that many pixels on each side, as papers on super-resolution do; they also measure the
brightness alone, which ``luma`` returns.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from cv_core.checks import (
    check_choice,
    check_floating,
    check_integer,
    check_range,
    check_same_shape,
    check_shape,
)

_CACHED = 2**18  # pixels worked on at once on a CPU, so that intermediate maps stay in its cache


def mae(
    images: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], *, crop_border: int = 0
) -> Float[Tensor, " b"]:
    """Return the mean absolute error of each image.

    Args:
        images: Images to judge.
        reference: What they should be.
        crop_border: Pixels to leave out on each side.

    Returns:
        One value per image.
    """
    images, reference = _prepare("mae", images, reference, crop_border)
    return (images - reference).abs().mean(dim=(1, 2, 3))


def psnr(
    images: Float[Tensor, "b c h w"],
    reference: Float[Tensor, "b c h w"],
    *,
    data_range: float = 1.0,
    crop_border: int = 0,
) -> Float[Tensor, " b"]:
    r"""Return the peak signal-to-noise ratio of each image, in decibels.

    .. math:: 10 \log_{10} \frac{\text{range}^2}{\text{MSE}}

    The mean of these values over a data set is what most papers print; it differs from the value
    for the mean error.

    Args:
        images: Images to judge.
        reference: What they should be.
        data_range: Largest less smallest value that an image can have.
        crop_border: Pixels to leave out on each side.

    Returns:
        One value per image; infinite for equal images.
    """
    check_range("psnr", "data_range", data_range, low=0.0, low_open=True)
    images, reference = _prepare("psnr", images, reference, crop_border)
    error = (images - reference).square().mean(dim=(1, 2, 3))
    return 10.0 * torch.log10(data_range**2 / error)


def ssim(
    images: Float[Tensor, "b c h w"],
    reference: Float[Tensor, "b c h w"],
    *,
    data_range: float = 1.0,
    crop_border: int = 0,
    border: Literal["reflect", "valid"] = "reflect",
) -> Float[Tensor, " b"]:
    r"""Return the structural similarity of each image, averaged over channels and pixels.

    Wang, Bovik, Sheikh and Simoncelli, Image quality assessment: from error visibility to
    structural similarity, IEEE Transactions on Image Processing 13, 2004. With local means,
    variances and covariance under a Gaussian of 11 x 11 pixels and standard deviation 1.5:

    .. math::
        \frac{(2\mu_x\mu_y + C_1)(2\sigma_{xy} + C_2)}
             {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)}, \quad
        C_1 = (0.01\, \text{range})^2, \; C_2 = (0.03\, \text{range})^2

    Differentiable with respect to both images.

    Args:
        images: Images to judge, at least 11 pixels high and wide.
        reference: What they should be.
        data_range: Largest less smallest value that an image can have.
        crop_border: Pixels to leave out on each side before anything else.
        border: ``"reflect"`` mirrors the images at their border and averages over all pixels;
            ``"valid"`` averages over the pixels whose window lies inside, as the paper does.

    Returns:
        One value per image, at most 1.
    """
    check_range("ssim", "data_range", data_range, low=0.0, low_open=True)
    check_choice("ssim", "border", border, ("reflect", "valid"))
    images, reference = _prepare("ssim", images, reference, crop_border)
    if min(images.shape[-2:]) < 11:
        raise ValueError(
            f"ssim: images must be at least 11 x 11 pixels, after crop_border={crop_border}; "
            f"got {tuple(images.shape)}."
        )
    window = _gaussian(images)
    at_once = max(1, _CACHED // images[0].numel()) if images.device.type == "cpu" else len(images)
    parts = zip(torch.split(images, at_once), torch.split(reference, at_once), strict=True)
    return torch.cat([_ssim(x, y, data_range, window, border) for x, y in parts])


def _ssim(
    images: Tensor, reference: Tensor, data_range: float, window: Tensor, border: str
) -> Tensor:
    # In sum s and difference d of the images, 4 xy = s² - d² and 2 (x² + y²) = s² + d². So four
    # maps are filtered instead of five, and equal images give exactly 1 in single precision.
    maps = torch.stack([images + reference, images - reference])
    blurred = _blur(torch.cat([maps, maps.square()]), window, border)
    squared_mean = blurred[:2].square()
    sum_mean, gap_mean = squared_mean
    sum_spread, gap_spread = blurred[2:] - squared_mean
    c1, c2 = 2.0 * (0.01 * data_range) ** 2, 2.0 * (0.03 * data_range) ** 2
    above = (sum_mean - gap_mean + c1) * (sum_spread - gap_spread + c2)
    below = (sum_mean + gap_mean + c1) * (sum_spread + gap_spread + c2)
    return (above / below).mean(dim=(1, 2, 3))


def _gaussian(like: Tensor) -> Tensor:
    offsets = torch.arange(-5, 6, dtype=like.dtype, device=like.device)
    window = torch.exp(-0.5 * (offsets / 1.5).square())
    return window / window.sum()


def _blur(maps: Tensor, window: Tensor, border: str) -> Tensor:
    planes = maps.flatten(0, -3)
    if border == "reflect":
        planes = functional.pad(planes, (5, 5, 5, 5), mode="reflect")
    count = len(planes)
    rows = window.expand(count, 1, 1, 11)
    blurred = functional.conv2d(planes[None], rows, groups=count)
    blurred = functional.conv2d(blurred, rows.mT, groups=count)
    return blurred.view(*maps.shape[:-2], *blurred.shape[-2:])


def luma(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return the Y channel of ITU-R BT.601 in its limited range [16, 235] / 255.

    Papers on super-resolution print PSNR and SSIM of this channel, with ``data_range=1``.

    Args:
        images: RGB images in [0, 1].

    Returns:
        One channel in [16/255, 235/255].
    """
    check_floating("luma", "images", images)
    check_shape("luma", "images", images, "b 3 h w")
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=images.dtype, device=images.device)
    return (torch.einsum("bchw,c->bhw", images, weights)[:, None] + 16.0) / 255.0


def _prepare(
    owner: str, images: Tensor, reference: Tensor, crop_border: int
) -> tuple[Tensor, Tensor]:
    check_floating(owner, "images", images)
    check_floating(owner, "reference", reference)
    shape = check_shape(owner, "images", images, "b c h w")
    check_same_shape(owner, images=images, reference=reference)
    half = (min(shape["h"], shape["w"]) - 1) // 2
    check_integer(owner, "crop_border", crop_border, low=0, high=half)
    inner = (
        ...,
        slice(crop_border, -crop_border or None),
        slice(crop_border, -crop_border or None),
    )
    return images[inner], reference[inner]
