"""Surface distances against all pairs of boundary pixels and scipy's distance transform."""

import math

import numpy as np
import pytest
import torch
from cv_core.metrics.surface import (
    average_surface_distance,
    hausdorff_distance,
    surface_dice,
    surface_distances,
)
from scipy import ndimage


def blobs(n, size, seed=0, smooth=2.0):
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal(size), smooth) for _ in range(n)]
    return torch.tensor(np.stack([field > 0.3 * field.std() for field in fields]))


def slow_boundary(mask, spacing):
    points = []
    for index in np.ndindex(mask.shape):
        if mask[index]:
            for axis in range(mask.ndim):
                for step in (-1, 1):
                    beside = list(index)
                    beside[axis] += step
                    outside = not 0 <= beside[axis] < mask.shape[axis]
                    if outside or not mask[tuple(beside)]:
                        points.append([i * s for i, s in zip(index, spacing, strict=True)])
    return np.unique(np.array(points, dtype=float), axis=0)


@pytest.mark.parametrize(
    ("size", "spacing"),
    [((13, 17), (1.0, 1.0)), ((12, 10), (0.7, 2.5)), ((6, 7, 8), (3.0, 1.0, 0.5))],
)
def test_all_three_scores_equal_all_pairs(size, spacing):
    first, second = blobs(3, size, smooth=1.0), blobs(3, size, seed=1, smooth=1.0)
    hausdorff = hausdorff_distance(first, second, spacing=spacing)
    robust = hausdorff_distance(first, second, percentile=95, spacing=spacing)
    mean = average_surface_distance(first, second, spacing=spacing)
    share = surface_dice(first, second, tolerance=1.2, spacing=spacing)
    for n in range(3):
        a = slow_boundary(first[n].numpy(), spacing)
        b = slow_boundary(second[n].numpy(), spacing)
        pairs = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
        there, back = pairs.min(1), pairs.min(0)
        both = np.concatenate([there, back])
        assert float(hausdorff[n]) == pytest.approx(both.max())
        assert float(robust[n]) == pytest.approx(
            max(np.percentile(there, 95), np.percentile(back, 95))
        )
        assert float(mean[n]) == pytest.approx(both.mean())
        assert float(share[n]) == pytest.approx((both <= 1.2).mean())


def test_distances_are_those_of_the_distance_transform():
    first, second = blobs(1, (60, 60), smooth=4.0), blobs(1, (60, 60), seed=5, smooth=4.0)
    cross = ndimage.generate_binary_structure(2, 1)
    edges = [m[0].numpy() & ~ndimage.binary_erosion(m[0].numpy(), cross) for m in (first, second)]
    item = surface_distances(first, second, spacing=(1.5, 0.8))[0]
    field = ndimage.distance_transform_edt(~edges[1], sampling=(1.5, 0.8))
    np.testing.assert_allclose(np.sort(item.of_prediction), np.sort(field[edges[0]]))
    field = ndimage.distance_transform_edt(~edges[0], sampling=(1.5, 0.8))
    np.testing.assert_allclose(np.sort(item.of_target), np.sort(field[edges[1]]))


def test_a_shifted_square():
    first = torch.zeros(1, 20, 20, dtype=torch.bool)
    first[0, 5:10, 5:10] = True
    second = first.roll(3, dims=2)
    assert float(hausdorff_distance(first, second)) == 3.0
    assert float(hausdorff_distance(first, second, spacing=(1.0, 2.0))) == 6.0
    assert float(hausdorff_distance(first, first)) == 0.0
    assert float(average_surface_distance(first, first)) == 0.0
    assert float(surface_dice(first, first, tolerance=0.0)) == 1.0
    assert float(surface_dice(first, second, tolerance=3.0)) == 1.0


def test_scores_do_not_depend_on_the_order():
    first, second = blobs(2, (15, 15)), blobs(2, (15, 15), seed=3)
    for score in (hausdorff_distance, average_surface_distance):
        torch.testing.assert_close(score(first, second), score(second, first))


def test_empty_masks():
    empty = torch.zeros(1, 8, 8, dtype=torch.bool)
    full = torch.ones(1, 8, 8, dtype=torch.bool)
    for pair in ((empty, full), (full, empty)):
        assert math.isinf(hausdorff_distance(*pair, percentile=95).item())
        assert math.isinf(average_surface_distance(*pair).item())
        assert surface_dice(*pair, tolerance=100.0).item() == 0.0
    assert math.isnan(hausdorff_distance(empty, empty).item())
    assert math.isnan(average_surface_distance(empty, empty).item())
    assert math.isnan(surface_dice(empty, empty, tolerance=1.0).item())


def test_refusals():
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    with pytest.raises(TypeError, match="boolean"):
        hausdorff_distance(mask.long(), mask)
    with pytest.raises(ValueError, match="same shape"):
        hausdorff_distance(mask, mask[:, :4])
    with pytest.raises(ValueError, match="spacing"):
        hausdorff_distance(mask, mask, spacing=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="spacing"):
        hausdorff_distance(mask, mask, spacing=(1.0, 0.0))
    with pytest.raises(ValueError, match="percentile"):
        hausdorff_distance(mask, mask, percentile=101)
    with pytest.raises(ValueError, match="shape"):
        hausdorff_distance(mask[0], mask[0])
