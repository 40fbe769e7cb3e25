"""The experiment's protocol: the control is the defence where objectness alone decides."""

import pytest
import torch
from cv_adversarial.experiments.objectness_regularization import (
    BY_OBJECTNESS,
    EXPERIMENT,
    objects,
    outlined,
    prepared,
)
from cv_core.experiment.trial import Settings, Trial, merge_settings


def smoke_trial(arm: str, case: str = BY_OBJECTNESS) -> Trial:
    settings = merge_settings(EXPERIMENT.settings["smoke"], EXPERIMENT.case(case).settings)
    return Trial(
        arm=arm, case=case, seed=0, budget="smoke", source="digits", settings=Settings(settings)
    )


@pytest.mark.parametrize("eps", ["0.1", "0.001"])
def test_by_objectness_the_defence_is_a_threshold(eps):
    """Every number of the two arms agrees, the attack's own success included."""
    found = [
        EXPERIMENT.arm(name).run(smoke_trial(name)) for name in (f"OR {eps}", f"threshold {eps}")
    ]
    assert found[0] == pytest.approx(found[1])
    assert set(found[0]) == {metric.name for metric in EXPERIMENT.metrics}
    assert found[0]["boxes per image"] > 0


def test_all_arms_and_cases_share_detector_and_scenes():
    first = prepared(smoke_trial("none"))
    for case in EXPERIMENT.cases:
        assert prepared(smoke_trial("OR 0.01", case.name)) is first
    assert len(first.x) == len(first.truth) == EXPERIMENT.settings["smoke"]["attacked"]
    assert not first.detector.training


def test_a_defence_is_taken_off_again():
    bench = prepared(smoke_trial("none"))
    before = bench.detector(bench.x).objectness
    EXPERIMENT.arm("OR 0.01").run(smoke_trial("OR 0.01"))
    assert torch.equal(bench.detector(bench.x).objectness, before)


def test_objects_found_and_lost_by_hand():
    def item(boxes):
        return {"boxes": torch.tensor(boxes), "scores": torch.ones(len(boxes))}

    one, two, far = [0.0, 0.0, 4.0, 4.0], [8.0, 8.0, 12.0, 12.0], [20.0, 20.0, 24.0, 24.0]
    truth = [item([one, two]), item([one])]
    clean, attacked = [item([one, far]), item([one])], [item([two]), item([one])]
    assert objects(truth, clean, attacked) == {
        "recall": pytest.approx(2 / 3),
        "objects vanished": 0.5,
        "false positives per image": 0.5,
    }


def test_outlines_are_green_and_stay_inside():
    drawn = outlined(torch.zeros(3, 64, 64), torch.tensor([[-5.0, 10.0, 30.0, 90.0]]))
    assert drawn[1, 10, :31].eq(1).all()
    assert drawn[1, 10:, 30].eq(1).all()
    assert float(drawn[:, 11:63, 1:30].sum()) == 0.0
