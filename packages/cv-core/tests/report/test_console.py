import io

from cv_core.experiment.compare import compare_runs
from cv_core.report.console import print_comparison, print_summary
from rich.console import Console


def printed(function, *values, width=160):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    function(*values, console)
    return console.file.getvalue()


def test_summary_shows_arms_failures_and_verdicts(make_results):
    shown = printed(print_summary, make_results())
    lines = shown.splitlines()
    assert any(
        line.split()[:1] == ["ICCE"] and "0.8550 ± 0.0080" in line and "1.67 M" in line
        for line in lines
    )
    assert "failed: GCE, 40 % pair, seed 0: ValueError: no" in shown
    assert "verdict: supported 2 of 6, contradicted 1, inconclusive 2, untested 1" in shown
    assert (
        "✔ supported    ICCE above cross entropy in test accuracy (40 % symmetric); "
        "+0.1530 [+0.1458, +0.1602], n = 5" in shown
    )
    assert "\x1b" not in shown  # no colours in a pipe


def test_names_that_look_like_rich_markup_are_printed_as_they_are(make_results):
    results = make_results()
    arms = [
        arm.model_copy(update={"name": f"[bold]{arm.name}[/]"}) for arm in results.declared.arms
    ]
    trials = [trial.model_copy(update={"arm": f"[bold]{trial.arm}[/]"}) for trial in results.trials]
    declared = results.declared.model_copy(update={"arms": arms, "claims": []})
    shown = printed(
        print_summary, results.model_copy(update={"declared": declared, "trials": trials})
    )
    assert "[bold]ICCE[/]" in shown
    assert "failed: [bold]GCE[/], 40 % pair, seed 0" in shown


def test_one_unnamed_case_has_no_column(make_results):
    results = make_results()
    trials = [
        trial.model_copy(update={"case": ""}) for trial in results.trials if trial.case == "clean"
    ]
    case = results.declared.cases[0].model_copy(update={"name": ""})
    claims = results.declared.claims[:1]
    declared = results.declared.model_copy(update={"cases": [case], "claims": claims})
    shown = printed(
        print_summary, results.model_copy(update={"declared": declared, "trials": trials})
    )
    assert "case" not in shown
    assert "()" not in shown


def test_comparison_shows_changes_and_shifts(make_results):
    a = make_results()
    b = make_results(
        device="cuda",
        trials=[
            trial.model_copy(
                update={"metrics": {name: value + 0.5 for name, value in trial.metrics.items()}}
            )
            for trial in a.trials
        ],
    )
    shown = printed(print_comparison, compare_runs(a, b))
    assert any(line.split() == ["device", "cpu", "cuda"] for line in shown.splitlines())
    assert "+0.5" in shown
    assert "same settings" in printed(print_comparison, compare_runs(a, a))
