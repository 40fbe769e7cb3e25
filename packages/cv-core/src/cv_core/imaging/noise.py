"""Noise of cameras and channels, drawn from a generator.

Nothing is clipped: a clipped noise is biased near black and white. Clamp the result where the
image has to be stored or shown. The draws are made on the generator's device and moved to the
image's: a generator of the CPU gives images on any device the same noise.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from cv_core.checks import check_choice, check_floating, check_range, check_shape

Domain = Literal["intensity", "amplitude"]
"""What the values of a radar or ultrasound image are: amplitudes are roots of intensities."""


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
    _check_not_negative("add_poisson_noise", image)
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


def add_speckle(
    image: Float[Tensor, "*shape"],
    looks: float | Float[Tensor, " b"],
    generator: torch.Generator,
    *,
    domain: Domain = "intensity",
) -> Float[Tensor, "*shape"]:
    r"""Multiply by the speckle of a coherent image that is averaged over L looks.

    .. math::
        y = x s, \quad s \sim \mathrm{Gamma}(L, 1 / L), \quad
        \mathrm{E} s = 1, \; \mathrm{Var}\, s = 1 / L

    which is the model of intensities; amplitudes are multiplied by :math:`\sqrt{s}`, whose mean is
    below one: :math:`\Gamma(L + 1/2) / (\Gamma(L) \sqrt{L})`. At every pixel s is another draw.

    Args:
        image: Of any shape, not negative, usually in [0, 1].
        looks: The number of looks L, above 0 and not necessarily whole; or one for each image of
            a batch, (B,).
        generator: Draws the speckle, on its own device.
        domain: Whether the image's values are intensities or amplitudes.

    Raises:
        ValueError: If the image holds a negative value or NaN, or a number of looks is not above 0.

    Example:
        >>> flat = torch.full((1, 1, 300, 300), 0.5)
        >>> noisy = add_speckle(flat, 4.0, torch.Generator().manual_seed(0))
        >>> round(float(noisy.mean() ** 2 / noisy.var()), 1)  # the equivalent number of looks
        4.0
    """
    owner = "add_speckle"
    check_floating(owner, "image", image)
    check_choice(owner, "domain", domain, get_args(Domain))
    # a Gamma is drawn in single precision at least: in half a small shape would give zeros
    dtype = torch.promote_types(image.dtype, torch.float32)
    device = generator.device
    if isinstance(looks, Tensor):
        check_shape(owner, "looks", looks, "b", b=len(image) if image.ndim else 0)
        if not bool((looks > 0).all() & looks.isfinite().all()):
            raise ValueError(f"{owner}: looks must be finite and above 0; got {looks.tolist()}.")
        shape = looks.to(device, dtype).view(-1, *[1] * (image.ndim - 1)).expand(image.shape)
    else:
        check_range(owner, "looks", looks, low=0.0, low_open=True)
        shape = torch.full(image.shape, float(looks), dtype=dtype, device=device)
    _check_not_negative(owner, image)
    # torch.distributions.Gamma would draw from the global generator; this is what it calls
    speckle = torch._standard_gamma(shape.contiguous(), generator=generator) / shape
    if domain == "amplitude":
        speckle = speckle.sqrt()
    return image * speckle.to(image)


def _check_not_negative(owner: str, image: Tensor) -> None:
    if not bool((image >= 0).all()):
        raise ValueError(
            f"{owner}: image must not be negative or NaN; its least is {image.min().item():g}."
        )
