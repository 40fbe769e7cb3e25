import math
from itertools import pairwise

import pytest
import torch
from cv_core.imaging.kernels import disk_kernel, motion_kernel
from cv_core.numerics.fourier import fft_convolve
from cv_core.numerics.linear import adjoint_error
from cv_factorization.deconvolution import (
    LatentSystem,
    _threshold,
    differences,
    differences_adjoint,
    extend_periodic,
    laplacian_spectrum,
    split_bregman_latent,
    tv_deconvolve,
)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blocks(side=8, pixels=4, seed=0):
    coarse = (draw(side, side, seed=seed) > 0.5).double()
    return coarse.repeat_interleave(pixels, 0).repeat_interleave(pixels, 1)


KERNEL = motion_kernel(5.0, 30.0, dtype=torch.float64)


def problem(seed=0):
    x = blocks(seed=seed)
    return x, fft_convolve(x, KERNEL), draw(*x.shape, seed=seed + 1)


def dense(operator, shape):
    """The matrix of a linear operator, column by column."""
    columns = []
    for index in range(math.prod(shape)):
        unit = torch.zeros(math.prod(shape), dtype=torch.float64)
        unit[index] = 1.0
        columns.append(operator(unit.reshape(shape)).flatten())
    return torch.stack(columns, dim=1)


def test_differences_have_their_adjoint_and_spectrum():
    x = draw(7, 10)
    slow = torch.zeros(2, 7, 10, dtype=torch.float64)
    for i in range(7):
        for j in range(10):
            slow[0, i, j] = x[i, (j + 1) % 10] - x[i, j]
            slow[1, i, j] = x[(i + 1) % 7, j] - x[i, j]
    assert torch.equal(differences(x), slow)
    assert adjoint_error(differences, differences_adjoint, x, slow) < 1e-14
    filtered = torch.fft.irfft2(torch.fft.rfft2(x) * laplacian_spectrum(x), s=x.shape)
    torch.testing.assert_close(filtered, differences_adjoint(differences(x)))


def test_latent_system_is_the_printed_matrix():
    y, kernel, P = draw(6, 7), draw(3, 3, seed=1), draw(6, 7, seed=2)
    system, mu = LatentSystem(y, kernel, P), (0.7, 1.3, 0.2)
    K = dense(lambda x: fft_convolve(x, kernel), y.shape)
    D = dense(differences, y.shape)
    W = torch.diag(P.flatten())
    A = 2 * K.T @ K + mu[0] * W @ W + mu[1] * D.T @ D + mu[2] * torch.eye(42)
    torch.testing.assert_close(dense(lambda x: system.apply(x, mu), y.shape), A)
    targets = [draw(6, 7, seed=3), draw(2, 6, 7, seed=4), draw(6, 7, seed=5)]
    t = [target.flatten() for target in targets]
    b = 2 * K.T @ y.flatten() + mu[0] * W @ t[0] + mu[1] * D.T @ t[1] + mu[2] * t[2]
    right = system.right_side(targets, mu)
    torch.testing.assert_close(right.flatten(), b)
    solved = system.solve(right, mu, torch.zeros_like(y), tol=1e-12)
    torch.testing.assert_close(solved.flatten(), torch.linalg.solve(A, b))


@pytest.mark.parametrize("mu", [(16.0, 1e3, 1e4), (16.0, 1e-3, 1e-3), (1e-3, 1.0, 1e-2)])
def test_x_step_meets_its_residual(mu):  # property 4
    x, y, P = problem()
    system = LatentSystem(y, KERNEL, P)
    b = system.right_side(system.split(draw(*x.shape, seed=9)), mu)
    solved = system.solve(b, mu, y, tol=1e-6)
    assert (system.apply(solved, mu) - b).norm() < 1e-6 * b.norm() * (1 + 1e-9)


def test_x_step_with_constant_weights_is_the_fourier_division():  # property 4
    x, y, _ = problem()
    mu = (3.0, 0.5, 0.1)
    system = LatentSystem(y, KERNEL, torch.full_like(y, 0.6))
    b = system.right_side(system.split(draw(*x.shape, seed=9)), mu)
    by_cg = system.solve(b, mu, y, tol=1e-12)
    torch.testing.assert_close(system.solve(b, mu, y, solver="fft"), by_cg)


@pytest.mark.parametrize("solver", ["cg", "fft"])
def test_x_step_returns_the_truth_from_true_targets(solver):  # property 4
    x, y, P = problem()
    mu = (3.0, 0.5, 0.1)
    system = LatentSystem(y, KERNEL, P)
    found = system.solve(system.right_side(system.split(x), mu), mu, x, solver=solver, tol=1e-12)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-9)


def test_majorised_step_lowers_the_objective_and_rests_at_the_solution():
    x, y, P = problem()
    mu = (5.0, 0.5, 0.1)
    system = LatentSystem(y, KERNEL, P)
    b = system.right_side(system.split(draw(*x.shape, seed=9)), mu)

    def objective(z):
        return 0.5 * (z * system.apply(z, mu)).sum() - (b * z).sum()

    z, values = y, [objective(y)]
    for _ in range(100):
        z = system.solve(b, mu, z, solver="fft")
        values.append(objective(z))
    assert all(new <= old + 1e-9 for old, new in pairwise(values))
    torch.testing.assert_close(z, system.solve(b, mu, y, tol=1e-12), rtol=0, atol=1e-5)


def test_without_weights_the_sweep_is_a_proximal_point_iteration():  # property 4
    x, y, P = problem()
    mu = (0.5, 0.05, 0.2)
    system = LatentSystem(y, KERNEL, P)
    z = draw(*x.shape, seed=4)
    d = system.split(z)
    q = [torch.zeros_like(part) for part in d]
    misfits = [float((fft_convolve(z, KERNEL) - y).square().sum())]
    for _ in range(20):
        targets = [part - shift for part, shift in zip(d, q, strict=True)]
        z = system.solve(system.right_side(targets, mu), mu, z, tol=1e-12)
        d, q = _threshold(system.split(z), q, (0.0, 0.0, 0.0), mu, "hard")
        assert all(float(shift.abs().max()) == 0.0 for shift in q)
        misfits.append(float((fft_convolve(z, KERNEL) - y).square().sum()))
    assert all(new <= old for old, new in pairwise(misfits))
    assert misfits[-1] < 0.02 * misfits[0]


@pytest.mark.parametrize("prox", ["soft", "hard"])
def test_thresholds_are_the_printed_ones(prox):
    part = torch.tensor([-0.9, -0.3, 0.2, 0.5, 2.0], dtype=torch.float64)
    shift = torch.full_like(part, 0.1)
    (d,), (q,) = _threshold([part], [shift], [0.4], [2.0], prox)
    for e, found in zip((part + shift).tolist(), d.tolist(), strict=True):
        soft = math.copysign(max(abs(e) - 0.2, 0.0), e)
        hard = e if e * e > 0.4 else 0.0
        assert found == pytest.approx(soft if prox == "soft" else hard)
    torch.testing.assert_close(q, shift + part - d)


def test_split_bregman_equals_a_plain_loop():
    _, y, P = problem()
    weights, most = (4e-3, 2e-3, 2e-3), (0.1, 1.0, 2.0)
    system = LatentSystem(y, KERNEL, P)
    z, d = y, [P * y, differences(y), y]
    q = [torch.zeros_like(part) for part in d]
    mu = [2 * weight for weight in weights]
    for _ in range(10):  # 4e-3 doubles nine times until it passes 2
        pull = [part - shift for part, shift in zip(d, q, strict=True)]
        z = system.solve(system.right_side(pull, mu), mu, z, tol=1e-10)
        for index, part in enumerate([P * z, differences(z), z]):
            e = part + q[index]
            kept = torch.where(e.square() > 2 * weights[index] / mu[index], e, 0.0)
            d[index], q[index] = kept, e - kept
        grown = [min(2 * value, limit) for value, limit in zip(mu, most, strict=True)]
        q = [shift * old / new for shift, old, new in zip(q, mu, grown, strict=True)]
        mu = grown
    assert mu == list(most)
    options = {"alpha": weights[0], "beta": weights[1], "gamma": weights[2], "mu_max": most}
    found = split_bregman_latent(y, KERNEL, P, tol=1e-10, **options)
    torch.testing.assert_close(found, z, rtol=0, atol=1e-5)


def test_weight_zero_leaves_the_saliency_out():
    _, y, P = problem()
    options = {"alpha": 0.0, "beta": 2e-3, "gamma": 2e-3}
    one = split_bregman_latent(y, KERNEL, P, **options)
    other = split_bregman_latent(y, KERNEL, torch.ones_like(P), **options)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_hard_thresholds_restore_flat_blocks_better_than_soft_ones():
    x, y, P = problem()
    errors = {}
    for prox in ("soft", "hard"):
        found = split_bregman_latent(y, KERNEL, P, alpha=0.0, beta=2e-3, gamma=2e-3, prox=prox)
        errors[prox] = float((found - x).square().mean())
    assert errors["hard"] < 0.5 * errors["soft"]
    assert errors["hard"] < 0.1 * float((y - x).square().mean())


def test_total_variation_reaches_its_minimum():
    x, y, _ = problem()
    y = y + 0.02 * (draw(*y.shape, seed=7) - 0.5)
    weight = 5e-3

    def objective(z):
        lengths = differences(z).square().sum(dim=0).sqrt().sum()
        return 0.5 * (fft_convolve(z, KERNEL) - y).square().sum() + weight * lengths

    found = tv_deconvolve(y, KERNEL, weight=weight, max_iter=600)
    best = float(objective(found))
    for seed in range(5):  # a convex function: no direction leads below a minimiser
        step = draw(*y.shape, seed=20 + seed) - 0.5
        for size in (1e-1, 1e-2, 1e-3):
            assert float(objective(found + size * step)) > best - 1e-6
    for target in (x, y):
        assert float(objective(found + 0.01 * (target - found))) > best - 1e-6
    short = tv_deconvolve(y, KERNEL, weight=weight)
    assert float(objective(short)) < 1.2 * best
    assert (found - x).norm() < 0.6 * (y - x).norm()


def test_total_variation_treats_channels_alone():
    x = torch.stack([blocks(), blocks(seed=1), blocks(seed=2)])
    y = fft_convolve(x, KERNEL)
    together = tv_deconvolve(y, KERNEL)
    for channel in range(3):
        torch.testing.assert_close(together[channel], tv_deconvolve(y[channel], KERNEL))


def test_extension_keeps_the_image_and_closes_the_torus():
    image = torch.linspace(0.0, 1.0, 40, dtype=torch.float64).expand(30, 40)
    torus = extend_periodic(image, 12)
    assert torch.equal(torus[:30, :40], image)
    assert min(torus.shape[0] - 30, torus.shape[1] - 40) >= 12
    assert float(differences(torus).abs().max()) < 0.25  # the image itself jumps by 1
    assert 0.0 <= float(torus.min()) <= float(torus.max()) <= 1.0
    constant = torch.full((9, 11), 0.3, dtype=torch.float64)
    assert bool((extend_periodic(constant, 5) - 0.3).abs().max() < 1e-15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -1.0}, "alpha must lie in"),
        ({"gamma": 0.0}, "gamma must lie in"),
        ({"mu_max": (1.0, 2.0)}, "mu_max must hold three"),
        ({"mu_max": (1.0, 2.0, 0.0)}, "mu_max must lie in"),
        ({"prox": "hardd"}, "Did you mean 'hard'"),
        ({"solver": "cgg"}, "Did you mean 'cg'"),
        ({"saliency": torch.ones(3, 3)}, "must have the same shape"),
        ({"y": torch.full((8, 8), math.nan)}, "y must be finite"),
        ({"kernel": torch.ones(9, 9)}, "kernel must fit"),
    ],
)
def test_bad_input_is_refused(change, message):
    options = {
        "y": torch.rand(8, 8), "kernel": disk_kernel(1.0), "saliency": torch.ones(8, 8),
        "alpha": 1e-3, "beta": 1e-3, "gamma": 1e-3, **change,
    }  # fmt: skip
    if "y" in change:
        options["saliency"] = torch.ones_like(change["y"])
    with pytest.raises(ValueError, match=message):
        split_bregman_latent(**options)
