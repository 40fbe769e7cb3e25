import colorsys

import numpy as np
import pytest
import torch
from cv_core.imaging.colour import (
    hsv_to_rgb,
    lab_to_rgb,
    rgb_to_gray,
    rgb_to_hsv,
    rgb_to_lab,
    rgb_to_ycbcr,
    ycbcr_to_rgb,
)
from PIL import Image


@pytest.fixture
def image():
    """Random colours, all corners of the cube, greys and near-blacks."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(72, 3, generator=generator, dtype=torch.float64)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    greys = torch.linspace(0, 0.01, 20, dtype=torch.float64)[:, None].expand(-1, 3)
    return torch.cat((colours, corners, greys)).T.reshape(1, 3, 10, 10)


@pytest.mark.parametrize(
    ("there", "back"),
    [(rgb_to_ycbcr, ycbcr_to_rgb), (rgb_to_hsv, hsv_to_rgb), (rgb_to_lab, lab_to_rgb)],
)
def test_round_trip(image, there, back):
    # Lab's published constants meet at the break of the curve to about 1e-7 only
    torch.testing.assert_close(back(there(image)), image, rtol=0, atol=1e-6)


def test_ycbcr_equals_jpeg(image):
    pixels = (image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    jpeg = np.asarray(Image.fromarray(pixels).convert("YCbCr")).astype(np.float64) / 255
    exact = torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255
    ours = rgb_to_ycbcr(exact)[0].permute(1, 2, 0).numpy()
    # JPEG centres the differences on 128 / 255 and rounds to 1 / 255
    ours[..., 1:] += 128 / 255 - 0.5
    np.testing.assert_allclose(np.clip(ours, 0, 1), jpeg, atol=1.01 / 255)


def test_hsv_equals_the_standard_library(image):
    ours = rgb_to_hsv(image)[0].flatten(1).T
    for colour, hsv in zip(image[0].flatten(1).T.tolist(), ours.tolist(), strict=True):
        assert hsv == pytest.approx(colorsys.rgb_to_hsv(*colour), abs=1e-12)


def test_known_colours():
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    assert rgb_to_gray(red).item() == pytest.approx(0.299)
    # JFIF prints these factors: Cb = 0.5 - 0.168736 R, Cr = 0.5 + 0.5 R
    ycbcr = rgb_to_ycbcr(red).flatten().tolist()
    assert ycbcr == pytest.approx([0.299, 0.5 - 0.168736, 1.0], abs=1e-6)
    # CIE Lab of the sRGB primary red under D65, from the standard's tables
    assert rgb_to_lab(red).flatten().tolist() == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    white = rgb_to_lab(torch.ones(1, 3, 1, 1)).flatten().tolist()
    assert white == pytest.approx([100.0, 0.0, 0.0], abs=0.02)


def test_greys_have_no_colour():
    grey = torch.full((1, 3, 1, 1), 0.4)
    assert rgb_to_gray(grey).item() == pytest.approx(0.4)
    assert rgb_to_ycbcr(grey).flatten().tolist() == pytest.approx([0.4, 0.5, 0.5])
    assert rgb_to_hsv(grey).flatten().tolist() == pytest.approx([0.0, 0.0, 0.4])


def test_lab_has_finite_gradients_at_black():
    image = torch.zeros(1, 3, 1, 1, requires_grad=True)
    rgb_to_lab(image).sum().backward()
    assert bool(torch.isfinite(image.grad).all())


def test_refusals():
    with pytest.raises(ValueError, match="must have shape"):
        rgb_to_lab(torch.rand(1, 4, 2, 2))
    with pytest.raises(TypeError, match="floating-point"):
        rgb_to_gray(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
