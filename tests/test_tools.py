"""The scaffold writes what cannot pass until it is filled in, and refuses what is there."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cv_core.registry import Entry
from cv_core.testing.checks import cases

ROOT = Path(__file__).resolve().parent.parent


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty workspace with one package."""
    folder = tmp_path / "packages" / "cv-graph"
    for part in ("methods", "experiments"):
        (folder / "src" / "cv_graph" / part).mkdir(parents=True)
    shutil.copy(ROOT / "packages/cv-graph/pyproject.toml", folder)
    return tmp_path


@pytest.fixture
def written(workspace: Path) -> dict[str, Path]:
    tool = load(ROOT / "tools" / "new_method.py")
    files = tool.scaffold(workspace, "cv-graph", "hybrid-hgcn")
    return dict(zip(("method", "experiment", "test"), files, strict=True))


def test_one_stem_everywhere(workspace, written):
    assert [str(path.relative_to(workspace)) for path in written.values()] == [
        "packages/cv-graph/src/cv_graph/methods/hybrid_hgcn.py",
        "packages/cv-graph/src/cv_graph/experiments/hybrid_hgcn.py",
        "packages/cv-graph/tests/methods/test_hybrid_hgcn.py",
    ]


def test_scaffolded_card_fails_the_common_checks(written):
    card = load(written["method"]).CARD
    entry = Entry(package="cv-graph", card=card)
    assert entry.experiment_module == "cv_graph.experiments.hybrid_hgcn"
    with pytest.raises(ValueError, match="needs at least one example"):
        list(cases(card))


def test_scaffolded_experiment_fails_its_declaration_check(written):
    declared = load(written["experiment"]).EXPERIMENT
    assert "TODO" in repr(declared)
    assert not any(arm.role == "control" for arm in declared.arms)
    with pytest.raises(RuntimeError, match="not written yet"):
        declared.arms[1].run(None)


def test_scaffolded_test_fails(written):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(written["test"])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=written["test"].parent)
    assert done.returncode == 1
    assert "1 failed" in done.stdout


@pytest.mark.parametrize(
    ("package", "slug", "message"),
    [
        ("cv-grph", "hybrid-hgcn", "no package 'cv-grph'"),
        ("cv-graph", "Hybrid_HGCN", "kebab case"),
        ("cv-graph", "../escape", "kebab case"),
    ],
)
def test_bad_names_are_refused(workspace, package, slug, message):
    tool = load(ROOT / "tools" / "new_method.py")
    with pytest.raises(ValueError, match=message):
        tool.scaffold(workspace, package, slug)
    assert not list(workspace.rglob("*.py"))


def test_what_is_there_is_not_overwritten(workspace, written):
    written["method"].write_text("precious")
    tool = load(ROOT / "tools" / "new_method.py")
    with pytest.raises(ValueError, match="is there already"):
        tool.scaffold(workspace, "cv-graph", "hybrid-hgcn")
    assert written["method"].read_text() == "precious"


def test_index_fills_between_markers_only():
    tool = load(ROOT / "tools" / "index.py")
    text = "before\n<!-- methods:begin -->\nold\n<!-- methods:end -->\nafter\n"
    assert tool.fill(text, "methods", "new\n") == text.replace("old", "new")
    assert tool.fill(text, "benchmarks", "new\n") == text
