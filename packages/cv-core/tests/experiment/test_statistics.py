import math

import numpy as np
import pytest
from cv_core.experiment.statistics import (
    Interval,
    bca_interval,
    binomial_interval,
    holm,
    mean_interval,
    paired_t_interval,
    paired_t_pvalue,
    seeds_needed,
    sign_flip_pvalue,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

DIFFERENCES = [0.02, 0.03, -0.01, 0.05, 0.024]
ON_DIFFERENCES = [
    mean_interval,
    paired_t_interval,
    bca_interval,
    paired_t_pvalue,
    sign_flip_pvalue,
    seeds_needed,
]


def test_t_interval_by_hand():
    # mean 2, s = 1, n = 3; the 97.5 % point of t with 2 degrees is 4.302652729911275
    half = 4.302652729911275 / math.sqrt(3)
    found = paired_t_interval([1.0, 2.0, 3.0])
    assert (found.low, found.high, found.mean) == pytest.approx((2 - half, 2 + half, 2.0))
    assert found.half_width == pytest.approx(half)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12), st.floats(0.5, 0.99))
@settings(max_examples=40, deadline=None)
def test_t_interval_is_mean_plus_minus_t_times_standard_error(values, confidence):
    x = np.array(values)
    if np.ptp(x) < 1e-6:
        return
    half = stats.t.ppf((1 + confidence) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size)
    found = mean_interval(values, confidence)
    assert found.low == pytest.approx(x.mean() - half, abs=1e-9 + 1e-9 * abs(x).max())
    assert found.high == pytest.approx(x.mean() + half, abs=1e-9 + 1e-9 * abs(x).max())


def test_interval_and_pvalue_agree_on_significance():
    rng = np.random.default_rng(3)
    outcomes = set()
    for _ in range(60):
        d = rng.normal(0.8, 1.0, 6)
        found = paired_t_interval(d)
        excludes_zero = found.low > 0 or found.high < 0
        assert excludes_zero == (paired_t_pvalue(d) < 0.05)
        outcomes.add(excludes_zero)
    assert outcomes == {True, False}


def test_t_interval_covers_as_promised():
    rng = np.random.default_rng(11)
    samples = rng.normal(0.3, 2.0, (1500, 5))
    found = [paired_t_interval(sample, 0.9) for sample in samples]
    covered = sum(interval.low <= 0.3 <= interval.high for interval in found)
    # 0.9 within four standard deviations of the binomial count
    assert abs(covered / 1500 - 0.9) < 4 * math.sqrt(0.09 / 1500)


def test_bca_equals_scipys_up_to_the_draw():
    d = np.random.default_rng(5).exponential(1.0, 25)  # skewed, so that bias and skew count
    ours = bca_interval(d, resamples=40_000)
    theirs, plain = (
        stats.bootstrap(
            (d,), np.mean, n_resamples=40_000, method=method, random_state=np.random.default_rng(6)
        ).confidence_interval
        for method in ("BCa", "percentile")
    )
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.012)
    assert abs(plain.high - theirs.high) > 0.02  # the corrections are not lost in the tolerance


def test_bca_covers_a_skewed_mean():
    rng = np.random.default_rng(7)
    samples = rng.exponential(1.0, (300, 30))
    found = [bca_interval(sample, resamples=500) for sample in samples]
    covered = sum(interval.low <= 1.0 <= interval.high for interval in found) / 300
    assert 0.88 < covered < 0.98


def test_bca_repeats_with_its_seed():
    assert bca_interval(DIFFERENCES, seed=1) == bca_interval(DIFFERENCES, seed=1)
    assert bca_interval([0.0, 0.1, 0.7, 1.9], seed=1, resamples=200) != bca_interval(
        [0.0, 0.1, 0.7, 1.9], seed=2, resamples=200
    )


def test_pvalue_equals_scipys():
    ours, theirs = [0.9, 0.8, 0.95, 0.7], [0.85, 0.7, 0.9, 0.72]
    d = np.subtract(ours, theirs)
    assert paired_t_pvalue(d) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)


def test_sign_flip_counts_all_patterns():
    d = DIFFERENCES
    total = abs(sum(d))
    hits = 0
    for pattern in range(2 ** len(d)):
        flipped = sum(-x if pattern >> i & 1 else x for i, x in enumerate(d))
        hits += abs(flipped) >= total - 1e-12
    assert sign_flip_pvalue(d) == hits / 2 ** len(d) == 0.125
    assert sign_flip_pvalue([1.0] * 5) == 2 / 32  # the least that five seeds can give


def test_sign_flip_by_sampling_is_near_the_exact_one():
    d = np.random.default_rng(2).normal(0.4, 1.0, 17)
    bits = (np.arange(2**17)[:, None] >> np.arange(17)) & 1
    exact = (np.abs((1 - 2 * bits) @ d) >= abs(d.sum()) - 1e-12).mean()
    assert sign_flip_pvalue(d, resamples=20_000) == pytest.approx(exact, abs=0.012)


def test_seeds_needed_is_the_smallest_number_with_the_power():
    d = np.array(DIFFERENCES)
    n = seeds_needed(d)
    effect = d.mean() / d.std(ddof=1)

    def power(k):
        return stats.nct.sf(stats.t.ppf(0.975, k - 1), k - 1, math.sqrt(k) * effect)

    assert power(n) >= 0.8 > power(n - 1)


def test_seeds_needed_by_simulation():
    d = np.array([1.3, -0.4, 0.9, 0.6, 0.1])
    n = seeds_needed(d)
    samples = np.random.default_rng(4).normal(d.mean(), d.std(ddof=1), (4000, n))
    t = samples.mean(1) / (samples.std(1, ddof=1) / math.sqrt(n))
    settled = (t > stats.t.ppf(0.975, n - 1)).mean()
    assert 0.78 < settled < 0.86  # at least 0.8, and one seed less would not do


def test_seeds_needed_of_one_standard_deviation_is_ten():
    # a textbook value: d = 1, power 0.8, alpha 0.05 two-sided needs ten pairs
    assert seeds_needed([0.0, 2.0, 0.0, 2.0, 1.0], power=0.8) == 10
    assert np.std([0.0, 2.0, 0.0, 2.0, 1.0], ddof=1) == 1.0


def test_wilson_by_hand():
    z = stats.norm.ppf(0.975)
    k, n = 7, 20
    centre = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    found = binomial_interval(k, n)
    assert (found.low, found.high, found.mean) == pytest.approx(
        (centre - half, centre + half, 0.35)
    )
    assert binomial_interval(0, 20).low == 0.0
    assert binomial_interval(20, 20).high == 1.0


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.2 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.2 once made monotone
    assert holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_degenerate_differences_have_defined_answers():
    one = Interval(-math.inf, math.inf, 0.3)
    assert mean_interval([0.3]) == paired_t_interval([0.3]) == bca_interval([0.3]) == one
    assert paired_t_pvalue([0.3]) == 1.0
    assert sign_flip_pvalue([0.3]) == 1.0
    assert seeds_needed([0.3]) is None
    for zeros in ([0.0, 0.0, 0.0], [0.0]):
        assert paired_t_interval(zeros).mean == 0.0
        assert paired_t_pvalue(zeros) == 1.0
        assert sign_flip_pvalue(zeros) == 1.0
        assert seeds_needed(zeros) is None
    equal = [0.9 - 0.8, 0.3 - 0.2, 0.1]  # equal but for rounding
    assert len(set(equal)) > 1
    for interval in (paired_t_interval(equal), bca_interval(equal)):
        assert interval.low == interval.high == pytest.approx(0.1)
    assert paired_t_pvalue(equal) == 0.0
    assert seeds_needed(equal) == 2
    assert seeds_needed([1.0, -1.0, 1e-9]) is None  # more than a million


@pytest.mark.parametrize("function", ON_DIFFERENCES)
@pytest.mark.parametrize("bad", [[], [0.1, math.nan], [math.inf, 1.0], [[0.1], [0.2]]])
def test_bad_numbers_are_refused(function, bad):
    with pytest.raises(ValueError, match=f"^{function.__name__}: "):
        function(bad)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5, math.nan])
@pytest.mark.parametrize("function", [mean_interval, paired_t_interval, bca_interval])
def test_confidence_must_be_a_probability(function, confidence):
    with pytest.raises(ValueError, match="confidence must lie in"):
        function(DIFFERENCES, confidence)


def test_counts_and_pvalues_are_checked():
    with pytest.raises(ValueError, match="successes must be at least 0 and at most 5; got 6"):
        binomial_interval(6, 5)
    with pytest.raises(ValueError, match="trials must be at least 1"):
        binomial_interval(0, 0)
    with pytest.raises(ValueError, match="pvalues must lie in"):
        holm([0.1, math.nan])
