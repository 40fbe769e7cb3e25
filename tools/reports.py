"""Make the committed reports: run each experiment as its evidence declares, and keep the result.

``python tools/reports.py icce anmmf`` makes two of them, without arguments it makes all. Runs go
to ``runs/`` and resume; only the slim ``reports/<slug>.json``, ``.md`` and ``.svg`` are committed.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from cv_core.cli.progress import watching
from cv_core.cli.run import write_pages
from cv_core.experiment.compare import headline, verdicts
from cv_core.experiment.declaration import Experiment
from cv_core.experiment.plan import Wishes, make_plan
from cv_core.experiment.results import slim, write
from cv_core.experiment.runner import run
from cv_core.registry import Entry, discover
from cv_core.report.markdown import render_markdown
from cv_core.report.picture import render_picture

ROOT = Path(__file__).resolve().parent.parent


def make(entry: Entry) -> None:
    """Run one experiment on its evidence and write its report."""
    experiment: Experiment = import_module(entry.experiment_module).EXPERIMENT
    evidence = experiment.evidence
    own = evidence.data != experiment.data[evidence.budget]
    wishes = Wishes(
        budget=evidence.budget,
        data=evidence.data if own else None,
        seeds=evidence.seeds,
        device="auto",
        out=ROOT / "runs",
    )
    plan = make_plan(experiment, entry.package, wishes)
    missing = {trial.unavailable for trial in plan.trials} - {""}
    if missing:  # a committed report holds every case that its experiment declares
        raise SystemExit(f"{entry.card.slug}: {' '.join(sorted(missing))}")
    with watching(plan) as watcher:
        results = run(plan, title=entry.card.title, reference=entry.card.reference, watcher=watcher)
    write_pages(plan.folder, results)
    failed = [trial for trial in results.trials if trial.status == "failed"]
    if failed:
        raise SystemExit(f"{entry.card.slug}: {len(failed)} trials failed\n{failed[0].error}")
    folder = ROOT / "packages" / entry.package / "reports"
    small = slim(results)
    write(folder / f"{entry.card.slug}.json", small)
    (folder / f"{entry.card.slug}.md").write_text(render_markdown(small), encoding="utf-8")
    (folder / f"{entry.card.slug}.svg").write_text(render_picture(small), encoding="utf-8")
    print(f"{entry.card.slug}: {headline(verdicts(results))}; {plan.folder / 'report.html'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("slugs", nargs="*", help="methods; all by default")
    slugs = parser.parse_args().slugs
    entries = discover()
    for slug in slugs or entries:
        if slug not in entries:
            raise SystemExit(f"no method is named {slug!r}; there are {', '.join(entries)}")
        make(entries[slug])


if __name__ == "__main__":
    main()
