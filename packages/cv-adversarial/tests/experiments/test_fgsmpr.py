"""The experiment's protocol: equal conditions, honest counts, controls that are what they say."""

import copy

import pytest
import torch
from cv_adversarial.attacks.gradient import PGD
from cv_adversarial.experiments.fgsmpr import (
    EXPERIMENT,
    PAPER,
    AdversarialTask,
    CleanPairing,
    RandomPairing,
    Unpaired,
    fewer_epochs,
)
from cv_adversarial.methods.fgsmpr import FGSMPRLoss
from cv_adversarial.training.multi_step import PGDATLoss
from cv_adversarial.training.single_step import FastATLoss, FGSMATLoss
from cv_core.experiment.trial import Settings, SkipTrial, Trial, merge_settings
from cv_core.models.small import MLP
from torch.nn.functional import cross_entropy

EPS = 0.2


def smoke_trial(arm: str, case: str = PAPER, **changes) -> Trial:
    settings = merge_settings(EXPERIMENT.settings["smoke"], EXPERIMENT.case(case).settings)
    settings = Settings({**settings, **changes})
    return Trial(arm=arm, case=case, seed=0, budget="smoke", source="digits", settings=settings)


@pytest.fixture
def model() -> MLP:
    return MLP(64, [16], 10).double()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(10, (8,), generator=generator)


@pytest.mark.parametrize(
    ("objective", "each"),
    [
        (FGSMATLoss(EPS), 2 * 8),
        (FastATLoss(EPS), 2 * 8),
        (PGDATLoss(EPS, steps=7), 8 * 8),
        (FGSMPRLoss(EPS, steps=3, m=2), 2 * 8 + 4 * 2),
        (CleanPairing(EPS, steps=3, m=2), 2 * 8 + 2),
        (RandomPairing(EPS, steps=3, m=2), 2 * 8 + 2 * 2),
        (Unpaired(EPS, steps=3, m=2), 2 * 8 + 4 * 2),
    ],
    ids=lambda item: type(item).__name__,
)
def test_gradients_are_counted_for_every_image(objective, each, model, batch):
    task = AdversarialTask(model, objective)
    task.step(batch)
    task.step(batch)
    with torch.no_grad():
        model(batch[0])
    assert task.gradients == 2 * each
    assert not model._forward_pre_hooks


def test_fewer_epochs_of_pgd_take_the_gradients_of_fgsmpr():
    settings = Settings({"K": 3, "m": 1, "batch": 100, "epochs": 100, "pgd_steps": 7})
    assert fewer_epochs(settings) == round(100 * 2.04 / 8)


def test_controls_pair_with_what_they_say(model, batch):
    x, y = batch
    clean = CleanPairing(EPS, m=2)
    single = clean.examples(model, x, y)
    gap = (model(single[:2]) - model(x[:2])).norm(dim=1).mean()
    torch.testing.assert_close(clean(model, x, y)[1]["logit_gap"], gap.detach())
    random = RandomPairing(EPS, m=2)
    adv = copy.deepcopy(random).partners(model, x[:2], y[:2])
    again = PGD(model, EPS, alpha=1.25 * EPS, steps=1)
    assert torch.equal(adv, again(x[:2], y[:2], generator=copy.deepcopy(random.generator)))
    gap = (model(single[:2]) - model(adv)).norm(dim=1).mean()
    torch.testing.assert_close(random(model, x, y)[1]["logit_gap"], gap.detach())


def test_unpaired_control_is_two_cross_entropies(model, batch):
    x, y = batch
    objective = Unpaired(EPS, 0.3, m=2)
    single, few = objective.examples(model, x, y), objective.partners(model, x[:2], y[:2])
    expected = cross_entropy(model(single), y) + 0.3 * cross_entropy(model(few), y[:2])
    torch.testing.assert_close(objective(model, x, y)[0], expected)


def test_without_weight_every_pairing_trains_as_fgsm_at_does():
    """Same weights, order and images in all arms: they end in the same numbers."""
    found = [
        EXPERIMENT.arm(name).run(smoke_trial(name, lam=0.0, train_size=100))
        for name in ("FGSM-AT", "FGSMPR", "clean pairing", "random FGSM pairing")
    ]
    assert all(row == found[0] for row in found)


def test_nothing_is_chosen_by_the_test_set():
    """Other test labels change the judgement and leave the training as it is."""
    found, losses = [], []
    for shift in (0, 1):
        trial = smoke_trial("FGSMPR", train_size=100)
        data = trial.data
        trial.__dict__["data"] = type(data)(
            data.train_x, data.train_y, data.test_x, (data.test_y + shift) % 10,
            data.class_names, data.origin,
        )  # fmt: skip
        seen = []

        def watched(self, batch, step=AdversarialTask.step, seen=seen):
            out = step(self, batch)
            seen.append(float(out["loss"].detach()))
            return out

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AdversarialTask, "step", watched)
            found.append(EXPERIMENT.arm("FGSMPR").run(trial))
        losses.append(seen)
    assert losses[0] == losses[1]
    assert found[0] != found[1]


def test_sweep_leaves_out_what_does_not_depend_on_it():
    with pytest.raises(SkipTrial, match="lam and m do not matter"):
        EXPERIMENT.arm("PGD-AT").run(smoke_trial("PGD-AT", "m = 4"))
    assert EXPERIMENT.arm("FGSMPR").run(smoke_trial("FGSMPR", "m = 4", train_size=50))


def test_arms_report_what_is_declared():
    trial = smoke_trial("FGSMPR", train_size=100)
    found = EXPERIMENT.arm("FGSMPR").run(trial)
    assert set(found) == {metric.name for metric in EXPERIMENT.metrics}
    assert found["robust accuracy"] <= found["PGD accuracy"] <= found["clean accuracy"]
    assert found["gradients"] == pytest.approx(2 * (2 * 100 + 2 * 4) / 1000)
    assert {"FGSM accuracy", "PGD accuracy"} <= set(trial.record.curves)
