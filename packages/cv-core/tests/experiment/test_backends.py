"""Parallel trials give the bytes of serial ones, on every backend that joblib offers us."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cv_core.experiment.declaration import Arm, Claim, Evidence, Experiment, Metric
from cv_core.experiment.plan import Wishes, make_plan
from cv_core.experiment.results import read
from cv_core.experiment.runner import run
from cv_core.experiment.worker import run_trial


def declared() -> Experiment:
    """Arms that are closures, as in a notebook: the workers cannot import them."""

    def mean(trial) -> dict[str, float]:
        x = torch.randn(64, 64, generator=trial.generator("x"))
        return {"score": float((x @ x.T).tanh().mean())}

    def broken(trial) -> dict[str, float]:
        if trial.seed == 1:
            raise RuntimeError("seed 1 breaks")
        return mean(trial)

    return Experiment(
        slug="toy",
        question="Is it the same in parallel?",
        data=dict.fromkeys(("smoke", "default", "full"), "digits"),
        arms=(Arm("mean", mean, "baseline"), Arm("broken", broken, "paper")),
        metrics=(Metric("score"),),
        claims=(Claim(arm="broken", above="mean", metric="score"),),
        settings={name: {} for name in ("smoke", "default", "full")},
        evidence=Evidence(data="digits"),
        selection="none",
    )


def outcome(folder: Path, **wishes) -> list[tuple]:
    plan = make_plan(declared(), "cv-core", Wishes(out=folder, device="cpu", seeds=2, **wishes))
    results = run(plan)
    assert read(plan.folder / "results.json") == results
    return [(row.arm, row.seed, row.status, repr(row.metrics)) for row in results.trials]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
def test_backend_gives_the_same_bytes(tmp_path, backend, recwarn):
    module = {"loky": "joblib", "dask": "distributed", "ray": "ray"}[backend]
    pytest.importorskip(module, reason=f"{module} is an extra of cv-core")
    serial = outcome(tmp_path / "serial", jobs=1)
    parallel = outcome(tmp_path / "parallel", jobs=2, backend=backend)
    assert parallel == serial
    assert [row[2] for row in serial] == ["done", "done", "done", "failed"]
    recwarn.clear()  # the clusters' own goodbyes


@pytest.mark.slow
def test_devices_share_one_trial(tmp_path):
    """``--devices 2`` runs a trial in two processes that Fabric starts, closures or not."""

    def ranks(trial) -> dict[str, float]:
        mine = torch.tensor(float(trial.fabric.global_rank + 1))
        return {"score": float(trial.fabric.all_reduce(mine, reduce_op="sum"))}

    arms = (Arm("broken", ranks, "paper"), Arm("mean", ranks, "baseline"))
    declaration = replace(declared(), arms=arms)
    wishes = Wishes(out=tmp_path, device="cpu", devices=2, seeds=1, jobs=1, arms=("mean",))
    planned = make_plan(declaration, "cv-core", wishes)
    assert "--devices 2" in planned.command
    (together,) = run(planned).trials
    assert together.metrics == {"score": 3.0}, together.error


def test_processes_that_cannot_start_are_a_failed_row(tmp_path):
    wishes = Wishes(out=tmp_path, device="cpu", devices=2, seeds=1)
    (spec, _) = make_plan(declared(), "cv-core", wishes).trials
    result = run_trial(declared(), replace(spec, strategy="fsdp"))
    assert result.status == "failed"
    assert "needs device 'cuda'" in result.error


@pytest.mark.slow
def test_a_killed_worker_is_one_clear_error_and_nothing_is_lost(tmp_path):
    switch = tmp_path / "deadly"
    switch.touch()

    def deadly(trial) -> dict[str, float]:
        if trial.seed == 2 and switch.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return {"score": 1.0 + trial.seed}

    def steady(trial) -> dict[str, float]:
        return {"score": float(trial.seed)}

    arms = (Arm("broken", deadly, "paper"), Arm("mean", steady, "baseline"))
    declaration = replace(declared(), arms=arms)
    wishes = Wishes(out=tmp_path, device="cpu", seeds=3, jobs=2)
    with pytest.raises(ChildProcessError, match=r"killed.*(\d) of 6 trials are kept"):
        run(make_plan(declaration, "cv-core", wishes))
    kept = list(tmp_path.glob("*/trials/*.json"))
    assert kept
    before = {path: path.stat().st_mtime_ns for path in kept}
    switch.unlink()
    again = run(make_plan(declaration, "cv-core", wishes))
    assert {row.status for row in again.trials} == {"done"}
    assert {path: path.stat().st_mtime_ns for path in kept} == before


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"devices": 2, "strategy": "fsdp"}, "strategy 'fsdp' needs device 'cuda'"),
        ({"strategy": "ddp"}, "--strategy ddp needs --devices of at least 2"),
    ],
)
def test_devices_that_cannot_work_together_are_refused_before_any_work(tmp_path, wishes, message):
    with pytest.raises(ValueError, match=message):
        make_plan(declared(), "cv-core", Wishes(out=tmp_path, device="cpu", **wishes))
    assert not list(tmp_path.iterdir())
