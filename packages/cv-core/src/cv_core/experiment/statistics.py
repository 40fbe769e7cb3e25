"""Intervals and tests for a handful of repeats: plain functions of plain numbers.

Repeats are few and often degenerate (one seed, all equal, all zero), so every function says what
it answers then, and none of them warns. NaN and infinities are refused.

Examples:
    >>> paired_t_interval([0.02, 0.03, 0.01, 0.02, 0.02])  # doctest: +ELLIPSIS
    Interval(low=0.0112..., high=0.0287..., mean=0.02)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cv_core.checks import check_finite, check_integer, check_range
from cv_core.random import numpy_generator

_EXACT_SIGNS = 16  # up to this many differences, all 2**n sign patterns are counted
_MOST_SEEDS = 1_000_000
_SAME = 1e-12  # a spread this small beside the values is rounding


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; the ends are infinite where the spread is unknown."""

    low: float
    high: float
    mean: float

    @property
    def half_width(self) -> float:
        """Half the distance between the ends."""
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    r"""Return Student's interval of a mean, :math:`\bar x \pm t_{n-1}\, s / \sqrt n`.

    Args:
        values: At least one number. A single one has an infinite interval, equal ones have an
            interval of width zero.
        confidence: In (0, 1).

    Raises:
        ValueError: If there is no value, one is not finite, or ``confidence`` is out of range.
    """
    x = _numbers("mean_interval", "values", values, confidence)
    return _t_interval(x, confidence)


def paired_t_interval(
    differences: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Interval:
    r"""Return the paired-t interval of a mean difference, :math:`\bar d \pm t_{n-1}\, s / \sqrt n`.

    Args:
        differences: One difference per pair. A single one has an infinite interval, equal ones
            have an interval of width zero.
        confidence: In (0, 1).

    Raises:
        ValueError: If there is no difference, one is not finite, or ``confidence`` is out of range.
    """
    d = _numbers("paired_t_interval", "differences", differences, confidence)
    return _t_interval(d, confidence)


def bca_interval(
    differences: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    *,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Return the bias-corrected and accelerated bootstrap interval of the mean.

    It assumes no shape of the distribution, but with fewer than about ten values it is too narrow;
    the paired-t interval is the one to judge by.

    Args:
        differences: One difference per pair; degenerate ones as in ``paired_t_interval``.
        confidence: In (0, 1).
        resamples: How many bootstrap samples.
        seed: Of the bootstrap samples.

    Raises:
        ValueError: If there is no difference, one is not finite, or an option is out of range.
    """
    from scipy import stats

    d = _numbers("bca_interval", "differences", differences, confidence)
    check_integer("bca_interval", "resamples", resamples, low=100)
    if d.size == 1 or _all_equal(d):
        return _t_interval(d, confidence)
    # not scipy.stats.bootstrap: its argument for the generator has two names across versions
    rng = numpy_generator(seed, "bca")
    means = d[rng.integers(0, d.size, (resamples, d.size))].mean(axis=1)
    mean = d.mean()
    bias = stats.norm.ppf(((means < mean).mean() + (means <= mean).mean()) / 2)
    deviation = d - mean  # those of the jackknife means are -1/(n-1) times as large
    acceleration = (deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5)
    z = bias + stats.norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])
    levels = stats.norm.cdf(bias + z / (1 - acceleration * z))
    low, high = np.quantile(means, levels)
    return Interval(float(low), float(high), float(mean))


def paired_t_pvalue(differences: Sequence[float] | np.ndarray) -> float:
    """Return the two-sided p-value of the paired t test that the mean difference is zero.

    Args:
        differences: One difference per pair. The answer is 1 for a single one and for all zero,
            and 0 for equal ones that are not zero.

    Raises:
        ValueError: If there is no difference or one is not finite.
    """
    from scipy import stats

    d = _numbers("paired_t_pvalue", "differences", differences)
    if d.size == 1:
        return 1.0
    if _all_equal(d):
        return float(d[0] == 0)
    return float(stats.ttest_1samp(d, 0.0).pvalue)


def sign_flip_pvalue(
    differences: Sequence[float] | np.ndarray, *, resamples: int = 99_999, seed: int = 0
) -> float:
    r"""Return the two-sided p-value of the sign-flip permutation test of a mean of zero.

    If arm and baseline did not differ, each difference could as well have the other sign:
    :math:`p = P(|\sum_i \pm d_i| \ge |\sum_i d_i|)`. It is exact for up to 16 differences, and
    cannot fall below :math:`2^{1-n}`: five seeds cannot give less than 0.0625.

    Args:
        differences: One difference per pair.
        resamples: How many random sign patterns, for more than 16 differences.
        seed: Of the sign patterns.

    Raises:
        ValueError: If there is no difference or one is not finite.
    """
    d = _numbers("sign_flip_pvalue", "differences", differences)
    check_integer("sign_flip_pvalue", "resamples", resamples, low=100)
    threshold = abs(d.sum()) - _SAME * np.abs(d).sum()  # ties must not be lost to rounding
    if d.size <= _EXACT_SIGNS:
        bits = (np.arange(2**d.size)[:, None] >> np.arange(d.size)) & 1
        return float((np.abs((1 - 2 * bits) @ d) >= threshold).mean())
    rng = numpy_generator(seed, "sign flips")
    hits = sum(abs(rng.choice((-1.0, 1.0), d.size) @ d) >= threshold for _ in range(resamples))
    return float((hits + 1) / (resamples + 1))


def seeds_needed(
    differences: Sequence[float] | np.ndarray, power: float = 0.8, confidence: float = 0.95
) -> int | None:
    r"""Return how many pairs would settle an effect of the observed size.

    The smallest :math:`n` for which the paired-t interval excludes zero with the wanted
    probability, if the true mean and spread are the observed ones: the upper tail of the
    noncentral t distribution with :math:`\delta = \sqrt n\, |\bar d| / s`.

    Args:
        differences: One difference per pair.
        power: The wanted probability, in (0, 1).
        confidence: Of the interval, in (0, 1).

    Returns:
        At least 2; ``None`` if the spread is unknown (one pair), the mean is zero, or a million
        pairs would not do.

    Raises:
        ValueError: If there is no difference, one is not finite, or an option is out of range.
    """
    owner = "seeds_needed"
    d = _numbers(owner, "differences", differences, confidence)
    check_range(owner, "power", power, low=0, high=1, low_open=True, high_open=True)
    if d.size == 1 or d.mean() == 0:
        return None
    if _all_equal(d):
        return 2
    # beyond 50 standard deviations nothing changes, and the noncentral t loses its digits
    effect = min(abs(float(d.mean() / d.std(ddof=1))), 50.0)
    above = 2
    while _power(above, effect, confidence) < power:
        above *= 2
        if above > _MOST_SEEDS:
            return None
    below = above // 2
    while above - below > 1:
        middle = (above + below) // 2
        if _power(middle, effect, confidence) < power:
            below = middle
        else:
            above = middle
    return above


def binomial_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's interval of a share.

    Args:
        successes: How many of ``trials``.
        trials: At least one.
        confidence: In (0, 1).

    Raises:
        TypeError: If a count is not a whole number.
        ValueError: If a count or ``confidence`` is out of range.
    """
    from scipy import stats

    owner = "binomial_interval"
    check_integer(owner, "trials", trials, low=1)
    check_integer(owner, "successes", successes, low=0, high=trials)
    check_range(owner, "confidence", confidence, low=0, high=1, low_open=True, high_open=True)
    ends = stats.binomtest(int(successes), int(trials)).proportion_ci(confidence, "wilson")
    return Interval(float(ends.low), float(ends.high), successes / trials)


def holm(pvalues: Sequence[float] | np.ndarray) -> list[float]:
    r"""Adjust p-values for being several, by Holm's step-down rule.

    :math:`\tilde p_{(k)} = \max_{j \le k} \min(1, (m - j + 1)\, p_{(j)})`.

    Args:
        pvalues: In [0, 1]; may be empty.

    Returns:
        The adjusted p-values in the order given.

    Raises:
        ValueError: If a value is outside [0, 1] or NaN.
    """
    p = np.asarray(pvalues, dtype=np.float64).reshape(-1)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"holm: pvalues must lie in [0, 1]; got {p.tolist()}.")
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted.tolist()


def _numbers(
    owner: str, name: str, values: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{owner}: {name} must be a list of at least one number; got {values!r}.")
    check_finite(owner, name, x)
    check_range(owner, "confidence", confidence, low=0, high=1, low_open=True, high_open=True)
    return x


def _all_equal(x: np.ndarray) -> bool:
    return bool(np.ptp(x) <= _SAME * np.abs(x).max())


def _t_interval(x: np.ndarray, confidence: float) -> Interval:
    from scipy import stats

    mean = float(x.mean())
    if x.size == 1:
        return Interval(-math.inf, math.inf, mean)
    if _all_equal(x):
        return Interval(mean, mean, mean)
    ends = stats.ttest_1samp(x, 0.0).confidence_interval(confidence)
    return Interval(float(ends.low), float(ends.high), mean)


def _power(n: int, effect: float, confidence: float) -> float:
    from scipy import stats

    critical = stats.t.ppf((1 + confidence) / 2, n - 1)
    return float(stats.nct.sf(critical, n - 1, math.sqrt(n) * effect))
