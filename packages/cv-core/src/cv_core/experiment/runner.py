"""Runs a plan: finished trials come from disk, the others are run, ``results.json`` is written.

The same command goes on where an interrupted run stopped. Two runs in one folder do not disturb
each other: every file is written whole or not at all, and a trial's file is named by everything
that its numbers depend on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

from cv_core.experiment.backends import run_parallel
from cv_core.experiment.environment import environment
from cv_core.experiment.plan import Plan, TrialSpec
from cv_core.experiment.results import (
    DataRecord,
    Declared,
    Results,
    TrialResult,
    write,
)
from cv_core.experiment.store import Store
from cv_core.experiment.worker import work
from cv_core.registry import Reference


@runtime_checkable  # the smoke runs check types
class Watcher(Protocol):
    """Told how a run gets on; the command line draws its bars with it."""

    def trials(self, done: int, total: int) -> None:
        """Tell how many trials are finished."""

    def inside(self, done: int, total: int | None, what: str) -> None:
        """Tell how far the running trial is; only when trials run one at a time."""


class Silent:
    """A watcher that shows nothing."""

    def trials(self, done: int, total: int) -> None:
        """Show nothing."""

    def inside(self, done: int, total: int | None, what: str) -> None:
        """Show nothing."""


def run(
    plan: Plan,
    *,
    title: str = "",
    reference: Reference | None = None,
    watcher: Watcher | None = None,
) -> Results:
    """Run a plan and write its ``results.json``.

    Args:
        plan: From ``cv_core.experiment.plan.make_plan``.
        title: The method's title, for the report.
        reference: The paper, for the report.
        watcher: Told how the run gets on.

    Returns:
        What ``results.json`` holds. Failed and skipped trials are rows of it.

    Raises:
        OSError: If the folder cannot be written to or the disk is full.
    """
    watcher = watcher or Silent()
    started, clock = datetime.now(UTC), time.perf_counter()
    store = Store(plan.folder)
    known = {} if plan.fresh else _finished(store, plan.trials)
    missing = [spec for spec in plan.trials if spec.key not in known]
    watcher.trials(len(known), len(plan.trials))
    for result in _run_missing(plan, missing, len(known), watcher):
        known[result.key] = result
    results = Results(
        slug=plan.experiment.slug,
        package=plan.package,
        budget=plan.budget,
        data=_data_record(plan.source),
        seeds=list(plan.seeds),
        device=plan.device,
        command=plan.command,
        declared=_declared(plan, title, reference),
        trials=[known[spec.key] for spec in plan.trials],
        environment=environment(plan.package, plan.device),
        started=started.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - clock,
    )
    write(plan.folder / "results.json", results)
    return results


def _declared(plan: Plan, title: str, reference: Reference | None) -> Declared:
    declared = Declared.of(plan.experiment, plan.budget, title=title, reference=reference)
    return declared.model_copy(update={"settings": json.loads(json.dumps(plan.settings))})


def _finished(store: Store, trials: Sequence[TrialSpec]) -> dict[str, TrialResult]:
    read = {spec.key: store.read(spec.key) for spec in trials}
    return {key: result for key, result in read.items() if result is not None}


def _run_missing(
    plan: Plan, missing: list[TrialSpec], before: int, watcher: Watcher
) -> list[TrialResult]:
    total = len(plan.trials)
    jobs = min(plan.jobs, len(missing))
    if jobs > 1 or (missing and plan.backend != "loky"):
        return run_parallel(
            plan.experiment,
            missing,
            plan.folder,
            jobs=max(jobs, 1),
            backend=plan.backend,
            finished=lambda done: watcher.trials(before + done, total),
        )
    results = []
    for spec in missing:
        results.append(work(plan.experiment, spec, plan.folder, watcher.inside))
        watcher.trials(before + len(results), total)
    return results


def _data_record(source: str) -> DataRecord:
    from cv_core.data import sources

    checksum = sources.checksum(source)
    if sources.is_user_source(source):
        return DataRecord(name=source, title="the user's own data", checksum=checksum)
    origin = sources.entry_of(source).origin
    return DataRecord(name=source, title=origin.title, checksum=checksum, licence=origin.licence)
