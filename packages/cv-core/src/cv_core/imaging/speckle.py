r"""Classical filters of speckle, the noise of radar and ultrasound: Lee, Frost, SRAD, log NLM.

The image is an intensity :math:`y = x s` with :math:`\mathrm{E} s = 1` and
:math:`\mathrm{Var}\, s = 1 / L` (see ``cv_core.imaging.noise.add_speckle``). The number of looks L
is given with the data, or measured as ``cv_core.metrics.speckle.enl`` of a flat area. Every filter
takes a batch, treats all channels alike and commutes with a change of the unit: f(c y) = c f(y).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from cv_core.checks import check_floating, check_integer, check_odd, check_range, check_shape
from cv_core.imaging.filtering import filter_separable, pad_image

_DARK = 1e-6  # darker pixels, as a share of the image's largest value, divide as if they were this


def lee_filter(
    image: Float[Tensor, "b c h w"], looks: float, *, size: int = 7
) -> Float[Tensor, "b c h w"]:
    r"""Filter of Lee, IEEE TPAMI 2, 1980: between the local mean and the pixel, by local contrast.

    .. math:: \hat x = m + w (y - m), \qquad w = \max(0, 1 - \sigma_s^2 / C^2)

    with m and C the mean and the coefficient of variation (deviation over mean) in a window around
    the pixel and :math:`\sigma_s^2 = 1 / L` that of the speckle.

    Args:
        image: Intensities, not negative.
        looks: Number of looks L, above 0.
        size: Odd side of the window.

    Returns:
        The filtered intensities.

    Raises:
        ValueError: If the image holds a negative value or NaN, or an option lies outside its range.
    """
    _check("lee_filter", image, looks)
    mean, squared_variation = _local("lee_filter", image, size)
    # a flat window has no variation, and keeps its mean
    keep = (1.0 - 1.0 / (looks * squared_variation)).clamp(0.0, 1.0)
    return mean + keep * (image - mean)


def frost_filter(
    image: Float[Tensor, "b c h w"], *, size: int = 5, damping: float = 2.0
) -> Float[Tensor, "b c h w"]:
    r"""Filter of Frost et al., IEEE TPAMI 4, 1982: a mean that narrows where contrast is high.

    .. math::
        \hat x_p = \frac{\sum_q w_{pq} y_q}{\sum_q w_{pq}}, \qquad
        w_{pq} = \exp(-k \, C_p^2 \, |p - q|)

    over the window around p, with C its coefficient of variation.

    Args:
        image: Intensities, not negative.
        size: Odd side of the window.
        damping: The factor k, at least 0; 0 is the mean over the window.

    Returns:
        The filtered intensities.

    Raises:
        ValueError: If the image holds a negative value or NaN, or an option lies outside its range.
    """
    _check("frost_filter", image, 1.0)
    check_range("frost_filter", "damping", damping, low=0.0)
    decay = -damping * _local("frost_filter", image, size)[1]
    radius, (height, width) = size // 2, image.shape[2:]
    padded = pad_image(image, radius, radius)
    total, weights = torch.zeros_like(image), torch.zeros_like(image)
    for row in range(size):
        for column in range(size):
            distance = ((row - radius) ** 2 + (column - radius) ** 2) ** 0.5
            weight = (decay * distance).exp()
            total += weight * padded[..., row : row + height, column : column + width]
            weights += weight
    return total / weights


def srad(
    image: Float[Tensor, "b c h w"],
    looks: float,
    *,
    steps: int = 60,
    rate: float = 0.2,
    decay: float = 1 / 6,
) -> Float[Tensor, "b c h w"]:
    r"""Speckle-reducing anisotropic diffusion of Yu and Acton, IEEE TIP 11, 2002.

    .. math::
        \partial_t I = \mathrm{div}(c \nabla I), \quad
        c = \frac{1}{1 + (q^2 - q_0^2) / (q_0^2 (1 + q_0^2))}, \quad
        q^2 = \frac{\frac12 |\nabla I|^2 / I^2 - \frac1{16} (\nabla^2 I / I)^2}
                   {(1 + \frac14 \nabla^2 I / I)^2}

    with :math:`q_0(t) = e^{-\rho t} / \sqrt{L}` the speckle that is left; t is the time, the rate
    times the steps. The gradient's square is the sum over the four neighbours, borders reflect.
    c is kept in [0, 1], so that no value leaves the range of the image's; the mean never changes.

    Args:
        image: Intensities, not negative.
        looks: Number of looks L, above 0.
        steps: Steps of the explicit scheme.
        rate: Length of a step, in (0, 1].
        decay: How fast the speckle is taken to fade, :math:`\rho`, at least 0.

    Returns:
        The filtered intensities.

    Raises:
        ValueError: If the image holds a negative value or NaN, or an option lies outside its range.
    """
    _check("srad", image, looks)
    check_integer("srad", "steps", steps, low=0)
    check_range("srad", "rate", rate, low=0.0, high=1.0, low_open=True)
    check_range("srad", "decay", decay, low=0.0)
    floor = _floor(image)
    now = image.clone()
    for step in range(steps):
        left = max(math.exp(-2.0 * decay * rate * step) / looks, 1e-12)
        down, right = now.diff(dim=2), now.diff(dim=3)
        c = _conductivity(now.clamp_min(floor), down, right, left)
        # The paper's scheme: between two pixels flows what the lower, or right, one lets through.
        down, right = c[..., 1:, :] * down, c[..., :, 1:] * right
        now += 0.25 * rate * (_out(down, 2) + _out(right, 3))
    return now


def _conductivity(image: Tensor, down: Tensor, right: Tensor, left: float) -> Tensor:
    flux = _out(down, 2) + _out(right, 3)  # the sum of the differences to the neighbours
    squares = _around(down.square(), 2) + _around(right.square(), 3)
    laplacian, slope = flux / image, squares.sqrt() / image
    found = (0.5 * slope.square() - laplacian.square() / 16) / (1 + 0.25 * laplacian).square()
    return (1 / (1 + (found - left) / (left * (1 + left)))).clamp(0.0, 1.0)


def _out(flow: Tensor, axis: int) -> Tensor:
    """Return what flows in behind each pixel less what flows in before it; none at the border."""
    return functional.pad(flow, _after(axis)) - functional.pad(flow, _before(axis))


def _around(values: Tensor, axis: int) -> Tensor:
    return functional.pad(values, _after(axis)) + functional.pad(values, _before(axis))


def _after(axis: int) -> tuple[int, ...]:
    return (0, 0, 0, 1) if axis == 2 else (0, 1)


def _before(axis: int) -> tuple[int, ...]:
    return (0, 0, 1, 0) if axis == 2 else (1, 0)


def nl_means(
    image: Float[Tensor, "b c h w"],
    sigma: float,
    *,
    patch: int = 5,
    search: int = 13,
    strength: float = 0.6,
) -> Float[Tensor, "b c h w"]:
    r"""Non-local means for Gaussian noise, Buades, Coll and Morel, IPOL 1, 2011, pixel by pixel.

    .. math::
        \hat x_p = \frac{\sum_q w_{pq} y_q}{\sum_q w_{pq}}, \qquad
        w_{pq} = \exp\Bigl(-\frac{\max(d_{pq}^2 - 2 \sigma^2, 0)}{h^2 \sigma^2}\Bigr)

    with :math:`d^2` the mean squared difference of the patches around p and q, which may lie
    anywhere in a window around p. Each channel is filtered on its own.

    Args:
        image: An image with noise of the same deviation everywhere.
        sigma: That deviation, above 0.
        patch: Odd side of the patches.
        search: Odd side of the window.
        strength: The factor h, above 0.

    Returns:
        The filtered image.

    Raises:
        ValueError: If an option lies outside its range.
    """
    owner = "nl_means"
    check_floating(owner, "image", image)
    height, width = list(check_shape(owner, "image", image, "b c h w").values())[2:]
    check_odd(owner, "patch", patch)
    check_odd(owner, "search", search)
    for name, value in (("sigma", sigma), ("strength", strength)):
        check_range(owner, name, value, low=0.0, low_open=True)
    reach, margin = search // 2, patch // 2
    padded = pad_image(image, reach + margin, reach + margin)
    tall, wide = height + 2 * margin, width + 2 * margin
    centre = padded[..., reach : reach + tall, reach : reach + wide]
    total, weights = torch.zeros_like(image), torch.zeros_like(image)
    for row in range(search):
        for column in range(search):
            other = padded[..., row : row + tall, column : column + wide]
            distance = functional.avg_pool2d((centre - other).square(), patch, stride=1)
            excess = (distance - 2.0 * sigma**2).clamp_min(0.0)
            weight = (-excess / (strength * sigma) ** 2).exp()
            total += weight * other[..., margin : margin + height, margin : margin + width]
            weights += weight
    return total / weights


def log_nl_means(
    image: Float[Tensor, "b c h w"],
    looks: float,
    *,
    patch: int = 5,
    search: int = 13,
    strength: float = 0.6,
) -> Float[Tensor, "b c h w"]:
    r"""Non-local means of the logarithm, where speckle is added and equally strong everywhere.

    The logarithm of speckle has the mean :math:`\psi(L) - \ln L`, which is subtracted, and the
    variance :math:`\psi'(L)`, with which ``nl_means`` filters.

    Args:
        image: Intensities, not negative.
        looks: Number of looks L, above 0.
        patch: Odd side of the patches.
        search: Odd side of the window.
        strength: Factor of the filter's strength, above 0.

    Returns:
        The filtered intensities.

    Raises:
        ValueError: If the image holds a negative value or NaN, or an option lies outside its range.
    """
    _check("log_nl_means", image, looks)
    shape = torch.tensor(float(looks), dtype=torch.float64)
    bias = (torch.digamma(shape) - shape.log()).item()
    sigma = torch.polygamma(1, shape).sqrt().item()
    logarithm = image.clamp_min(_floor(image)).log() - bias
    return nl_means(logarithm, sigma, patch=patch, search=search, strength=strength).exp()


def _check(owner: str, image: Tensor, looks: float) -> None:
    check_floating(owner, "image", image)
    check_shape(owner, "image", image, "b c h w")
    check_range(owner, "looks", looks, low=0.0, low_open=True)
    if not bool((image >= 0).all()):
        raise ValueError(
            f"{owner}: image must not be negative or NaN; its least is {image.min().item():g}."
        )


def _floor(image: Tensor) -> Tensor:
    tiny = torch.finfo(image.dtype).tiny
    return (_DARK * image.amax((1, 2, 3), keepdim=True)).clamp_min(tiny)


def _local(owner: str, image: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return each window's mean and its squared coefficient of variation."""
    check_odd(owner, "size", size)
    line = image.new_full((size,), 1.0 / size)
    mean = filter_separable(image, line, line)
    # around the image's own mean, so that little is lost to rounding
    shifted = image - image.mean((2, 3), keepdim=True)
    shifted_mean = filter_separable(shifted, line, line)
    variance = filter_separable(shifted.square(), line, line) - shifted_mean.square()
    # divided before they are squared: the square of a black image's floor would be zero
    return mean, (variance.clamp_min(0.0).sqrt() / mean.clamp_min(_floor(image))).square()
