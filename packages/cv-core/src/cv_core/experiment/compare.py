"""Verdicts on claims, summaries of arms, and the comparison of two runs.

Everything is computed from ``Results`` alone. A verdict rests on the differences between two arms
over the seeds that both finished, because two arms of one seed see the same data and the same
initial weights.
"""

from __future__ import annotations

import statistics as median_of
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from cv_core.experiment.declaration import Claim
from cv_core.experiment.results import Results, TrialResult
from cv_core.experiment.statistics import (
    Interval,
    bca_interval,
    holm,
    mean_interval,
    paired_t_interval,
    paired_t_pvalue,
    seeds_needed,
)

Outcome = Literal["supported", "contradicted", "inconclusive", "untested"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the run says of one claim in one case.

    Args:
        claim: The claim.
        case: The case's name.
        outcome: ``supported`` if the 95 % paired-t interval of the difference lies wholly in the
            claimed direction, ``contradicted`` if wholly against it, ``inconclusive`` if it holds
            zero, ``untested`` if fewer than two pairs of trials finished.
        differences: Claim's arm minus the other arm, by seed, over the seeds that both finished.
        means: The means of the claim's arm and of the other arm over those seeds.
        interval: 95 % paired-t interval of the mean difference.
        bca: 95 % bootstrap interval of the same, for comparison.
        pvalue: Two-sided paired t test.
        adjusted: The p-value adjusted by Holm's rule for all tested claims of the run.
        seeds_needed: How many pairs would settle an effect of the observed size with probability
            0.8; only when inconclusive.
        reason: Why it is untested, or which pairs are missing.
    """

    claim: Claim
    case: str
    outcome: Outcome
    differences: dict[int, float] = field(default_factory=dict)
    means: tuple[float, float] | None = None
    interval: Interval | None = None
    bca: Interval | None = None
    pvalue: float | None = None
    adjusted: float | None = None
    seeds_needed: int | None = None
    reason: str = ""

    @property
    def n(self) -> int:
        """How many pairs the verdict rests on."""
        return len(self.differences)

    @property
    def paper_difference(self) -> float | None:
        """The paper's own difference, where it prints both numbers."""
        return None if self.claim.paper is None else self.claim.paper[0] - self.claim.paper[1]


def verdicts(results: Results) -> list[Verdict]:
    """Judge every claim in every case that the run holds.

    Args:
        results: A run.

    Returns:
        One verdict per (claim, case), in the order declared. A claim none of whose cases is part
        of the run gets one verdict, ``untested``, under the names of these cases.
    """
    found = []
    for claim in results.declared.claims:
        cases = _cases_of(claim, results)
        found += [_judge(results, claim, case) for case in cases]
        if not cases:
            missing = " / ".join(claim.cases or ())
            reason = "none of its cases is part of this run"
            found.append(Verdict(claim=claim, case=missing, outcome="untested", reason=reason))
    tested = [item.pvalue for item in found if item.pvalue is not None]
    adjusted = iter(holm(tested))
    return [
        item if item.pvalue is None else replace(item, adjusted=next(adjusted)) for item in found
    ]


def _cases_of(claim: Claim, results: Results) -> list[str]:
    """Return the run's cases in which the claim is judged: both its arms take part in them."""
    taking_part = {case.name for case in results.declared.cases if case.has(claim.arm, claim.other)}
    return [
        case
        for case in results.cases
        if case in taking_part and (claim.cases is None or case in claim.cases)
    ]


def headline(judged: Sequence[Verdict]) -> str:
    """Say in a few words how the claims fared, such as ``supported 3 of 4, inconclusive 1``.

    Args:
        judged: From ``verdicts``.
    """
    counts = {name: sum(item.outcome == name for item in judged) for name in get_args(Outcome)}
    parts = [f"{name} {count}" for name, count in counts.items() if count]
    if not parts:
        return "no claims"
    return ", ".join([f"{parts[0]} of {len(judged)}", *parts[1:]])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm in one case.

    Args:
        case: The case's name.
        arm: The arm's name.
        role: The arm's role.
        metrics: Mean and 95 % interval by metric, over the finished seeds.
        counts: How many finite values each of them rests on.
        costs: Median by cost.
        status: How many trials are ``done``, ``skipped`` and ``failed``.
    """

    case: str
    arm: str
    role: str
    metrics: dict[str, Interval]
    counts: dict[str, int]
    costs: dict[str, float]
    status: dict[str, int]


def summary(results: Results) -> list[Row]:
    """Summarise every arm in every case, in the order declared.

    Args:
        results: A run.
    """
    roles = {arm.name: arm.role for arm in results.declared.arms}
    rows = []
    for case in results.cases:
        for arm in results.arms:
            trials = results.of(case, arm)
            if trials:
                rows.append(_row(results, case, arm, roles[arm], trials))
    return rows


@dataclass(frozen=True, kw_only=True)
class Change:
    """Something that two runs do not share."""

    what: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Shift:
    """How one number of one arm moved from run A to run B.

    Args:
        case: The case's name.
        arm: The arm's name.
        metric: The metric's name.
        before: Mean in A with its interval.
        after: Mean in B with its interval.
        difference: B minus A over the seeds that both finished, with its paired-t interval.
        n: How many seeds that is.
    """

    case: str
    arm: str
    metric: str
    before: Interval
    after: Interval
    difference: Interval
    n: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs of one experiment side by side.

    Args:
        changes: What they were run with that differs: data, settings, versions, verdicts.
        shifts: How the numbers moved.
    """

    changes: list[Change]
    shifts: list[Shift]


def compare_runs(a: Results, b: Results) -> Comparison:
    """Compare two runs of one experiment.

    Args:
        a: The run before.
        b: The run after.

    Raises:
        ValueError: If the runs belong to different experiments or share no case and arm.
    """
    if a.slug != b.slug:
        raise ValueError(f"compare_runs: b must be a run of {a.slug!r}; got one of {b.slug!r}.")
    shifts = []
    for case in [case for case in a.cases if case in b.cases]:
        for arm in [arm for arm in a.arms if arm in b.arms]:
            for metric in a.declared.metrics:
                shift = _shift(a, b, case, arm, metric.name)
                if shift is not None:
                    shifts.append(shift)
    before, after = _facts(a), _facts(b)
    names = [*before, *(name for name in after if name not in before)]
    changes = [
        Change(what=name, before=before.get(name, "-"), after=after.get(name, "-"))
        for name in names
        if before.get(name) != after.get(name)
    ]
    if not shifts:
        raise ValueError(
            "compare_runs: a and b must share a finished (case, arm, seed); they share none."
        )
    return Comparison(changes=changes, shifts=shifts)


def _values(trials: Sequence[TrialResult], metric: str) -> dict[int, float]:
    read = {trial.seed: trial.metrics.get(metric) for trial in trials if trial.status == "done"}
    return {seed: value for seed, value in read.items() if value is not None}


def _judge(results: Results, claim: Claim, case: str) -> Verdict:
    ours = _values(results.of(case, claim.arm), claim.metric)
    theirs = _values(results.of(case, claim.other), claim.compared_metric)
    seeds = sorted(set(ours) & set(theirs))
    differences = {seed: ours[seed] - theirs[seed] for seed in seeds}
    reason = _missing(results, claim, case, len(seeds))
    if not seeds:
        return Verdict(claim=claim, case=case, outcome="untested", reason=reason)
    values = list(differences.values())
    interval = paired_t_interval(values)
    outcome = _outcome(interval, claim.sign) if len(values) > 1 else "untested"
    tested = outcome != "untested"
    return Verdict(
        claim=claim,
        case=case,
        outcome=outcome,
        differences=differences,
        means=(_mean([ours[seed] for seed in seeds]), _mean([theirs[seed] for seed in seeds])),
        interval=interval,
        bca=bca_interval(values) if tested else None,
        pvalue=paired_t_pvalue(values) if tested else None,
        seeds_needed=seeds_needed(values) if outcome == "inconclusive" else None,
        reason=reason,
    )


def _outcome(interval: Interval, sign: int) -> Outcome:
    low, high = sorted((sign * interval.low, sign * interval.high))
    if low > 0:
        return "supported"
    return "contradicted" if high < 0 else "inconclusive"


def _mean(values: Sequence[float]) -> float:
    return mean_interval(values).mean


def _missing(results: Results, claim: Claim, case: str, pairs: int) -> str:
    """Say which pairs are missing and why; nothing when all are there."""
    if pairs == len(results.seeds) > 1:
        return ""
    whole = {trial.reason for trial in results.trials if trial.case == case}
    if len(whole) == 1 and "" not in whole:
        return f"the case was skipped: {whole.pop()}"
    causes = [
        cause
        for arm, metric in ((claim.arm, claim.metric), (claim.other, claim.compared_metric))
        if (cause := _cause(results.of(case, arm), arm, metric))
    ]
    found = f"{pairs} of {len(results.seeds)} pairs finished"
    if pairs < 2:
        found += ", two are needed"
    return "; ".join([found, *dict.fromkeys(causes)])  # one arm may be compared with itself


def _cause(trials: Sequence[TrialResult], arm: str, metric: str) -> str:
    if not trials:
        return f"{arm} was not run"
    failed = sum(trial.status == "failed" for trial in trials)
    skipped = [trial for trial in trials if trial.status == "skipped"]
    done = sum(trial.status == "done" for trial in trials)
    gaps = done - len(_values(trials, metric))
    parts = []
    if failed:
        parts.append(f"failed {failed} of {len(trials)}")
    if skipped:
        parts.append(f"skipped {len(skipped)} of {len(trials)} ({skipped[0].reason})")
    if gaps:
        parts.append(f"gave no finite {metric} {gaps} of {len(trials)} times")
    return f"{arm} {', '.join(parts)}" if parts else ""


def _row(results: Results, case: str, arm: str, role: str, trials: Sequence[TrialResult]) -> Row:
    values = {
        metric.name: list(_values(trials, metric.name).values())
        for metric in results.declared.metrics
    }
    costs: dict[str, list[float]] = {}
    for trial in trials:
        for name, cost in trial.costs.items():
            if cost is not None:
                costs.setdefault(name, []).append(cost)
    return Row(
        case=case,
        arm=arm,
        role=role,
        metrics={name: mean_interval(found) for name, found in values.items() if found},
        counts={name: len(found) for name, found in values.items()},
        costs={name: float(median_of.median(found)) for name, found in costs.items()},
        status={
            status: sum(trial.status == status for trial in trials)
            for status in ("done", "skipped", "failed")
        },
    )


def _shift(a: Results, b: Results, case: str, arm: str, metric: str) -> Shift | None:
    before, after = (_values(run.of(case, arm), metric) for run in (a, b))
    seeds = sorted(set(before) & set(after))
    if not seeds:
        return None
    return Shift(
        case=case,
        arm=arm,
        metric=metric,
        before=mean_interval(list(before.values())),
        after=mean_interval(list(after.values())),
        difference=paired_t_interval([after[seed] - before[seed] for seed in seeds]),
        n=len(seeds),
    )


def _facts(run: Results) -> dict[str, str]:
    """Flatten what a run was made with, for the list of changes."""
    env = run.environment
    facts = {
        "budget": run.budget,
        "data": run.data.name,
        "data checksum": run.data.checksum,
        "device": run.device,
        "device name": env.device_name,
        "platform": env.platform,
        "processor threads": str(env.cores),
        "python": env.python,
        "torch": env.torch,
        "commit": f"{env.commit or 'none'}{' (changed)' if env.dirty else ''}",
        "seeds": str(len(run.seeds)),
        "arms": ", ".join(run.arms),
        "cases": ", ".join(run.cases),
    }
    facts |= {f"version of {name}": value for name, value in env.versions.items()}
    facts |= {f"setting {name}": str(value) for name, value in run.declared.settings.items()}
    for case in run.declared.cases:
        facts |= {f"setting {name} of {case.name}": str(v) for name, v in case.settings.items()}
    facts |= {
        f"verdict: {item.claim}{', ' if item.case else ''}{item.case}": item.outcome
        for item in verdicts(run)
    }
    return facts
