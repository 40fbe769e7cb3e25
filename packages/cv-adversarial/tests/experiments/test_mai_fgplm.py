"""The experiment's protocol: equal gradients, equal images, an equal change where it is said."""

import pytest
import torch
from cv_adversarial.attacks.base import AttackResult
from cv_adversarial.experiments.mai_fgplm import (
    DEFENDED,
    EXPERIMENT,
    MAILM,
    SOURCES,
    prepared,
    transferred,
)
from cv_core.experiment.trial import Settings, Trial


def smoke_trial(arm: str) -> Trial:
    settings = Settings(EXPERIMENT.settings["smoke"])
    return Trial(arm=arm, case="", seed=0, budget="smoke", source="digits", settings=settings)


def attack_of(arm, model, trial, scale=1.0):
    return EXPERIMENT.arm(arm).run.keywords["attack"](model, trial.settings, scale)


def test_every_arm_takes_as_many_gradients_in_one_ball():
    trial = smoke_trial("MI-FGSM")
    bench = prepared(trial)
    for arm in EXPERIMENT.arms:
        result: AttackResult = attack_of(arm.name, bench.networks["MLP"], trial).run(
            bench.x, bench.y
        )
        assert result.backwards == trial.settings.steps * len(bench.x), arm.name
        assert float(result.norm.max()) <= trial.settings.eps


def test_arms_share_networks_and_images_that_all_read_rightly():
    bench = prepared(smoke_trial("MI-FGSM"))
    assert prepared(smoke_trial(MAILM)) is bench
    assert set(bench.networks) == {*SOURCES, *DEFENDED}
    assert len(bench.x) > 0
    with torch.no_grad():
        for model in bench.networks.values():
            assert torch.equal(model(bench.x).argmax(1), bench.y)
            assert not model.training


def test_scaling_the_steps_scales_the_change():
    trial = smoke_trial("MI-FGSM")
    bench = prepared(trial)
    for arm in ("NI-TI-DIM", "AI-FGTM", MAILM):
        changes = [
            bench.change(attack_of(arm, bench.networks["MLP"], trial, scale)(bench.x, bench.y))
            for scale in (0.25, 0.5, 1.0)
        ]
        assert changes == sorted(changes)
        assert changes[0] == pytest.approx(changes[1] / 2, rel=0.25)


def test_transfer_leaves_the_source_out():
    success = {
        source: {name: 1.0 if name == source else 0.25 for name in (*SOURCES, *DEFENDED)}
        for source in (*SOURCES, "all four")
    }
    assert transferred(success) == pytest.approx(0.25)


def test_arms_report_what_is_declared_and_repeat():
    for name in ("I-FGSM", MAILM):
        first, again = (EXPERIMENT.arm(name).run(smoke_trial(name)) for _ in range(2))
        assert first == again
        assert set(first) <= {metric.name for metric in EXPERIMENT.metrics}
    assert first["transfer success at equal change"] == first["transfer success"]
    assert first["equal change reached"] == pytest.approx(1.0)
