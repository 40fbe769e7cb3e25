from __future__ import annotations

import pytest
import torch
from cv_attention.experiments.mranet import (
    EXPERIMENT,
    LOOKS,
    PAPER,
    cut,
    last_group_only,
    mranet,
    pictures,
    plain,
    speckled,
    without_attention,
)
from cv_core.data.kinds import ImageSet
from cv_core.data.origin import Origin
from cv_core.experiment.trial import SkipTrial, Trial, merge_settings
from cv_core.metrics.cost import count_parameters
from cv_core.nn.gates import SqueezeExcitation


def _trial(budget: str = "smoke", arm: str = PAPER, **settings: int) -> Trial:
    merged = merge_settings(EXPERIMENT.settings[budget], settings)
    return Trial(
        arm=arm, case="", seed=0, budget="smoke", source="sample-photographs", settings=merged
    )


def _with_images(trial: Trial, count: int) -> Trial:
    # each picture is one grey value: what is cut from it tells which one it was
    images = tuple(torch.full((3, 30, 40), number / count) for number in range(count))
    names = tuple(map(str, range(count)))
    trial.__dict__["data"] = ImageSet(images, names, Origin("test", "test"))
    return trial


def test_no_picture_is_learnt_from_and_judged_on() -> None:
    trial = _with_images(_trial(judged=3, pictures=20, patches=40), 12)
    patches, judged = pictures(trial)
    assert patches.shape == (40, 1, 16, 16)
    assert judged.shape == (3, 1, 30, 30)  # as large as the pictures allow
    learnt, held = set(patches.unique().tolist()), set(judged.unique().tolist())
    assert len(learnt) == 9
    assert len(held) == 3
    assert not learnt & held
    with pytest.raises(SkipTrial, match="two pictures"):
        pictures(_with_images(_trial(), 1))


def test_cuts_lie_inside() -> None:
    image = torch.arange(20.0).view(4, 5)
    corners = {
        cut(image, 3, torch.Generator().manual_seed(seed))[0, 0].item() for seed in range(60)
    }
    assert corners == {0.0, 1.0, 2.0, 5.0, 6.0, 7.0}


def test_patches_are_turned_and_mirrored_and_speckled_with_every_number_of_looks() -> None:
    patch = torch.tensor([[0.2, 0.4], [0.6, 0.8]])
    big = patch.repeat_interleave(40, 0).repeat_interleave(40, 1)
    noisy, clean = speckled((big.expand(120, 1, 80, 80),), torch.Generator().manual_seed(0))
    turned = {tuple(image[0, ::40, ::40].flatten().tolist()) for image in clean}
    expected = {
        tuple(side.rot90(turn).flatten().tolist())
        for side in (patch, patch.flip(1))
        for turn in range(4)
    }
    assert turned == expected
    looks = 1 / (noisy / clean).var((1, 2, 3))
    # each from 6400 pixels: within a tenth of one of the three
    nearest = torch.stack([(looks / value - 1).abs() for value in LOOKS])
    assert bool((nearest.min(0).values < 0.15).all())
    assert set(nearest.argmin(0).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("budget", ["smoke", "default"])
def test_controls_are_the_network_without_one_of_its_parts(budget: str) -> None:
    trial = _trial(budget)

    def built(build):
        with trial.seeded("init"):
            return build(trial)

    paper, without, last = built(mranet), built(without_attention), built(last_group_only)
    assert not any(isinstance(module, SqueezeExcitation) for module in without.modules())
    state = paper.state_dict()
    for name, value in without.state_dict().items():  # the same convolutions, equally started
        assert torch.equal(value, state[name]), name
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    now = last.shallow(x)
    for group in last.groups:
        now = group(now)
    torch.testing.assert_close(last(x), x - last.last(last.attention[1](now)))
    for name in ("shallow.0.weight", "groups.1.body.0.body.3.weight"):
        assert torch.equal(last.state_dict()[name], state[name])


def test_the_plain_network_is_as_large() -> None:
    trial = _trial("default")
    ratio = count_parameters(plain(trial)) / count_parameters(mranet(trial))
    assert 0.95 < ratio < 1.05


@pytest.mark.parametrize("arm", [arm.name for arm in EXPERIMENT.arms])
def test_a_trial_is_repeatable_and_gives_every_metric(arm: str) -> None:
    trial, again = _trial(arm=arm), _trial(arm=arm)
    found = EXPERIMENT.arm(arm).run(trial)
    assert EXPERIMENT.arm(arm).run(again) == found
    missing = {metric.name for metric in EXPERIMENT.metrics} - set(found)
    assert missing == ({"UM"} if arm == "noisy" else set())
    (picture,) = trial.record.pictures.values()
    side = 2 * trial.settings.side
    assert picture.shape == (side, 3 * side)
    if arm == "noisy":
        assert found["EPD-ROA, vertical"] == 1.0
        assert found["mean kept"] == pytest.approx(1.0)
