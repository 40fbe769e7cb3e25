import numpy as np
import pytest
import torch
from cv_core.imaging.filtering import (
    fft_convolve,
    fft_convolve_adjoint,
    filter2d,
    filter_separable,
    gaussian_blur,
    pad_image,
    transfer_function,
)
from scipy import ndimage

# the same borders under scipy's names
SCIPY = {"reflect": "mirror", "replicate": "nearest", "circular": "wrap", "zeros": "constant"}


def _random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("padding", sorted(SCIPY))
@pytest.mark.parametrize("sides", [(3, 5), (9, 1), (13, 21)])
def test_filter2d_equals_scipy_even_beyond_the_image(padding, sides):
    image, kernel = _random(2, 3, 6, 8), _random(*sides, seed=1)
    ours = filter2d(image, kernel, padding=padding)
    for sample in range(2):
        for channel in range(3):
            expected = ndimage.correlate(
                image[sample, channel].numpy(), kernel.numpy(), mode=SCIPY[padding], cval=0.0
            )
            np.testing.assert_allclose(ours[sample, channel].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("padding", sorted(SCIPY))
def test_separable_equals_the_outer_product(padding):
    image, vertical, horizontal = _random(1, 2, 7, 5), _random(5, seed=1), _random(3, seed=2)
    expected = filter2d(image, torch.outer(vertical, horizontal), padding=padding)
    ours = filter_separable(image, vertical, horizontal, padding=padding)
    torch.testing.assert_close(ours, expected)


def test_gaussian_blur_equals_scipy():
    image = _random(1, 1, 20, 30)
    expected = ndimage.gaussian_filter(image[0, 0].numpy(), 1.5, mode="mirror", truncate=4.0)
    np.testing.assert_allclose(gaussian_blur(image, 1.5)[0, 0].numpy(), expected, atol=1e-12)


def test_fft_convolution_equals_shifts_and_sums():
    image, kernel = _random(1, 2, 7, 6), _random(3, 5, seed=1)
    expected = torch.zeros_like(image)
    for row in range(3):
        for column in range(5):
            expected += kernel[row, column] * image.roll((row - 1, column - 2), dims=(2, 3))
    torch.testing.assert_close(fft_convolve(image, kernel), expected)
    # correlation with the flipped kernel is the same thing
    torch.testing.assert_close(filter2d(image, kernel.flip(0, 1), padding="circular"), expected)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_adjoint(size):
    x, y, kernel = _random(2, 1, *size), _random(2, 1, *size, seed=1), _random(5, 3, seed=2)
    left = (fft_convolve(x, kernel) * y).sum()
    right = (x * fft_convolve_adjoint(y, kernel)).sum()
    torch.testing.assert_close(left, right)


def test_transfer_function_of_a_point_is_one_and_its_zero_bin_is_the_sum():
    point = torch.zeros(3, 3, dtype=torch.float64)
    point[1, 1] = 1.0
    expected = torch.ones(6, 4, dtype=torch.complex128)
    torch.testing.assert_close(transfer_function(point, 6, 7), expected)
    kernel = _random(5, 5)
    torch.testing.assert_close(transfer_function(kernel, 9, 9)[0, 0].real, kernel.sum())


def test_pad_of_a_single_pixel_repeats_it():
    image = torch.full((1, 1, 1, 1), 3.0)
    for padding in ("reflect", "replicate", "circular"):
        assert pad_image(image, 2, 1, padding=padding).unique().tolist() == [3.0]


def test_gradients_pass():
    image = _random(1, 1, 5, 5).requires_grad_()
    kernel = _random(3, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(filter2d, (image, kernel))
    assert torch.autograd.gradcheck(fft_convolve, (image, kernel))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: filter2d(x, torch.ones(2, 3)), ValueError, "odd sides"),
        (lambda x: filter2d(x, torch.ones(3, 3), padding="mirror"), ValueError, "padding must be"),
        (lambda x: fft_convolve(x, torch.ones(7, 7)), ValueError, "must fit into the image"),
        (lambda x: pad_image(x, -1, 0), ValueError, "rows must be at least 0"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(1, 1, 5, 5))
