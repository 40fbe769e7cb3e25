import pytest
import torch
from cv_core.imaging.styles import (
    adjust_brightness,
    adjust_contrast,
    adjust_gamma,
    adjust_saturation,
    rotate_hue,
    sepia,
)


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 7, 9, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("amount", [0.0, 0.3, 1.0, 2.2])
def test_torchvision(image, amount):
    tv = pytest.importorskip("torchvision.transforms.functional")
    # torchvision's luma has the rounded weights 0.2989, 0.587, 0.114
    torch.testing.assert_close(
        adjust_brightness(image, amount), tv.adjust_brightness(image, amount)
    )
    for ours, theirs in (
        (adjust_contrast, tv.adjust_contrast),
        (adjust_saturation, tv.adjust_saturation),
    ):
        torch.testing.assert_close(ours(image, amount), theirs(image, amount), atol=4e-4, rtol=0)
    torch.testing.assert_close(adjust_gamma(image, amount), tv.adjust_gamma(image, amount))
    turns = amount / 5
    # torchvision keeps parts of its hue in single precision
    theirs_turned = tv.adjust_hue(image, turns)
    torch.testing.assert_close(rotate_hue(image, turns), theirs_turned, atol=1e-5, rtol=0)


def test_kornia_sepia(image):
    kornia = pytest.importorskip("kornia")
    theirs = kornia.enhance.sepia if hasattr(kornia.enhance, "sepia") else kornia.color.sepia
    torch.testing.assert_close(sepia(image), theirs(image, rescale=False).clamp(0, 1))
