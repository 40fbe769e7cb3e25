"""The runner: rows for every outcome, resuming, pairing, and keys that notice every change."""

import json
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cv_core.experiment.declaration import Arm, Case, Claim, Evidence, Experiment, Metric
from cv_core.experiment.plan import Wishes, make_plan
from cv_core.experiment.results import read
from cv_core.experiment.runner import run
from cv_core.experiment.store import Store
from cv_core.experiment.trial import Trial


def noisy_mean(trial: Trial) -> dict[str, float]:
    draw = torch.randn(100, generator=trial.generator("noise"))
    trial.curve("draw", 0, float(draw[0]))
    trial.cost(steps=1)
    return {"score": float(draw.mean())}


def shifted(trial: Trial) -> dict[str, float]:
    return {"score": noisy_mean(trial)["score"] + trial.settings.shift}


def experiment(**changes) -> Experiment:
    declared = Experiment(
        slug="toy",
        question="Does a shift shift?",
        data={"smoke": "digits", "default": "digits", "full": "digits"},
        arms=(Arm("plain", noisy_mean, "baseline"), Arm("shift", shifted, "paper")),
        metrics=(Metric("score"),),
        claims=(Claim(arm="shift", above="plain", metric="score"),),
        settings={name: {"shift": 0.5} for name in ("smoke", "default", "full")},
        evidence=Evidence(data="digits"),
        selection="none",
    )
    return replace(declared, **changes)


def plan(folder: Path, declared: Experiment | None = None, **wishes):
    wished = Wishes(out=folder, jobs=1, device="cpu", **wishes)
    return make_plan(declared or experiment(), "cv-core", wished)


def metrics(results) -> dict[tuple, dict]:
    return {(row.case, row.arm, row.seed): row.metrics for row in results.trials}


def test_data_of_another_budgets_kind_are_taken_and_others_refused(tmp_path):
    declared = experiment(data={"smoke": "digits", "default": "digits", "full": "karate-club"})
    assert plan(tmp_path, declared, data="karate-club").trials[0].source == "karate-club"
    with pytest.raises(ValueError, match="must be of kind ImageClassification or Graph"):
        plan(tmp_path, declared, data="digits-hypergraph")
    with pytest.raises(ValueError, match=r"must be of kind ImageClassification \("):
        plan(tmp_path, data="karate-club")


def test_arms_are_paired(tmp_path):
    found = metrics(run(plan(tmp_path)))
    assert len(found) == 10
    for seed in range(5):
        difference = found["", "shift", seed]["score"] - found["", "plain", seed]["score"]
        assert difference == pytest.approx(0.5, abs=1e-12)
    assert len({found["", "plain", seed]["score"] for seed in range(5)}) == 5


def test_results_file_holds_what_run_returns(tmp_path):
    planned = plan(tmp_path)
    results = run(planned, title="A toy")
    assert read(planned.folder / "results.json") == results
    assert results.declared.title == "A toy"
    assert results.trials[0].costs["steps"] == 1
    assert results.trials[0].curves == {"draw": [(0.0, results.trials[0].curves["draw"][0][1])]}


def test_finished_trials_are_not_run_again(tmp_path):
    planned = plan(tmp_path)
    first = run(planned)

    def must_not_run(trial: Trial) -> dict[str, float]:
        raise AssertionError("ran again")

    arms = tuple(replace(arm, run=must_not_run) for arm in planned.experiment.arms)
    again = run(replace(planned, experiment=replace(planned.experiment, arms=arms)))
    assert metrics(again) == metrics(first)
    fresh = replace(planned, experiment=replace(planned.experiment, arms=arms), fresh=True)
    assert {row.status for row in run(fresh).trials} == {"failed"}


def test_more_seeds_reuse_the_first_ones(tmp_path):
    few = run(plan(tmp_path, seeds=2))
    many = run(plan(tmp_path, seeds=4))
    assert [row.key for row in few.trials] == [row.key for row in many.trials][:4]
    assert len(list((tmp_path / "toy-default-digits" / "trials").glob("*.json"))) == 8


def test_a_failure_is_a_row_with_its_traceback_and_is_tried_again(tmp_path):
    switch = tmp_path / "broken"
    switch.touch()

    def fragile(trial: Trial) -> dict[str, float]:
        if trial.seed == 1 and switch.exists():
            raise RuntimeError("no luck with seed 1")
        return shifted(trial)

    declared = experiment(
        arms=(Arm("plain", noisy_mean, "baseline"), Arm("shift", fragile, "paper"))
    )
    broken = run(plan(tmp_path, declared))
    (failed,) = [row for row in broken.trials if row.status == "failed"]
    assert (failed.arm, failed.seed) == ("shift", 1)
    assert "no luck with seed 1" in failed.error
    assert "fragile" in failed.error
    switch.unlink()
    assert {row.status for row in run(plan(tmp_path, declared)).trials} == {"done"}


def test_a_skip_is_a_row_with_its_reason(tmp_path):
    def picky(trial: Trial) -> dict[str, float]:
        if trial.device == "cpu":
            trial.skip("needs something else")
        return shifted(trial)

    declared = experiment(arms=(Arm("plain", noisy_mean, "baseline"), Arm("shift", picky, "paper")))
    results = run(plan(tmp_path, declared))
    skipped = [row for row in results.trials if row.status == "skipped"]
    assert {row.reason for row in skipped} == {"needs something else"}
    assert len(skipped) == 5


def test_a_case_without_its_data_is_skipped_with_the_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CV_DATA", str(tmp_path / "nowhere"))
    declared = experiment(cases=(Case("here"), Case("faces", data="orl")))
    results = run(plan(tmp_path, declared, seeds=2))
    reasons = {row.reason for row in results.trials if row.case == "faces"}
    assert len(reasons) == 1
    assert "CV_DATA" in reasons.pop()
    assert all(row.status == "done" for row in results.trials if row.case == "here")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"scor": 1.0}, "does not declare"),
        ({}, "no metric"),
        (0.5, "named numbers"),
    ],
)
def test_an_arm_must_return_what_is_declared(tmp_path, returned, message):
    declared = experiment(
        arms=(Arm("plain", noisy_mean, "baseline"), Arm("shift", lambda _: returned, "paper"))
    )
    results = run(plan(tmp_path, declared, seeds=2))
    assert all(message in row.error for row in results.trials if row.arm == "shift")


def test_keys_notice_what_numbers_depend_on(tmp_path):
    base = [spec.key for spec in plan(tmp_path).trials]
    assert len(set(base)) == 10
    assert [spec.key for spec in plan(tmp_path).trials] == base
    others = [
        plan(tmp_path, overrides=("shift=0.25",)),
        plan(tmp_path, budget="smoke"),
        plan(tmp_path, experiment(cases=(Case("other"),))),
        plan(tmp_path, data="digits", devices=2),
    ]
    for other in others:
        assert not set(base) & {spec.key for spec in other.trials}


def test_threads_are_as_before_and_one_inside(tmp_path):
    seen = []

    def looking(trial: Trial) -> dict[str, float]:
        seen.append(torch.get_num_threads())
        return shifted(trial)

    declared = experiment(
        arms=(Arm("plain", noisy_mean, "baseline"), Arm("shift", looking, "paper"))
    )
    before = torch.get_num_threads()
    run(plan(tmp_path, declared, seeds=2))
    assert seen == [1, 1]
    assert torch.get_num_threads() == before


def test_a_damaged_trial_file_is_run_again(tmp_path):
    planned = plan(tmp_path, seeds=2)
    first = run(planned)
    path = Store(planned.folder).path(first.trials[0].key)
    path.write_bytes(path.read_bytes()[:40])
    other = Store(planned.folder).path(first.trials[1].key)
    other.write_bytes(Store(planned.folder).path(first.trials[2].key).read_bytes())
    assert metrics(run(planned)) == metrics(first)


def test_own_data_leave_out_cases_with_data_of_their_own(tmp_path):
    declared = experiment(cases=(Case("here"), Case("faces", data="orl")))
    arrays = tmp_path / "mine.npz"
    np.savez(arrays, x=np.zeros((20, 4, 4), np.uint8), y=np.arange(20) % 2)
    mine = plan(tmp_path, declared, data=f"npz:{arrays}")
    assert {spec.case for spec in mine.trials} == {"here"}
    named = plan(tmp_path, declared, data="digits")
    assert {spec.case for spec in named.trials} == {"here", "faces"}


def test_a_case_runs_its_own_arms_only(tmp_path):
    cases = (Case("all"), Case("one", arms=("plain",), budgets=("default",)))
    found = plan(tmp_path, experiment(cases=cases), seeds=2, budget="default").trials
    assert {spec.arm for spec in found if spec.case == "one"} == {"plain"}
    assert {spec.arm for spec in found if spec.case == "all"} == {"plain", "shift"}
    alone = experiment(cases=(Case("one", arms=("plain",)),), claims=())
    with pytest.raises(ValueError, match="--arm must be in a case of the budget smoke; got shift"):
        plan(tmp_path, alone, budget="smoke", arms=("shift",))
    with pytest.raises(ValueError, match="an arm of this claim is not in case 'one'"):
        experiment(
            cases=cases,
            claims=(Claim(arm="shift", above="plain", metric="score", cases=("one",)),),
        )
    with pytest.raises(ValueError, match="arms of case 'one' must be one of"):
        experiment(cases=(Case("one", arms=("plane",)),))


def test_full_disk_is_an_error_and_leaves_no_result(tmp_path):
    """A limit on the size of files stands in for a full disk: writing fails half-way."""
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_runner import plan, run
from pathlib import Path
planned = plan(Path({str(tmp_path)!r}), seeds=2)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    run(planned)
except OSError as error:
    print("refused:", error.errno)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "refused: 27" in done.stdout, done.stderr
    assert not list(tmp_path.rglob("*.json"))
    assert signal.SIGXFSZ in signal.valid_signals()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100
    assert {row.status for row in run(plan(tmp_path, seeds=2)).trials} == {"done"}


@pytest.mark.parametrize("place", ["/proc/nowhere", "a file in the way"])
def test_unusable_folder_is_refused_before_any_work(tmp_path, place):
    if place.startswith("/"):
        folder = Path(place)
    else:
        folder = tmp_path
        (tmp_path / "toy-default-digits").write_text("not a folder")
    seen = []

    def looking(trial: Trial) -> dict[str, float]:
        seen.append(trial.seed)
        return shifted(trial)

    arms = (Arm("plain", looking, "baseline"), Arm("shift", looking, "paper"))
    with pytest.raises(OSError, match=r"folder|directory"):
        run(plan(folder, experiment(arms=arms)))
    assert not seen


def test_results_are_valid_json_with_one_line_per_trial(tmp_path):
    planned = plan(tmp_path, seeds=2)
    run(planned)
    text = (planned.folder / "results.json").read_text()
    assert json.loads(text)["slug"] == "toy"
    assert sum('"seed":' in line for line in text.splitlines()) == 4
