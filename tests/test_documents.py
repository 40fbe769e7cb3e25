"""Generated files are current, examples run, and nothing points outside the project."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path.name.replace("-", "_") for path in ROOT.glob("packages/*"))


def test_generated_files_are_current():
    done = subprocess.run(
        [sys.executable, "tools/index.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"run `python tools/index.py`:\n{done.stdout}{done.stderr}"


def every_module() -> list[str]:
    found = []
    for name in MODULES:
        package = importlib.import_module(name)
        found += [info.name for info in pkgutil.walk_packages(package.__path__, f"{name}.")]
    return found


@pytest.mark.parametrize("name", every_module())
def test_docstring_examples_run(name):
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.failed == 0


def test_readme_commands_are_the_ones_ci_runs():
    text = (ROOT / "README.md").read_text()
    assert "python -m pip install -q uv && uv run cvlab run icce" in text
    (command,) = re.findall(r"^(python -m pip install -q uv && uv run nox)$", text, re.MULTILINE)
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == command


def test_links_between_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("packages/*/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
