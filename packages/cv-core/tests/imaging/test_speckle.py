import math

import pytest
import torch
from cv_core.imaging.filtering import pad_image
from cv_core.imaging.noise import add_speckle
from cv_core.imaging.speckle import frost_filter, lee_filter, log_nl_means, nl_means, srad


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def noisy():
    image = torch.rand(2, 1, 9, 11, generator=_generator(), dtype=torch.float64)
    return add_speckle(image + 0.1, 4.0, _generator(1))


def _windows(image, size):
    """Yield every pixel's place, value and window of one image (H, W)."""
    padded = pad_image(image[None, None], size // 2, size // 2)[0, 0]
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            window = padded[row : row + size, column : column + size]
            yield row, column, image[row, column], window


def test_lee_against_a_loop(noisy):
    found = lee_filter(noisy, 4.0, size=5)
    for image, out in zip(noisy[:, 0], found[:, 0], strict=True):
        for row, column, value, window in _windows(image, 5):
            squared = window.var(correction=0) / window.mean() ** 2
            keep = max(0.0, 1.0 - 0.25 / squared.item())
            expected = window.mean() + keep * (value - window.mean())
            assert out[row, column].item() == pytest.approx(expected.item(), rel=1e-9)


def test_frost_against_a_loop(noisy):
    found = frost_filter(noisy, size=5, damping=1.5)
    for image, out in zip(noisy[:, 0], found[:, 0], strict=True):
        for row, column, _, window in _windows(image, 5):
            squared = (window.var(correction=0) / window.mean() ** 2).item()
            total = weights = 0.0
            for i in range(5):
                for j in range(5):
                    weight = math.exp(-1.5 * squared * math.hypot(i - 2, j - 2))
                    total += weight * window[i, j].item()
                    weights += weight
            assert out[row, column].item() == pytest.approx(total / weights, rel=1e-9)


def test_nl_means_against_a_loop(noisy):
    found = nl_means(noisy, 0.1, patch=3, search=5, strength=0.7)
    for image, out in zip(noisy[:, 0], found[:, 0], strict=True):
        height, width = image.shape
        padded = pad_image(image[None, None], 3, 3)[0, 0]  # reach 2 and half a patch
        for row in range(height):
            for column in range(width):
                mine = padded[row + 2 : row + 5, column + 2 : column + 5]
                total = weights = 0.0
                for i in range(5):
                    for j in range(5):
                        other = padded[row + i : row + i + 3, column + j : column + j + 3]
                        distance = (mine - other).square().mean().item()
                        weight = math.exp(-max(0.0, distance - 0.02) / 0.07**2)
                        total += weight * other[1, 1].item()
                        weights += weight
                assert out[row, column].item() == pytest.approx(total / weights, rel=1e-9)


def _slow_srad(image, looks, steps, rate, decay):
    """Pixel by pixel, as printed."""
    height, width = image.shape
    for step in range(steps):
        q0 = math.exp(-decay * step * rate) / math.sqrt(looks)
        c = torch.zeros_like(image)

        def at(values, row, column):
            return values[min(max(row, 0), height - 1), min(max(column, 0), width - 1)].item()

        places = [(row, column) for row in range(height) for column in range(width)]
        for row, column in places:
            here = at(image, row, column)
            north, south = at(image, row - 1, column), at(image, row + 1, column)
            west, east = at(image, row, column - 1), at(image, row, column + 1)
            forward = ((south - here) / here) ** 2 + ((east - here) / here) ** 2
            backward = ((here - north) / here) ** 2 + ((here - west) / here) ** 2
            laplacian = (north + south + west + east - 4 * here) / here
            q2 = 0.5 * (forward + backward) - laplacian**2 / 16
            q2 /= (1 + 0.25 * laplacian) ** 2
            c[row, column] = 1 / (1 + (q2 - q0**2) / (q0**2 * (1 + q0**2)))
        c = c.clamp(0, 1)
        after = image.clone()
        for row, column in places:
            here = at(image, row, column)
            after[row, column] += (rate / 4) * (
                at(c, row + 1, column) * (at(image, row + 1, column) - here)
                + at(c, row, column) * (at(image, row - 1, column) - here)
                + at(c, row, column + 1) * (at(image, row, column + 1) - here)
                + at(c, row, column) * (at(image, row, column - 1) - here)
            )
        image = after
    return image


def test_srad_against_a_loop(noisy):
    found = srad(noisy, 4.0, steps=3, rate=0.4, decay=0.3)
    for image, out in zip(noisy[:, 0], found[:, 0], strict=True):
        torch.testing.assert_close(out, _slow_srad(image, 4.0, 3, 0.4, 0.3))


def test_srad_keeps_the_mean_and_the_range(noisy):
    out = srad(noisy, 4.0, steps=40, rate=1.0)
    torch.testing.assert_close(out.mean((2, 3)), noisy.mean((2, 3)))
    assert bool((out.amax((2, 3)) <= noisy.amax((2, 3)) + 1e-12).all())
    assert bool((out.amin((2, 3)) >= noisy.amin((2, 3)) - 1e-12).all())
    assert bool((out.var((2, 3)) < 0.5 * noisy.var((2, 3))).all())


FILTERS = {
    "Lee": lambda image: lee_filter(image, 4.0),
    "Frost": frost_filter,
    "SRAD": lambda image: srad(image, 4.0, steps=10),
    "log NLM": lambda image: log_nl_means(image, 4.0),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_commute_with_the_unit_and_treat_images_and_channels_alike(name, noisy):
    denoise = FILTERS[name]
    out = denoise(noisy)
    torch.testing.assert_close(denoise(1000 * noisy), 1000 * out)
    torch.testing.assert_close(denoise(noisy[1:]), out[1:])
    torch.testing.assert_close(denoise(noisy.transpose(0, 1)), out.transpose(0, 1))
    if name != "SRAD":  # whose flow takes the conductivity of the lower and of the right pixel
        torch.testing.assert_close(denoise(noisy.flip(3)).flip(3), out)


@pytest.mark.parametrize("name", FILTERS)
def test_filters_remove_speckle_from_a_step_and_keep_it(name):
    clean = torch.full((1, 1, 60, 60), 0.2, dtype=torch.float64)
    clean[..., 30:] = 0.8
    noisy = add_speckle(clean, 4.0, _generator())
    out = FILTERS[name](noisy)
    assert (out - clean).square().mean() < 0.25 * (noisy - clean).square().mean()
    dark, bright = out[..., 5:20].mean().item(), out[..., 40:55].mean().item()
    assert dark == pytest.approx(0.2, rel=0.1)
    assert bright == pytest.approx(0.8, rel=0.1)


@pytest.mark.parametrize("name", FILTERS)
def test_black_and_constant_images_stay_what_they_are(name):
    for value in (0.0, 0.3):
        image = torch.full((1, 2, 16, 16), value)
        expected = image
        if name == "log NLM" and value:  # it corrects the mean of a logarithm it takes for speckle
            expected = image * math.exp(math.log(4.0) - torch.digamma(torch.tensor(4.0)).item())
        torch.testing.assert_close(FILTERS[name](image), expected, rtol=1e-4, atol=1e-30)
    hole = torch.full((1, 1, 16, 16), 0.3)
    hole[..., 8, 8] = 0.0
    assert bool(FILTERS[name](hole).isfinite().all())


def test_degenerate_options(noisy):
    mean = frost_filter(noisy, size=3, damping=0.0)
    torch.testing.assert_close(mean, lee_filter(noisy, 1e-9, size=3))  # all speckle: local means
    torch.testing.assert_close(lee_filter(noisy, 1e12, size=3), noisy)  # no speckle
    torch.testing.assert_close(srad(noisy, 4.0, steps=0), noisy)
    torch.testing.assert_close(nl_means(noisy, 0.1, search=1), noisy)


def test_refusals(noisy):
    for denoise in FILTERS.values():
        with pytest.raises(ValueError, match="image must not be negative or NaN"):
            denoise(-noisy)
        with pytest.raises(ValueError, match=r"image must have shape \(b, c, h, w\)"):
            denoise(noisy[0])
    for denoise in (lee_filter, srad, log_nl_means):
        with pytest.raises(ValueError, match="looks must lie in"):
            denoise(noisy, 0.0)
    with pytest.raises(ValueError, match="size must be odd"):
        lee_filter(noisy, 4.0, size=4)
    with pytest.raises(ValueError, match="rate must lie in"):
        srad(noisy, 4.0, rate=1.5)
    with pytest.raises(ValueError, match="sigma must lie in"):
        nl_means(noisy, 0.0)
