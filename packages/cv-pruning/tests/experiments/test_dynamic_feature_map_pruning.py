from __future__ import annotations

import pytest
import torch
from cv_core.experiment.trial import Settings, Trial
from cv_pruning.experiments.dynamic_feature_map_pruning import (
    EXPERIMENT,
    KINDS,
    LAYERS,
    SixConvolutions,
    Trained,
    accuracy,
    by_lot,
    by_mean,
    crops,
    first,
    forward,
    frequencies,
    least,
    masked,
    overlap,
)
from cv_pruning.methods.dynamic_feature_map_pruning import ACTIVATIONS, prunable_maps
from torch import Tensor


def smoke_trial(arm: str = "dynamic", case: str = "ReLU") -> Trial:
    settings = Settings(EXPERIMENT.settings["smoke"])
    return Trial(arm=arm, case=case, seed=0, budget="smoke", source="digits", settings=settings)


def network() -> SixConvolutions:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SixConvolutions(1, 10, 4, KINDS["ReLU"]).eval().requires_grad_(requires_grad=False)
        for part in model:
            if isinstance(part, torch.nn.BatchNorm2d):  # some channels hardly ever fire
                part.bias.copy_(torch.linspace(-3.0, 1.0, len(part.bias)))
    return model


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", list(KINDS))
def test_the_network_of_every_case(case: str) -> None:
    model = SixConvolutions(3, 7, 4, KINDS[case])
    assert sum(isinstance(part, ACTIVATIONS) for part in model) == LAYERS
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 7)
    assert {item.name for item in EXPERIMENT.cases} == set(KINDS)


def test_least_scores_are_marked() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [5.0, 4.0, 3.0]])
    found = least(scores, torch.tensor([1, 2, 0]))
    assert found.tolist() == [[False, True, False], [True, False, True], [False] * 3]


@pytest.mark.parametrize("score", [by_lot, by_mean])
def test_controls_skip_as_many_maps_in_every_layer_of_every_image(score) -> None:
    model, x = network(), images()
    method, generator = forward(model, x, 0.1), torch.Generator().manual_seed(0)
    counts = iter([marks.sum(1) for marks in method.marks])
    control = forward(
        model, x, 0.1, choose=lambda maps, _: least(score(maps, generator), next(counts))
    )
    pairs = list(zip(method.marks, control.marks, strict=True))
    assert len(pairs) == LAYERS
    assert all(torch.equal(one.sum(1), other.sum(1)) for one, other in pairs)
    assert control.bytes_saved == pytest.approx(method.bytes_saved)
    assert method.bytes_saved > 0
    if score is by_lot:
        assert any(not torch.equal(one, other) for one, other in pairs)


def test_frequencies_and_the_first_channels() -> None:
    model, x = network(), images(503)  # two parts
    net = Trained(model, x, x, x, x, x)
    often = frequencies(net, 0.1)
    maps = torch.nn.Sequential(*list(model)[:3])(x)
    kept = maps.masked_fill(maps.abs() <= 0.1, 0.0)
    torch.testing.assert_close(often[0], prunable_maps(kept, 0.1).double().mean(0))
    assert [len(part) for part in often] == [4, 4, 8, 8, 8, 8]
    flat = torch.cat(often)
    marks = torch.cat(first(often, 7))
    assert int(marks.sum()) == 7
    assert flat[marks].min() >= flat[~marks].max()


def test_a_static_mask_switches_channels_off() -> None:
    model, x = network(), images(501)
    often = [torch.zeros(width) for width in (4, 4, 8, 8, 8, 8)]
    often[2][5] = often[5][0] = 1.0
    done = masked(model, x, first(often, 2))
    for place, channel in ((3, 5), (6, 0)):
        norm = model.get_submodule(f"bn{place}")
        norm.weight[channel], norm.bias[channel] = 0.0, 0.0
    torch.testing.assert_close(done.logits, model(x))
    assert done.maps_skipped == pytest.approx(100 * 2 / 40)
    assert masked(model, x, first(often, 0)).bytes_saved == 0


def test_crops_pan_over_photographs() -> None:
    trial, model = smoke_trial(), network()
    slow, fast = (list(crops(trial, model, speed)) for speed in (1, 3))
    assert len(slow) == trial.settings.frames
    assert slow[0].shape == (8, 1, 28, 28)
    assert torch.equal(slow[3], fast[1])
    assert torch.equal(slow[1][..., :-1], slow[0][..., 1:])
    assert not torch.equal(slow[1], slow[0])


def test_overlap_and_accuracy() -> None:
    one, other = torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]])
    assert overlap(one, other) == 50.0
    assert overlap(one, one) == overlap(~one & one, other & ~other) == 100.0
    assert accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 75.0


@pytest.mark.parametrize("arm", ["dense", "dynamic", "skipping alone", "static mask", "least mean"])
def test_a_trial_is_repeatable_and_names_its_metrics(arm: str) -> None:
    trial, again = smoke_trial(arm), smoke_trial(arm)
    found = EXPERIMENT.arm(arm).run(trial)
    assert found == EXPERIMENT.arm(arm).run(again)
    declared = {metric.name for metric in EXPERIMENT.metrics}
    assert {"test accuracy", "bytes saved", "maps skipped"} <= set(found) <= declared
    assert trial.record.costs["steps"] == 10
    assert trial.record.costs["parameters"] > 0
    if arm == "dynamic":
        assert found["bytes saved in video"] > 0
        (picture,) = trial.record.pictures.values()
        assert picture.shape == (200, 2 * (20 + 5))
        assert trial.record.curves["agreement of the marks, pan of 1 px per frame"][0] == (0, 100)


def test_every_claim_finds_its_numbers() -> None:
    found = {arm.name: arm.run(smoke_trial(arm.name)) for arm in EXPERIMENT.arms}
    for claim in EXPERIMENT.claims:
        assert claim.metric in found[claim.arm]
        assert claim.compared_metric in found[claim.other]
