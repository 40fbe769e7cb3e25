r"""Classical saliency: how improbable the filter responses at a pixel are.

Zhang, Tong, Marks, Shan, Cottrell, "SUN: A Bayesian framework for saliency using natural
statistics", Journal of Vision 8(7), 2008, here with the statistics of the image at hand instead of
a collection of images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cv_core.checks import check_finite, check_floating, check_range, check_shape
from cv_core.imaging.filtering import gaussian_blur

_SHAPES = (0.05, 20.0)  # beyond these the moments of any real response no longer tell shapes apart


def fit_generalized_gaussian(
    samples: Float[Tensor, "... n"],
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    r"""Fit a generalised Gaussian with mean 0 to samples by its first two absolute moments.

    .. math::
        p(f; \sigma, \theta) = \frac{\theta}{2 \sigma \Gamma(1/\theta)} e^{-|f/\sigma|^\theta},
        \qquad \frac{(E|f|)^2}{E f^2} = \frac{\Gamma(2/\theta)^2}{\Gamma(1/\theta)\Gamma(3/\theta)}

    Args:
        samples: One set of samples per row of the last axis.

    Returns:
        Scale :math:`\sigma` and shape :math:`\theta` per set; :math:`\theta = 2` is the Gaussian
        (:math:`\sigma` is then :math:`\sqrt 2` standard deviations), 1 the Laplacian. The shape is
        kept in [0.05, 20]. A set of zeros has scale 0 and shape 2.
    """
    check_floating("fit_generalized_gaussian", "samples", samples)
    check_shape("fit_generalized_gaussian", "samples", samples, "... n")
    check_finite("fit_generalized_gaussian", "samples", samples)
    values = samples.double()
    # the largest value becomes 1: squares of tiny responses would vanish otherwise
    largest = values.abs().amax(dim=-1, keepdim=True)
    values = values / torch.where(largest > 0, largest, torch.ones_like(largest))
    first, second = values.abs().mean(dim=-1), values.square().mean(dim=-1)
    empty = second == 0
    ratio = first.square() / torch.where(empty, torch.ones_like(second), second)
    shape = torch.where(empty, torch.full_like(ratio, 2.0), _solve_shape(ratio))
    scale = first * torch.exp(torch.lgamma(1.0 / shape) - torch.lgamma(2.0 / shape))
    return (scale * largest[..., 0]).to(samples.dtype), shape.to(samples.dtype)


def sun_saliency(
    image: Float[Tensor, "b c h w"],
    *,
    sigmas: Sequence[float] = (4.0, 8.0, 16.0, 32.0),
    shape: float | None = None,
) -> Float[Tensor, "b h w"]:
    r"""Return the self-information of band-pass responses at every pixel.

    Each channel is filtered at each scale by a difference of Gaussians

    .. math::
        DoG_\sigma(a, b) = \tfrac{1}{\sigma^2} e^{-(a^2+b^2)/\sigma^2}
        - \tfrac{1}{(1.6\sigma)^2} e^{-(a^2+b^2)/(1.6\sigma)^2},

    each response :math:`f_i` is modelled by a generalised Gaussian over the image, and
    :math:`S(z) = \sum_i |f_i(z) / \sigma_i|^{\theta_i}` is scaled to [0, 1] image by image. Borders
    are reflected, so that a constant image has no salient pixel; adding a constant changes nothing.

    Args:
        image: Of any number of channels, in [0, 1].
        sigmas: The scales :math:`\sigma` in pixels, each above 0.
        shape: The shape :math:`\theta` of all responses; fitted to each response by default.

    Returns:
        Saliency in [0, 1], one map per image; a constant image gives zeros.
    """
    check_floating("sun_saliency", "image", image)
    check_shape("sun_saliency", "image", image, "b c h w")
    check_finite("sun_saliency", "image", image)
    if not sigmas:
        raise ValueError("sun_saliency: sigmas must name at least one scale; got none.")
    for sigma in sigmas:
        check_range("sun_saliency", "sigmas", sigma, low=0.0, low_open=True)
    if shape is not None:
        check_range("sun_saliency", "shape", shape, low=0.0, low_open=True)
    responses = torch.cat([_band(image, sigma) for sigma in sigmas], dim=1)
    batch, _, height, width = image.shape
    information = _information(responses.flatten(2), shape).reshape(batch, height, width)
    low = information.amin(dim=(1, 2), keepdim=True)
    spread = information.amax(dim=(1, 2), keepdim=True) - low
    return (information - low) / torch.where(spread > 0, spread, torch.ones_like(spread))


def _information(responses: Tensor, shape: float | None) -> Tensor:
    scale, fitted = fit_generalized_gaussian(responses)
    if shape is not None:
        # for a fixed shape the likelihood has a closed form: scale^shape = shape E|f|^shape
        fitted = torch.full_like(fitted, shape)
        # of the shares of the largest response: powers of tiny responses would vanish
        largest = responses.abs().amax(dim=-1)
        shares = responses.abs() / torch.where(largest > 0, largest, 1.0)[..., None]
        scale = largest * (shape * shares.pow(shape).mean(dim=-1)).pow(1.0 / shape)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (responses.abs() / scale[..., None]).pow(fitted[..., None]).sum(dim=1)


def _band(image: Tensor, sigma: float) -> Tensor:
    # exp(-r^2 / s^2) is a Gaussian of standard deviation s / sqrt(2); each lobe integrates to pi
    narrow = gaussian_blur(image, sigma / math.sqrt(2.0))
    response = math.pi * (narrow - gaussian_blur(image, 1.6 * sigma / math.sqrt(2.0)))
    # float32 leaves noise of this size where the response is 0, and a fit would magnify it
    noise = 32 * torch.finfo(image.dtype).eps * image.abs().amax(dim=(2, 3), keepdim=True)
    return torch.where(response.abs() > noise, response, torch.zeros_like(response))


def _solve_shape(ratio: Tensor) -> Tensor:
    """Invert the moment ratio, which grows with the shape, by bisection on the logarithm."""
    low = torch.full_like(ratio, math.log(_SHAPES[0]))
    high = torch.full_like(ratio, math.log(_SHAPES[1]))
    target = ratio.clamp_min(1e-300).log()
    for _ in range(60):
        middle = 0.5 * (low + high)
        theta = middle.exp()
        value = 2 * torch.lgamma(2 / theta) - torch.lgamma(1 / theta) - torch.lgamma(3 / theta)
        below = value < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (0.5 * (low + high)).exp()
