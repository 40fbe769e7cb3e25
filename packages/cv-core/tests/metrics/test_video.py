"""J and F against loops over pixels and pairs of pixels, decay against the benchmark's bins."""

import math

import numpy as np
import pytest
import torch
from cv_core.metrics.video import (
    boundary_f,
    decay,
    exclusive_masks,
    jaccard,
    mask_boundary,
    recall,
)
from scipy import ndimage


def blobs(n, size, seed=0, smooth=2.0):
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal(size), smooth) for _ in range(n)]
    return torch.tensor(np.stack([field > 0.3 * field.std() for field in fields]))


def slow_boundary(mask):
    """Pixels that differ from the right, the lower or the lower right neighbour that they have."""
    height, width = mask.shape
    points = []
    for i in range(height):
        for j in range(width):
            beside = [(i, j + 1), (i + 1, j), (i + 1, j + 1)]
            there = [(y, x) for y, x in beside if y < height and x < width]
            if any(mask[i, j] != mask[place] for place in there):
                points.append((i, j))
    return points


def slow_f(prediction, target, tolerance):
    reach = math.ceil(tolerance * math.sqrt(target.shape[0] ** 2 + target.shape[1] ** 2))
    said, real = slow_boundary(prediction), slow_boundary(target)
    if not said and not real:
        return 1.0
    if not said or not real:
        return 0.0

    def share(points, others):
        close = [any(math.dist(p, q) <= reach for q in others) for p in points]
        return sum(close) / len(points)

    precision, found = share(said, real), share(real, said)
    return 2 * precision * found / (precision + found) if precision + found else 0.0


@pytest.mark.parametrize("tolerance", [0.0, 0.008, 0.06, 0.13])
@pytest.mark.parametrize("size", [(17, 23), (1, 9), (12, 1)])
def test_f_equals_all_pairs_of_boundary_pixels(size, tolerance):
    prediction, target = blobs(5, size, smooth=1.0), blobs(5, size, seed=1, smooth=1.0)
    expected = [
        slow_f(p.numpy(), t.numpy(), tolerance) for p, t in zip(prediction, target, strict=True)
    ]
    found = boundary_f(prediction, target, tolerance=tolerance)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_boundaries_equal_the_loop_and_ignore_the_images_border():
    masks = blobs(6, (11, 14), smooth=1.0)
    for mask, found in zip(masks, mask_boundary(masks), strict=True):
        assert slow_boundary(mask.numpy()) == [tuple(p) for p in found.nonzero().tolist()]
    assert not mask_boundary(torch.ones(4, 5, dtype=torch.bool)).any()


def test_j_by_sets_and_of_empty_masks():
    prediction, target = blobs(4, (9, 8)), blobs(4, (9, 8), seed=1)
    for p, t, score in zip(prediction, target, jaccard(prediction, target), strict=True):
        said, real = ({tuple(x) for x in m.nonzero().tolist()} for m in (p, t))
        assert float(score) == pytest.approx(len(said & real) / len(said | real))
    none, some = torch.zeros(6, 6, dtype=torch.bool), torch.zeros(6, 6, dtype=torch.bool)
    some[2:4, 2:4] = True
    for metric in (jaccard, boundary_f):
        assert metric(none, none) == 1.0
        assert metric(none, some) == metric(some, none) == 0.0
        assert metric(some, some) == 1.0


def test_the_tolerance_is_a_share_of_the_diagonal_rounded_up():
    target = torch.zeros(30, 40, dtype=torch.bool)  # a diagonal of 50
    target[:, 20:] = True
    for shift, tolerance, expected in ((2, 0.04, 1.0), (3, 0.04, 0.0), (3, 0.041, 1.0)):
        moved = torch.zeros_like(target)
        moved[:, 20 + shift :] = True
        assert boundary_f(moved, target, tolerance=tolerance) == expected


def test_leading_axes_are_kept_and_each_pair_counts_alone():
    prediction, target = blobs(6, (9, 8)), blobs(6, (9, 8), seed=1)
    for metric in (jaccard, boundary_f):
        whole = metric(prediction.view(2, 3, 9, 8), target.view(2, 3, 9, 8))
        one_by_one = [metric(p, t) for p, t in zip(prediction, target, strict=True)]
        torch.testing.assert_close(whole.flatten(), torch.stack(one_by_one))


@pytest.mark.parametrize("frames", [*range(1, 12), 33, 102])
def test_decay_equals_the_benchmarks_bins(frames):
    scores = np.random.default_rng(frames).random(frames)
    ends = (np.round(np.linspace(1, frames, 5) + 1e-10) - 1).astype(int)
    first, last = scores[ends[0] : ends[1] + 1], scores[ends[3] : ends[4] + 1]
    assert float(decay(torch.tensor(scores))) == pytest.approx(first.mean() - last.mean())


def test_recall_counts_frames_above_the_threshold():
    scores = torch.tensor([[0.5, 0.51, 0.9, 0.2], [1.0, 1.0, 1.0, 1.0]])
    assert recall(scores).tolist() == [0.5, 1.0]
    assert recall(scores, threshold=0.1).tolist() == [1.0, 1.0]


def test_exclusive_masks_by_loop():
    probabilities = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = exclusive_masks(probabilities, threshold=0.4)
    for b in range(2):
        for i in range(4):
            for j in range(5):
                values = probabilities[b, :, i, j].tolist()
                wins = [v == max(values) and v > 0.4 for v in values]
                assert found[b, :, i, j].tolist() == wins
    tie = torch.full((3, 1, 1), 0.8)
    assert exclusive_masks(tie).flatten().tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: jaccard(m.float(), m), TypeError, "jaccard: prediction must be a boolean"),
        (lambda m: boundary_f(m, m[:1]), ValueError, "boundary_f: prediction and target must"),
        (lambda m: boundary_f(m, m, tolerance=1.0), ValueError, r"tolerance must lie in \[0, 1\)"),
        (lambda m: boundary_f(m[:, :0], m[:, :0]), ValueError, "prediction is empty along axis"),
        (lambda _: decay(torch.zeros(3, 0)), ValueError, "decay: scores is empty along axis 't'"),
        (lambda _: recall(torch.zeros(3).long()), TypeError, "recall: scores must be a floating"),
        (exclusive_masks, TypeError, "exclusive_masks: probabilities must be a"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 4, 4, dtype=torch.bool))
