"""Equality with kornia, where it offers the same thing."""

import math

import pytest
import torch
from cv_core.imaging import colour
from cv_core.imaging.filtering import filter2d, gaussian_blur
from cv_core.imaging.kernels import gaussian_kernel

kornia = pytest.importorskip("kornia", reason="the peers' session installs it")


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 17, 19, generator=generator, dtype=torch.float64)


def test_gaussian_kernel():
    sigma = torch.tensor([[1.3, 1.3]], dtype=torch.float64)
    peer = kornia.filters.get_gaussian_kernel2d((9, 9), sigma)[0]
    torch.testing.assert_close(gaussian_kernel(1.3, 9, dtype=torch.float64), peer)


def test_gaussian_blur(image):
    size = 2 * math.ceil(4 * 1.3) + 1
    peer = kornia.filters.gaussian_blur2d(image, (size, size), (1.3, 1.3), border_type="reflect")
    torch.testing.assert_close(gaussian_blur(image, 1.3), peer)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("reflect", "reflect"),
        ("replicate", "replicate"),
        ("circular", "circular"),
        ("zeros", "constant"),
    ],
)
def test_filter2d(image, ours, theirs):
    kernel = torch.rand(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    peer = kornia.filters.filter2d(image, kernel[None], border_type=theirs)
    torch.testing.assert_close(filter2d(image, kernel, padding=ours), peer)


def test_gray_hsv_and_lab(image):
    torch.testing.assert_close(colour.rgb_to_gray(image), kornia.color.rgb_to_grayscale(image))
    peer = kornia.color.rgb_to_hsv(image)
    peer[:, 0] /= 2 * math.pi  # hue in radians there
    torch.testing.assert_close(colour.rgb_to_hsv(image), peer, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        colour.rgb_to_lab(image), kornia.color.rgb_to_lab(image), rtol=0, atol=1e-3
    )


def test_ycbcr(image):
    # there the factors are rounded to three digits
    peer = kornia.color.rgb_to_ycbcr(image)
    torch.testing.assert_close(colour.rgb_to_ycbcr(image), peer, rtol=0, atol=1e-3)
