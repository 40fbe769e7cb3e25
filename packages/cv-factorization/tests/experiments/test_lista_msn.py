import numpy as np
import pytest
import torch
from cv_core.experiment.trial import Settings, Trial
from cv_factorization.experiments.lista_msn import (
    EXPERIMENT,
    coded,
    judge,
    problem,
    with_layer,
    with_mixture,
)
from cv_factorization.sparse.unfolded import LISTA


def trial(arm="MSN", case=0, **over):
    settings = {**EXPERIMENT.settings["smoke"], **EXPERIMENT.cases[case].settings, **over}
    return Trial(
        arm=arm, case=EXPERIMENT.cases[case].name, seed=0, budget="smoke", source="digits",
        settings=Settings(settings),
    )  # fmt: skip


@pytest.mark.parametrize("case", [0, -1])
def test_the_weight_is_relative_and_the_targets_are_optimal(case):
    found = problem(trial(case=case))
    torch.testing.assert_close(found.atoms.norm(dim=1), torch.ones(len(found.atoms)))
    for x, z in ((found.train_x, found.train_z), (found.test_x, found.test_z)):
        torch.testing.assert_close((x @ found.atoms.T).abs().amax(dim=1), torch.ones(len(x)))
        pull = (x - z @ found.atoms) @ found.atoms.T  # the lasso's conditions at lam = 0.5
        assert (pull.abs() < 0.5 + 1e-2).all()
        away = (pull - 0.5 * z.sign())[z.abs() > 1e-2]
        assert away.abs().max() < 1e-2


def test_the_optimum_has_no_gap_and_ista_falls_towards_it():
    one = trial()
    found = problem(one)
    numbers = judge(one, found, found.test_z)
    assert numbers["gap"] == 0
    assert numbers["code error"] == 0
    assert numbers["prediction error"] == numbers["prediction error, optimum"] > 0
    arms = {arm.name: arm for arm in EXPERIMENT.arms}
    plain, fast = arms["ISTA"].run(trial("ISTA")), arms["FISTA"].run(trial("FISTA"))
    assert 0 < plain["gap, 5 x depth"] < plain["gap"]
    assert 0 < fast["gap, 5 x depth"] < plain["gap, 5 x depth"]
    # the untrained encoder is ISTA of the same depth
    untrained = judge(one, found, coded(LISTA(found.atoms, 0.5, 2), found))
    assert untrained["gap"] == pytest.approx(plain["gap"], rel=1e-3)


def test_the_control_is_one_centre_of_the_mixture():
    one = trial()
    found = problem(one)
    with one.seeded("head"):
        layer = with_layer(LISTA(found.atoms, 0.5, 2), len(found.atoms))
    with one.seeded("head"):
        mixture = with_mixture(LISTA(found.atoms, 0.5, 2), len(found.atoms), components=1)
    torch.testing.assert_close(coded(layer, found), coded(mixture, found))


def test_arms_report_what_is_declared():
    declared = {metric.name for metric in EXPERIMENT.metrics}
    for arm in EXPERIMENT.arms:
        run = trial(arm.name)
        numbers = arm.run(run)
        assert set(numbers) <= declared
        assert all(np.isfinite(value) for value in numbers.values())
        assert len(run.record.pictures) == 1
