import pytest
import torch
from cv_core.imaging.kernels import disk_kernel, motion_kernel
from cv_core.numerics.fourier import fft_convolve
from cv_factorization.deconvolution import differences
from cv_factorization.kernel_estimation import (
    centre_kernel,
    estimate_kernel,
    estimate_kernel_on_support,
    kernel_ssim,
    project_kernel,
)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TRUE = motion_kernel(5.0, 30.0, 7, dtype=torch.float64)
STEPS = [estimate_kernel, estimate_kernel_on_support]


@pytest.mark.parametrize("shape", [(24, 31), (33, 20)])
@pytest.mark.parametrize("step", STEPS)
def test_true_image_gives_the_true_kernel(shape, step):  # property 3
    x = draw(*shape)
    y = fft_convolve(x, TRUE)
    options = {"max_iter": 200} if step is estimate_kernel_on_support else {}
    torch.testing.assert_close(step(x, y, 7, lam=1e-9, **options), TRUE, rtol=0, atol=1e-6)


def test_formula_equals_the_gradient_one_and_misses_the_mean():  # property 3
    x, lam = draw(24, 31), 2.0
    y = fft_convolve(x, TRUE) + 0.1 * draw(24, 31, seed=1)
    X, Y = torch.fft.rfft2(differences(x)), torch.fft.rfft2(differences(y))
    printed = (X.conj() * Y).sum(0) / (X.abs().square().sum(0) + lam)
    raw = torch.fft.irfft2(printed, s=x.shape).roll((3, 3), (0, 1))[:7, :7]
    # setting the bin at zero to one adds the same number everywhere
    torch.testing.assert_close(estimate_kernel(x, y, 7, lam=lam), raw + 1.0 / (24 * 31))
    # without it a large ridge leaves nothing, with it the constant
    constant = torch.full((7, 7), 1.0 / (24 * 31), dtype=torch.float64)
    torch.testing.assert_close(estimate_kernel(x, y, 7, lam=1e15), constant)


def test_support_step_solves_its_normal_equations():
    x, lam = draw(12, 15), 2.0
    y = fft_convolve(x, TRUE) + 0.1 * draw(12, 15, seed=1)
    columns = []
    for row in range(-2, 3):
        for column in range(-2, 3):
            columns.append(differences(x).roll((row, column), dims=(1, 2)).flatten())
    A = torch.stack(columns, dim=1)
    normal = A.T @ A + lam * torch.eye(25)
    slow = torch.linalg.solve(normal, A.T @ differences(y).flatten()).reshape(5, 5)
    found = estimate_kernel_on_support(x, y, 5, lam=lam, max_iter=100)
    torch.testing.assert_close(found, slow, rtol=0, atol=1e-5)
    # among kernels of this support it explains the gradients best, better than the cut formula

    def objective(kernel):
        gap = differences(fft_convolve(x, kernel) - y)
        return float(gap.square().sum() + lam * kernel.square().sum())

    assert objective(found) < objective(estimate_kernel(x, y, 5, lam=lam))


def test_projection_gives_a_kernel():  # property 5
    for seed in range(5):
        kernel = project_kernel(draw(9, 9, seed=seed) - 0.4)
        assert float(kernel.min()) >= 0.0
        assert float(kernel.sum()) == pytest.approx(1.0)
        kept = kernel[kernel > 0]
        assert float(kept.min()) >= 0.05 * float(kept.max())
    torch.testing.assert_close(project_kernel(TRUE, floor=0.0), TRUE)
    none = torch.zeros(5, 5)
    none[2, 2] = 1.0
    assert torch.equal(project_kernel(-torch.ones(5, 5)), none)


@pytest.mark.parametrize("step", [(3, -2), (-4, 1), (0, 0)])
def test_centring_undoes_a_shift(step):
    frame = torch.zeros(17, 17, dtype=torch.float64)
    frame[5:12, 5:12] = disk_kernel(3.0, dtype=torch.float64)
    torch.testing.assert_close(centre_kernel(frame.roll(step, dims=(0, 1))), frame)


def test_centring_loses_what_leaves_instead_of_wrapping():
    line = torch.zeros(1, 7)
    line[0, 0], line[0, 6] = 10.0, 1.0
    moved = centre_kernel(line)  # the mass lies at 0.55: two to the right
    assert moved[0].tolist() == [0.0, 0.0, 10.0, 0.0, 0.0, 0.0, 0.0]


def test_similarity_sees_shape_and_not_place_frame_or_scale():
    long = motion_kernel(15.0, 10.0, 21)
    framed = torch.nn.functional.pad(long, (6, 2, 2, 6))
    assert kernel_ssim(long, long) == pytest.approx(1.0, abs=1e-6)
    assert kernel_ssim(3.0 * framed, long) == pytest.approx(1.0, abs=1e-4)
    assert kernel_ssim(long, motion_kernel(15.0, 100.0, 21)) < 0.91
    assert kernel_ssim(long, disk_kernel(4.0)) == pytest.approx(kernel_ssim(disk_kernel(4.0), long))


def test_bad_kernels_and_sizes_are_refused():
    x = draw(8, 8)
    for step in STEPS:
        with pytest.raises(ValueError, match=f"{step.__name__}: size must be odd"):
            step(x, x, 4)
        with pytest.raises(ValueError, match="size must be at most 8"):
            step(x, x, 9)
        with pytest.raises(ValueError, match="must have the same shape"):
            step(x, x[:7], 3)
        with pytest.raises(ValueError, match="lam must lie in"):
            step(x, x, 3, lam=0.0)
    with pytest.raises(ValueError, match="kernel_ssim: second must be non-negative and not all 0"):
        kernel_ssim(x, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="floor must lie in"):
        project_kernel(x, floor=1.0)
