"""kill -9 at 50 random moments: the same command finishes with the same bytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = '''
"""Forks run after run, so that torch is imported once; kills each at a random moment."""
import json, os, random, signal, sys, time
from pathlib import Path

import torch
from cv_core.experiment.declaration import Arm, Claim, Evidence, Experiment, Metric
from cv_core.experiment.plan import Wishes, make_plan
from cv_core.experiment.runner import run

torch.set_num_threads(1)

def work(trial):
    x = torch.randn(150, 150, generator=trial.generator("x"))
    for _ in range(40):
        x = torch.tanh(x @ x.T / 12)
    return {"score": float(x.mean())}

EXPERIMENT = Experiment(
    slug="toy", question="?", data=dict.fromkeys(("smoke", "default", "full"), "digits"),
    arms=(Arm("a", work, "baseline"), Arm("b", work, "paper")), metrics=(Metric("score"),),
    claims=(Claim(arm="b", above="a", metric="score"),),
    settings=dict.fromkeys(("smoke", "default", "full"), {}),
    evidence=Evidence(data="digits"), selection="none",
)

def start(folder):
    child = os.fork()
    if child == 0:
        try:
            run(make_plan(EXPERIMENT, "cv-core", Wishes(out=folder, jobs=1, device="cpu")))
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return child

def finish(folder):
    assert os.waitpid(start(folder), 0)[1] == 0
    rows = json.loads((folder / "toy-default-digits/results.json").read_text())["trials"]
    return [(row["arm"], row["seed"], repr(row["metrics"])) for row in rows]

root, moments = Path(sys.argv[1]), int(sys.argv[2])
make_plan(EXPERIMENT, "cv-core", Wishes(out=root, device="cpu"))  # warms the caches before forking
begin = time.perf_counter()
expected = finish(root / "whole")
duration = time.perf_counter() - begin
chance = random.Random(0)
report = {"killed": 0, "partly": 0, "different": 0}
for attempt in range(20 * moments):  # a run that ends before its moment is not one of them
    if report["killed"] == moments:
        break
    folder = root / str(attempt)
    child = start(folder)
    time.sleep(chance.uniform(0, duration))
    os.kill(child, signal.SIGKILL)
    if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        duration *= 0.9  # the first run was a slow one
        continue
    report["killed"] += 1
    there = len(list(folder.glob("toy-default-digits/trials/*.json")))
    report["partly"] += 0 < there < len(expected)
    report["different"] += finish(folder) != expected
print(json.dumps(report))
'''


@pytest.mark.slow
def test_killed_runs_finish_with_the_same_bytes(tmp_path):
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path), "50"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["different"] == 0
    assert report["killed"] == 50, report
    assert report["partly"] >= 5, report  # the moments did hit the middle of runs


@pytest.mark.slow
def test_two_runs_at_once_in_one_folder(tmp_path):
    driver = tmp_path / "driver.py"
    half = DRIVER.partition("root, moments")[0]
    driver.write_text(
        half
        + "root = Path(sys.argv[1])\n"
        + "children = [start(root), start(root)]\n"
        + "assert all(os.waitpid(child, 0)[1] == 0 for child in children)\n"
        + "print(json.dumps(finish(root) == finish(root / 'alone')))\n"
    )
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) is True
    folder = Path(tmp_path) / "toy-default-digits"
    assert not [path for path in folder.rglob(".*") if path.is_file()], "nothing half-written stays"
