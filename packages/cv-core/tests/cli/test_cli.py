"""The command line: what it prints, and one clear line with exit code 2 for bad use."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from cv_core.cli import app
from cv_core.cli.app import run_app
from cv_core.registry import read_index

SLUG = "fdea"  # cv-core's own method, so that these tests need no other package


def complaint(capsys, arguments: list[str], code: int = 2) -> str:
    """Run, demand the exit code, and return the one line on the error stream."""
    assert run_app(arguments) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("cvlab: ")
    return line


def test_list_shows_every_method_of_the_index(capsys):
    assert run_app(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [row["slug"] for row in read_index()]


def test_list_as_json_has_the_promised_fields(capsys):
    assert run_app(["list", "--json", "--package", "cv-core"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    promised = {"slug", "package", "title", "reference", "kind", "objects", "experiment"}
    assert promised | {"verdicts"} <= set(row)
    assert row["slug"] == SLUG


def test_info_shows_paper_imports_arms_and_claims(capsys):
    assert run_app(["info", SLUG]) == 0
    text = capsys.readouterr().out
    for wanted in ("Face Dataset", "from cv_core.data", "arms:", "(baseline)", "claims:"):
        assert wanted in text


def test_list_and_help_import_neither_torch_nor_a_package():
    """What keeps them fast; the time itself depends on the machine."""
    code = (
        "import sys; from cv_core.cli.app import run_app; code = run_app(sys.argv[1:]);"
        "heavy = {'torch', 'numpy', 'scipy', 'sklearn', 'matplotlib', 'cv_core.report.html'};"
        "ours = {n for n in sys.modules if n.startswith('cv_') and not n.startswith('cv_core')};"
        "sys.exit(code or bool(ours | heavy & set(sys.modules)))"
    )
    for arguments in (["list"], ["--help"], ["run", "--help"], ["list", "--json"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
        assert done.returncode == 0, (arguments, done.stderr)


def test_a_package_s_command_is_loaded_when_it_is_called_and_not_before(
    capsys, monkeypatch, tmp_path
):
    """Help, other commands and mistyped ones do not need the package that adds a command."""
    (tmp_path / "cv_added.py").write_text(
        "import typer\napp = typer.Typer()\n"
        "@app.command()\ndef greet(name: str):\n    typer.echo(f'hello {name}')\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = ("greet", "list")  # a built-in command cannot be replaced
    points = [EntryPoint(name, "cv_added:app", app.COMMANDS) for name in names]
    monkeypatch.setattr(app, "_added", lambda: points)
    assert run_app(["--help"]) == 0
    assert "greet" in capsys.readouterr().out
    assert run_app(["list"]) == 0
    assert SLUG in capsys.readouterr().out
    assert "Did you mean 'greet'" in complaint(capsys, ["gret"])
    assert "cv_added" not in sys.modules
    assert run_app(["greet", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"
    assert "Missing argument" in complaint(capsys, ["greet"])
    assert "cv_added" in sys.modules
    monkeypatch.delitem(sys.modules, "cv_added")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["run", "fdae"], "did you mean fdea"),
        (["run", SLUG, "--budget", "smok"], "Did you mean 'smoke'"),
        (["run", SLUG, "--data", "mnits"], "Did you mean 'mnist'"),
        (["run", SLUG, "--data", "karate-club"], "must be of kind ImageClassification"),
        (["run", SLUG, "--seeds", "0"], "--seeds must be at least 1"),
        (["run", SLUG, "--seeds", "three"], "--seeds"),
        (["run", SLUG, "--device", "gpu"], "--device must be one of 'auto', 'cpu', 'cuda'"),
        (["run", SLUG, "--jobs", "0"], "--jobs must be at least 1"),
        (["run", SLUG, "--backend", "dsk"], "Did you mean 'dask'"),
        (["run", SLUG, "--strategy", "dp"], "Did you mean 'ddp'"),
        (["run", SLUG, "--strategy", "ddp"], "--devices of at least 2"),
        (["run", SLUG, "--devices", "2", "--strategy", "fsdp", "--device", "cpu"], "needs device"),
        (["run", SLUG, "--arm", "nobody"], "--arm must be one of"),
        (["run", SLUG, "--set", "steps"], "NAME=VALUE"),
        (["run", SLUG, "--set", "nosuch=1"], "--set NAME must be one of"),
        (["run", SLUG, "--data", "folder:/nowhere/at/all"], "/nowhere/at/all"),
        (["run", SLUG, "--data", "npz:/nowhere.npz"], "/nowhere.npz"),
        (["run"], "Missing argument"),
        (["runn", SLUG], "Did you mean 'run'"),
        (["run", SLUG, "--sede", "3"], "--seeds"),
        (["info", "nothing-like-it"], "see `cvlab list`"),
        (["list", "--package", "cv-cor"], "cv-core"),
        (["report", "/nowhere"], "no run at /nowhere"),
        (["compare", "/nowhere", "/nowhere"], "no run at /nowhere"),
        (["data", "get", "mnits"], "mnist"),
    ],
)
def test_bad_use_is_one_line_and_nothing_is_written(
    capsys, tmp_path, monkeypatch, arguments, wanted
):
    monkeypatch.chdir(tmp_path)
    assert wanted in complaint(capsys, arguments)
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_is_not_there_is_refused(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert "torch sees no GPU" in complaint(capsys, ["run", SLUG, "--device", "cuda"])


def test_missing_data_say_how_to_get_them(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CV_DATA", str(tmp_path))
    line = complaint(capsys, ["run", SLUG, "--data", "mnist"])
    assert "CV_DATA" in line
    assert "mnist/train-images-idx3-ubyte.gz" in line


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    arguments = ["run", SLUG, "--budget", "smoke", "--seeds", "2", "--jobs", "1"]
    assert run_app([*arguments, "--out", str(out)]) == 0
    return out / f"{SLUG}-smoke-digits"


def test_run_leaves_results_and_pages(finished):
    assert {path.name for path in finished.iterdir()} == {
        "trials",
        "results.json",
        "report.html",
        "report.md",
    }


def test_the_command_in_the_results_repeats_the_run(finished, capsys, tmp_path):
    import shlex

    before = json.loads((finished / "results.json").read_text())
    words = shlex.split(before["command"])
    assert words[0] == "cvlab"
    assert run_app([*words[1:], "--jobs", "1", "--out", str(tmp_path)]) == 0
    after = json.loads((tmp_path / finished.name / "results.json").read_text())
    assert [row["metrics"] for row in after["trials"]] == [
        row["metrics"] for row in before["trials"]
    ]
    assert "report: " in capsys.readouterr().out


def test_report_draws_the_pages_again(finished, capsys):
    page = finished / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert run_app(["report", str(finished)]) == 0
    assert page.read_bytes() == before
    assert str(page) in capsys.readouterr().out


def test_compare_of_a_run_with_itself_finds_no_difference(finished, capsys):
    assert run_app(["compare", str(finished), str(finished / "results.json")]) == 0
    assert capsys.readouterr().out.strip()


def test_a_truncated_results_file_is_named(finished, capsys, tmp_path):
    broken = tmp_path / "results.json"
    broken.write_bytes((finished / "results.json").read_bytes()[:200])
    assert str(broken) in complaint(capsys, ["report", str(tmp_path)])


def test_progress_is_silent_in_a_pipe(tmp_path):
    command = [sys.executable, "-m", "cv_core.cli", "run", SLUG, "--budget", "smoke"]
    command += ["--seeds", "1", "--arm", "balanced", "--jobs", "1", "--out", str(tmp_path)]
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


def test_data_list_names_kinds(capsys):
    assert run_app(["data", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["digits"]["kind"] == "ImageClassification"
    assert rows["digits"]["here"] is True


def test_data_path_follows_the_variable(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CV_DATA", str(tmp_path))
    assert run_app(["data", "path"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Commands started here can be interrupted, even where a shell started the tests with ``&``."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_one_line_and_keeps_what_is_finished(tmp_path, jobs):
    """As a terminal does: the signal reaches the command and all its workers."""
    out = tmp_path / "runs"
    command = [sys.executable, "-m", "cv_core.cli", "run", SLUG, "--seeds", "100"]
    command += ["--jobs", jobs, "--out", str(out), "--budget", "smoke"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        end = time.monotonic() + 120
        while not list(out.glob("*/trials/*.json")) and time.monotonic() < end:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        try:
            shown = process.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever a failure leaves behind
    assert process.returncode == 130
    assert shown == ("", "cvlab: stopped; the same command goes on from here\n")
    assert list(out.glob("*/trials/*.json"))
