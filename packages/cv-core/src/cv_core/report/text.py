"""Numbers and verdicts as short text, the same on the page, in Markdown and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cv_core.experiment.compare import Row, Verdict
from cv_core.experiment.declaration import Metric
from cv_core.experiment.results import Results
from cv_core.experiment.statistics import Interval

BADGES = {"supported": "✔", "contradicted": "✘", "inconclusive": "≈", "untested": "–"}
"""The sign of each outcome; colour never stands alone."""

_COST_NAMES = {
    "parameters": "parameters",
    "macs": "MACs",
    "steps": "steps",
    "seconds": "time",
    "peak_memory_mib": "peak memory",
}
_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float | None, decimals: int | None = None) -> str:
    """Write a number with a true minus sign; ``–`` for none.

    Args:
        value: The number.
        decimals: Digits after the point; four significant digits by default.
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.4g}" if decimals is None else f"{value:.{decimals}f}"
    return text.replace("-", "−")


def signed(value: float | None, decimals: int | None = None) -> str:
    """Write a difference with its sign."""
    sign = "+" if value is not None and value > 0 else ""
    return sign + number(value, decimals)


def estimate(interval: Interval | None) -> str:
    """Write a mean with its half-width, as precisely as the half-width allows: 0.912 ± 0.013."""
    if interval is None:
        return "–"
    if not math.isfinite(interval.half_width):
        return number(interval.mean)
    decimals = _decimals(interval)
    if decimals is None:
        return f"{number(interval.mean)} ± {interval.half_width:.2g}"
    return f"{number(interval.mean, decimals)} ± {number(interval.half_width, decimals)}"


def bounds(interval: Interval | None) -> str:
    """Write an interval's ends with their signs: [+0.002, +0.041]."""
    if interval is None:
        return "–"
    decimals = _decimals(interval)
    return f"[{signed(interval.low, decimals)}, {signed(interval.high, decimals)}]"


def difference(interval: Interval | None) -> str:
    """Write a mean difference with its interval: +0.022 [+0.002, +0.041]."""
    if interval is None:
        return "–"
    if not math.isfinite(interval.half_width):
        return signed(interval.mean)
    return f"{signed(interval.mean, _decimals(interval))} {bounds(interval)}"


def pvalue(value: float | None) -> str:
    """Write a p-value with two significant digits."""
    if value is None:
        return "–"
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def cost_name(name: str) -> str:
    """Return a cost's heading."""
    return _COST_NAMES.get(name, name.replace("_", " "))


def cost(name: str, value: float | None) -> str:
    """Write a cost with its unit: 1.23 M, 2 min 05 s, 812 MiB."""
    if value is None:
        return "–"
    if name == "seconds":
        return duration(value)
    if name == "peak_memory_mib":
        return f"{value / 1024:.1f} GiB" if value >= 1024 else f"{value:.0f} MiB"
    if name in _COST_NAMES:
        return count(value)
    return number(value)


def count(value: float) -> str:
    """Write a count with three significant digits: 950, 1.67 M."""
    for size, suffix in _SUFFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g} {suffix}"
    return number(value)


def duration(seconds: float) -> str:
    """Write a time: 0.31 s, 12.3 s, 2 min 05 s, 3 h 07 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def metric_name(metric: Metric) -> str:
    """Return a metric's heading with its unit."""
    return f"{metric.name} [{metric.unit}]" if metric.unit else metric.name


def direction(metric: Metric) -> str:
    """Say which direction is better; nothing for a diagnostic."""
    return "" if metric.better == "neither" else f"{metric.better} is better"


def outlook(verdict: Verdict) -> str:
    """Say how many seeds would settle an inconclusive verdict; nothing for another one."""
    if verdict.outcome != "inconclusive":
        return ""
    if verdict.seeds_needed is None:
        return "no number of seeds would settle a difference of this size"
    return f"about {verdict.seeds_needed} paired seeds would settle a difference of this size"


def paper(verdict: Verdict) -> str:
    """Write the paper's own two numbers and their difference; ``–`` where it prints none."""
    if verdict.claim.paper is None:
        return "–"
    ours, other = verdict.claim.paper
    return f"{number(ours)} against {number(other)} ({paper_gap(verdict)})"


def paper_gap(verdict: Verdict) -> str:
    """Write the difference of the paper's two numbers; ``–`` where it prints none."""
    gap = verdict.paper_difference
    return signed(None if gap is None else float(f"{gap:.6g}"))  # not 0.30000000000000004


def costs_of(rows: Sequence[Row]) -> list[str]:
    """Return the names of all costs in a table: the common ones first, then as they came."""
    found = list(dict.fromkeys(name for row in rows for name in row.costs))
    return [name for name in _COST_NAMES if name in found] + [
        name for name in found if name not in _COST_NAMES
    ]


@dataclass(frozen=True)
class Trouble:
    """Trials of one arm and case that failed or were skipped for one reason."""

    where: str
    status: str
    why: str
    seeds: list[int]
    tracebacks: list[str]


def troubles(results: Results) -> list[Trouble]:
    """Group the trials that did not finish by arm, case and reason.

    Args:
        results: A run.
    """
    found: dict[tuple[str, str, str], Trouble] = {}
    for trial in results.trials:
        if trial.status == "done":
            continue
        where = f"{trial.arm}, {trial.case}" if trial.case else trial.arm
        why = trial.reason or trial.error.strip().rpartition("\n")[2]
        key = (where, trial.status, why)
        trouble = found.setdefault(key, Trouble(where, trial.status, why, [], []))
        trouble.seeds.append(trial.seed)
        if trial.error and trial.error not in trouble.tracebacks:
            trouble.tracebacks.append(trial.error)
    return list(found.values())


def _decimals(interval: Interval) -> int | None:
    """Give the half-width two significant digits; ``None`` where plain decimals read badly."""
    width = interval.half_width
    if not math.isfinite(width) or width <= 0:
        return None
    decimals = max(0, 1 - int(f"{width:.1e}".partition("e")[2]))
    return decimals if decimals <= 7 else None
