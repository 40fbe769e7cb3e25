import base64
import io
import json
import math

import numpy as np
import pytest
from cv_core.experiment.declaration import Arm, Case, Claim, Evidence, Experiment, Metric
from cv_core.experiment.results import (
    DataRecord,
    Declared,
    Environment,
    Results,
    TrialResult,
    dumps,
    encode_pictures,
    read,
    slim,
    write,
)
from PIL import Image
from pydantic import ValidationError


def experiment():
    return Experiment(
        slug="thing",
        question="Does it help?",
        data={"smoke": "digits", "default": "digits", "full": "mnist"},
        arms=[Arm("plain", dict, "baseline"), Arm("new", dict, "paper", note="the new one")],
        claims=[
            Claim(arm="new", above="plain", metric="score", paper=(0.9, 0.8), source="Table 1")
        ],
        metrics=[Metric("score", unit="%")],
        settings={"smoke": {"widths": (8, 16), "dtype": np.float32}, "default": {}, "full": {}},
        cases=[Case("a", {"noise": 0.1}), Case("b", budgets=("full",)), Case("c", data="orl")],
        evidence=Evidence("mnist"),
        selection="the paper's",
    )


def results(trials=(), **changes):
    fields = {
        "slug": "thing",
        "package": "cv-x",
        "budget": "smoke",
        "data": DataRecord(name="digits"),
        "seeds": [0, 1],
        "device": "cpu",
        "command": "cvlab run thing",
        "declared": Declared.of(experiment(), "smoke", title="Thing", reference="A. B."),
        "trials": list(trials),
        "environment": Environment(
            python="3.12", platform="Linux x86_64", cores=2, torch="2.9", device_name="x86_64"
        ),
    }
    return Results(**{**fields, **changes})


def done(**changes):
    fields = {"case": "a", "arm": "new", "seed": 0, "status": "done", "metrics": {"score": 0.1}}
    return TrialResult(**{**fields, **changes})


def test_what_is_written_is_read_back(tmp_path):
    run = results([done(metrics={"score": 0.1 + 0.2}, curves={"loss": [(0, 1.0), (1, 1 / 3)]})])
    write(tmp_path / "results.json", run)
    again = read(tmp_path / "results.json")
    assert again == run
    assert again.trials[0].metrics["score"] == 0.1 + 0.2  # to the last bit
    assert again.declared.claims[0] == experiment().claims[0]
    write(tmp_path / "again.json", again)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "results.json").read_bytes()


def test_a_trial_is_a_line():
    lines = dumps(results([done(seed=0), done(seed=1)])).splitlines()
    trials = [json.loads(line.rstrip(",")) for line in lines if line.startswith('{"case"')]
    assert [trial["seed"] for trial in trials] == [0, 1]


def test_declaration_becomes_plain_data():
    declared = Declared.of(experiment(), "smoke", title="Thing")
    assert [case.name for case in declared.cases] == ["a", "c"]  # b runs in full only
    assert declared.cases[0].settings == {"noise": 0.1}
    assert declared.cases[1].data == "orl"
    assert declared.settings["widths"] == [8, 16]
    assert isinstance(declared.settings["dtype"], str)
    assert [(arm.name, arm.role) for arm in declared.arms] == [
        ("plain", "baseline"),
        ("new", "paper"),
    ]
    assert declared.metric("score").unit == "%"
    with pytest.raises(ValueError, match="metric must be one of 'score'; got 'scores'"):
        declared.metric("scores")


def test_numbers_that_json_cannot_hold_become_none():
    trial = done(
        metrics={"score": math.nan, "other": math.inf},
        costs={"seconds": -math.inf},
        curves={"loss": [(0, math.nan), (1, 2.0)]},
    )
    assert trial.metrics == {"score": None, "other": None}
    assert trial.costs == {"seconds": None}
    assert trial.curves == {"loss": [(0.0, None), (1.0, 2.0)]}
    assert "NaN" not in dumps(results([trial]))


def test_long_curves_are_thinned_with_both_ends_kept():
    curve = done(curves={"loss": [(t, t**2) for t in range(1234)]}).curves["loss"]
    assert len(curve) == 100
    assert (curve[0], curve[-1]) == ((0.0, 0.0), (1233.0, 1233.0**2))
    gaps = np.diff([step for step, _ in curve])
    assert set(gaps) == {12.0, 13.0}
    assert done(curves={"loss": curve}).curves["loss"] == curve
    short = [(float(t), 0.0) for t in range(100)]
    assert done(curves={"loss": short}).curves["loss"] == short


def test_nothing_can_be_changed_and_nothing_unknown_comes_in():
    with pytest.raises(ValidationError, match="frozen"):
        done().arm = "other"
    with pytest.raises(ValidationError, match="Extra inputs"):
        done(colour="red")
    with pytest.raises(ValidationError, match="status"):
        done(status="perhaps")


def broken(text, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"results\.json") as caught:
        read(path)
    return str(caught.value)


def test_unreadable_files_are_named_with_the_reason(tmp_path):
    text = dumps(results([done()]))
    assert "was it cut off?" in broken(text[: len(text) // 2], tmp_path)
    assert "was it cut off?" in broken("", tmp_path)
    assert "no schema_version" in broken('{"name": "other"}', tmp_path)
    assert "no schema_version" in broken("[1, 2]", tmp_path)
    newer = json.loads(text) | {"schema_version": 2}
    assert "has schema 2; this cv-core reads up to 1" in broken(json.dumps(newer), tmp_path)
    content = json.loads(text)
    content["trials"][0]["status"] = "perhaps"
    content["declared"]["claims"][0]["extra"] = 1
    said = broken(json.dumps(content), tmp_path)
    assert "declared.claims.0.extra" in said
    assert "2 such places" in said
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.json")


def test_slim_drops_pictures_and_thins_curves_but_keeps_every_number():
    rng = np.random.default_rng(0)
    picture = encode_pictures({"p": rng.integers(0, 256, (64, 64), dtype=np.uint8)})
    trials = [
        done(
            seed=seed,
            metrics={"score": float(rng.random())},
            pictures=picture,
            curves={"loss": [(t, float(rng.random())) for t in range(100)]},
        )
        for seed in range(120)
    ]
    run = results(trials)
    small = slim(run, limit=100_000)
    assert len(dumps(run)) > 500_000
    assert len(dumps(small)) <= 100_000
    assert [t.metrics for t in small.trials] == [t.metrics for t in run.trials]
    assert not any(trial.pictures for trial in small.trials)
    before, after = run.trials[0].curves["loss"], small.trials[0].curves["loss"]
    assert 10 <= len(after) < 100
    lookup = dict(before)
    assert all(value == pytest.approx(lookup[step], rel=1e-4) for step, value in after)
    assert slim(run, limit=1).trials[0].curves == {}
    assert small == Results.model_validate_json(dumps(small))


def test_a_trials_line_leaves_out_what_the_trial_does_not_have():
    skipped = TrialResult(case="a", arm="new", seed=0, status="skipped", reason="why", key="k")
    run = results([skipped, done(curves={"loss": [(0, 1.0)]}, costs={"seconds": 1 / 3})])
    trials = json.loads(dumps(run))["trials"]
    assert set(trials[0]) == {"case", "arm", "seed", "status", "reason", "key"}
    assert "curves" in trials[1]
    assert "error" not in trials[1]
    assert Results.model_validate_json(dumps(run)) == run
    small = slim(run)
    assert [trial.key for trial in small.trials] == ["", ""]
    assert small.trials[1].costs == {"seconds": 0.333333}


def test_pictures_survive_as_png():
    rng = np.random.default_rng(1)
    grey = rng.integers(0, 256, (9, 7), dtype=np.uint8)
    colour = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    found = encode_pictures({"grey": grey, "colour": colour})
    for name, array in (("grey", grey), ("colour", colour)):
        image = Image.open(io.BytesIO(base64.b64decode(found[name])))
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), array)
    big = encode_pictures({"big": np.zeros((2000, 1000), np.uint8)})["big"]
    assert Image.open(io.BytesIO(base64.b64decode(big))).size == (256, 512)
    done(pictures=found)
    with pytest.raises(ValidationError, match="pattern"):
        done(pictures={"p": '"><script>'})


def test_trials_are_found_by_case_and_arm_in_the_order_declared():
    run = results(
        [
            done(case="c", arm="new", seed=1),
            done(case="a", arm="new", seed=0),
            done(case="c", arm="plain", seed=0),
            done(case="c", arm="new", seed=0),
        ]
    )
    assert run.cases == ["a", "c"]
    assert run.arms == ["plain", "new"]
    assert [trial.seed for trial in run.of("c", "new")] == [0, 1]
    assert run.of("a", "plain") == []
