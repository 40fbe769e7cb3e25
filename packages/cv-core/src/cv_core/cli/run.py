"""``cvlab run``, ``report`` and ``compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from cv_core.cli.errors import BadUse
from cv_core.cli.interrupt import stoppable
from cv_core.cli.methods import experiment, find
from cv_core.cli.progress import watching
from cv_core.experiment.compare import compare_runs
from cv_core.experiment.plan import Plan, Wishes, make_plan
from cv_core.experiment.results import Results, read
from cv_core.experiment.runner import run
from cv_core.files import write_atomically
from cv_core.registry import Reference
from cv_core.report.console import print_comparison, print_summary


def run_slugs(slugs: list[str], wishes: Wishes) -> int:
    """Plan all runs, then run them; nothing starts unless every plan is sound.

    Returns:
        0, or 1 if a trial failed.

    Raises:
        BadUse: If a slug, data set or option is wrong.
    """
    rows = [find(slug) for slug in dict.fromkeys(slugs)]
    plans = [_plan(row, wishes) for row in rows]
    console = Console()
    failed = False
    for row, plan in zip(rows, plans, strict=True):
        with stoppable(), watching(plan) as watcher:
            reference = Reference(**row["reference"])
            results = run(plan, title=row["title"], reference=reference, watcher=watcher)
        pages = write_pages(plan.folder, results)
        print_summary(results, console)
        console.print(f"report: {pages}", soft_wrap=True, highlight=False)
        failed |= any(trial.status == "failed" for trial in results.trials)
    if failed:
        sys.stderr.write("cvlab: some trials failed; the report shows their tracebacks\n")
    return int(failed)


def _plan(row: dict[str, Any], wishes: Wishes) -> Plan:
    try:
        return make_plan(experiment(row), row["package"], wishes)
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        raise BadUse(str(error)) from error


def write_pages(folder: Path, results: Results) -> Path:
    """Draw the HTML page and the Markdown page.

    Args:
        folder: Where they go.
        results: What they show.

    Returns:
        The path of the HTML page.
    """
    from cv_core.report.html import render_html
    from cv_core.report.markdown import render_markdown

    write_atomically(folder / "report.md", render_markdown(results).encode())
    return write_atomically(folder / "report.html", render_html(results).encode())


def report_folder(folder: Path) -> None:
    """Draw a run's pages again."""
    page = write_pages(folder, _read(folder / "results.json"))
    sys.stdout.write(f"report: {page}\n")


def compare_folders(run_a: Path, run_b: Path) -> None:
    """Print what differs between two runs."""
    files = (path / "results.json" if path.is_dir() else path for path in (run_a, run_b))
    first, second = map(_read, files)
    try:
        comparison = compare_runs(first, second)
    except ValueError as error:
        raise BadUse(str(error)) from error
    print_comparison(comparison, Console())


def _read(path: Path) -> Results:
    try:
        return read(path)
    except (FileNotFoundError, NotADirectoryError):
        raise BadUse(f"no run at {path}") from None
    except ValueError as error:
        raise BadUse(str(error)) from error
