"""What another camera, light or weather does to a picture whose content stays.

All functions take RGB images (B, 3, H, W) in [0, 1] and return such images. An amount is one number
or a tensor (B,) with one for each image. ``cv_core.imaging.noise`` has the sensor's noise, and
``filter2d`` with ``disk_kernel`` is a lens out of focus.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cv_core.checks import check_floating, check_range, check_shape
from cv_core.imaging.colour import hsv_to_rgb, rgb_to_gray, rgb_to_hsv

# the tone matrix of the CSS filter "sepia" (W3C, Filter Effects Module Level 1)
_SEPIA = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))

Amount = float | Float[Tensor, " b"]
"""One number for all images, or one for each."""


def adjust_brightness(image: Float[Tensor, "b 3 h w"], factor: Amount) -> Float[Tensor, "b 3 h w"]:
    """Multiply by a factor of at least 0 and clip: 0 is black, 1 leaves the image."""
    amount = _amount("adjust_brightness", "factor", factor, image)
    return (amount * image).clamp(0.0, 1.0)


def adjust_contrast(image: Float[Tensor, "b 3 h w"], factor: Amount) -> Float[Tensor, "b 3 h w"]:
    """Scale the distance to the image's mean luma by a factor of at least 0, and clip."""
    amount = _amount("adjust_contrast", "factor", factor, image)
    mean = rgb_to_gray(image).mean((1, 2, 3), keepdim=True)
    return (mean + amount * (image - mean)).clamp(0.0, 1.0)


def adjust_saturation(image: Float[Tensor, "b 3 h w"], factor: Amount) -> Float[Tensor, "b 3 h w"]:
    """Scale the distance to the pixel's own luma by a factor of at least 0, and clip."""
    amount = _amount("adjust_saturation", "factor", factor, image)
    luma = rgb_to_gray(image)
    return (luma + amount * (image - luma)).clamp(0.0, 1.0)


def adjust_gamma(image: Float[Tensor, "b 3 h w"], gamma: Amount) -> Float[Tensor, "b 3 h w"]:
    """Raise to a power of at least 0: above 1 darkens the middle tones, below 1 lightens them."""
    return image.clamp(0.0, 1.0) ** _amount("adjust_gamma", "gamma", gamma, image)


def rotate_hue(image: Float[Tensor, "b 3 h w"], turns: Amount) -> Float[Tensor, "b 3 h w"]:
    """Turn the hue, in turns of the colour circle: 1/3 makes red green; greys stay."""
    amount = _amount("rotate_hue", "turns", turns, image, low=-math.inf)
    hue, saturation, value = rgb_to_hsv(image).split(1, dim=1)
    return hsv_to_rgb(torch.cat(((hue + amount).remainder(1.0), saturation, value), dim=1))


def sepia(image: Float[Tensor, "b 3 h w"], amount: Amount = 1.0) -> Float[Tensor, "b 3 h w"]:
    """Blend with its brown-toned copy by an amount in [0, 1]."""
    share = _amount("sepia", "amount", amount, image, high=1.0)
    toned = torch.einsum("dc,bchw->bdhw", image.new_tensor(_SEPIA), image).clamp(0.0, 1.0)
    return image + share * (toned - image)


def add_fog(
    image: Float[Tensor, "b 3 h w"],
    density: Amount,
    *,
    depth: Float[Tensor, "b 1 h w"] | None = None,
    airlight: float = 0.9,
) -> Float[Tensor, "b 3 h w"]:
    r"""Blend with white light by the law of Koschmieder, :math:`y = x t + a (1 - t)`.

    The transmission is :math:`t = e^{-\beta d}` with the density beta and the depth d.

    Args:
        image: RGB in [0, 1].
        density: At least 0, per unit of depth.
        depth: Distance of every pixel, at least 0, (B, 1, H, W); 1 everywhere by default.
        airlight: Brightness of the fog a, in [0, 1].
    """
    beta = _amount("add_fog", "density", density, image)
    check_range("add_fog", "airlight", airlight, low=0.0, high=1.0)
    b, _, h, w = image.shape
    if depth is None:
        depth = image.new_ones(b, 1, 1, 1)
    else:
        check_shape("add_fog", "depth", depth, "b 1 h w", b=b, h=h, w=w)
        if not bool((depth >= 0.0).all()):
            raise ValueError("add_fog: depth must be at least 0; got a lower value or NaN.")
    transmission = torch.exp(-beta * depth.to(image))
    return airlight + transmission * (image - airlight)


def _amount(
    owner: str,
    name: str,
    value: Amount,
    image: Tensor,
    *,
    low: float = 0.0,
    high: float = math.inf,
) -> Tensor | float:
    """Check image and amount; return what broadcasts over the batch."""
    check_floating(owner, "image", image)
    sizes = check_shape(owner, "image", image, "b 3 h w")
    if not isinstance(value, Tensor):
        check_range(owner, name, value, low=low, high=high)
        return float(value)
    check_shape(owner, name, value, "b", b=sizes["b"])
    if not bool((value.isfinite() & (value >= low) & (value <= high)).all()):
        raise ValueError(f"{owner}: {name} must lie in [{low:g}, {high:g}]; got {value.tolist()}.")
    return value.to(image)[:, None, None, None]
