"""FFT convolution against scipy's direct sums; deconvolution against the dense normal equations."""

import numpy as np
import pytest
import torch
from cv_core.numerics.fourier import (
    fft_convolve,
    fft_correlate,
    tikhonov_deconvolve,
    transfer_function,
    wiener_deconvolve,
)
from cv_core.numerics.linear import adjoint_error
from scipy import ndimage, signal

SCIPY = {"circular": "wrap", "zero": "constant", "reflect": "mirror", "replicate": "nearest"}
SIZES = [
    ((9, 12), (3, 5)),
    ((8, 7), (4, 3)),
    ((10, 10), (5, 6)),
    ((6, 5), (1, 1)),
    ((7, 6), (6, 4)),
]


def example(size, kernel_size, *leading):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(*leading, *size, generator=generator, dtype=torch.float64)
    kernel = torch.randn(kernel_size, generator=generator, dtype=torch.float64)
    return image, kernel


@pytest.mark.parametrize("boundary", SCIPY)
@pytest.mark.parametrize(("size", "kernel_size"), SIZES)
def test_convolution_equals_scipys_direct_sum(boundary, size, kernel_size):
    image, kernel = example(size, kernel_size)
    # scipy's centre of an even kernel lies where ours does, which flipping moves by one
    origin = [-1 if side % 2 == 0 else 0 for side in kernel_size]
    flipped = kernel.numpy()[::-1, ::-1]
    expected = ndimage.correlate(image.numpy(), flipped, mode=SCIPY[boundary], origin=origin)
    ours = fft_convolve(image, kernel, boundary=boundary)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12)


def test_zero_boundary_equals_same_mode_for_odd_kernels():
    image, kernel = example((9, 12), (3, 5))
    expected = signal.convolve2d(image.numpy(), kernel.numpy(), mode="same")
    np.testing.assert_allclose(
        fft_convolve(image, kernel, boundary="zero").numpy(), expected, atol=1e-12
    )


def test_batches_and_kernels_of_their_own():
    image, _ = example((9, 12), (3, 5), 2, 3)
    kernels = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for boundary in SCIPY:
        whole = fft_convolve(image, kernels, boundary=boundary)
        for b in range(2):
            for c in range(3):
                single = fft_convolve(image[b, c], kernels[c], boundary=boundary)
                torch.testing.assert_close(whole[b, c], single)


def test_a_delta_and_a_shift():
    image, _ = example((6, 8), (1, 1))
    delta = torch.zeros(3, 4, dtype=torch.float64)
    delta[1, 2] = 1.0
    torch.testing.assert_close(fft_convolve(image, delta), image)
    torch.testing.assert_close(
        fft_convolve(image, delta.roll((1, -1), (0, 1))), image.roll((1, -1), (0, 1))
    )


@pytest.mark.parametrize("boundary", ["circular", "zero"])
@pytest.mark.parametrize(("size", "kernel_size"), SIZES)
def test_correlation_is_the_adjoint(boundary, size, kernel_size):
    image, kernel = example(size, kernel_size)
    error = adjoint_error(
        lambda x: fft_convolve(x, kernel, boundary=boundary),
        lambda y: fft_correlate(y, kernel, boundary=boundary),
        image,
        image,
    )
    assert error < 1e-14


def dense(kernel, size):
    """The matrix of a circular convolution, column by column."""
    count = size[0] * size[1]
    units = torch.eye(count, dtype=torch.float64).view(count, *size)
    return fft_convolve(units, kernel).reshape(count, count).T


def test_tikhonov_solves_the_normal_equations():
    image, kernel = example((6, 7), (3, 3))
    blur = dense(kernel, (6, 7))
    identity = torch.eye(42, dtype=torch.float64)
    expected = torch.linalg.solve(blur.T @ blur + 0.3 * identity, blur.T @ image.flatten())
    torch.testing.assert_close(tikhonov_deconvolve(image, kernel, 0.3).flatten(), expected)
    across = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    penalties = [across, across.T]
    rough = sum(dense(p, (6, 7)).T @ dense(p, (6, 7)) for p in penalties)
    expected = torch.linalg.solve(blur.T @ blur + 0.3 * rough, blur.T @ image.flatten())
    ours = tikhonov_deconvolve(image, kernel, 0.3, penalties=penalties)
    torch.testing.assert_close(ours.flatten(), expected)


def test_wiener_recovers_and_beats_other_weights_at_the_right_spectrum():
    image, _ = example((32, 32), (3, 3))
    kernel = torch.ones(3, 3, dtype=torch.float64) / 9
    blurred = fft_convolve(image, kernel)
    restored = wiener_deconvolve(blurred, kernel, 1e-12)
    torch.testing.assert_close(restored, image, atol=1e-6, rtol=0)
    noise = 0.1 * torch.randn(
        32, 32, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )

    def error(ratio):
        return float((wiener_deconvolve(blurred + noise, kernel, ratio) - image).square().mean())

    # white image of variance 1, white noise of variance 0.01: their ratio minimises the error
    assert error(0.01) < min(error(0.001), error(0.1))
    spectrum = torch.full((32, 17), 0.01, dtype=torch.float64)
    assert error(spectrum) == pytest.approx(error(0.01))


def test_transfer_function_of_a_symmetric_kernel_is_real():
    spectrum = transfer_function(torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64), (4, 8))
    expected = 0.5 + 0.5 * torch.cos(2 * torch.pi * torch.arange(5, dtype=torch.float64) / 8)
    torch.testing.assert_close(spectrum.real, expected.expand(4, 5))
    torch.testing.assert_close(spectrum.imag, torch.zeros(4, 5, dtype=torch.float64))


def test_refusals():
    image, kernel = torch.ones(4, 4), torch.ones(5, 3)
    with pytest.raises(ValueError, match="kernel must be at most as large"):
        fft_convolve(image, kernel)
    with pytest.raises(ValueError, match="boundary"):
        fft_correlate(image, image, boundary="reflect")
    with pytest.raises(ValueError, match="noise_to_signal"):
        wiener_deconvolve(image, image, 0.0)
    with pytest.raises(TypeError, match="floating"):
        fft_convolve(image.long(), image)
    # a constant image is seen by neither the blur nor the differences
    difference = torch.tensor([[1.0, -1.0]])
    with pytest.raises(ValueError, match="add a penalty"):
        tikhonov_deconvolve(image, difference, 1.0, penalties=[difference])
