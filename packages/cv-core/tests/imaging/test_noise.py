import math

import pytest
import torch
from cv_core.imaging.noise import (
    add_gaussian_noise,
    add_impulse_noise,
    add_poisson_noise,
    add_speckle,
)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


N = 100_000


def test_gaussian_moments_and_seed():
    image = torch.full((1, 1, N, 1), 0.3)
    noisy = add_gaussian_noise(image, 0.2, _generator())
    assert noisy.mean().item() == pytest.approx(0.3, abs=5 * 0.2 / N**0.5)
    assert noisy.std().item() == pytest.approx(0.2, rel=5 / (2 * N) ** 0.5)
    torch.testing.assert_close(add_gaussian_noise(image, 0.2, _generator()), noisy, rtol=0, atol=0)
    assert not torch.equal(add_gaussian_noise(image, 0.2, _generator(1)), noisy)
    torch.testing.assert_close(add_gaussian_noise(image, 0.0, _generator()), image)


def test_poisson_variance_is_the_mean_over_the_peak():
    image = torch.full((1, 1, N, 1), 0.4)
    noisy = add_poisson_noise(image, 20.0, _generator())
    assert noisy.mean().item() == pytest.approx(0.4, abs=5 * (0.02 / N) ** 0.5)
    assert noisy.var().item() == pytest.approx(0.02, rel=0.03)
    counts = noisy * 20.0
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-5)


def test_impulse_rates_hit_all_channels_of_a_pixel():
    image = torch.full((2, 3, N // 2, 1), 0.5)
    noisy = add_impulse_noise(image, 0.3, _generator(), salt=0.25)
    assert bool((noisy == noisy[:, :1]).all())
    shares = [(noisy[:, 0] == value).double().mean().item() for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.225, 0.7, 0.075], abs=5 * 0.5 / N**0.5)
    torch.testing.assert_close(add_impulse_noise(image, 0.0, _generator()), image)
    assert add_impulse_noise(image, 1.0, _generator(), salt=1.0).unique().tolist() == [1.0]


@pytest.mark.parametrize("looks", [1.0, 2.5, 8.0])
def test_speckle_is_a_gamma_of_mean_one(looks):
    image = torch.full((1, 1, N, 1), 0.4, dtype=torch.float64)
    speckle = add_speckle(image, looks, _generator()) / 0.4
    # moments of a Gamma of shape L and scale 1 / L, within five standard errors
    second, third = (looks + 1) / looks, (looks + 1) * (looks + 2) / looks**2
    fourth, sixth = (math.prod(looks + k for k in range(order)) / looks**order for order in (4, 6))
    assert speckle.mean().item() == pytest.approx(1.0, abs=5 / (looks * N) ** 0.5)
    error = 5 * ((fourth - second**2) / N) ** 0.5
    assert speckle.square().mean().item() == pytest.approx(second, abs=error)
    error = 5 * ((sixth - third**2) / N) ** 0.5
    assert speckle.pow(3).mean().item() == pytest.approx(third, abs=error)


def test_speckle_of_amplitudes_is_the_root_of_that_of_intensities():
    image = torch.rand(2, 1, 30, 40, generator=_generator(1))
    intensities = add_speckle(image.square(), 3.0, _generator())
    amplitudes = add_speckle(image, 3.0, _generator(), domain="amplitude")
    torch.testing.assert_close(amplitudes.square(), intensities)
    flat = torch.ones(1, 1, N, 1)
    expected = math.gamma(3.5) / (math.gamma(3) * 3**0.5)
    found = add_speckle(flat, 3.0, _generator(), domain="amplitude").mean().item()
    assert found == pytest.approx(expected, abs=5 * (1 - expected**2) ** 0.5 / N**0.5)


def test_speckle_is_independent_from_pixel_to_pixel_and_never_clipped():
    noisy = add_speckle(torch.full((1, 1, 300, 300), 0.9), 4.0, _generator())
    speckle = (noisy / 0.9 - 1.0)[0, 0]
    neighbours = (speckle[:, :-1] * speckle[:, 1:]).mean().item()
    assert neighbours == pytest.approx(0.0, abs=5 * 0.25 / 300)
    assert noisy.max().item() > 1.0


def test_each_image_may_have_its_own_looks():
    looks = torch.tensor([1.0, 16.0])
    noisy = add_speckle(torch.ones(2, 1, 200, 200), looks, _generator())
    variances = noisy.var((1, 2, 3)).tolist()
    assert variances == pytest.approx([1.0, 1 / 16], rel=0.1)


def test_speckle_in_half_precision():
    image = torch.rand(1, 1, 50, 50, generator=_generator(1)).half()
    noisy = add_speckle(image, 0.5, _generator())
    assert noisy.dtype == torch.float16
    expected = add_speckle(image.float(), 0.5, _generator())
    torch.testing.assert_close(noisy.float(), expected, rtol=2e-3, atol=1e-6)


def test_speckle_refuses():
    image = torch.rand(2, 1, 4, 4)
    for looks in (0.0, float("nan")):
        with pytest.raises(ValueError, match="looks must lie in"):
            add_speckle(image, looks, _generator())
    with pytest.raises(ValueError, match="looks must be finite and above 0"):
        add_speckle(image, torch.tensor([1.0, 0.0]), _generator())
    with pytest.raises(ValueError, match=r"looks must have shape \(b\) with b=2"):
        add_speckle(image, torch.ones(3), _generator())
    with pytest.raises(ValueError, match="domain must be one of"):
        add_speckle(image, 1.0, _generator(), domain="decibel")
    with pytest.raises(ValueError, match="add_speckle: image must not be negative"):
        add_speckle(-image, 1.0, _generator())


def test_refusals():
    image = torch.full((1, 1, 2, 2), -0.1)
    with pytest.raises(ValueError, match="must not be negative"):
        add_poisson_noise(image, 10.0, _generator())
    with pytest.raises(ValueError, match="negative or NaN; its least is nan"):
        add_poisson_noise(torch.tensor([0.5, float("nan")]), 10.0, _generator())
    with pytest.raises(ValueError, match=r"image must have shape \(b, c, h, w\)"):
        add_impulse_noise(torch.rand(3, 4, 4), 0.5, _generator())
    with pytest.raises(ValueError, match="rate must lie in"):
        add_impulse_noise(image, 1.2, _generator())
    with pytest.raises(ValueError, match="sigma must lie in"):
        add_gaussian_noise(image, -1.0, _generator())


def test_impulses_are_as_rare_in_half_precision():
    image = torch.full((1, 1, N, 1), 0.5)
    noisy = add_impulse_noise(image.half(), 2e-4, _generator(), salt=1.0)
    assert noisy.dtype == torch.float16
    expected = add_impulse_noise(image, 2e-4, _generator(), salt=1.0)
    torch.testing.assert_close(noisy.float(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_generator_of_the_cpu_gives_a_gpu_the_same_noise():
    image = torch.rand(2, 3, 8, 8)
    for noise, amount in ((add_gaussian_noise, 0.1), (add_impulse_noise, 0.3)):
        found = noise(image.cuda(), amount, _generator())
        torch.testing.assert_close(found.cpu(), noise(image, amount, _generator()))
        on_gpu = torch.Generator("cuda").manual_seed(0)
        assert noise(image.cuda(), amount, on_gpu).is_cuda
    assert add_poisson_noise(image.cuda(), 10.0, _generator()).is_cuda
