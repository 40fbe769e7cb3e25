"""The experiment's protocol: equal conditions for all arms, and no clean label in any choice."""

import os

import pytest
import torch
from cv_adversarial.experiments.icce import (
    AGGREGATE,
    CIRCULAR,
    EXPERIMENT,
    PRINTED,
    UNIFORM,
    VOTES,
    WORST,
    accuracy,
    cross_entropy_to,
    parts,
    run,
)
from cv_core.experiment.trial import Settings, Trial, merge_settings
from torch import nn

DECLARED = {metric.name for metric in EXPERIMENT.metrics}


def smoke_trial(case: str = UNIFORM, arm: str = "ICCE", **changes) -> Trial:
    settings = merge_settings(EXPERIMENT.settings["smoke"], EXPERIMENT.case(case).settings)
    settings = Settings({**settings, **changes})
    source = EXPERIMENT.case(case).data or "digits"
    return Trial(arm=arm, case=case, seed=0, budget="smoke", source=source, settings=settings)


@pytest.mark.parametrize("case", [UNIFORM, CIRCULAR])
def test_parts_are_disjoint_noisy_alike_and_the_same_for_every_arm(case):
    trial = smoke_trial(case, train_size=1200)
    fitted, held_out, test = parts(trial)
    assert torch.equal(test.x, trial.data.test_x)
    assert test.votes is None
    assert (len(fitted.y), len(held_out.y)) == (960, 240)
    order = torch.randperm(1200, generator=trial.generator("sample"))
    clean = trial.data.train_y[order]
    assert torch.equal(torch.cat([fitted.x, held_out.x]), trial.data.train_x[order])
    noisy, wrong = torch.cat([fitted.y, held_out.y]), torch.cat([fitted.wrong, held_out.wrong])
    assert torch.equal(wrong, noisy != clean)
    for part in (fitted, held_out):  # five standard deviations of a share of 0.4
        assert abs(part.wrong.float().mean() - 0.4) < 5 * (0.24 / len(part.y)) ** 0.5
    if case == CIRCULAR:
        assert torch.equal(noisy[wrong], (clean[wrong] + 1) % 10)
    again, *_ = parts(smoke_trial(case, arm="CE", train_size=1200))
    assert torch.equal(again.y, fitted.y)


@pytest.mark.skipif("CV_DATA" not in os.environ, reason="CV_DATA is not set: no CIFAR-10 here")
@pytest.mark.parametrize(("case", "wrong"), [(WORST, 0.4), (AGGREGATE, 0.09), (VOTES, 0.05)])
def test_peoples_labels_are_wrong_as_often_as_published(case, wrong):
    trial = smoke_trial(case, train_size=2000)
    fitted, held_out, test = parts(trial)
    found = torch.cat([fitted.wrong, held_out.wrong]).float().mean()
    assert abs(found - wrong) < 5 * (wrong * (1 - wrong) / 2000) ** 0.5
    seen = {tuple(row.tolist()) for row in fitted.x.flatten(1)[:, :40]}
    assert not seen & {tuple(row.tolist()) for row in test.x[:300].flatten(1)[:, :40]}
    assert (test.votes is None) == (case == VOTES)
    if test.votes is not None:
        found = EXPERIMENT.arm("CE").run(smoke_trial(case, steps=5))
        assert set(found) == DECLARED


def test_cross_entropy_to_people_is_least_for_their_own_shares():
    votes = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]])
    same, other = nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False)
    same.weight.data, other.weight.data = votes.log().T, votes.log().T.flip(1)
    entropy = -(votes * votes.log()).sum(1).mean()
    assert cross_entropy_to(same, torch.eye(2), votes) == pytest.approx(float(entropy), rel=1e-5)
    assert cross_entropy_to(other, torch.eye(2), votes) > entropy + 0.5


@pytest.mark.parametrize("early_stopping", [False, True])
def test_nothing_is_chosen_by_the_test_set(early_stopping):
    """Other test labels change the judgement, and neither the rate nor the weights."""
    found = []
    for shift in (0, 1):
        trial = smoke_trial(rates=(1e-4, 2e-3, 8e-3), steps=20)
        data = trial.data
        trial.__dict__["data"] = type(data)(
            data.train_x, data.train_y, data.test_x, (data.test_y + shift) % 10,
            data.class_names, data.origin,
        )  # fmt: skip
        found.append(run(trial, loss=nn.CrossEntropyLoss(), early_stopping=early_stopping))
    same, shifted = found
    assert same["learning rate"] == shifted["learning rate"]
    assert same["fitted wrong labels"] == shifted["fitted wrong labels"]
    assert same["test accuracy"] != shifted["test accuracy"]


def test_a_rate_that_cannot_learn_is_not_chosen():
    trial = smoke_trial(rates=(1e-7, 2e-3))
    assert EXPERIMENT.arm("CE").run(trial)["learning rate"] == 2e-3
    assert trial.record.costs["steps"] == 2 * trial.settings.steps  # the search counts


def test_arms_report_what_is_declared_and_repeat():
    for arm in EXPERIMENT.arms:
        found = arm.run(smoke_trial(arm=arm.name, steps=10))
        assert set(found) == DECLARED
        assert arm.run(smoke_trial(arm=arm.name, steps=10)) == found


def test_accuracy_of_a_constant_is_the_classes_share():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    nn.init.zeros_(model[1].weight)
    model[1].bias.data = torch.tensor([0.0, 1.0, 0.0])
    x, y = torch.zeros(5, 1, 2, 2), torch.tensor([1, 1, 0, 2, 1])
    assert accuracy(model, x, y) == pytest.approx(0.6)


def test_claims_show_the_papers_numbers_beside_its_own_kinds_of_noise_only():
    for claim in EXPERIMENT.claims:
        if claim.paper is None:
            continue
        (case,) = claim.cases
        column = {UNIFORM: 0, CIRCULAR: 1}[case]
        assert claim.paper == (PRINTED[claim.arm][column], PRINTED[claim.other][column])
