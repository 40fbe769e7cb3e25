"""Convolutional codes against a dense lasso, their conditions of optimality, their boundaries."""

import numpy as np
import pytest
import torch
from cv_factorization.sparse.coding import lasso_cd
from cv_factorization.sparse.convolutional import (
    ConvolutionalCodes,
    convolutional_codes,
    convolutional_image,
)
from sklearn.exceptions import ConvergenceWarning

BOUNDARIES = ["circular", "free"]


def problem(seed=0, n=2, c=1, size=(9, 8), m=3, kernel=(3, 2), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, c, *size, generator=generator, dtype=dtype)
    filters = torch.randn(m, c, *kernel, generator=generator, dtype=dtype)
    return images, filters / filters.flatten(1).norm(dim=1)[:, None, None, None]


def slow_image(codes, filters, boundary):
    """Every map entry stamps its filter with the centre put on it."""
    n, m, rows, columns = codes.shape
    kh, kw = filters.shape[-2:]
    canvas = torch.zeros(n, filters.shape[1], rows, columns, dtype=codes.dtype)
    for f in range(m):
        for r in range(rows):
            for s in range(columns):
                for a in range(kh):
                    for b in range(kw):
                        row, column = (r + a - kh // 2) % rows, (s + b - kw // 2) % columns
                        stamp = codes[:, f, r, s, None] * filters[f, :, a, b]
                        canvas[:, :, row, column] += stamp
    if boundary == "circular":
        return canvas
    top, left = kh - 1 - kh // 2, kw - 1 - kw // 2
    return canvas[:, :, top : rows - kh // 2, left : columns - kw // 2]


def dictionary(filters, size, boundary):
    """The convolution as a matrix: an atom per filter and place."""
    kh, kw = filters.shape[-2:]
    grid = size if boundary == "circular" else (size[0] + kh - 1, size[1] + kw - 1)
    count = len(filters) * grid[0] * grid[1]
    single = torch.eye(count, dtype=filters.dtype).reshape(count, len(filters), *grid)
    return convolutional_image(single, filters, boundary=boundary).flatten(1)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kernel", [(3, 2), (2, 3), (1, 1), (4, 4)])
def test_image_equals_a_loop_of_stamps(boundary, kernel):
    _, filters = problem(c=2, kernel=kernel)
    codes = torch.randn(2, 3, 7, 6, generator=torch.Generator().manual_seed(1)).double()
    image = convolutional_image(codes, filters, boundary=boundary)
    torch.testing.assert_close(image, slow_image(codes, filters, boundary), rtol=0, atol=1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("c", [1, 2])
def test_equals_the_lasso_of_the_convolution_matrix(boundary, c):
    images, filters = problem(c=c, size=(6, 5), kernel=(3, 2), m=2)
    found = convolutional_codes(images, filters, 0.3, boundary=boundary, max_iter=20_000, tol=1e-9)
    D = dictionary(filters, (6, 5), boundary)
    dense = lasso_cd(images.flatten(1), D, 0.3, max_iter=100_000, tol=1e-11)
    torch.testing.assert_close(found.codes.flatten(1), dense, rtol=0, atol=1e-6)
    value = 0.5 * (images.flatten(1) - dense @ D).square().sum() + 0.3 * dense.abs().sum()
    assert found.objective[-1] == pytest.approx(float(value), rel=1e-7)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_conditions_of_optimality_hold_with_a_weight_per_filter(boundary):
    images, filters = problem(1, c=2, size=(12, 11), m=4)
    weight = torch.tensor([0.2, 0.4, 0.6, 50.0], dtype=torch.float64)
    found = convolutional_codes(
        images, filters, weight, boundary=boundary, max_iter=20_000, tol=1e-8
    )
    assert found.converged
    maps = found.codes.clone().requires_grad_()
    misfit = images - convolutional_image_with_gradient(maps, filters, boundary)
    (slope,) = torch.autograd.grad(0.5 * misfit.square().sum(), maps)
    bound = weight[:, None, None]
    assert (slope.abs() - bound).max() < 1e-5
    taken = found.codes != 0
    gap = (slope + bound * found.codes.sign())[taken]
    assert gap.abs().max() < 1e-5
    assert not taken[:, 3].any()
    assert taken[:, :3].any()


def convolutional_image_with_gradient(maps, filters, boundary):
    """The same sum by ``conv2d``, which can be differentiated."""
    kh, kw = filters.shape[-2:]
    pad = (kw - 1 - kw // 2, kw // 2, kh - 1 - kh // 2, kh // 2)
    wide = torch.nn.functional.pad(maps, pad, mode="circular")
    flipped = filters.flip(-2, -1).transpose(0, 1)
    canvas = torch.nn.functional.conv2d(wide, flipped)
    if boundary == "circular":
        return canvas
    rows, columns = maps.shape[-2:]
    return canvas[..., pad[2] : rows - pad[3], pad[0] : columns - pad[1]]


def test_free_maps_explain_a_cut_pattern_and_circular_ones_the_far_side():
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, :, 0] = 1.0  # the right half of a bar of two columns
    bar = torch.full((1, 1, 1, 2), 0.5)
    free = convolutional_codes(image, bar, 0.01, boundary="free", tol=1e-5, max_iter=2000)
    assert free.codes.shape == (1, 1, 8, 9)
    torch.testing.assert_close(
        convolutional_image(free.codes, bar, boundary="free"), image, rtol=0, atol=0.05
    )
    outside = free.codes[0, 0, :, 0]
    assert (outside > 1.5).all()
    assert free.codes[0, 0, :, 1:].abs().max() < 1e-3
    wrapped = convolutional_codes(image, bar, 0.01, tol=1e-5, max_iter=2000).codes
    assert wrapped[0, 0, :, 1:].abs().max() > 0.1  # the far column had to be undone


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_shifted_images_have_shifted_codes_and_scale_does_not_matter(boundary):
    images, filters = problem(2, n=1, size=(10, 10))
    options = {"boundary": boundary, "max_iter": 5000, "tol": 1e-8}
    codes = convolutional_codes(images, filters, 0.3, **options).codes
    large = convolutional_codes(1e4 * images, filters, 3e3, **options).codes
    torch.testing.assert_close(large / 1e4, codes, rtol=0, atol=1e-6)
    if boundary == "circular":
        shifted = convolutional_codes(images.roll((3, 2), (2, 3)), filters, 0.3, **options).codes
        torch.testing.assert_close(shifted, codes.roll((3, 2), (2, 3)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_planted_maps_are_found(boundary):
    images, filters = problem(3, n=1, size=(24, 24), kernel=(5, 5))
    grid = (24, 24) if boundary == "circular" else (28, 28)
    planted = torch.zeros(1, 3, *grid, dtype=torch.float64)
    rng = np.random.default_rng(0)
    for m in range(3):
        planted[0, m, rng.integers(grid[0], size=4), rng.integers(grid[1], size=4)] = 3.0
    images = convolutional_image(planted, filters, boundary=boundary)
    found = convolutional_codes(
        images, filters, 0.05, boundary=boundary, max_iter=5000, tol=1e-4
    ).codes
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(found[inner], planted[inner], rtol=0, atol=0.2)


def test_course_of_the_objective_ends_lower_and_counts_every_tenth_iteration():
    images, filters = problem(4, size=(16, 16))
    found = convolutional_codes(images, filters, 0.2, max_iter=35, tol=0)
    assert isinstance(found, ConvolutionalCodes)
    assert found.iterations == 35
    assert len(found.objective) == 4
    assert not found.converged
    far = convolutional_codes(images, filters, 0.2, max_iter=3000, tol=1e-8)
    assert far.objective[-1] <= found.objective[-1] + 1e-9
    assert found.objective[-1] == pytest.approx(far.objective[-1], rel=1e-3)
    zero = 0.5 * float(images.square().sum())
    assert far.objective[-1] < 0.8 * zero


def test_images_of_a_batch_are_coded_together():
    images, filters = problem(5, n=3)
    options = {"max_iter": 5000, "tol": 1e-9}
    together = convolutional_codes(images, filters, 0.3, **options).codes
    for image, codes in zip(images, together, strict=True):
        alone = convolutional_codes(image[None], filters, 0.3, **options).codes[0]
        torch.testing.assert_close(codes, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_degenerate_problems_give_finite_codes(boundary):
    images, filters = problem(6, dtype=torch.float32)
    options = {"boundary": boundary, "max_iter": 200, "tol": 0}
    assert not convolutional_codes(torch.zeros_like(images), filters, 0.3, **options).codes.any()
    assert not convolutional_codes(images, filters, 1e6, **options).codes.any()
    assert not convolutional_codes(images, torch.zeros_like(filters), 0.3, **options).codes.any()
    twice = torch.cat([filters, filters])
    for weight in (0.0, 0.3):
        codes = convolutional_codes(images, twice, weight, **options).codes
        assert codes.dtype == torch.float32
        assert torch.isfinite(codes).all()
    small = convolutional_codes(images[..., :3, :2], filters, 0.3, **options).codes
    assert torch.isfinite(small).all()  # the filter is as large as the image


def test_too_few_iterations_warn():
    images, filters = problem(7)
    with pytest.warns(ConvergenceWarning, match="convolutional_codes: tol=1e-12 was not reached"):
        convolutional_codes(images, filters, 0.1, max_iter=5, tol=1e-12)


images, filters = problem()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": images[0]}, ValueError, "images must have shape"),
        ({"images": images * np.nan}, ValueError, "images must be finite"),
        ({"images": images[:0]}, ValueError, "images is empty"),
        ({"images": images.long()}, TypeError, "floating-point"),
        ({"filters": filters.repeat(1, 2, 1, 1)}, ValueError, "filters must have shape"),
        ({"filters": filters / 0}, ValueError, "filters must be finite"),
        ({"filters": torch.ones(1, 1, 10, 1)}, ValueError, "filters must be at most as large"),
        ({"weight": -1.0}, ValueError, "weight must lie in"),
        ({"weight": torch.ones(2)}, ValueError, r"weight must have shape \(m\) with m=3"),
        ({"weight": -torch.ones(3)}, ValueError, "weight must be at least 0; the least is -1"),
        ({"boundary": "wrap"}, ValueError, "boundary must be one of"),
        ({"max_iter": 0}, ValueError, "max_iter must be at least 1"),
        ({"tol": -1.0}, ValueError, "tol must lie in"),
    ],
)
def test_bad_input_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        convolutional_codes(**{"images": images, "filters": filters, "weight": 0.1, **arguments})
