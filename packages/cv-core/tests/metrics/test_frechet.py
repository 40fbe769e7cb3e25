"""Distances of feature sets against scipy's matrix root, closed forms and loops."""

import math

import pytest
import torch
from cv_core.metrics.frechet import (
    frechet_distance,
    frechet_from_moments,
    kernel_distance,
    subset_interval,
)
from scipy import linalg
from torchmetrics.image.kid import poly_mmd


def features(n, d, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + shift


def by_matrix_root(a, b):
    gap = a.mean(0) - b.mean(0)
    first, second = torch.cov(a.T).numpy(), torch.cov(b.T).numpy()
    # the eigenvalues of a product of two positive matrices, whose roots the trace adds up
    root = linalg.eigvals(first @ second).real.clip(0) ** 0.5
    return float(gap @ gap) + first.trace() + second.trace() - 2 * root.sum()


@pytest.mark.parametrize(
    ("n", "m", "d"), [(200, 150, 12), (20, 30, 12), (13, 13, 12), (9, 300, 12)]
)
def test_equals_the_definition_for_many_and_few_samples(n, m, d):
    a, b = features(n, d), features(m, d, seed=1, shift=0.3)
    assert frechet_distance(a, b) == pytest.approx(by_matrix_root(a, b), rel=1e-6)


def test_equals_the_matrix_root_of_scipy():
    a, b = features(100, 8), features(80, 8, seed=1)
    first, second = torch.cov(a.T).numpy(), torch.cov(b.T).numpy()
    gap = a.mean(0) - b.mean(0)
    expected = float(gap @ gap) + (first + second - 2 * linalg.sqrtm(first @ second).real).trace()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    stored = frechet_from_moments(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))
    assert stored == pytest.approx(expected, rel=1e-10)


def test_gaussians_with_common_axes_in_closed_form():
    mean = torch.tensor([1.0, -2.0])
    a, b = torch.tensor([4.0, 9.0]), torch.tensor([1.0, 16.0])
    # |mean|^2 + sum (sqrt a - sqrt b)^2
    distance = frechet_from_moments(mean, a.diag(), 0 * mean, b.diag())
    assert distance == pytest.approx(5.0 + 1.0 + 1.0)


def test_moments_agree_with_few_samples():
    a, b = features(10, 16), features(14, 16, seed=2)
    stored = frechet_from_moments(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))
    assert stored == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_metric_properties():
    a, b = features(30, 6), features(40, 6, seed=1)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    rotation = torch.linalg.qr(features(6, 6, seed=3)).Q
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(frechet_distance(a, b))
    assert frechet_distance(a + 2.0, a) == pytest.approx(6 * 4.0)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(frechet_distance(a, b), rel=1e-5)


def slow_kernel_distance(a, b, degree, gamma, offset):
    def kernel(x, y):
        return (gamma * float(x @ y) + offset) ** degree

    n, m = len(a), len(b)
    within_a = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    across = sum(kernel(x, y) for x in a for y in b) / (n * m)
    return within_a + within_b - 2 * across


def test_kernel_distance_equals_a_loop_and_torchmetrics():
    a, b = features(9, 5), features(9, 5, seed=1)
    assert kernel_distance(a, b) == pytest.approx(slow_kernel_distance(a, b, 3, 0.2, 1.0))
    assert kernel_distance(a, b) == pytest.approx(float(poly_mmd(a, b)))
    ours = kernel_distance(a, b[:6], degree=2, gamma=0.7, offset=0.0)
    assert ours == pytest.approx(slow_kernel_distance(a, b[:6], 2, 0.7, 0.0))


def test_kernel_distance_is_unbiased():
    values = [
        kernel_distance(
            torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(s))[0],
            torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(s))[1],
        )
        for s in range(400)
    ]
    values = torch.tensor(values)
    assert abs(values.mean()) < 4 * values.std() / 20  # four standard errors of the mean
    assert (values < 0).any()


def test_subsets():
    a, b = features(60, 4), features(50, 4, seed=1)
    before = torch.get_rng_state()
    interval = subset_interval(kernel_distance, a, b, seed=3, subset_size=30, subsets=40)
    assert torch.equal(before, torch.get_rng_state())
    assert interval == subset_interval(kernel_distance, a, b, seed=3, subset_size=30, subsets=40)
    assert interval != subset_interval(kernel_distance, a, b, seed=4, subset_size=30, subsets=40)
    assert interval.low < interval.mean < interval.high
    narrow = subset_interval(kernel_distance, a, b, seed=3, subset_size=30, subsets=40, level=0.5)
    assert interval.low < narrow.low < narrow.high < interval.high
    # all rows are drawn: every subset is the whole
    whole = subset_interval(frechet_distance, a, b[:50], seed=0, subset_size=50, subsets=2)
    first = subset_interval(frechet_distance, b, b, seed=0, subset_size=50, subsets=2)
    assert first.high == pytest.approx(0.0, abs=1e-9)
    assert whole.mean > 0.0


def test_subsets_hold_no_row_twice():
    rows = torch.arange(12.0)[:, None]
    seen = []
    subset_interval(
        lambda a, b: seen.append((a, b)) or 0.0, rows, rows, seed=0, subset_size=8, subsets=5
    )
    for a, b in seen:
        assert len(a.unique()) == len(b.unique()) == 8
    assert any(not torch.equal(a, b) for a, b in seen)


def test_refusals():
    a = features(5, 3)
    with pytest.raises(ValueError, match="2 rows"):
        frechet_distance(a[:1], a)
    with pytest.raises(ValueError, match="features_b"):
        frechet_distance(a, a[:, :2])
    with pytest.raises(ValueError, match="finite"):
        kernel_distance(a, a * math.nan)
    with pytest.raises(ValueError, match="subset_size"):
        subset_interval(kernel_distance, a, a, seed=0, subset_size=6)
    with pytest.raises(ValueError, match="covariance_b"):
        frechet_from_moments(a[0], torch.eye(3), a[0], torch.eye(2))
