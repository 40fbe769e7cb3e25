import math

import pytest
import torch
from cv_core.imaging.filtering import filter2d
from cv_core.imaging.saliency import fit_generalized_gaussian, sun_saliency


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_fit_finds_gaussian_laplacian_and_their_scales():
    normal = torch.randn(200_000, generator=_generator(), dtype=torch.float64)
    uniform = torch.rand(200_000, generator=_generator(1), dtype=torch.float64) - 0.5
    laplace = -uniform.sign() * torch.log1p(-2 * uniform.abs())
    scale, shape = fit_generalized_gaussian(torch.stack((3.0 * normal, 0.1 * laplace)))
    # scale is sqrt(2) standard deviations for the Gaussian, the mean of |f| for the Laplacian
    assert shape.tolist() == pytest.approx([2.0, 1.0], rel=0.02)
    assert scale.tolist() == pytest.approx([3.0 * math.sqrt(2.0), 0.1], rel=0.02)


def test_fit_solves_the_moment_equation():
    samples = torch.randn(5, 400, generator=_generator(), dtype=torch.float64).pow(3)
    scale, shape = fit_generalized_gaussian(samples)
    for row, s, t in zip(samples, scale.tolist(), shape.tolist(), strict=True):
        first = s * math.gamma(2 / t) / math.gamma(1 / t)
        second = s * s * math.gamma(3 / t) / math.gamma(1 / t)
        assert row.abs().mean().item() == pytest.approx(first, rel=1e-9)
        assert row.square().mean().item() == pytest.approx(second, rel=1e-9)


def test_fit_of_tiny_and_of_no_signal():
    samples = torch.randn(1, 1000, generator=_generator())
    scale, shape = fit_generalized_gaussian(samples * 1e-30)
    reference = fit_generalized_gaussian(samples)
    torch.testing.assert_close(shape, reference[1])
    torch.testing.assert_close(scale, reference[0] * 1e-30)
    assert [part.item() for part in fit_generalized_gaussian(torch.zeros(1, 9))] == [0.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [None, 0.8])
def test_constant_image_has_no_saliency(dtype, shape):
    image = torch.full((2, 3, 24, 24), 0.37, dtype=dtype)
    assert sun_saliency(image, sigmas=(2.0, 4.0), shape=shape).abs().max().item() == 0.0


def test_adding_a_constant_changes_nothing():
    image = torch.rand(1, 3, 32, 32, generator=_generator(), dtype=torch.float64) * 0.5
    before = sun_saliency(image)
    torch.testing.assert_close(sun_saliency(image + 0.4), before, rtol=0, atol=1e-6)
    assert (before.min().item(), before.max().item()) == (0.0, 1.0)


@pytest.mark.parametrize("shape", [None, 1.3])
def test_equals_the_equations_written_out(shape):
    image = torch.rand(1, 2, 20, 20, generator=_generator(), dtype=torch.float64)
    total = torch.zeros(20, 20, dtype=torch.float64)
    for channel in range(2):
        for sigma in (1.0, 2.0):
            radius = math.ceil(5 * 1.6 * sigma)
            offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
            square = offset[:, None] ** 2 + offset[None, :] ** 2
            kernel = torch.exp(-square / sigma**2) / sigma**2
            kernel -= torch.exp(-square / (1.6 * sigma) ** 2) / (1.6 * sigma) ** 2
            kernel -= kernel.mean()
            response = filter2d(image[:, channel : channel + 1], kernel)[0, 0]
            if shape is None:
                scale, theta = fit_generalized_gaussian(response.flatten())
            else:
                scale = (shape * response.abs().pow(shape).mean()) ** (1 / shape)
                theta = shape
            total += (response.abs() / scale) ** theta
    expected = (total - total.min()) / (total.max() - total.min())
    ours = sun_saliency(image, sigmas=(1.0, 2.0), shape=shape)[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-3)  # 4 against 5 deviations cut off


def test_the_odd_one_out_is_most_salient():
    image = torch.full((1, 1, 64, 64), 0.5)
    image[0, 0, 8::16, 8::16] = 0.55
    image[0, 0, 38:43, 38:43] = 1.0
    row, column = divmod(int(sun_saliency(image, sigmas=(2.0, 4.0))[0].argmax()), 64)
    assert abs(row - 40) <= 2
    assert abs(column - 40) <= 2


def test_refusals():
    image = torch.rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match="at least one scale"):
        sun_saliency(image, sigmas=())
    with pytest.raises(ValueError, match="NaN or"):
        sun_saliency(image * math.nan)
    with pytest.raises(ValueError, match="shape must lie in"):
        sun_saliency(image, shape=0.0)


@pytest.mark.parametrize("shape", [None, 0.5, 8.0])
def test_a_faint_image_is_as_salient_as_a_strong_one(shape):
    image = torch.rand(1, 1, 24, 24)
    strong = sun_saliency(image, sigmas=(2.0,), shape=shape)
    faint = sun_saliency(image * 2.0**-20, sigmas=(2.0,), shape=shape)
    assert strong.max() == 1.0
    torch.testing.assert_close(faint, strong, rtol=1e-4, atol=1e-5)
