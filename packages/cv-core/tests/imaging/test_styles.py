import colorsys
import math

import pytest
import torch
from cv_core.imaging.styles import (
    add_fog,
    adjust_brightness,
    adjust_contrast,
    adjust_gamma,
    adjust_saturation,
    rotate_hue,
    sepia,
)

# what leaves the image as it is
NEUTRAL = {
    adjust_brightness: 1.0,
    adjust_contrast: 1.0,
    adjust_saturation: 1.0,
    adjust_gamma: 1.0,
    rotate_hue: 1.0,
    sepia: 0.0,
    add_fog: 0.0,
}
STRONG = {
    adjust_brightness: 1.7,
    adjust_contrast: 2.0,
    adjust_saturation: 3.0,
    adjust_gamma: 2.5,
    rotate_hue: 0.3,
    sepia: 1.0,
    add_fog: 1.2,
}


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 3, 5, 6, generator=generator, dtype=torch.float64)


def luma(red, green, blue):
    return 0.299 * red + 0.587 * green + 0.114 * blue


def clip(value):
    return min(max(value, 0.0), 1.0)


def brown(red, green, blue):
    return (
        clip(0.393 * red + 0.769 * green + 0.189 * blue),
        clip(0.349 * red + 0.686 * green + 0.168 * blue),
        clip(0.272 * red + 0.534 * green + 0.131 * blue),
    )


def turned(colour, turns):
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    return colorsys.hsv_to_rgb((hue + turns) % 1.0, saturation, value)


# one pixel by hand, from its colour, the image's mean luma and the amount
BY_HAND = {
    adjust_brightness: lambda c, _, a: [clip(a * x) for x in c],
    adjust_contrast: lambda c, mean, a: [clip(mean + a * (x - mean)) for x in c],
    adjust_saturation: lambda c, _, a: [clip(luma(*c) + a * (x - luma(*c))) for x in c],
    adjust_gamma: lambda c, _, a: [x**a for x in c],
    rotate_hue: lambda c, _, a: turned(c, a),
    sepia: lambda c, _, a: [(1 - a) * x + a * y for x, y in zip(c, brown(*c), strict=True)],
    add_fog: lambda c, _, a: [x * math.exp(-a) + 0.9 * (1 - math.exp(-a)) for x in c],
}


@pytest.mark.parametrize("function", NEUTRAL, ids=lambda function: function.__name__)
def test_every_pixel_by_hand_with_an_amount_for_each_image(image, function):
    amounts = torch.tensor([STRONG[function], NEUTRAL[function], STRONG[function] / 3])
    styled = function(image, amounts)
    for picture, out, amount in zip(image, styled, amounts.double().tolist(), strict=True):
        colours = picture.flatten(1).T.tolist()
        mean = sum(luma(*colour) for colour in colours) / len(colours)
        for colour, got in zip(colours, out.flatten(1).T.tolist(), strict=True):
            assert got == pytest.approx(BY_HAND[function](colour, mean, amount), abs=1e-6)


@pytest.mark.parametrize("function", NEUTRAL, ids=lambda function: function.__name__)
def test_neutral_amount_range_and_refusals(image, function):
    torch.testing.assert_close(function(image, NEUTRAL[function]), image)
    styled = function(image, STRONG[function])
    assert styled.min() >= 0
    assert styled.max() <= 1
    assert (styled - image).abs().max() > 0.05
    single = function(image.float(), torch.full((3,), STRONG[function], dtype=torch.float64))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), styled, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=f"{function.__name__}: .* must have shape"):
        function(image, torch.ones(2))
    with pytest.raises(ValueError, match=f"{function.__name__}: image must have shape"):
        function(image[:, :1], STRONG[function])
    for wrong in (math.nan, torch.full((3,), math.nan)):
        with pytest.raises(ValueError, match=f"{function.__name__}: .* must lie in"):
            function(image, wrong)
    if function is not rotate_hue:
        with pytest.raises(ValueError, match=f"{function.__name__}: .* must lie in"):
            function(image, -0.1)


def test_hue_of_greys_stays_and_three_thirds_return(image):
    grey = image[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(rotate_hue(grey, 0.4), grey)
    thrice = rotate_hue(rotate_hue(rotate_hue(image, 1 / 3), 1 / 3), 1 / 3)
    torch.testing.assert_close(thrice, image)
    torch.testing.assert_close(rotate_hue(image, 1 / 3), image.roll(1, dims=1))


def test_fog_by_depth(image):
    depth = torch.linspace(0, 3, 5, dtype=torch.float64)[:, None].expand(3, 1, 5, 6)
    fog = add_fog(image, 0.7, depth=depth, airlight=0.8)
    torch.testing.assert_close(fog[:, :, 0], image[:, :, 0])
    seen = math.exp(-0.7 * 1.5)
    torch.testing.assert_close(fog[:, :, 2], image[:, :, 2] * seen + 0.8 * (1 - seen))
    assert (add_fog(image, 100.0, airlight=0.8) - 0.8).abs().max() < 1e-12
    with pytest.raises(ValueError, match="add_fog: depth must have shape"):
        add_fog(image, 1.0, depth=depth[:, :, :4])
    for wrong in (-0.1, math.nan):
        with pytest.raises(ValueError, match="add_fog: depth must be at least 0"):
            add_fog(image, 1.0, depth=torch.full_like(depth, wrong))
    with pytest.raises(ValueError, match="airlight"):
        add_fog(image, 1.0, airlight=1.5)
