"""A run as a short Markdown page: verdicts, table, how it was run."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from cv_core.experiment.compare import Row, Verdict, headline, summary, verdicts
from cv_core.experiment.results import Results
from cv_core.report import text


def render_markdown(results: Results) -> str:
    """Write a run as Markdown: for the repository, beside its ``results.json``.

    Args:
        results: From ``cv_core.experiment.results.read`` or a run.

    Returns:
        The page; it refers to nothing outside, and texts of the results cannot act as markup.
    """
    judged, rows = verdicts(results), summary(results)
    declared = results.declared
    parts = [
        f"# {_safe(declared.title or results.slug)}",
        _safe(declared.question),
        _safe(declared.reference),
        f"## Verdict: {headline(judged)}",
        _verdict_table(judged) if judged else "This experiment declares no claim.",
        "\n".join(_remarks(judged)),
        "## Results",
        _result_table(results, rows),
        "Mean over the seeds ± half the width of its 95 % interval; costs are medians.",
        "\n".join(_troubles(results)),
        "## How it was run",
        _fenced(results.command),
        "\n".join(f"- {name}: {_safe(value)}" for name, value in _protocol(results) if value),
        "## Notes" if declared.notes else "",
        "\n".join(f"- {_safe(note)}" for note in declared.notes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict_table(judged: list[Verdict]) -> str:
    names = ("claim", "case", "verdict", "paired difference [95 %]", "pairs", "p", "in the paper")
    rows = [
        (
            str(item.claim),
            item.case,
            f"{text.BADGES[item.outcome]} {item.outcome}",
            text.difference(item.interval),
            str(item.n),
            text.pvalue(item.pvalue),
            text.paper(item),
        )
        for item in judged
    ]
    return _table(names, rows, left=3)


def _remarks(judged: list[Verdict]) -> list[str]:
    found = []
    for item in judged:
        said = "; ".join(part for part in (text.outlook(item), item.reason) if part)
        if said:
            where = f" ({item.case})" if item.case else ""
            found.append(_safe(f"{item.claim}{where}: {said}."))
    return [f"- {line}" for line in dict.fromkeys(found)]


def _result_table(results: Results, rows: list[Row]) -> str:
    metrics, costs = results.declared.metrics, text.costs_of(rows)
    names = ["case", "arm", *(text.metric_name(metric) for metric in metrics), "n"]
    cells = [
        [
            row.case,
            f"{row.arm} ({row.role})",
            *(text.estimate(row.metrics.get(metric.name)) for metric in metrics),
            str(row.status["done"]),
            *(text.cost(name, row.costs.get(name)) for name in costs),
        ]
        for row in rows
    ]
    return _table([*names, *map(text.cost_name, costs)], cells, left=2)


def _troubles(results: Results) -> list[str]:
    return [
        f"- {_safe(f'{item.where}: {item.status}: {item.why}')} "
        f"(seed {', '.join(map(str, item.seeds))})"
        for item in text.troubles(results)
    ]


def _protocol(results: Results) -> list[tuple[str, str]]:
    env, data = results.environment, results.data
    versions = ", ".join(f"{name} {version}" for name, version in env.versions.items())
    settings = ", ".join(f"{name} = {value}" for name, value in results.declared.settings.items())
    changed = " with uncommitted changes" if env.dirty else ""
    return [
        ("data", f"{data.title or data.name} ({data.name})"),
        ("checksum", data.checksum),
        ("licence of the data", data.licence),
        ("hyper-parameters", results.declared.selection),
        ("settings", settings),
        ("seeds", ", ".join(map(str, results.seeds))),
        ("machine", f"{env.platform}, {env.cores} threads; {results.device}: {env.device_name}"),
        ("software", f"Python {env.python}, torch {env.torch}, {versions}"),
        ("commit", f"{env.commit}{changed}" if env.commit else "installed package"),
        ("time", text.duration(results.seconds)),
    ]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    rule = [":--" if place < left else "--:" for place in range(len(names))]
    lines = [[_safe(name) for name in names], rule, *([_safe(cell) for cell in r] for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _safe(words: str) -> str:
    """Take from a text everything that Markdown or HTML could read as markup."""
    flat = html.escape(" ".join(words.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", flat)


def _fenced(command: str) -> str:
    fence = "`" * (max(map(len, re.findall("`+", command)), default=0) + 3)
    return f"{fence}\n{command}\n{fence}"
