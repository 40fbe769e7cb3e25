"""Noise of cameras and channels, drawn from a generator.

Nothing is clipped: a clipped noise is biased near black and white. Clamp the result where the
image has to be stored or shown. The draws are made on the generator's device and moved to the
image's: a generator of the CPU gives images on any device the same noise.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cv_core.checks import check_floating, check_range, check_shape


def add_gaussian_noise(
    image: Float[Tensor, "*shape"], sigma: float, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """Add independent Gaussian noise, ``x + sigma n``.

    Args:
        image: Of any shape, in [0, 1].
        sigma: Standard deviation on the scale of the image, at least 0; 25 / 255 is customary.
        generator: Draws the noise, on its own device.
    """
    check_floating("add_gaussian_noise", "image", image)
    check_range("add_gaussian_noise", "sigma", sigma, low=0.0)
    normal = torch.randn(
        image.shape, generator=generator, dtype=image.dtype, device=generator.device
    )
    return image + sigma * normal.to(image.device)


def add_poisson_noise(
    image: Float[Tensor, "*shape"], peak: float, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """Count photons, ``Poisson(peak x) / peak``: the mean is x and the variance x / peak.

    Args:
        image: Of any shape, in [0, 1].
        peak: Expected photons of a white pixel, above 0; fewer mean more noise.
        generator: Draws the noise, on its own device.

    Raises:
        ValueError: If the image holds a negative value or NaN.
    """
    check_floating("add_poisson_noise", "image", image)
    check_range("add_poisson_noise", "peak", peak, low=0.0, low_open=True)
    if not bool((image >= 0).all()):
        raise ValueError(
            "add_poisson_noise: image must not be negative or NaN; its least is "
            f"{image.min().item():g}."
        )
    rate = (image * peak).to(generator.device)
    return torch.poisson(rate, generator=generator).to(image.device) / peak


def add_impulse_noise(
    image: Float[Tensor, "b c h w"], rate: float, generator: torch.Generator, *, salt: float = 0.5
) -> Float[Tensor, "b c h w"]:
    """Replace pixels by white or black (salt and pepper), all channels of a pixel alike.

    Args:
        image: A batch of images in [0, 1].
        rate: Share of the pixels that is replaced, in [0, 1].
        generator: Draws the noise, on its own device.
        salt: Share of white among the replaced pixels, in [0, 1].
    """
    check_floating("add_impulse_noise", "image", image)
    sizes = check_shape("add_impulse_noise", "image", image, "b c h w")
    check_range("add_impulse_noise", "rate", rate, low=0.0, high=1.0)
    check_range("add_impulse_noise", "salt", salt, low=0.0, high=1.0)
    pixels = (sizes["b"], 1, sizes["h"], sizes["w"])
    # in float32 also for half precision, whose draws would be too coarse for small rates
    draw = torch.rand(pixels, generator=generator, device=generator.device).to(image.device)
    white, hit = draw < rate * salt, draw < rate
    return torch.where(white, 1.0, torch.where(hit, 0.0, image))
