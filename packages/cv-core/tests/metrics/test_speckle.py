import itertools

import pytest
import torch
from cv_core.imaging.noise import add_speckle
from cv_core.metrics.speckle import enl, epd_roa, um


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _noisy(looks=4.0, side=64, seed=0):
    clean = torch.full((1, 1, side, side), 0.5, dtype=torch.float64)
    return add_speckle(clean, looks, _generator(seed))


@pytest.mark.parametrize("looks", [1.0, 4.0, 10.0])
def test_enl_of_a_speckled_constant_is_the_number_of_looks(looks):
    found = enl(_noisy(looks, side=400)).item()
    # the variance of 160,000 Gammas is known to about half a percent
    assert found == pytest.approx(looks, rel=0.03)


def test_enl_is_infinite_for_constants_and_counts_each_image_alone():
    constant = torch.full((1, 1, 7, 7), 0.1)
    images = torch.cat([constant, 0 * constant, torch.arange(49.0).view(1, 1, 7, 7)])
    values = torch.arange(49.0)
    expected = values.mean().item() ** 2 / values.var(correction=0).item()
    assert enl(images).tolist() == [torch.inf, torch.inf, pytest.approx(expected, rel=1e-5)]


@pytest.mark.parametrize("direction", ["h", "v"])
def test_epd_roa_is_one_without_filtering_and_blind_to_brightness(direction):
    noisy = _noisy()
    one = torch.ones(1, dtype=noisy.dtype)
    torch.testing.assert_close(epd_roa(noisy, noisy, direction=direction), one)
    torch.testing.assert_close(epd_roa(3.7 * noisy, noisy, direction=direction), one)


@pytest.mark.parametrize("direction", ["h", "v"])
def test_epd_roa_against_a_loop(direction):
    noisy = _noisy(side=12)
    denoised = noisy.roll(1, 2) * 0.7 + 0.2

    def total(image):
        lines = image[0, 0] if direction == "h" else image[0, 0].T
        return sum((a / b).abs().item() for line in lines for a, b in itertools.pairwise(line))

    found = epd_roa(denoised, noisy, direction=direction, floor=0.0).item()
    assert found == pytest.approx(total(denoised) / total(noisy), rel=1e-9)


def test_epd_roa_of_a_constant_is_what_its_documentation_says():
    noisy = _noisy(looks=6.0, side=400)
    found = epd_roa(torch.ones_like(noisy), noisy).item()
    assert found == pytest.approx(5 / 6, rel=0.02)


def test_one_black_pixel_does_not_decide_epd_roa():
    noisy = _noisy()
    noisy[..., 20, 20] = 0.0
    found = epd_roa(noisy.sqrt(), noisy).item()
    assert 0.0 < found < 2.0


def _truth(side=96):
    squares = torch.arange(side) // 32
    board = (squares[:, None] + squares) % 2
    return (0.2 + 0.5 * board.double())[None, None]


def test_um_of_the_ideal_filter_is_small_and_a_blur_or_a_bias_raises_it():
    clean = _truth()
    noisy = add_speckle(clean, 4.0, _generator())
    ideal = um(clean, noisy, 4.0)
    blurred = um(torch.nn.functional.avg_pool2d(clean, 17, 1, 8), noisy, 4.0)
    darker = um(0.7 * clean, noisy, 4.0)
    assert ideal.total.item() < 3.0
    assert blurred.structure.item() > ideal.structure.item() + 3.0
    assert darker.residual.item() > ideal.residual.item() + 10.0
    torch.testing.assert_close(darker.structure, ideal.structure)
    torch.testing.assert_close(ideal.total, ideal.residual + ideal.structure)


def test_um_is_infinite_if_nothing_was_filtered():
    noisy = _noisy()
    found = um(noisy, noisy, 4.0)
    assert found.total.item() == torch.inf
    assert found.structure.item() == pytest.approx(0.0, abs=1e-9)


def test_um_residual_against_a_loop():
    clean = _truth(64)
    noisy = add_speckle(clean, 4.0, _generator(3))
    denoised = 0.5 * (clean + noisy)
    offs = []
    for top, left in itertools.product(range(0, 64, 16), repeat=2):
        y = noisy[0, 0, top : top + 16, left : left + 16]
        r = y / denoised[0, 0, top : top + 16, left : left + 16]
        looks = (y.mean() ** 2 / y.var(correction=0)).item()
        if looks >= 0.8 * 4.0:
            of_ratio = (r.mean() ** 2 / r.var(correction=0)).item()
            offs.append(0.5 * (abs(looks - of_ratio) / looks + abs(1 - r.mean().item())))
    assert len(offs) > 3
    found = um(denoised, noisy, 4.0).residual.item()
    assert found == pytest.approx(100 * sum(offs) / len(offs), rel=1e-9)


def _homogeneity(level):
    pairs = [(level[:, :-1], level[:, 1:]), (level[:-1], level[1:])]
    values = torch.cat([1 / (1 + (a - b).double().square()).flatten() for a, b in pairs])
    return values.mean().item()


def test_um_structure_equals_the_mean_over_drawn_shuffles():
    clean = _truth(48)
    noisy = add_speckle(clean, 4.0, _generator(5))
    ratio = (noisy / clean.mean())[0, 0]  # a filter that made everything flat
    edges = ratio.flatten().quantile(torch.linspace(0, 1, 9, dtype=ratio.dtype)[1:-1])
    level = torch.bucketize(ratio, edges)
    drawn = []
    for seed in range(200):
        order = torch.randperm(level.numel(), generator=_generator(seed))
        drawn.append(_homogeneity(level.flatten()[order].view_as(level)))
    found = um(clean.mean().expand_as(clean), noisy, 4.0).structure.item()
    here = _homogeneity(level)
    mean = sum(drawn) / len(drawn)
    error = torch.tensor(drawn).std().item() / len(drawn) ** 0.5
    assert found == pytest.approx(100 * (here - mean) / here, abs=5 * 100 * error / here)
    assert found > 5.0


def test_um_takes_the_flattest_window_where_none_is_flat():
    texture = torch.rand(1, 1, 32, 32, generator=_generator(), dtype=torch.float64)
    found = um(texture.mean().expand_as(texture), texture, 100.0)
    tiles = texture.unfold(2, 16, 16).unfold(3, 16, 16).reshape(4, 1, 16, 16)
    ratio = tiles[enl(tiles).argmax()] / texture.mean()
    assert found.residual.item() == pytest.approx(50 * (1 - ratio.mean()).abs().item(), rel=1e-6)


def test_refusals():
    noisy = _noisy(side=20)
    with pytest.raises(ValueError, match="must have the same shape"):
        epd_roa(noisy[..., 1:], noisy)
    with pytest.raises(ValueError, match="direction must be one of"):
        epd_roa(noisy, noisy, direction="d")
    with pytest.raises(ValueError, match="two neighbours"):
        epd_roa(noisy[..., :1], noisy[..., :1])
    with pytest.raises(ValueError, match="window must be at least 2 and at most 20"):
        um(noisy, noisy, 4.0, window=21)
    with pytest.raises(ValueError, match="looks must lie in"):
        um(noisy, noisy, 0.0)
    with pytest.raises(TypeError, match="floating-point"):
        enl(torch.ones(1, 1, 4, 4, dtype=torch.int64))
