"""A run as one self-contained HTML page: no script, no request, readable in dark and in print."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cv_core.experiment.compare import Row, Verdict, headline, summary, verdicts
from cv_core.experiment.declaration import Claim, Metric
from cv_core.experiment.results import Results, TrialResult
from cv_core.report import figures, text
from cv_core.report.style import arm_styles

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of one arm, with its size where it can be told."""

    arm: str
    data: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Pictures of one name in one case, one for each arm that left it."""

    case: str
    name: str
    pictures: list[Picture]


def render_html(results: Results) -> str:
    """Draw a run as one HTML file that needs nothing else.

    Args:
        results: From ``cv_core.experiment.results.read`` or a run.

    Returns:
        The page. Every text of the results is escaped; pictures and figures are inside.
    """
    from markupsafe import Markup

    judged = verdicts(results)
    rows = summary(results)
    # the figures are ours, and matplotlib and ElementTree have escaped every text in them
    template = _templates().get_template("report.html.j2")
    return template.render(
        results=results,
        declared=results.declared,
        headline=headline(judged),
        claims=by_claim(judged),
        has_cases=any(verdict.case for verdict in judged),
        tests=sum(verdict.pvalue is not None for verdict in judged),
        rows_by_case=[(case, [r for r in rows if r.case == case]) for case in results.cases],
        best=_best(results, rows),
        costs=text.costs_of(rows),
        styles=arm_styles(results),
        forest=Markup(figures.forest(results, judged)),  # noqa: S704
        arm_figures=[
            (metric, Markup(drawn))  # noqa: S704
            for metric in results.declared.metrics
            if (drawn := figures.arms(results, metric.name))
        ],
        curve_figures=[
            (name, Markup(figures.curves(results, name)))  # noqa: S704
            for name in _curve_names(results)
        ],
        strips=strips(results),
        troubles=text.troubles(results),
        settings=_settings(results),
    )


def by_claim(judged: Sequence[Verdict]) -> list[tuple[Claim, list[Verdict]]]:
    """Group verdicts by claim, in order."""
    groups: list[tuple[Claim, list[Verdict]]] = []
    for verdict in judged:
        if not groups or groups[-1][0] is not verdict.claim:
            groups.append((verdict.claim, []))
        groups[-1][1].append(verdict)
    return groups


def strips(results: Results) -> list[Strip]:
    """Collect the pictures so that those of one name stand side by side.

    Args:
        results: A run; the pictures of its first seed are taken.
    """
    found: dict[tuple[str, str], list[Picture]] = {}
    for case in results.cases:
        for arm in results.arms:
            for name, data in _first_pictures(results.of(case, arm)).items():
                width, height = _png_size(data)
                picture = Picture(arm=arm, data=data, width=width, height=height)
                found.setdefault((case, name), []).append(picture)
    return [Strip(case=case, name=name, pictures=some) for (case, name), some in found.items()]


def _first_pictures(trials: Sequence[TrialResult]) -> dict[str, str]:
    return next((trial.pictures for trial in trials if trial.pictures), {})


def _png_size(data: str) -> tuple[int, int]:
    """Read width and height from a PNG's header; zeros for anything else."""
    head = base64.b64decode(data[:32] + "=" * (-len(data[:32]) % 4))
    if len(head) < 24 or not head.startswith(_PNG):
        return 0, 0
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _curve_names(results: Results) -> list[str]:
    return list(dict.fromkeys(name for trial in results.trials for name in trial.curves))


def _best(results: Results, rows: Sequence[Row]) -> dict[tuple[str, str], list[str]]:
    """Return the arms with the best mean of each (case, metric): several where they are equal."""
    found = {}
    for case in results.cases:
        for metric in results.declared.metrics:
            means = {
                row.arm: row.metrics[metric.name].mean
                for row in rows
                if row.case == case and metric.name in row.metrics
            }
            if len(means) > 1 and metric.better != "neither":
                best = max(means.values()) if metric.better == "higher" else min(means.values())
                found[case, metric.name] = [
                    arm for arm, mean in means.items() if math.isclose(mean, best, rel_tol=1e-9)
                ]
    return found


def _settings(results: Results) -> list[tuple[str, str]]:
    """List the settings, those of a case after the common ones."""
    found = [(name, _short(value)) for name, value in results.declared.settings.items()]
    for case in results.declared.cases:
        if case.name in results.cases:
            found += [(f"{n} ({case.name})", _short(value)) for n, value in case.settings.items()]
            found += [(f"data ({case.name})", case.data)] if case.data else []
    return found


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _heading(metric: Metric) -> str:
    arrow = {"higher": " ↑", "lower": " ↓", "neither": ""}[metric.better]
    return text.metric_name(metric) + arrow


def _templates() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cv_core", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(badges=text.BADGES, cost=text.cost)
    environment.filters.update(
        bounds=text.bounds,
        cost_name=text.cost_name,
        difference=text.difference,
        direction=text.direction,
        duration=text.duration,
        estimate=text.estimate,
        heading=_heading,
        number=text.number,
        outlook=text.outlook,
        paper_gap=text.paper_gap,
        pvalue=text.pvalue,
    )
    return environment
