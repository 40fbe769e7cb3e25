"""A run, or two, as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cv_core.experiment.compare import Comparison, Verdict, headline, summary, verdicts
from cv_core.experiment.results import Results
from cv_core.report import text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_COLOURS = {
    "supported": "green",
    "contradicted": "red",
    "inconclusive": "yellow",
    "untested": "bright_black",
}


def print_summary(results: Results, console: Console) -> None:
    """Print a run: the table of arms, failures, and a line per verdict.

    Args:
        results: The run.
        console: Where to print.
    """
    rows = summary(results)
    metrics = results.declared.metrics
    costs = [name for name in text.costs_of(rows) if name in ("parameters", "macs", "seconds")]
    with_cases = any(row.case for row in rows)
    names = ["case"] if with_cases else []
    names += ["arm", *map(text.metric_name, metrics), "n", *map(text.cost_name, costs)]
    table = _table(names, left=2 if with_cases else 1)
    before = None
    for row in rows:
        cells = ["" if row.case == before else row.case] if with_cases else []
        cells += [row.arm, *(text.estimate(row.metrics.get(metric.name)) for metric in metrics)]
        cells += [str(row.status["done"]), *(text.cost(n, row.costs.get(n)) for n in costs)]
        _add(table, cells)
        before = row.case
    console.print(f"\n{results.slug}", markup=False, highlight=False, style="bold")
    console.print(table)
    for item in text.troubles(results):
        seeds = ", ".join(map(str, item.seeds))
        said = f"{item.status}: {item.where}, seed {seeds}: {item.why}"
        style = _COLOURS["contradicted" if item.status == "failed" else "untested"]
        console.print(said, markup=False, highlight=False, style=style)
    _print_verdicts(verdicts(results), console)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print how two runs differ: what changed, and how every number moved.

    Args:
        comparison: From ``cv_core.experiment.compare.compare_runs``.
        console: Where to print.
    """
    if comparison.changes:
        table = _table(("changed", "A", "B"), left=3)
        for change in comparison.changes:
            _add(table, (change.what, change.before, change.after))
        console.print(table)
    else:
        console.print("Both runs were made with the same settings, data and versions.")
    table = _table(("case", "arm", "metric", "A", "B", "B − A [95 %]", "pairs"), left=3)
    for shift in comparison.shifts:
        numbers = (
            text.estimate(shift.before),
            text.estimate(shift.after),
            text.difference(shift.difference),
        )
        _add(table, (shift.case, shift.arm, shift.metric, *numbers, str(shift.n)))
    console.print(table)


def _print_verdicts(judged: list[Verdict], console: Console) -> None:
    from rich.text import Text

    console.print(f"verdict: {headline(judged)}", highlight=False, style="bold")
    for item in judged:
        where = f" ({item.case})" if item.case else ""
        said = [text.difference(item.interval) + f", n = {item.n}" if item.differences else ""]
        said += [text.outlook(item), item.reason]
        line = Text(f"  {text.BADGES[item.outcome]} {item.outcome:12} ", _COLOURS[item.outcome])
        line.append(f"{item.claim}{where}", "default")
        line.append("".join(f"; {part}" for part in said if part), "default")
        console.print(line)


def _table(names: Iterable[str], *, left: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(names):
        table.add_column(Text(name), justify="left" if place < left else "right")
    return table


def _add(table: Table, cells: Iterable[str]) -> None:
    from rich.text import Text

    table.add_row(*(Text(cell) for cell in cells))  # Text, because a name may hold rich's markup
