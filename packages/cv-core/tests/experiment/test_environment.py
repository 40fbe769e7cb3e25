"""What a run was made with: what counts for a trial's key, and nothing that names the machine."""

import functools
import linecache
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import cv_core
import pytest
from cv_core.experiment import environment
from cv_core.experiment.declaration import Arm, Claim, Evidence, Experiment, Metric
from cv_core.experiment.environment import arm_fingerprint, code_fingerprint, versions
from cv_core.experiment.plan import Wishes, make_plan
from cv_core.experiment.runner import run
from cv_core.imaging.noise import add_gaussian_noise

SOURCE = Path(next(iter(cv_core.__path__)))


@pytest.fixture
def fingerprint(tmp_path, monkeypatch):
    """Return a function that hashes a copy of cv-core in which one file was changed."""
    copy = tmp_path / "cv_core"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(environment, "_source_folder", lambda _: copy)

    def changed(name: str) -> str:
        path = copy / name
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        found = code_fingerprint.__wrapped__("cv-core")
        path.write_bytes(before)
        return found

    return changed


def test_code_and_the_catalogue_of_data_count(fingerprint):
    """An arm may load a data set by itself: the catalogue holds what it then gets."""
    same = code_fingerprint("cv-core")
    parts = ("random.py", "data/readers/catalogue.toml", "data/readers/files.tsv")
    found = {fingerprint(name) for name in parts}
    assert len(found) == 3
    assert same not in found


def test_pages_and_index_do_not_count(fingerprint):
    same = code_fingerprint("cv-core")
    for name in ("report/text.py", "cli/app.py", "testing/checks.py", "index.json"):
        assert fingerprint(name) == same


def test_versions_hold_what_decodes_and_computes():
    found = versions("cv-core")
    for name in ("cv-core", "torch", "numpy", "scipy", "scikit-learn", "pillow", "networkx"):
        assert found[name] == version(name)
    assert "typer" not in found


def test_an_arm_outside_the_packages_brings_its_own_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    prints = []
    for body in ("return 1", "return 2"):
        (tmp_path / "zz_notebook.py").write_text(f"def arm(trial):\n    {body}\n")
        sys.modules.pop("zz_notebook", None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        linecache.clearcache()
        import zz_notebook

        prints.append(arm_fingerprint(zz_notebook.arm, "cv-core"))
        assert arm_fingerprint(functools.partial(zz_notebook.arm, 3), "cv-core") == prints[-1]
    assert len(set(prints)) == 2
    assert arm_fingerprint(add_gaussian_noise, "cv-core") == ""


def test_results_hold_no_folder_of_this_machine(tmp_path):
    def broken(trial) -> dict[str, float]:
        trial.skip("not here") if trial.seed else (tmp_path / "absent").read_text()
        return {"score": 1.0}

    names = ("smoke", "default", "full")
    declared = Experiment(
        slug="toy",
        question="Is it private?",
        data=dict.fromkeys(names, "digits"),
        arms=(Arm("a", broken, "baseline"), Arm("b", lambda _: {"score": 1.0}, "paper")),
        metrics=(Metric("score"),),
        claims=(Claim(arm="b", above="a", metric="score"),),
        settings={name: {} for name in names},
        evidence=Evidence(data="digits"),
        selection="none",
    )
    planned = make_plan(declared, "cv-core", Wishes(out=tmp_path, jobs=1, seeds=2, device="cpu"))
    failed = run(planned).trials[0]
    assert failed.status == "failed"
    assert 'File "cv_core/experiment/worker.py"' in failed.error
    text = (planned.folder / "results.json").read_text()
    for folder in (str(SOURCE), sys.prefix, sys.base_prefix, str(Path.home())):
        assert folder not in text
