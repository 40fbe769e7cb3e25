"""``cvlab list``, ``info`` and ``data``: what there is."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from cv_core.checks import nearest
from cv_core.cli.errors import BadUse
from cv_core.registry import read_index


def list_methods(package: str | None, *, as_json: bool) -> None:
    """Print the installed methods.

    Args:
        package: Only this package; all by default.
        as_json: One JSON array instead of a table.

    Raises:
        BadUse: If no package of this name has methods.
    """
    rows = read_index()
    packages = sorted({row["package"] for row in rows})
    if package is not None and package not in packages:
        close = nearest(package, packages) or packages
        raise BadUse(f"no methods of a package {package!r}; try {' or '.join(close)}.")
    rows = [row for row in rows if package in (None, row["package"])]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return
    _table(
        ("method", "package", "what it does", "verdict"),
        [
            (row["slug"], row["package"], row["title"], row["headline"] or "no report")
            for row in rows
        ],
    )


def _table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print left-aligned columns; rich would take longer to import than the listing takes."""
    widths = [max(len(row[place]) for row in [names, *rows]) for place in range(len(names))]
    for row in [names, *rows]:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def show_method(slug: str) -> None:
    """Print what a method is and what its experiment declares.

    Raises:
        BadUse: If there is no such method.
    """
    from cv_core.cli.methods import experiment, find
    from cv_core.registry import Reference

    row = find(slug)
    reference = str(Reference(**row["reference"]))
    lines = [f"{row['slug']} ({row['package']}): {row['title']}", reference]
    lines += [f"  {_import_line(row['package'], name)}" for name in row["objects"]]
    if row["experiment"]:
        declared = experiment(row)
        lines += ["", declared.question, "", "arms:"]
        lines += [f"  {arm.name} ({arm.role}): {arm.note}" for arm in declared.arms]
        lines += ["cases:", *(f"  {case.name}" for case in declared.cases if case.name)]
        lines += ["claims:"]
        lines += [f"  {claim}. {claim.source}" for claim in declared.claims]
        for budget, values in declared.settings.items():
            lines.append(f"settings ({budget}): {_settings(values)}")
    lines += ["", f"verdict of the committed report: {row['headline'] or 'none yet'}"]
    sys.stdout.write("\n".join(lines) + "\n")


def _import_line(package: str, dotted: str) -> str:
    """cv-core's objects are imported from their modules, the other packages' from the package."""
    module, _, name = dotted.rpartition(".")
    return f"from {module if package == 'cv-core' else module.partition('.')[0]} import {name}"


def _settings(values: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def list_data(*, as_json: bool) -> None:
    """Print the data sets.

    Args:
        as_json: One JSON array instead of a table.
    """
    from cv_core.data.sources import names

    rows = [
        {
            "name": item.name,
            "kind": item.kind,
            "where": item.where,
            "here": item.available,
            "title": item.title,
            "licence": item.licence,
        }
        for item in names()
    ]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return
    cells = [
        (str(row["name"]), str(row["kind"]), "yes" if row["here"] else "no", str(row["title"]))
        for row in rows
    ]
    _table(("data set", "kind", "here", "title"), cells)


def get_data(name: str) -> None:
    """Say what will be fetched, from where and under which licence; fetch and check it.

    Raises:
        BadUse: If there is no such set, no stable origin to fetch it from, or the origin's files
            are not what they should be.
    """
    from cv_core.data.downloads import get, plan

    try:
        for item in plan(name):
            size = f"{item.file.size / 1e6:.1f} MB"
            sys.stdout.write(f"{item.file.url} ({size}; licence: {item.licence})\n")
        paths = get(name)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise BadUse(str(error)) from error
    for path in paths:
        sys.stdout.write(f"{path}\n")
