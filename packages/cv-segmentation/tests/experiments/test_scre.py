from __future__ import annotations

import math
import os

import pytest
import torch
from cv_core.experiment.trial import Trial, merge_settings
from cv_core.imaging.colour import rgb_to_gray
from cv_segmentation.experiments import _styles
from cv_segmentation.experiments._camvid import IGNORED
from cv_segmentation.experiments._style_network import class_weights, network
from cv_segmentation.experiments._styles import STYLES, Domains, pictured, scenes, thinned
from cv_segmentation.experiments.scre import (
    ACRE,
    ACRE94,
    CE,
    EXPERIMENT,
    FULL,
    IN,
    ISW,
    LEAST,
    OWN,
    RANDOM,
    SCAE,
    augmented,
    domains_of,
    hooked,
    least,
)
from cv_segmentation.methods.scre import SCREHooks, attach_scre
from torch import Tensor, nn

REAL = pytest.mark.skipif(not os.environ.get("CV_DATA"), reason="needs CamVid and retinas: CV_DATA")


def smoke_trial(arm: str, seed: int = 0) -> Trial:
    settings = merge_settings(EXPERIMENT.settings["smoke"], {})
    return Trial(arm=arm, case=OWN, seed=seed, budget="smoke", source="digits", settings=settings)


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 12, 16, generator=torch.Generator().manual_seed(0))


# --- data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STYLES)
def test_styles_change_the_image_and_repeat(name: str) -> None:
    x = images()
    styled = STYLES[name](x, torch.Generator().manual_seed(1))
    assert styled.shape == x.shape
    assert styled.min() >= 0
    assert styled.max() <= 1 + 1e-6
    assert (styled - x).abs().mean() > 0.02
    assert torch.equal(STYLES[name](x, torch.Generator().manual_seed(1)), styled)


def test_fog_is_thicker_above() -> None:
    black = torch.zeros(1, 3, 20, 4)
    light = STYLES["fog"](black, torch.Generator())[0, 0, :, 0]
    assert (light.diff() < 0).all()


def test_scenes_differ_in_their_photograph_only() -> None:
    made = scenes("digits", 0, 32, 12, 6, told_apart=True)
    assert made.classes == 11
    assert len(made.train[0]) == 12
    assert made.train[1].unique().numel() > 6
    again = scenes("digits", 0, 32, 12, 6, told_apart=False)
    assert again.classes == 2
    assert torch.equal(again.train[0], made.train[0])
    assert torch.equal(again.train[1], (made.train[1] > 0).long())
    assert made.other is not None
    apart = [(pair[0].mean((0, 2, 3)) - made.train[0].mean((0, 2, 3))).abs().max()
             for pair in (made.source, made.other)]  # fmt: skip
    assert apart[1] > 2 * apart[0]


def test_thinned() -> None:
    pair = (torch.arange(10), torch.arange(10) + 1)
    assert thinned(pair, 4)[0].tolist() == [0, 3, 6, 9]
    assert thinned(pair, 4)[1].tolist() == [1, 4, 7, 10]
    assert thinned(pair, 10)[0].tolist() == list(range(10))


@REAL
def test_streets_keep_dusk_apart() -> None:
    made = _styles.streets("camvid", (24, 32), 1000)
    assert made.other is not None
    assert [len(pair[0]) for pair in (made.train, made.source, made.other)] == [305, 171, 124]
    day = [rgb_to_gray(pair[0]).mean() for pair in (made.train, made.source)]
    assert rgb_to_gray(made.other[0]).mean() < min(day) - 0.05


@REAL
def test_vessels_are_dark_lines_inside_the_field_of_view() -> None:
    made = _styles.vessels(120, 40, 60)
    for pair in (made.train, made.source, made.other):
        x, y = pair
        assert x.shape[1:] == (3, 40, 40)
        green = x[:, 1]
        assert green[y == 1].mean() < green[y == 0].mean()
        assert 0.02 < (y == 1).sum() / (y != IGNORED).sum() < 0.2
        assert rgb_to_gray(x)[:, 0][y == IGNORED].max() < 0.06


def test_pictured_colours() -> None:
    truth = torch.tensor([[0, 1], [IGNORED, 1]])
    drawn = pictured([(torch.ones(3, 2, 2), truth, 1 - truth.clamp_max(1))], 2)
    assert drawn.shape == (4, 12, 3)
    assert (drawn[:, :4] == 1).all()
    assert (drawn[2:, 4:6] == 0).all()  # ignored
    assert (drawn[0, 4] == drawn[0, 11]).all()
    assert (drawn[0, 4] != drawn[0, 8]).any()


# --- network and training ---------------------------------------------------------------------


def some_domains(*, thin: bool) -> Domains:
    pair = (images(), torch.randint(3, (4, 12, 16), generator=torch.Generator().manual_seed(1)))
    return Domains(pair, pair, None, 3, thin=thin)


@pytest.mark.parametrize("thin", [False, True])
def test_arms_differ_in_their_normalisation_only(thin: bool) -> None:
    domains = some_domains(thin=thin)
    made = {}
    for norm in ("batch", "instance", "half"):
        with smoke_trial(CE).seeded("init"):
            made[norm] = network(domains, (10, 10, 10), norm)
        assert made[norm].eval()(images()).shape == (4, 3, 12, 16)
        assert list(dict(made[norm].named_modules()).keys() & set(hooked(norm)))
    plain, instance, half = (
        {name: value for name, value in made[norm].state_dict().items() if "conv1.norm" not in name}
        for norm in made
    )
    assert list(plain) == list(instance) == list(half)
    assert all(torch.equal(value, instance[name]) for name, value in plain.items())
    assert all(torch.equal(value, half[name]) for name, value in plain.items())
    parameters = [sum(p.numel() for p in model.parameters()) for model in made.values()]
    assert len(set(parameters)) == 1
    standard = [model.encoder.stages[0](images()).relu() for model in made.values()]
    assert not torch.allclose(standard[0], standard[1])
    assert not torch.allclose(standard[0], standard[2])


def test_instance_norm_makes_the_hooked_layer_ignore_gain() -> None:
    model = network(some_domains(thin=False), (10, 10, 10), "instance").eval()
    seen = []
    layer = model.get_submodule(hooked("instance")[0])
    handle = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model(images())
    handle.remove()
    assert seen[0].mean((2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(
        seen[0].var((2, 3), correction=0), torch.ones(4, 10), atol=1e-2, rtol=0
    )


def test_class_weights() -> None:
    assert class_weights(some_domains(thin=False)) is None
    domains = some_domains(thin=True)
    domains.train[1][0] = IGNORED
    counted = domains.train[1][1:]
    for label, weight in enumerate(class_weights(domains).tolist()):
        share = (counted == label).float().mean().item()
        assert weight == pytest.approx(1 / math.log(1.02 + share), rel=1e-5)


def test_augmentation_moves_images_and_masks_alike() -> None:
    x = images(40)
    y = (x[:, 0] * 100).long()
    flipped, masks = augmented((x, y), torch.Generator().manual_seed(0), flip=True, jitter=False)
    assert torch.equal((flipped[:, 0] * 100).long(), masks)
    turned = (flipped != x).flatten(1).any(1)
    assert 8 < turned.sum() < 32
    assert torch.equal(flipped[turned], x[turned].flip(3))
    same, masks = augmented((x, y), torch.Generator().manual_seed(0), flip=False, jitter=True)
    assert torch.equal(masks, y)
    assert (same - x).flatten(1).abs().mean(1).min() > 0.005


def test_least_is_the_other_end_of_the_order() -> None:
    variance = torch.tensor([[0.0, 5, 1, 2], [5, 0, 1, 1], [1, 1, 0, 1], [2, 1, 1, 0]])
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 1] = mask[1, 0] = True
    assert least(mask, variance, 1).tolist() == [False, False, True, False]
    assert least(mask, variance, 2).tolist() == [False, False, True, True]
    assert least(mask, variance, 3).tolist() == [False, True, True, True]


# --- trials -----------------------------------------------------------------------------------


def watched(monkeypatch: pytest.MonkeyPatch) -> list[SCREHooks]:
    from cv_segmentation.experiments import scre

    made: list[SCREHooks] = []

    def attach(model: nn.Module, layers: list[str], *, keep_prob: float) -> SCREHooks:
        made.append(attach_scre(model, layers, keep_prob=keep_prob))
        return made[-1]

    monkeypatch.setattr(scre, "attach_scre", attach)
    return made


def test_controls_erase_as_much_as_they_say(monkeypatch) -> None:
    made = watched(monkeypatch)
    expected = {FULL: 6, RANDOM: 6, LEAST: 6, ACRE94: 6, ACRE: 20, SCAE: 30, ISW: 0}
    for arm, share in expected.items():
        found = EXPERIMENT.arm(arm).run(smoke_trial(arm))
        assert found["erased"] == pytest.approx(share, abs=1e-4)
    chosen = [[eraser.ssc for eraser in scre.erasers.values()] for scre in made]
    for full, random, low in zip(*chosen[:3], strict=True):
        assert int(full.sum()) == int(random.sum()) == int(low.sum()) == 3
        assert not (full & low).any()
    assert any((full != random).any() for full, random in zip(*chosen[:2], strict=True))
    masks = [[whitener.mask for whitener in scre.whiteners.values()] for scre in made]
    assert all(
        torch.equal(a, b) for other in masks[1:] for a, b in zip(masks[0], other, strict=True)
    )


def test_a_trial_is_repeatable_and_has_all_numbers() -> None:
    trial, again = smoke_trial(FULL), smoke_trial(FULL)
    found = EXPERIMENT.arm(FULL).run(trial)
    assert EXPERIMENT.arm(FULL).run(again) == found
    assert set(found) == {metric.name for metric in EXPERIMENT.metrics}
    assert all(math.isfinite(value) for value in found.values())
    assert trial.record.costs["steps"] == trial.settings.steps
    (picture,) = trial.record.pictures.values()
    side = 2 * trial.settings.side
    assert picture.shape == (3 * side, 3 * side, 3)
    assert "erased" not in EXPERIMENT.arm(IN).run(smoke_trial(IN))


def test_hooks_without_channels_change_nothing(monkeypatch) -> None:
    found = EXPERIMENT.arm(CE).run(smoke_trial(CE))
    monkeypatch.setattr("cv_segmentation.methods.scre.SCREHooks._erase", lambda *_: _[2])
    assert EXPERIMENT.arm(CE).run(smoke_trial(CE)) == found


def test_every_trial_of_a_seed_sees_the_same_scenes() -> None:
    first, second = domains_of(smoke_trial(CE)), domains_of(smoke_trial(FULL))
    assert torch.equal(first.train[0], second.train[0])
    assert not torch.equal(domains_of(smoke_trial(CE, seed=1)).train[0], first.train[0])
