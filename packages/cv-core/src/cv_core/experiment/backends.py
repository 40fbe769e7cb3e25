"""Several trials at once through joblib: processes here, or a dask or ray cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cv_core.experiment.declaration import Experiment
from cv_core.experiment.plan import Backend, TrialSpec
from cv_core.experiment.results import TrialResult
from cv_core.experiment.store import Store
from cv_core.experiment.worker import work
from cv_core.optional import require

Finished = Callable[[int], None]


def run_parallel(
    experiment: Experiment,
    trials: Sequence[TrialSpec],
    folder: Path,
    *,
    jobs: int,
    backend: Backend,
    finished: Finished,
) -> list[TrialResult]:
    """Run trials in several processes; each keeps its own result as soon as it has it.

    Args:
        experiment: The declaration.
        trials: What to run.
        folder: The run's folder; on a cluster, one that all machines see or results travel back.
        jobs: How many at once.
        backend: ``loky`` (processes here), ``dask`` or ``ray``.
        finished: Told how many trials are finished, about twice a second.

    Returns:
        One result per trial, in order.

    Raises:
        ChildProcessError: If a process of loky's was killed, most often for want of memory.
    """
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    store = Store(folder)
    keys = {spec.key for spec in trials}
    with _cluster(backend, jobs), _watch(store, keys, finished):
        calls = (delayed(work)(experiment, spec, folder.absolute()) for spec in trials)
        with parallel_config(backend, n_jobs=jobs):  # asks for the cluster at once
            try:
                results: list[TrialResult] = Parallel(batch_size=1)(calls)
            except TerminatedWorkerError:
                raise ChildProcessError(_killed(store.count(keys), len(keys), jobs)) from None
    for result in results:  # workers on other machines may not share this folder
        if result.status == "done" and not store.path(result.key).is_file():
            store.write(result)
    return results


def _killed(kept: int, total: int, jobs: int) -> str:
    return (
        f"a process that ran a trial was killed, most often because the memory ran out: {kept} of "
        f"{total} trials are kept, and the same command goes on from there; fewer than {jobs} "
        "--jobs need less memory."
    )


@contextmanager
def _cluster(backend: Backend, jobs: int) -> Iterator[None]:
    if backend == "dask":
        with _dask(jobs):
            yield
    elif backend == "ray":
        with _ray(jobs):
            yield
    else:
        yield


@contextmanager
def _dask(jobs: int) -> Iterator[None]:
    """Use the dask client that is already there, else start a cluster on this machine."""
    distributed = require("distributed", package="cv-core", extra="dask", purpose="--backend dask")
    try:
        distributed.get_client()
    except ValueError:
        with (
            distributed.LocalCluster(
                n_workers=jobs, threads_per_worker=1, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster),
        ):
            yield
    else:
        yield


@contextmanager
def _ray(jobs: int) -> Iterator[None]:
    """Use the ray that is already running (RAY_ADDRESS), else start one on this machine."""
    ray = require("ray", package="cv-core", extra="ray", purpose="--backend ray")
    joblib = require("ray.util.joblib", package="cv-core", extra="ray", purpose="--backend ray")
    joblib.register_ray()
    if ray.is_initialized():
        yield
        return
    ray.init(num_cpus=jobs, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _watch(store: Store, keys: set[str], finished: Finished) -> Iterator[None]:
    """Count finished trials on disk while the block runs: it works for every backend alike."""
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.5):
            finished(store.count(keys))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        finished(store.count(keys))
