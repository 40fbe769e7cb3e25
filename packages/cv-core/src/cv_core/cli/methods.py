"""From a slug to its index row and its experiment."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from cv_core.checks import nearest
from cv_core.cli.errors import BadUse
from cv_core.experiment.declaration import Experiment
from cv_core.registry import read_index


def find(slug: str) -> dict[str, Any]:
    """Return a method's row of the index.

    Raises:
        BadUse: If there is none, with the nearest ones.
    """
    rows = {row["slug"]: row for row in read_index()}
    if slug in rows:
        return rows[slug]
    close = nearest(slug, rows)
    hint = f"did you mean {' or '.join(close)}?" if close else "see `cvlab list`."
    raise BadUse(f"no installed method is named {slug!r}; {hint}")


def experiment(row: dict[str, Any]) -> Experiment:
    """Import a method's experiment.

    Raises:
        BadUse: If the method has none.
    """
    if not row["experiment"]:
        raise BadUse(f"{row['slug']} has no experiment.")
    declared: Experiment = import_module(row["experiment"]).EXPERIMENT
    return declared
