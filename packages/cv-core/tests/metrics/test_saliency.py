"""Saliency metrics against loops over pixels, closed forms, and empty masks and maps."""

import itertools
import math

import pytest
import torch
from cv_core.metrics.saliency import (
    e_measure,
    e_measure_curve,
    f_measure_curve,
    mae,
    max_f_measure,
    mean_f_measure,
    s_measure,
    weighted_f_measure,
)

ALL = (mae, max_f_measure, mean_f_measure, e_measure, s_measure, weighted_f_measure)
LEVELS = 11


def draw(count=3, height=7, width=9, *, share=0.3, seed=0):
    """Random maps, rounded to tenths so that values meet thresholds and each other."""
    rng = torch.Generator().manual_seed(seed)
    p = (torch.rand(count, height, width, generator=rng) * 10).round() / 10
    return p.double(), (torch.rand(count, height, width, generator=rng) < share).long()


def pixels(p):
    return itertools.product(range(p.shape[0]), range(p.shape[1]))


# --- slow references: one image, one pixel after the other --------------------------------------


def slow_f(p, g, beta2, threshold):
    hits = sum(float(p[i, j]) >= threshold and bool(g[i, j]) for i, j in pixels(p))
    precision = hits / sum(float(p[i, j]) >= threshold for i, j in pixels(p))
    recall = hits / sum(int(g[i, j]) for i, j in pixels(p))
    if hits == 0:
        return 0.0
    return (1 + beta2) * precision * recall / (beta2 * precision + recall)


def slow_e(p, g, threshold):
    binary = {(i, j): float(float(p[i, j]) >= threshold) for i, j in pixels(p)}
    mean_p, mean_g = sum(binary.values()) / p.numel(), float(g.double().mean())
    total = 0.0
    for i, j in pixels(p):
        a, b = float(g[i, j]) - mean_g, binary[i, j] - mean_p
        total += (1 + 2 * a * b / (a * a + b * b)) ** 2 / 4
    return total / p.numel()


def slow_s(p, g, alpha):
    height, width = p.shape
    inside = [(i, j) for i, j in pixels(p) if g[i, j]]
    outside = [(i, j) for i, j in pixels(p) if not g[i, j]]

    def likeness(values):
        mean = sum(values) / len(values)
        squares = sum((v - mean) ** 2 for v in values)
        deviation = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0
        return 2 * mean / (mean**2 + 1 + deviation)

    share = len(inside) / p.numel()
    of_object = share * likeness([float(p[at]) for at in inside])
    of_object += (1 - share) * likeness([1 - float(p[at]) for at in outside])
    rows = math.floor(sum(i + 1 for i, _ in inside) / len(inside) + 0.5)
    columns = math.floor(sum(j + 1 for _, j in inside) / len(inside) + 0.5)
    of_regions = 0.0
    for top, bottom in ((0, rows), (rows, height)):
        for left, right in ((0, columns), (columns, width)):
            block = list(itertools.product(range(top, bottom), range(left, right)))
            if block:
                weight = len(block) / p.numel()
                of_regions += weight * slow_ssim(
                    [float(p[at]) for at in block], [float(g[at]) for at in block]
                )
    return max(0.0, alpha * of_object + (1 - alpha) * of_regions)


def slow_ssim(a, b):
    n = len(a)
    mean_a, mean_b = sum(a) / n, sum(b) / n
    var_a = sum((x - mean_a) ** 2 for x in a) / max(n - 1, 1)
    var_b = sum((y - mean_b) ** 2 for y in b) / max(n - 1, 1)
    joint = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / max(n - 1, 1)
    above, below = 4 * mean_a * mean_b * joint, (mean_a**2 + mean_b**2) * (var_a + var_b)
    if abs(above) > 1e-12:
        return above / below
    return float(abs(below) < 1e-12)


def slow_weighted_f(p, g, beta2, border, tie):
    """``tie`` chooses among the errors of equally near pixels of the object."""
    inside = [(i, j) for i, j in pixels(p) if g[i, j]]
    error = {(i, j): abs(float(p[i, j]) - float(g[i, j])) for i, j in pixels(p)}
    distance, spread = {}, {}
    for i, j in pixels(p):
        to = {at: (at[0] - i) ** 2 + (at[1] - j) ** 2 for at in inside}
        least = min(to.values())
        distance[i, j] = math.sqrt(least)
        spread[i, j] = tie(error[at] for at in inside if to[at] == least)
    hits, false = float(len(inside)), 0.0
    for i, j in pixels(p):
        if not g[i, j]:
            false += error[i, j] * (2 - math.exp(math.log(0.5) / 5 * distance[i, j]))
            continue
        around = total = 0.0
        for down, right in itertools.product(range(-3, 4), repeat=2):
            weight = math.exp(-(down**2 + right**2) / (2 * 5**2))
            there = (i + down, j + right)
            if there in error:
                around += weight * spread[there]
            if there in error or border == "zeros":
                total += weight
        hits -= min(error[i, j], around / total)
    precision, recall = hits / (hits + false), hits / len(inside)
    return (1 + beta2) * precision * recall / (beta2 * precision + recall)


@pytest.mark.parametrize("beta2", [0.3, 1.0])
def test_f_measures_equal_loops(beta2):
    p, g = draw()
    options = {"beta2": beta2, "thresholds": LEVELS}
    curve = f_measure_curve(p, g, **options)
    for n, k in itertools.product(range(3), range(LEVELS)):
        expected = slow_f(p[n], g[n], beta2, k / 10) if (p[n] >= k / 10).any() else 0.0
        assert float(curve[n, k]) == pytest.approx(expected, abs=1e-12)
    assert torch.equal(max_f_measure(p, g, **options), curve.max(1).values)
    torch.testing.assert_close(mean_f_measure(p, g, **options), curve.sum(1) / LEVELS)


def test_e_measures_equal_loops():
    p, g = draw(seed=1)
    curve = e_measure_curve(p, g, thresholds=LEVELS)
    for n, k in itertools.product(range(3), range(LEVELS)):
        assert float(curve[n, k]) == pytest.approx(slow_e(p[n], g[n], k / 10), abs=1e-12)
    torch.testing.assert_close(e_measure(p, g, thresholds=LEVELS), curve.sum(1) / LEVELS)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_s_measure_equals_loops(alpha, share):
    p, g = draw(share=share, seed=2)
    found = s_measure(p, g, alpha=alpha)
    for n in range(3):
        assert float(found[n]) == pytest.approx(slow_s(p[n], g[n], alpha), abs=1e-12)


@pytest.mark.parametrize("corner", [(0, 0), (6, 8), (0, 8), (3, 4)])
def test_s_measure_of_one_pixel_and_empty_blocks(corner):
    p, g = draw(count=1, seed=3)
    g.zero_()[0][corner] = 1
    assert float(s_measure(p, g)) == pytest.approx(slow_s(p[0], g[0], 0.5), abs=1e-12)


def test_s_measure_of_flat_blocks_is_one_whatever_their_values():
    g = torch.zeros(1, 6, 6, dtype=torch.long)
    g[0, 0, 0] = 1  # the blocks are that pixel, the rest of its row and column, and all others
    p = torch.full((1, 6, 6), 0.1, dtype=torch.float64)
    assert float(s_measure(p, g, alpha=0.0)) == pytest.approx(slow_s(p[0], g[0], 0.0), abs=1e-12)
    assert float(s_measure(p, g, alpha=0.0)) == pytest.approx(1.0)


@pytest.mark.parametrize("border", ["valid", "zeros"])
@pytest.mark.parametrize("beta2", [0.3, 1.0])
def test_weighted_f_equals_loops(border, beta2):
    p, g = draw(seed=4)
    g[0].zero_()[:, 3:5] = 1  # a bar: each pixel has one nearest on it
    g[1].zero_()[2, 6] = 1
    found = weighted_f_measure(p, g, beta2=beta2, border=border)
    for n in range(3):
        low = slow_weighted_f(p[n], g[n], beta2, border, max)
        high = slow_weighted_f(p[n], g[n], beta2, border, min)
        assert low - 1e-12 <= float(found[n]) <= high + 1e-12
        assert n == 2 or low == pytest.approx(high, abs=1e-12)


# --- closed forms -----------------------------------------------------------------------------


def test_a_perfect_map_is_perfect_and_its_opposite_is_worth_nothing():
    _, g = draw()
    p = g.double()
    for metric in (max_f_measure, s_measure, weighted_f_measure):
        torch.testing.assert_close(metric(p, g), torch.ones(3).double(), atol=1e-12, rtol=0)
    assert torch.equal(e_measure_curve(p, g)[:, -1], torch.ones(3).double())
    assert torch.equal(mae(p, g), torch.zeros(3).double())
    all_taken = 1.3 * p.mean((1, 2)) / (0.3 * p.mean((1, 2)) + 1)  # at threshold 0
    torch.testing.assert_close(mean_f_measure(p, g), (255 + all_taken) / 256)
    for metric in (s_measure, weighted_f_measure):
        torch.testing.assert_close(metric(1 - p, g), torch.zeros(3).double(), atol=1e-12, rtol=0)
    assert torch.equal(f_measure_curve(1 - p, g)[:, 1:], torch.zeros(3, 255).double())
    torch.testing.assert_close(e_measure_curve(1 - p, g)[:, -1].max(), torch.tensor(0.0).double())


def test_levels_of_a_picture_meet_their_thresholds():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    for dtype in (torch.float32, torch.float64):
        curve = f_measure_curve(levels.to(dtype) / 255, torch.ones_like(levels))
        taken = 256.0 - torch.arange(256, dtype=torch.float64)  # of 256 pixels, at each threshold
        torch.testing.assert_close(curve[0], 1.3 * taken / (0.3 * 256 + taken))


def test_an_error_costs_less_beside_the_object_than_far_from_it():
    g = torch.zeros(2, 20, 20, dtype=torch.long)
    g[:, 8:12, 8:12] = 1
    p = g.double()
    p[0, 10, 12], p[1, 10, 19] = 1.0, 1.0  # distances 1 and 8
    for distance, found in zip((1, 8), weighted_f_measure(p, g), strict=True):
        false = 2 - 0.5 ** (distance / 5)
        assert float(found) == pytest.approx(2 * 16 / (2 * 16 + false), rel=1e-12)


def test_errors_that_neighbours_repair_cost_less():
    g = torch.zeros(2, 24, 24, dtype=torch.long)
    g[:, 4:20, 4:20] = 1
    p = g.double()
    p[0, 6:19:4, 6:19:4] = 0.0  # sixteen holes, scattered
    p[1, 8:12, 8:12] = 0.0  # and in one place
    scattered, together = weighted_f_measure(p, g)
    assert scattered > together
    assert torch.equal(mae(p, g)[0], mae(p, g)[1])


# --- empty masks, empty maps ------------------------------------------------------------------


def test_without_an_object_an_empty_map_is_right():
    g = torch.zeros(2, 6, 5, dtype=torch.long)
    p = torch.zeros(2, 6, 5)
    p[1, 2, 2] = 0.6
    assert torch.equal(weighted_f_measure(p, g), torch.tensor([1.0, 0.0]).double())
    # thresholds 0, 1/4, ..., 1: the pixel of 0.6 is taken up to 1/2
    expected = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 0, 1, 1]]).double()
    assert torch.equal(f_measure_curve(p, g, thresholds=5), expected)
    share = 1 - torch.tensor([[30, 0, 0, 0, 0], [30, 1, 1, 0, 0]]).double() / 30
    torch.testing.assert_close(e_measure_curve(p, g, thresholds=5), share)
    torch.testing.assert_close(s_measure(p, g), torch.tensor([1.0, 1 - 0.02]).double())
    torch.testing.assert_close(mae(p, g), torch.tensor([0.0, 0.02]).double())


def test_on_a_full_mask_the_share_of_the_map_counts():
    g = torch.ones(1, 4, 4)
    p = torch.full((1, 4, 4), 0.25)
    torch.testing.assert_close(s_measure(p, g), torch.tensor([0.25]).double())
    assert torch.equal(e_measure_curve(p, g, thresholds=3)[0], torch.tensor([1.0, 0, 0]).double())
    assert 0 < float(weighted_f_measure(p, g)) < 1


def test_an_empty_map_finds_nothing_even_at_the_border():
    g = torch.zeros(2, 8, 8, dtype=torch.long)
    g[0, 0, 0] = 1
    g[1, 3:6, 3:6] = 1
    p = torch.zeros(2, 8, 8)
    nothing = torch.zeros(2).double()
    torch.testing.assert_close(weighted_f_measure(p, g), nothing, atol=1e-12, rtol=0)
    credited = weighted_f_measure(p, g, border="zeros")
    assert float(credited[0]) == pytest.approx(0.8, abs=0.001)
    assert float(f_measure_curve(p, g)[:, 1:].max()) == 0.0


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_never_nan(metric, value):
    masks = torch.zeros(4, 5, 6, dtype=torch.long)
    masks[1] = 1
    masks[2, 0, 0] = 1
    masks[3, 4] = 1
    for dtype in (torch.float16, torch.float32, torch.float64):
        found = metric(torch.full((4, 5, 6), value, dtype=dtype), masks)
        assert found.shape == (4,)
        assert found.dtype == torch.float64
        assert bool(((found >= 0) & (found <= 1)).all())
    assert metric(torch.full((1, 1, 1), value), torch.ones(1, 1, 1)).isfinite().all()


# --- conventions ------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ALL)
def test_images_do_not_mix_and_masks_have_any_type(metric):
    p, g = draw(count=4)
    g[2] = 0
    whole = metric(p, g)
    for n in range(4):
        assert torch.equal(metric(p[n : n + 1], g[n : n + 1]), whole[n : n + 1])
    for dtype in (torch.bool, torch.uint8, torch.float32):
        assert torch.equal(metric(p, g.to(dtype)), whole)


@pytest.mark.parametrize("metric", ALL)
def test_a_channel_of_several_is_taken_as_it_is(metric):
    p, g = draw()
    stacked = torch.stack([1 - p, p], dim=1)  # a view of it is not contiguous
    assert torch.equal(metric(stacked[:, 1], g), metric(p, g))


@pytest.mark.parametrize("metric", ALL)
def test_bad_input_is_refused(metric):
    p, g = draw()
    with pytest.raises(TypeError, match="floating"):
        metric(g, g)
    with pytest.raises(ValueError, match="same shape"):
        metric(p, g[:, :3])
    with pytest.raises(ValueError, match="sigmoid"):
        metric(4 * p - 2, g)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        metric(p * math.nan, g)
    with pytest.raises(ValueError, match="0 and 1; got 2"):
        metric(p, 2 * g)
    with pytest.raises(ValueError, match="empty"):
        metric(p[:0], g[:0])
    with pytest.raises(ValueError, match="b, h, w"):
        metric(p[0], g[0])


def test_options_out_of_range_are_refused():
    p, g = draw()
    for metric, options in (
        (max_f_measure, {"beta2": 0.0}),
        (mean_f_measure, {"thresholds": 1}),
        (e_measure, {"thresholds": 1}),
        (s_measure, {"alpha": 1.5}),
        (weighted_f_measure, {"beta2": -1.0}),
        (weighted_f_measure, {"border": "mirror"}),
    ):
        with pytest.raises(ValueError, match="must"):
            metric(p, g, **options)
