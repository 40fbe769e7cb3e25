"""Progress bars on the error stream; silent where nobody is watching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cv_core.experiment.plan import Plan
from cv_core.experiment.runner import Silent, Watcher


class Bars:
    """One bar for the trials, and one for the inside of the trial when they run one at a time."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._trials = progress.add_task(f"{what}: trials", total=None)
        self._inside = progress.add_task("", total=None, visible=False)

    def trials(self, done: int, total: int) -> None:
        """Move the bar of trials."""
        self._progress.update(self._trials, completed=done, total=total)

    def inside(self, done: int, total: int | None, what: str) -> None:
        """Move the bar of the running trial."""
        self._progress.update(
            self._inside, completed=done, total=total, description=f"  {what}", visible=True
        )


@contextmanager
def watching(plan: Plan) -> Iterator[Watcher]:
    """Show bars while a plan runs, if the error stream is a terminal.

    Args:
        plan: The plan, for the bar's name.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Silent()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bars(progress, plan.experiment.slug)
