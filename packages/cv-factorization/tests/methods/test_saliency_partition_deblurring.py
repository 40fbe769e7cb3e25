import pytest
import torch
from cv_core.imaging.kernels import motion_kernel
from cv_core.imaging.patches import Region, blend_patches, extract_patches
from cv_core.imaging.saliency import fit_generalized_gaussian, sun_saliency
from cv_core.numerics.fourier import fft_convolve
from cv_factorization.alignment import aligned_psnr, kernel_similarity
from cv_factorization.blind_deconvolution import BlindDeconvolver
from cv_factorization.methods.saliency_partition_deblurring import (
    deblur,
    partition_by_kernel,
    region_kernels,
    restore_regions,
)

ACROSS, DOWN = motion_kernel(9.0, 0.0, 11), motion_kernel(9.0, 90.0, 11)


def blocks(height, width, *, pixels=6, seed=0):
    """Flat squares of random grey: the images that the prior describes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(-(-height // pixels), -(-width // pixels), generator=generator)
    fine = coarse.repeat_interleave(pixels, 0).repeat_interleave(pixels, 1)
    return fine[None, :height, :width]


def told(y, kernels):
    """An estimator that reads the kernel off a map of labels in place of the image."""

    def estimate(patch, factor):
        label = round(float(patch.median()))
        return kernels[label]

    return estimate


def labels(height, width, *parts):
    image = torch.zeros(1, height, width)
    for region, label in parts:
        image[:, region.top : region.bottom, region.left : region.right] = label
    return image


def test_saliency_ignores_a_constant_and_vanishes_on_one():  # property 1
    image = blocks(40, 44)[None].double()
    torch.testing.assert_close(sun_saliency(image + 0.25), sun_saliency(image))
    assert float(sun_saliency(torch.full((1, 1, 40, 44), 0.7)).abs().max()) == 0.0


@pytest.mark.parametrize(("power", "shape"), [(2.0, 2.0), (1.0, 1.0)])
def test_moment_fit_tells_gaussian_from_laplacian(power, shape):  # property 2
    generator = torch.Generator().manual_seed(0)
    if power == 2.0:
        samples = torch.randn(200_000, generator=generator, dtype=torch.float64)
    else:
        uniform = torch.rand(200_000, generator=generator, dtype=torch.float64) - 0.5
        samples = -uniform.sign() * torch.log1p(-2.0 * uniform.abs())
    assert float(fit_generalized_gaussian(samples)[1]) == pytest.approx(shape, rel=0.03)


def test_blending_gives_back_the_image_in_its_corners_too():  # property 6
    image = blocks(40, 36)[None].double()
    regions = [Region(0, 0, 40, 12), Region(0, 12, 23, 24), Region(23, 12, 17, 24)]
    patches = extract_patches(image, regions, pad=3)
    torch.testing.assert_close(blend_patches(patches, regions, 40, 36, pad=3), image)


def test_one_blur_is_one_region_and_estimates_are_of_quarters():
    seen = []

    def estimate(patch, factor):
        seen.append((tuple(patch.shape), factor))
        return ACROSS

    regions = partition_by_kernel(torch.rand(1, 64, 96), estimate, min_size=16)
    assert regions == [Region(0, 0, 64, 96)]
    assert seen == [((1, 8, 12), 4)] * 4  # reduced until the smaller side is below 2 min_size


@pytest.mark.parametrize("upright", [True, False])
def test_two_halves_become_two_regions(upright):
    right, below = Region(0, 32, 64, 32), Region(32, 0, 32, 64)
    other = right if upright else below
    y = labels(64, 64, (other, 1))
    regions = partition_by_kernel(y, told(y, [ACROSS, DOWN]), min_size=32)
    first = Region(0, 0, 64, 32) if upright else Region(0, 0, 32, 64)
    assert regions == [first, other]


def test_one_odd_quarter_leaves_three_regions_and_a_small_one_is_found_deeper():
    y = labels(64, 64, (Region(32, 32, 32, 32), 1))
    regions = partition_by_kernel(y, told(y, [ACROSS, DOWN]), min_size=32)
    assert len(regions) == 3
    assert Region(32, 32, 32, 32) in regions
    assert sum(region.height * region.width for region in regions) == 64 * 64
    assert len(partition_by_kernel(y, told(y, [ACROSS, DOWN]), min_size=33)) == 1


def test_four_kernels_are_four_regions_to_the_threshold():
    quarters = Region(0, 0, 48, 50).quarters()
    kernels = [motion_kernel(9.0, angle, 11) for angle in (0.0, 45.0, 135.0, 90.0)]
    y = labels(48, 50, *zip(quarters, range(4), strict=True))
    assert partition_by_kernel(y, told(y, kernels), min_size=24) == list(quarters)
    assert len(partition_by_kernel(y, told(y, kernels), min_size=24, threshold=-1.0)) == 1


def test_restoration_with_one_true_kernel_each_beats_the_wrong_one():
    sharp = blocks(48, 96)
    halves = [Region(0, 0, 48, 48), Region(0, 48, 48, 48)]
    blurred = torch.cat(
        [fft_convolve(sharp, k)[..., r.left : r.right] for k, r in zip((ACROSS, DOWN), halves,
                                                                       strict=True)],
        dim=2,
    )  # fmt: skip
    right = restore_regions(blurred, halves, [ACROSS, DOWN])
    wrong = restore_regions(blurred, halves, [DOWN, ACROSS])
    border = {"crop_border": 8}
    before = aligned_psnr(blurred, sharp, **border)
    assert aligned_psnr(right, sharp, **border) > before + 2.0
    assert aligned_psnr(wrong, sharp, **border) < before
    assert 0.0 <= float(right.min()) <= float(right.max()) <= 1.0


def test_blind_estimate_finds_the_blur_of_a_flat_world():
    sharp = blocks(96, 96, pixels=8)
    true = motion_kernel(7.0, 0.0)
    blurred = fft_convolve(sharp, true)
    model = BlindDeconvolver(11).fit(blurred)
    assert kernel_similarity(model.kernel_, true) > 0.9
    assert kernel_similarity(model.kernel_, true) > kernel_similarity(torch.ones(1, 1), true) + 0.3
    assert float(model.kernel_.min()) >= 0.0  # property 5
    assert float(model.kernel_.sum()) == pytest.approx(1.0, abs=1e-5)
    restored = restore_regions(blurred, [Region(0, 0, 96, 96)], [model.kernel_])
    options = {"crop_border": 10}
    assert aligned_psnr(restored, sharp, **options) > aligned_psnr(blurred, sharp, **options) + 3.0
    sides = [row["side"] for row in model.history_]
    assert sides == sorted(sides)
    assert sides[0] == 3
    assert sides[-1] == 11
    assert model.latent_.shape == (96, 96)


def test_saliency_enters_with_its_weight_only():
    y = fft_convolve(blocks(40, 40), motion_kernel(5.0))

    def never(image):
        return torch.ones_like(image[:, 0])

    options = {"kernel_size": 7, "sweeps": 2, "pyramid": False}
    plain = BlindDeconvolver(alpha=0.0, **options).fit(y).kernel_
    even = BlindDeconvolver(alpha=0.0, saliency=never, **options).fit(y).kernel_
    torch.testing.assert_close(plain, even)
    weighted = BlindDeconvolver(**options).fit(y).kernel_
    assert not torch.allclose(weighted, plain, atol=1e-4)


def test_colours_share_one_kernel_that_their_mean_gives():
    grey = fft_convolve(blocks(40, 40), motion_kernel(5.0)).double()
    options = {"kernel_size": 7, "sweeps": 1, "pyramid": False, "alpha": 0.0}
    one = BlindDeconvolver(**options).fit(grey).kernel_
    three = BlindDeconvolver(**options).fit(grey.expand(3, -1, -1)).kernel_
    torch.testing.assert_close(one, three)


def test_deblur_does_the_three_parts():
    sharp = blocks(48, 48)
    y = fft_convolve(sharp, motion_kernel(5.0))
    model = BlindDeconvolver(7, sweeps=2)
    done = deblur(y, model)
    assert done.regions == [Region(0, 0, 48, 48)]  # too small to be cut
    kernels = region_kernels(y, done.regions, model)
    assert torch.equal(done.kernels[0], kernels[0])
    assert torch.equal(done.image, restore_regions(y, done.regions, kernels))
    assert not hasattr(model, "kernel_")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"kernel_size": 1}, "kernel_size must be at least 3"),
        ({"kernel_size": 51}, "y must have sides of at least 51"),
        ({"alpha": -1.0}, "alpha must lie in"),
        ({"gamma": 0.0}, "gamma must lie in"),
        ({"lam": 0.0}, "lam must lie in"),
        ({"prox": "l0"}, "prox must be one of"),
        ({"solver": "lu"}, "solver must be one of"),
        ({"kernel_step": "cut"}, "kernel_step must be one of"),
        ({"sweeps": 0}, "sweeps must be at least 1"),
        ({"decay": 0.9}, "decay must lie in"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"BlindDeconvolver: .*{message}"):
        BlindDeconvolver(**{"kernel_size": 7, **options}).fit(torch.rand(1, 40, 40))


def test_bad_images_are_refused():
    y = torch.rand(1, 40, 40)
    with pytest.raises(TypeError, match="y must be a floating-point tensor"):
        deblur((255 * y).byte())
    with pytest.raises(ValueError, match="y must be finite"):
        deblur(y * torch.nan)
    with pytest.raises(ValueError, match=r"y must have shape \(c, h, w\)"):
        deblur(y[0])
    with pytest.raises(ValueError, match="kernels must be as many as regions"):
        restore_regions(y, [Region(0, 0, 40, 40)], [])
    with pytest.raises(ValueError, match="threshold must lie in"):
        partition_by_kernel(y, told(y, []), threshold=2.0)
