"""The page's figures as inline SVG: drawn with matplotlib's objects, never with pyplot.

Text stays text and colours are the style sheet's, so a figure follows the page in dark and in
print. The same results give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from cv_core.experiment.compare import Verdict, summary
from cv_core.experiment.results import Results
from cv_core.report.style import ArmStyle, arm_styles, colour
from cv_core.report.svg import to_svg
from cv_core.report.text import difference, direction, metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 11.2  # inches; 1075 CSS pixels, the width of the page
_COLUMNS = 3
_MARK = {"supported": "o", "contradicted": "X", "inconclusive": "o", "untested": "o"}


def forest(results: Results, verdicts: Sequence[Verdict]) -> str:
    """Draw the paired differences of every claim and case, one axis for each metric.

    Args:
        results: The run.
        verdicts: From ``cv_core.experiment.compare.verdicts``.

    Returns:
        SVG, or an empty string if there is no difference to draw.
    """
    shown = [verdict for verdict in verdicts if verdict.differences]
    metrics = list(dict.fromkeys(verdict.claim.metric for verdict in shown))
    if not metrics:
        return ""
    groups = [[item for item in shown if item.claim.metric == name] for name in metrics]
    heights = [len(group) + 0.6 for group in groups]

    def draw(figure: Figure) -> None:
        rows = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)
        for axes, name, group in zip(rows[:, 0], metrics, groups, strict=True):
            _forest_axes(axes, group)
            unit = metric_name(results.declared.metric(name))
            axes.set_xlabel(f"paired difference in {unit}")

    height = 0.62 * sum(heights) + 0.35 * len(groups)
    label = "Paired differences of every claim, one dot per seed, with 95 % intervals"
    return to_svg(draw, name="forest", size=(WIDTH, height), label=label)


def _forest_axes(axes: Axes, group: Sequence[Verdict]) -> None:
    low, high = _range(group)
    for place, verdict in enumerate(group):
        claimed = high if verdict.claim.sign > 0 else low
        axes.barh(place, claimed, height=0.8, color=colour("band"), zorder=0)
        _forest_row(axes, place, verdict)
        paper = verdict.paper_difference
        if paper is not None and low <= paper <= high:
            axes.plot(
                [paper], [place - 0.24], "D", color=colour("paper-mark"), fillstyle="none",
                markersize=6, markeredgewidth=1.4, zorder=3,
            )  # fmt: skip
        text = f"{verdict.outcome}\n{difference(verdict.interval)}, n = {verdict.n}"
        axes.annotate(
            text, (1.015, place), xycoords=("axes fraction", "data"), va="center", fontsize=9
        )
    axes.axvline(0, color=colour("ink"), linewidth=1.1, zorder=1)
    axes.set_xlim(low, high)
    axes.set_ylim(len(group) - 0.45, -0.55)
    axes.set_yticks(range(len(group)), [_forest_label(verdict) for verdict in group])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _forest_row(axes: Axes, place: int, verdict: Verdict) -> None:
    values = list(verdict.differences.values())
    shade = colour(verdict.outcome)
    dots = np.full(len(values), place + 0.24)
    axes.scatter(values, dots, s=15, color=shade, alpha=0.55, linewidth=0, zorder=2)
    if verdict.interval is None or not math.isfinite(verdict.interval.half_width):
        return
    ends = (verdict.interval.low, verdict.interval.high)
    axes.plot(ends, (place, place), color=shade, linewidth=2.4, solid_capstyle="butt", zorder=3)
    axes.plot(ends, (place, place), "|", color=shade, markersize=8, markeredgewidth=1.6, zorder=3)
    axes.plot(
        [verdict.interval.mean],
        [place],
        _MARK[verdict.outcome],
        color=shade,
        markersize=8,
        zorder=4,
    )


def _forest_label(verdict: Verdict) -> str:
    claim = verdict.claim
    ours, theirs = claim.arm, claim.other
    if claim.other_metric is not None:
        ours, theirs = claim.metric, claim.other_metric
    arms = f"{ours} − {theirs}"
    return f"{arms}\n{verdict.case}" if verdict.case else arms


def _range(group: Sequence[Verdict]) -> tuple[float, float]:
    """Return the axis of a group: everything measured and zero; the paper's gap if it is near."""
    ends = [0.0]
    for verdict in group:
        ends += verdict.differences.values()
        if verdict.interval is not None and math.isfinite(verdict.interval.half_width):
            ends += (verdict.interval.low, verdict.interval.high)
    span = max(ends) - min(ends)
    gaps = [item.paper_difference for item in group if item.paper_difference is not None]
    ends += [gap for gap in gaps if min(ends) - span <= gap <= max(ends) + span]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def arms(results: Results, metric: str) -> str:
    """Draw one metric of every arm with every seed, one panel for each case.

    Args:
        results: The run.
        metric: The metric's name.

    Returns:
        SVG, or an empty string if no arm has the metric.
    """
    rows = [row for row in summary(results) if metric in row.metrics]
    cases = [case for case in results.cases if any(row.case == case for row in rows)]
    if not rows:
        return ""
    names = [arm for arm in results.arms if any(row.arm == arm for row in rows)]
    styles = arm_styles(results)
    declared = results.declared.metric(metric)

    def draw(figure: Figure) -> None:
        for index, (axes, case) in enumerate(zip(_panels(figure, len(cases)), cases, strict=True)):
            for row in (row for row in rows if row.case == case):
                values = [
                    value
                    for trial in results.of(case, row.arm)
                    if (value := trial.metrics.get(metric)) is not None
                ]
                _arm_row(axes, names.index(row.arm), values, row.metrics[metric], styles[row.arm])
            first = index % _COLUMNS == 0
            axes.set_yticks(range(len(names)), names if first else [""] * len(names))
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x")
            axes.set_title(case, loc="left")
        better = direction(declared)
        figure.supxlabel(f"{metric_name(declared)}{f' ({better})' if better else ''}", fontsize=10)

    lines = math.ceil(len(cases) / _COLUMNS)
    size = (WIDTH, (0.36 * len(names) + 0.75) * lines + 0.3)
    label = f"{metric} of every arm: one dot per seed, the mean and its 95 % interval"
    return to_svg(draw, name=f"arms-{metric}", size=size, label=label)


def _arm_row(
    axes: Axes, place: int, values: Sequence[float], interval: Any, style: ArmStyle
) -> None:
    spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
    if math.isfinite(interval.half_width):
        ends = (interval.low, interval.high)
        axes.plot(ends, (place, place), color=style.colour, linewidth=7, alpha=0.25, zorder=1)
    axes.scatter(
        values, place + spread, s=17, marker=style.marker, color=style.colour, linewidth=0,
        alpha=0.85, zorder=2,
    )  # fmt: skip
    axes.plot(
        [interval.mean] * 2, [place - 0.32, place + 0.32], color=style.colour, linewidth=2.2,
        zorder=3,
    )  # fmt: skip


def curves(results: Results, name: str) -> str:
    """Draw one curve of every arm, the mean over seeds with the band of all seeds, by case.

    Args:
        results: The run.
        name: The curve's name.

    Returns:
        SVG, or an empty string if no trial left this curve.
    """
    cases = [
        case
        for case in results.cases
        if any(name in trial.curves for arm in results.arms for trial in results.of(case, arm))
    ]
    if not cases:
        return ""
    styles = arm_styles(results)

    def draw(figure: Figure) -> None:
        handles: dict[str, Any] = {}
        for axes, case in zip(_panels(figure, len(cases)), cases, strict=True):
            for arm in results.arms:
                found = [
                    trial.curves[name] for trial in results.of(case, arm) if trial.curves.get(name)
                ]
                if found:
                    handles[arm] = _curve(axes, found, styles[arm])
            axes.set_title(case, loc="left")
            axes.grid(axis="both")
            axes.margins(x=0.01)
        figure.legend(
            handles.values(), handles.keys(), loc="outside upper left", frameon=False,
            ncols=_legend_columns(handles, size[0]),
        )  # fmt: skip
        figure.supylabel("\n".join(wrap(name, 14 * lines + 14)), fontsize=10)

    lines = math.ceil(len(cases) / _COLUMNS)
    size = (WIDTH if len(cases) > 1 else 0.62 * WIDTH, 2.5 * lines + 0.5)
    label = f"{name}: mean over the seeds of each arm, the band holds every seed"
    return to_svg(draw, name=f"curve-{name}", size=size, label=label)


def _legend_columns(names: Iterable[str], width: float) -> int:
    """Return how many names fit beside each other: some 0.08 inches a letter, 0.6 for the line."""
    return max(1, min(6, int(width / (0.08 * max(map(len, names)) + 0.6))))


def _curve(
    axes: Axes, found: Sequence[Sequence[tuple[float, float | None]]], style: ArmStyle
) -> Any:
    steps, values = _on_common_steps(found)
    mean = values.mean(axis=0)
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(steps, low, high, color=style.colour, alpha=0.16, linewidth=0)
    marker = style.marker if len(steps) <= 15 else ""
    (line,) = axes.plot(
        steps, mean, color=style.colour, linestyle=style.line, linewidth=1.8, marker=marker,
        markersize=4,
    )  # fmt: skip
    return line


def _on_common_steps(
    found: Sequence[Sequence[tuple[float, float | None]]],
) -> tuple[np.ndarray, np.ndarray]:
    """Bring curves to the steps of the first: they differ where a run stopped early."""
    arrays = [np.array(curve, dtype=np.float64) for curve in found]  # None becomes NaN: a gap
    steps = arrays[0][:, 0]
    if all(np.array_equal(array[:, 0], steps) for array in arrays):
        return steps, np.stack([array[:, 1] for array in arrays])
    last = min(array[-1, 0] for array in arrays)
    steps = steps[steps <= last]
    return steps, np.stack([np.interp(steps, *array.T) for array in arrays])


def _panels(figure: Figure, count: int) -> list[Axes]:
    columns = min(count, _COLUMNS)
    grid = figure.subplots(math.ceil(count / columns), columns, squeeze=False).ravel().tolist()
    for unused in grid[count:]:
        unused.remove()
    return grid[:count]
