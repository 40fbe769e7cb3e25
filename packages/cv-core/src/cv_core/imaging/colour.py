"""Colour spaces: luma and YCbCr by ITU-R BT.601 (full range, as in JPEG), HSV, CIE Lab (D65, sRGB).

All functions take and return (B, 3, H, W). RGB, Y and all of HSV lie in [0, 1]; Cb and Cr are
centred on 0.5; L lies in [0, 100], a and b roughly in [-128, 127].
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cv_core.checks import check_floating, check_shape

_LUMA = (0.299, 0.587, 0.114)

# IEC 61966-2-1: linear sRGB to CIE XYZ under the white point D65
_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_WHITE = (0.95047, 1.0, 1.08883)
_DELTA = 6.0 / 29.0


def rgb_to_gray(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return the luma, 0.299 R + 0.587 G + 0.114 B (BT.601)."""
    red, green, blue = _channels("rgb_to_gray", image)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]


def rgb_to_ycbcr(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Convert to luma and colour differences: full range BT.601, grey at Cb = Cr = 0.5."""
    red, _, blue = _channels("rgb_to_ycbcr", image)
    luma = rgb_to_gray(image)[:, 0]
    cb = (blue - luma) / (2.0 * (1.0 - _LUMA[2])) + 0.5
    cr = (red - luma) / (2.0 * (1.0 - _LUMA[0])) + 0.5
    return torch.stack((luma, cb, cr), dim=1)


def ycbcr_to_rgb(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Invert ``rgb_to_ycbcr``. Values outside the RGB cube are not clipped."""
    luma, cb, cr = _channels("ycbcr_to_rgb", image)
    red = luma + 2.0 * (1.0 - _LUMA[0]) * (cr - 0.5)
    blue = luma + 2.0 * (1.0 - _LUMA[2]) * (cb - 0.5)
    green = (luma - _LUMA[0] * red - _LUMA[2] * blue) / _LUMA[1]
    return torch.stack((red, green, blue), dim=1)


def rgb_to_hsv(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Convert to hue, saturation and value, all in [0, 1]; greys have hue 0."""
    red, green, blue = _channels("rgb_to_hsv", image)
    value = image.amax(dim=1)
    chroma = value - image.amin(dim=1)
    divisor = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sector = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    saturation = chroma / torch.where(value > 0, value, torch.ones_like(value))
    return torch.stack(((sector / 6.0).remainder(1.0), saturation, value), dim=1)


def hsv_to_rgb(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Invert ``rgb_to_hsv``."""
    hue, saturation, value = _channels("hsv_to_rgb", image)
    # each channel falls off linearly with the distance of the hue from its own
    shift = torch.tensor([5.0, 3.0, 1.0], dtype=image.dtype, device=image.device)[:, None, None]
    place = (shift + 6.0 * hue[:, None]).remainder(6.0)
    drop = torch.minimum(place, 4.0 - place).clamp(0.0, 1.0)
    return value[:, None] * (1.0 - saturation[:, None] * drop)


def rgb_to_lab(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Convert sRGB to CIE 1976 L*a*b* under D65; Euclidean distance is roughly perceived."""
    _channels("rgb_to_lab", image)
    linear = torch.where(
        image <= 0.04045, image / 12.92, ((image.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4
    )
    ratio = _mix(linear, image.new_tensor(_XYZ)) / image.new_tensor(_WHITE)[:, None, None]
    root = torch.where(
        ratio > _DELTA**3,
        ratio.clamp_min(_DELTA**3) ** (1.0 / 3.0),
        ratio / (3.0 * _DELTA**2) + 4.0 / 29.0,
    )
    x, y, z = root.unbind(dim=1)
    return torch.stack((116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)), dim=1)


def lab_to_rgb(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Invert ``rgb_to_lab``. Colours outside sRGB are not clipped."""
    lightness, a, b = _channels("lab_to_rgb", image)
    y = (lightness + 16.0) / 116.0
    root = torch.stack((y + a / 500.0, y, y - b / 200.0), dim=1)
    ratio = torch.where(root > _DELTA, root**3, 3.0 * _DELTA**2 * (root - 4.0 / 29.0))
    inverse = torch.linalg.inv(torch.tensor(_XYZ, dtype=torch.float64)).to(image)
    linear = _mix(ratio * image.new_tensor(_WHITE)[:, None, None], inverse)
    low = 0.0031308
    return torch.where(
        linear <= low, 12.92 * linear, 1.055 * linear.clamp_min(low) ** (1.0 / 2.4) - 0.055
    )


def _mix(image: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("dc,bchw->bdhw", matrix, image)


def _channels(owner: str, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    check_floating(owner, "image", image)
    check_shape(owner, "image", image, "b 3 h w")
    first, second, third = image.unbind(dim=1)
    return first, second, third
