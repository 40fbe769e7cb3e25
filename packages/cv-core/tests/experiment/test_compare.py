import math

import pytest
from cv_core.experiment.compare import compare_runs, headline, summary, verdicts
from cv_core.experiment.declaration import Claim, Metric
from cv_core.experiment.results import (
    ArmRecord,
    CaseRecord,
    DataRecord,
    Declared,
    Environment,
    Results,
    TrialResult,
)
from cv_core.experiment.statistics import bca_interval, holm, paired_t_interval, seeds_needed


def run(scores, claims=None, cases=("",), **changes):
    """A run whose arms have these scores by seed: a number, None, "skipped" or "failed"."""
    trials = [
        trial(case, arm, seed, score)
        for (case, arm), by_seed in scores.items()
        for seed, score in enumerate(by_seed)
    ]
    claims = claims or [Claim(arm="new", above="old", metric="score", paper=(0.9, 0.6))]
    fields = {
        "slug": "x",
        "package": "cv-x",
        "budget": "smoke",
        "data": DataRecord(name="digits", checksum="1"),
        "seeds": list(range(max(map(len, scores.values())))),
        "device": "cpu",
        "command": "cvlab run x",
        "declared": Declared(
            question="?",
            arms=[ArmRecord(name="old", role="baseline"), ArmRecord(name="new", role="paper")],
            cases=[CaseRecord(name=case) for case in cases],
            metrics=[Metric("score"), Metric("loss", better="lower")],
            claims=claims,
            settings={"epochs": 3},
        ),
        "trials": trials,
        "environment": Environment(
            python="3.12", platform="Linux", cores=2, torch="2.9", device_name="x86_64"
        ),
    }
    return Results(**{**fields, **changes})


def trial(case, arm, seed, score):
    place = {"case": case, "arm": arm, "seed": seed}
    if score == "skipped":
        return TrialResult(**place, status="skipped", reason="no weights here")
    if score == "failed":
        return TrialResult(**place, status="failed", error="boom")
    costs = {"seconds": 1.0 + seed, "steps": 10}
    return TrialResult(**place, status="done", metrics={"score": score}, costs=costs)


def only(results):
    (verdict,) = verdicts(results)
    return verdict


def pairs(differences, **options):
    base = [0.5, 0.6, 0.4, 0.7, 0.55][: len(differences)]
    new = [b + d for b, d in zip(base, differences, strict=True)]
    return run({("", "old"): base, ("", "new"): new}, **options)


BELOW = [Claim(arm="new", below="old", metric="score")]


@pytest.mark.parametrize(
    ("differences", "claims", "outcome"),
    [
        ([0.10, 0.11, 0.09], None, "supported"),
        ([0.10, 0.11, 0.09], BELOW, "contradicted"),
        ([-0.10, -0.11, -0.09], None, "contradicted"),
        ([-0.10, -0.11, -0.09], BELOW, "supported"),
        ([0.10, 0.30, -0.10], None, "inconclusive"),
        ([0.10, 0.30, -0.10], BELOW, "inconclusive"),
        ([0.0, 0.0, 0.0], None, "inconclusive"),  # equal arms are not a contradiction
        ([0.1, 0.1, 0.1], None, "supported"),
        # t(0.975, 1 degree) = 12.706: a spread of 0.01 around 0.1 leaves 0.1 -+ 0.064
        ([0.095, 0.105], None, "supported"),
        ([0.09, 0.11], None, "inconclusive"),
        ([0.1], None, "untested"),
    ],
)
def test_outcome_follows_from_the_interval(differences, claims, outcome):
    assert only(pairs(differences, claims=claims)).outcome == outcome


def test_a_verdict_holds_the_statistics_of_its_pairs():
    differences = [0.10, 0.30, -0.10, 0.05]
    found = only(pairs(differences))
    assert list(found.differences.values()) == pytest.approx(differences)
    values = list(found.differences.values())
    assert found.interval == paired_t_interval(values)
    assert found.bca == bca_interval(values)
    assert found.seeds_needed == seeds_needed(values)
    assert found.n == 4
    assert found.means == pytest.approx((0.55 + 0.0875, 0.55))
    assert found.paper_difference == pytest.approx(0.3)
    assert found.adjusted == found.pvalue  # it is the only test
    assert found.reason == ""
    assert only(pairs([0.10, 0.11, 0.09])).seeds_needed is None  # settled already


def test_only_seeds_that_both_arms_finished_are_paired():
    found = only(
        run(
            {
                ("", "old"): [0.1, "failed", 0.3, 0.4, math.nan],
                ("", "new"): [0.5, 0.9, "skipped", 0.7, 0.9],
            }
        )
    )
    assert found.differences == pytest.approx({0: 0.4, 3: 0.3})
    assert found.outcome == "inconclusive"
    assert found.reason == (
        "2 of 5 pairs finished; new skipped 1 of 5 (no weights here); "
        "old failed 1 of 5, gave no finite score 1 of 5 times"
    )


def test_untested_says_why():
    found = only(run({("", "old"): [0.1, 0.2], ("", "new"): ["skipped", "skipped"]}))
    assert found.outcome == "untested"
    assert found.reason == (
        "0 of 2 pairs finished, two are needed; new skipped 2 of 2 (no weights here)"
    )
    assert found.interval is None
    assert found.means is None
    found = only(run({("", "new"): [0.1, 0.2]}))
    assert (found.outcome, found.reason) == (
        "untested",
        "0 of 2 pairs finished, two are needed; old was not run",
    )
    found = only(pairs([0.2]))
    assert found.outcome == "untested"
    assert found.reason == "1 of 1 pairs finished, two are needed"
    assert found.pvalue is None
    assert found.interval.mean == pytest.approx(0.2)


def many():
    scores = {
        ("clean", "old"): [0.5, 0.6, 0.7],
        ("clean", "new"): [0.6, 0.71, 0.79],
        ("noise", "old"): [0.5, 0.6, 0.7],
        ("noise", "new"): [0.6, 0.5, 0.9],
    }
    claims = [
        Claim(arm="new", above="old", metric="score"),
        Claim(arm="new", above="old", metric="score", cases=("noise",)),
        Claim(arm="new", above="old", metric="score", cases=("absent",)),
        Claim(arm="new", below="old", metric="loss", cases=("clean",)),
    ]
    return run(scores, claims, ("clean", "noise", "absent"))


def test_every_claim_is_judged_in_each_of_its_cases():
    found = verdicts(many())
    assert [(v.case, v.outcome) for v in found] == [
        ("clean", "supported"),
        ("noise", "inconclusive"),
        ("noise", "inconclusive"),
        ("absent", "untested"),
        ("clean", "untested"),
    ]
    assert found[3].reason == "none of its cases is part of this run"
    assert "gave no finite loss 3 of 3 times" in found[4].reason
    tested = found[:3]
    assert [v.adjusted for v in tested] == holm([v.pvalue for v in tested])


def test_headline_counts_outcomes():
    assert headline(verdicts(many())) == "supported 1 of 5, inconclusive 2, untested 2"
    assert headline(verdicts(pairs([0.1, 0.1]))) == "supported 1 of 1"
    assert headline(verdicts(pairs([-0.1, -0.1]))) == "contradicted 1 of 1"
    assert headline([]) == "no claims"


def test_summary_by_hand():
    old, new = summary(run({("", "old"): [0.1, 0.2, 0.6], ("", "new"): [0.4, "failed", "skipped"]}))
    assert (old.arm, old.role, new.arm, new.role) == ("old", "baseline", "new", "paper")
    assert old.metrics["score"] == paired_t_interval([0.1, 0.2, 0.6])
    assert old.costs == {"seconds": 2.0, "steps": 10.0}  # medians of 1, 2, 3 and of 10
    assert old.counts == {"score": 3, "loss": 0}
    assert "loss" not in old.metrics
    assert new.status == {"done": 1, "skipped": 1, "failed": 1}
    assert new.metrics["score"].mean == 0.4
    assert math.isinf(new.metrics["score"].half_width)


def test_two_runs_are_compared_pair_by_pair():
    a = run({("", "old"): [0.1, 0.2, 0.3], ("", "new"): [0.5, 0.6, 0.7]})
    b = run(
        {("", "old"): [0.1, 0.2, 0.3], ("", "new"): [0.6, 0.7, 0.8, 0.1]},
        data=DataRecord(name="digits", checksum="2"),
    )
    found = compare_runs(a, b)
    moved = {shift.arm: shift for shift in found.shifts}
    assert set(moved) == {"old", "new"}
    assert moved["old"].difference.mean == 0.0
    assert moved["new"].difference.mean == pytest.approx(0.1)
    assert moved["new"].difference.low == pytest.approx(0.1)
    assert moved["new"].n == 3
    assert moved["new"].after.mean == pytest.approx(2.2 / 4)
    changes = {change.what: (change.before, change.after) for change in found.changes}
    assert changes == {"data checksum": ("1", "2"), "seeds": ("3", "4")}
    assert compare_runs(a, a).changes == []


def test_changes_of_settings_versions_and_verdicts_are_listed():
    a = pairs([0.1, 0.11, 0.09])
    declared = a.declared.model_copy(update={"settings": {"epochs": 5, "rate": 0.1}})
    environment = a.environment.model_copy(update={"versions": {"numpy": "3"}, "cores": 8})
    b = pairs([-0.1, 0.11, 0.09], declared=declared, environment=environment)
    changes = {change.what: (change.before, change.after) for change in compare_runs(a, b).changes}
    assert changes == {
        "processor threads": ("2", "8"),
        "version of numpy": ("-", "3"),
        "setting epochs": ("3", "5"),
        "setting rate": ("-", "0.1"),
        "verdict: new above old in score": ("supported", "inconclusive"),
    }


def test_runs_that_cannot_be_compared_are_refused():
    a = pairs([0.1, 0.2])
    with pytest.raises(ValueError, match="must be a run of 'x'; got one of 'y'"):
        compare_runs(a, pairs([0.1, 0.2], slug="y"))
    with pytest.raises(ValueError, match="share none"):
        compare_runs(a, run({("", "old"): ["failed", "failed"]}))


def test_a_claim_is_judged_where_both_arms_take_part():
    scores = {(case, arm): [0.1, 0.2] for case in ("a", "b") for arm in ("old", "new")}
    del scores["b", "new"]
    whole = run(scores, cases=("a", "b"))
    cases = [CaseRecord(name="a"), CaseRecord(name="b", arms=["old"])]
    declared = whole.declared.model_copy(update={"cases": cases})
    assert [item.case for item in verdicts(whole)] == ["a", "b"]
    assert [item.case for item in verdicts(whole.model_copy(update={"declared": declared}))] == [
        "a"
    ]


def test_a_claim_on_cases_of_another_budget_names_them():
    claim = Claim(arm="new", above="old", metric="score", cases=("large, 1", "large, 2"))
    found = only(pairs([0.1, 0.2], claims=[claim]))
    assert (found.outcome, found.case) == ("untested", "large, 1 / large, 2")
    assert found.reason == "none of its cases is part of this run"


def test_one_arms_two_metrics_can_be_compared():
    """The difference is paired within each trial, so a shift common to both metrics cancels."""
    claim = Claim(arm="new", above="new", metric="score", other_metric="loss")
    trials = [
        TrialResult(
            case="",
            arm="new",
            seed=seed,
            status="done",
            metrics={"score": seed + 0.1 + 0.01 * seed, "loss": float(seed)},
        )
        for seed in range(4)
    ]
    found = only(pairs([0.1] * 4, claims=[claim], trials=trials))
    assert found.outcome == "supported"
    assert list(found.differences.values()) == pytest.approx([0.10, 0.11, 0.12, 0.13])
    assert str(claim) == "score (new) above loss (new)"
