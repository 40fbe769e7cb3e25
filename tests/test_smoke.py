"""Every experiment's smoke run through the command line, with runtime shape checks on.

``nox -s smoke`` runs these with jaxtyping's import hook, so that every annotated shape between
the data and the metrics is checked on the way.
"""

from importlib import import_module

import pytest
from cv_core.cli.app import run_app
from cv_core.experiment.results import read
from cv_core.registry import discover

ENTRIES = discover()


@pytest.mark.smoke
@pytest.mark.parametrize("slug", ENTRIES)
def test_smoke_run_finishes(slug, tmp_path, capsys):
    arguments = ["run", slug, "--budget", "smoke", "--seeds", "2", "--jobs", "1"]
    code = run_app([*arguments, "--out", str(tmp_path)])
    assert code == 0, capsys.readouterr().err
    (folder,) = tmp_path.iterdir()
    results = read(folder / "results.json")
    declared = import_module(ENTRIES[slug].experiment_module).EXPERIMENT
    done = [trial for trial in results.trials if trial.status == "done"]
    assert {trial.arm for trial in done} == {arm.name for arm in declared.arms}
    seen = {name for trial in done for name in trial.metrics}
    assert seen == {metric.name for metric in declared.metrics}
    assert all(value is not None for trial in done for value in trial.metrics.values())
    assert "<html" in (folder / "report.html").read_text()
    print(f"{slug}: {sum(trial.costs['seconds'] for trial in done):.1f} s in trials")  # noqa: T201


@pytest.mark.parametrize("slug", ENTRIES)
def test_declaration_fits_its_card(slug):
    declared = import_module(ENTRIES[slug].experiment_module).EXPERIMENT
    assert declared.slug == slug
    assert declared.question.endswith("?")
    assert declared.claims, "an experiment judges at least one claim"
    assert declared.selection
    assert declared.evidence.seeds >= 5, "evidence takes at least five paired seeds"
    assert any(arm.role == "control" for arm in declared.arms), "controls are mandatory"
    text = repr(declared)
    assert "TODO" not in text
