"""Scaffold a method: module, experiment and tests under one stem.

``python tools/new_method.py cv-graph hybrid-hgcn``. What it writes fails the checks until it is
filled in: the docstring names no paper, the card has no example, the arms raise, the test fails.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from string import Template

ROOT = Path(__file__).resolve().parent.parent

METHOD = Template('''\
r"""TODO: one sentence on what the method does.

*TODO: title of the paper*, authors, venue, pages.

.. math:: TODO

Deviations from the paper, and why:

- TODO
"""

from __future__ import annotations

from cv_core.registry import Card, Example, Reference


def _examples() -> list[Example]:
    return []


CARD = Card(
    slug="$slug",
    title="TODO",
    reference=Reference(title="TODO", authors="TODO", venue="TODO", year=0),
    kind="module",
    objects=("$module.methods.$stem.TODO",),
    examples=_examples,
)
''')

EXPERIMENT = Template('''\
"""TODO: what the experiment asks, which controls it has and why."""

from __future__ import annotations

from cv_core.experiment.declaration import Arm, Claim, Evidence, Experiment, Metric
from cv_core.experiment.trial import Trial


def run_baseline(trial: Trial) -> dict[str, float]:
    """TODO: train and judge the baseline."""
    raise RuntimeError("$slug: the baseline is not written yet.")


def run_paper(trial: Trial) -> dict[str, float]:
    """TODO: train and judge the paper's method."""
    raise RuntimeError("$slug: the paper's arm is not written yet.")


EXPERIMENT = Experiment(
    slug="$slug",
    question="TODO?",
    data={"smoke": "digits", "default": "digits", "full": "mnist"},
    arms=(
        Arm("baseline", run_baseline, role="baseline", note="TODO"),
        Arm("$slug", run_paper, role="paper", note="TODO"),
    ),
    metrics=(Metric("test accuracy"),),
    claims=(Claim(arm="$slug", above="baseline", metric="test accuracy", source="TODO"),),
    settings={"smoke": {}, "default": {}, "full": {}},
    evidence=Evidence(data="mnist"),
    selection="TODO: where the hyper-parameters come from.",
)
''')

TEST = Template('''\
"""$slug: the paper's algebra, a slow reference, the degenerate case."""

import pytest


def test_${stem}_does_what_the_paper_says():
    pytest.fail("write the tests of $slug: properties, slow reference, degenerate case, errors")
''')


def scaffold(root: Path, package: str, slug: str) -> list[Path]:
    """Write the three files of a method.

    Args:
        root: The workspace.
        package: The distribution, such as ``cv-graph``.
        slug: The method's slug in kebab case.

    Returns:
        The files written.

    Raises:
        ValueError: If the package does not exist, the slug is malformed or a file is there already.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug):
        raise ValueError(f"a slug is in kebab case, as in dist-cam; got {slug!r}")
    folder = root / "packages" / package
    if not (folder / "pyproject.toml").is_file():
        known = sorted(path.parent.name for path in root.glob("packages/*/pyproject.toml"))
        raise ValueError(f"no package {package!r}; there are {', '.join(known)}")
    module, stem = package.replace("-", "_"), slug.replace("-", "_")
    source = folder / "src" / module
    files = {
        source / "methods" / f"{stem}.py": METHOD,
        source / "experiments" / f"{stem}.py": EXPERIMENT,
        folder / "tests" / "methods" / f"test_{stem}.py": TEST,
    }
    there = [path for path in files if path.exists()]
    if there:
        raise ValueError(f"{there[0].relative_to(root)} is there already")
    for path, template in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        text = template.substitute(slug=slug, stem=stem, module=module)
        path.write_text(text, encoding="utf-8")
    return list(files)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("package", help="such as cv-graph")
    parser.add_argument("slug", help="the paper's short name in kebab case")
    arguments = parser.parse_args()
    try:
        written = scaffold(ROOT, arguments.package, arguments.slug)
    except ValueError as error:
        print(f"new_method: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
