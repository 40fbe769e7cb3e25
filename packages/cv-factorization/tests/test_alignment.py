import pytest
import torch
from cv_core.imaging.filtering import gaussian_blur
from cv_core.imaging.kernels import disk_kernel, motion_kernel
from cv_core.metrics.images import psnr
from cv_factorization.alignment import aligned_psnr, kernel_similarity, shift_image


def smooth(*shape, seed=0):
    noise = torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed))
    return gaussian_blur(noise, 2.0, padding="circular")[0].double()


def test_shifts_by_whole_pixels_are_rolls_and_fractions_add_up():
    image = smooth(2, 16, 20)
    torch.testing.assert_close(shift_image(image, 2, -3), image.roll((2, -3), dims=(1, 2)))
    halves = shift_image(shift_image(image, 0.5, 0.25), 0.5, -0.25)
    torch.testing.assert_close(halves, image.roll(1, dims=1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("step", [(2, -3), (0.5, 1.25), (-1.75, 0.0)])
def test_alignment_finds_the_shift(step):
    image = smooth(1, 48, 48)
    moved = shift_image(image, *step)
    plain = float(psnr(moved[None], image[None], crop_border=8))
    found = aligned_psnr(moved, image, crop_border=8)
    assert found > plain + 20.0
    assert found > 55.0


def test_alignment_without_room_is_the_plain_value():
    image, other = smooth(3, 32, 32), smooth(3, 32, 32, seed=1)
    plain = float(psnr(other[None], image[None], crop_border=4))
    assert aligned_psnr(other, image, max_shift=0, crop_border=4) == pytest.approx(plain, abs=1e-4)
    assert aligned_psnr(other, image, max_shift=1, crop_border=4) >= plain


def test_kernel_similarity_is_the_largest_correlation():
    line = motion_kernel(9.0, 20.0, 13)
    slow = max(
        float((torch.nn.functional.pad(line, (4, 4, 4, 4)).roll(s, (0, 1))[4:17, 4:17]
               * disk_kernel(3.0, 13)).sum())
        for s in [(a, b) for a in range(-4, 5) for b in range(-4, 5)]
    )  # fmt: skip
    norms = float(line.norm() * disk_kernel(3.0, 13).norm())
    assert kernel_similarity(line, disk_kernel(3.0, 13)) == pytest.approx(slow / norms, abs=1e-5)
    moved = torch.nn.functional.pad(2.0 * line, (5, 1, 0, 3))
    assert kernel_similarity(moved, line) == pytest.approx(1.0, abs=1e-5)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="must have the same shape"):
        aligned_psnr(torch.rand(1, 9, 9), torch.rand(1, 9, 8))
    with pytest.raises(ValueError, match="kernel must have shape"):
        kernel_similarity(torch.rand(3), torch.rand(3, 3))
