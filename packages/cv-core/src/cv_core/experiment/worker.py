"""One trial, from its specification to its result, in whatever process it runs."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from cv_core.experiment.declaration import Experiment
from cv_core.experiment.plan import TrialSpec
from cv_core.experiment.results import TrialResult, encode_pictures
from cv_core.experiment.store import Store
from cv_core.experiment.trial import SkipTrial, Trial

Progress = Callable[[int, int | None, str], None]


def work(
    experiment: Experiment, spec: TrialSpec, folder: Path, progress: Progress | None = None
) -> TrialResult:
    """Run one trial and keep it if it finished.

    The trial computes with one thread, so that its numbers do not depend on how many trials run at
    once; several trials fill the cores.

    Args:
        experiment: The declaration.
        spec: Which trial.
        folder: The run's folder.
        progress: Told (done, total, what) from inside the trial.

    Returns:
        The result: done, skipped with a reason, or failed with its traceback.

    Raises:
        OSError: If the finished trial cannot be written.
    """
    result = run_trial(experiment, spec, progress)
    if result.status == "done":
        Store(folder).write(result)
    return result


def run_trial(
    experiment: Experiment, spec: TrialSpec, progress: Progress | None = None
) -> TrialResult:
    """Run one trial; what it raises becomes its result, a lost process of several too."""
    if spec.unavailable:
        return TrialResult(**_row(spec), status="skipped", reason=spec.unavailable)
    if spec.devices == 1:
        return _on_process(None, experiment, spec, progress)
    try:
        return _on_processes(experiment, spec)
    except Exception:  # one of the processes was killed, or could not be started
        return TrialResult(**_row(spec), status="failed", error=_traceback())


def _on_processes(experiment: Experiment, spec: TrialSpec) -> TrialResult:
    """Run a trial in several processes that train together."""
    from joblib import wrap_non_picklable_objects

    from cv_core.engine.fabric import launch, make_fabric

    fabric = make_fabric(spec.device, devices=spec.devices, strategy=spec.strategy)
    # plain pickle refuses closures, and Fabric refuses frozen dataclasses as arguments
    call = wrap_non_picklable_objects(partial(_on_process, experiment=experiment, spec=spec))
    result: TrialResult = launch(fabric, call)
    return result


def _on_process(
    fabric: Any, experiment: Experiment, spec: TrialSpec, progress: Progress | None = None
) -> TrialResult:
    """Run a trial in this process, one of several that train together if there is a fabric."""
    row = _row(spec)
    trial = Trial(
        arm=spec.arm,
        case=spec.case,
        seed=spec.seed,
        budget=spec.budget,
        source=spec.source,
        settings=spec.settings,
        device=spec.device,
        fabric=fabric,
        progress=progress,
    )
    try:
        with one_thread():
            seconds, memory, metrics = _measure(experiment, trial)
    except SkipTrial as skip:
        return TrialResult(**row, status="skipped", reason=str(skip))
    except Exception:
        return TrialResult(**row, status="failed", error=_traceback())
    return TrialResult.model_validate(
        {
            **row,
            "status": "done",
            "metrics": metrics,
            "costs": {**trial.record.costs, "seconds": seconds, "peak_memory_mib": memory},
            "curves": trial.record.curves,
            "pictures": encode_pictures(trial.record.pictures) if spec.seed == 0 else {},
        }
    )


def _row(spec: TrialSpec) -> dict[str, Any]:
    return {"case": spec.case, "arm": spec.arm, "seed": spec.seed, "key": spec.key}


def _traceback() -> str:
    """Return the traceback of what is being handled, without this machine's folders."""
    text = traceback.format_exc()
    for folder in sorted({*sys.path, sys.prefix, sys.base_prefix}, key=len, reverse=True):
        if len(folder) > 1:
            text = text.replace(f"{folder.rstrip(os.sep)}{os.sep}", "")
    return text.replace(str(Path.home()), "~")


def _measure(experiment: Experiment, trial: Trial) -> tuple[float, float, dict[str, float]]:
    from cv_core.metrics.cost import PeakMemory

    run = experiment.arm(trial.arm).run
    _ = trial.data  # loaded outside the clock: the arms share it
    start = time.perf_counter()
    with PeakMemory(trial.device) as peak:
        returned = run(trial)
    seconds = time.perf_counter() - start
    return seconds, peak.mib, _checked(experiment, trial, returned)


def _checked(experiment: Experiment, trial: Trial, returned: object) -> dict[str, float]:
    owner = f"{experiment.slug}, arm {trial.arm}"
    if not hasattr(returned, "items"):
        raise TypeError(f"{owner}: an arm must return named numbers; got {returned!r}.")
    metrics = {str(name): float(value) for name, value in returned.items()}
    unknown = sorted(set(metrics) - {metric.name for metric in experiment.metrics})
    if unknown:
        raise ValueError(f"{owner}: returned {unknown}, which the experiment does not declare.")
    if not metrics:
        raise ValueError(f"{owner}: returned no metric.")
    return metrics


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread inside the block, and with as many as before afterwards."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
