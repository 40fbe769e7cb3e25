"""What the runner costs: against calling the arms by hand, and one trial at a time against two."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from cv_core.experiment.declaration import Arm, Claim, Evidence, Experiment, Metric
from cv_core.experiment.plan import Plan, Wishes, make_plan
from cv_core.experiment.runner import run
from cv_core.experiment.trial import Settings, Trial
from cv_core.experiment.worker import one_thread
from cv_core.testing.race import Peer, race, write

SEEDS = 4
PRODUCTS = 1000


def work(trial: Trial) -> dict[str, float]:
    """A fixed number of small matrix products, about a second on one core."""
    x = torch.randn(256, 256, generator=trial.generator("x"))
    for _ in range(PRODUCTS):
        x = torch.tanh(x @ x.T / 16)
    return {"mean": float(x.mean())}


def declared() -> Experiment:
    return Experiment(
        slug="bench",
        question="What does the runner cost?",
        data=dict.fromkeys(("smoke", "default", "full"), "digits"),
        arms=(Arm("a", work, "baseline"), Arm("b", work, "paper")),
        metrics=(Metric("mean"),),
        claims=(Claim(arm="b", above="a", metric="mean"),),
        settings={name: {} for name in ("smoke", "default", "full")},
        evidence=Evidence(data="digits"),
        selection="none",
    )


def by_hand() -> float:
    total = 0.0
    with one_thread():
        for seed in range(SEEDS):
            for arm in ("a", "b"):
                trial = Trial(arm, "", seed, "default", "digits", Settings())
                total += work(trial)["mean"]
    return total


def by_runner(jobs: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        wishes = Wishes(out=Path(folder), jobs=jobs, seeds=SEEDS, device="cpu")
        plan: Plan = make_plan(declared(), "cv-core", wishes)
        return [row.status for row in run(plan).trials]


def main() -> None:
    assert set(by_runner(1)) == set(by_runner(2)) == {"done"}
    version = f"NumPy {np.__version__}, torch {torch.__version__}"
    write(
        race(
            "runner_overhead",
            "cvlab's runner against calling the arms in a loop",
            f"{2 * SEEDS} trials of about 1 s, one at a time",
            ours=lambda: by_runner(1),
            peers={"plain loop": Peer(by_hand, version, bar=0.98)},
            repeats=7,
        ),
        __file__,
    )
    write(
        race(
            "runner_parallel",
            "cvlab's runner, two trials at a time",
            f"{2 * SEEDS} trials of about 1 s on two cores, workers warm",
            ours=lambda: by_runner(2),
            peers={"one at a time": Peer(lambda: by_runner(1), version, bar=1.7)},
            repeats=7,
        ),
        __file__,
    )


if __name__ == "__main__":
    main()
