"""Image fidelity against torchmetrics, a loop over windows, and closed forms."""

import math

import pytest
import torch
from cv_core.metrics.images import luma, mae, psnr, ssim
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)


def pair(*shape, seed=0, dtype=torch.float32, noise=0.1):
    generator = torch.Generator().manual_seed(seed)
    reference = torch.rand(shape, generator=generator, dtype=dtype)
    other = reference + noise * torch.randn(shape, generator=generator, dtype=dtype)
    return other.clamp(0, 1), reference


@pytest.mark.parametrize("shape", [(5, 3, 48, 37), (2, 1, 11, 11), (90, 3, 20, 20)])
def test_ssim_equals_torchmetrics(shape):
    x, y = pair(*shape)
    theirs = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(x, y), theirs, atol=1e-5, rtol=0)
    theirs = structural_similarity_index_measure(
        255 * x, 255 * y, data_range=255.0, reduction="none"
    )
    torch.testing.assert_close(ssim(255 * x, 255 * y, data_range=255.0), theirs, atol=1e-5, rtol=0)


def slow_ssim(x, y, data_range):
    """One window after the other, in the paper's terms."""
    axis = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a = (window * (a - mean_a) ** 2).sum()
            var_b = (window * (b - mean_b) ** 2).sum()
            cov = (window * (a - mean_a) * (b - mean_b)).sum()
            structure = (2 * cov + c2) / (var_a + var_b + c2)
            values.append((2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * structure)
    return sum(values) / len(values)


def test_ssim_on_whole_windows_equals_a_loop():
    x, y = pair(2, 1, 16, 14, dtype=torch.float64)
    ours = ssim(3 * x, 3 * y, data_range=3.0, border="valid")
    for n in range(2):
        assert float(ours[n]) == pytest.approx(
            float(slow_ssim(3 * x[n, 0], 3 * y[n, 0], 3.0)), rel=1e-10
        )


def test_ssim_of_constant_images_in_closed_form():
    x, y = (torch.full((1, 1, 12, 12), value, dtype=torch.float64) for value in (0.3, 0.7))
    assert float(ssim(x, y)) == pytest.approx((2 * 0.21 + 1e-4) / (0.09 + 0.49 + 1e-4), rel=1e-9)


def test_equal_images_and_symmetry():
    x, y = pair(3, 3, 32, 32)
    assert torch.equal(ssim(x, x), torch.ones(3))
    torch.testing.assert_close(ssim(x, y), ssim(y, x))
    assert torch.equal(psnr(x, x), torch.full((3,), math.inf))
    assert torch.equal(mae(x, x), torch.zeros(3))


def test_images_do_not_mix():
    x, y = pair(4, 3, 40, 300)
    single = torch.cat([ssim(x[n : n + 1], y[n : n + 1]) for n in range(4)])
    torch.testing.assert_close(ssim(x, y), single)


def test_ssim_has_the_right_gradient():
    x, y = pair(1, 2, 12, 13, dtype=torch.float64)
    x.requires_grad_(True)
    for border in ("reflect", "valid"):
        assert torch.autograd.gradcheck(lambda x, b=border: ssim(x, y, border=b), (x,))


def test_psnr_and_mae():
    x, y = pair(4, 3, 16, 16, dtype=torch.float64)
    theirs = peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr(x, y), theirs)
    offset = torch.full((1, 1, 4, 4), 0.1, dtype=torch.float64)
    assert float(psnr(offset, 0 * offset)) == pytest.approx(20.0)
    assert float(psnr(255 * offset, 0 * offset, data_range=255.0)) == pytest.approx(20.0)
    assert float(mae(offset, -offset)) == pytest.approx(0.2)


@pytest.mark.parametrize("score", [mae, psnr, ssim])
def test_cropping_is_cropping(score):
    x, y = pair(2, 3, 20, 22)
    torch.testing.assert_close(
        score(x, y, crop_border=4), score(x[..., 4:-4, 4:-4], y[..., 4:-4, 4:-4])
    )


def test_luma_of_black_white_and_red():
    image = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]).view(1, 3, 1, 3)
    expected = torch.tensor([16.0, 235.0, 16.0 + 65.481]) / 255
    torch.testing.assert_close(luma(image).flatten(), expected)


def test_refusals():
    x, y = pair(1, 3, 16, 16)
    with pytest.raises(ValueError, match="same shape"):
        ssim(x, y[..., :-1])
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(x, y, crop_border=3)
    with pytest.raises(TypeError, match="floating"):
        psnr((255 * x).byte(), (255 * y).byte())
    with pytest.raises(ValueError, match="data_range"):
        psnr(x, y, data_range=0.0)
    with pytest.raises(ValueError, match="crop_border"):
        mae(x, y, crop_border=8)
    with pytest.raises(ValueError, match="border"):
        ssim(x, y, border="zeros")
