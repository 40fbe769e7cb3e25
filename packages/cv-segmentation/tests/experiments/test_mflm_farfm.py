from __future__ import annotations

import math

import pytest
import torch
from cv_core.experiment.trial import Settings, Trial, merge_settings
from cv_core.metrics.cost import count_parameters
from cv_segmentation.experiments import mflm_farfm
from cv_segmentation.experiments._defects import (
    cut_patches,
    extended,
    patches_of,
    surfaces,
    with_defects,
)
from cv_segmentation.experiments.mflm_farfm import (
    CHOSEN,
    EXPERIMENT,
    FULL,
    mirrored,
    network,
    optimizer_of,
    plain_loss,
    pyramid,
    summed,
    weighted_loss,
    wide_pyramid,
    wide_unet,
    with_farfm,
    with_mflm,
    without_feedback,
)
from cv_segmentation.methods.mflm_farfm import FARFMDecoder, MultiScaleFeatureLearning


def trial_of(arm: str = FULL, seed: int = 0, budget: str = "smoke") -> Trial:
    settings = merge_settings(EXPERIMENT.settings[budget], {})
    return Trial(
        arm=arm, case="", seed=seed, budget="smoke", source="sample-photographs", settings=settings
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- patches ----------------------------------------------------------------------------------


def test_patches_have_a_defect_in_their_middle_or_none() -> None:
    # the image holds each pixel's own number, so that a patch tells where it was cut
    image = torch.arange(60.0 * 50).view(60, 50)
    mask = torch.zeros(60, 50, dtype=torch.long)
    mask[30, 20] = mask[2, 45] = 1
    plain = (image + 10_000, torch.zeros_like(mask))
    images, masks = cut_patches([(image, mask), plain], 30, 16, generator(), defect=True)
    assert images.shape == (30, 1, 16, 16)
    assert bool((images < 10_000).all())
    corners = set()
    for patch, truth in zip(images[:, 0], masks, strict=True):
        top, left = divmod(int(patch[0, 0]), 50)
        assert torch.equal(patch, image[top : top + 16, left : left + 16])
        assert torch.equal(truth, mask[top : top + 16, left : left + 16])
        assert truth.any()
        corners.add((top, left))
        if top > 0 and left < 34:  # not held back by the border
            row, column = truth.nonzero()[0].tolist()
            assert 4 <= row < 12
            assert 4 <= column < 12
    assert len(corners) > 10
    images, masks = cut_patches([(image, mask), plain], 30, 16, generator(), defect=False)
    assert not masks.any()
    assert {bool(patch.min() >= 10_000) for patch in images} == {True, False}
    with pytest.raises(ValueError, match="has a defect"):
        cut_patches([plain], 1, 16, generator(), defect=True)
    with pytest.raises(ValueError, match="has no defect"):
        cut_patches([(image, torch.ones_like(mask))], 1, 16, generator(), defect=False)


def test_a_small_surface_is_continued() -> None:
    image = torch.arange(6.0).view(2, 3)
    expected = torch.tensor([[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]])
    assert torch.equal(extended(image, 4), expected.float())
    assert extended(image, 2) is image


def test_composed_defects_are_where_the_mask_says() -> None:
    image = torch.full((150, 160), 0.5)
    changed, mask = with_defects(image, generator())
    difference = (changed - image).abs()
    assert 0.005 < float(mask.float().mean()) < 0.1
    assert not difference[mask == 0].any()
    alone = difference[mask == 1]  # where two lie on each other, they may cancel or add
    assert float(((alone > 0.0999) & (alone < 0.3001)).float().mean()) > 0.9
    assert torch.equal(image, torch.full((150, 160), 0.5))


def test_train_and_test_parts_differ_and_all_arms_see_the_same() -> None:
    first, second, other = (patches_of(trial_of(arm, seed)) for arm, seed in
                            ((FULL, 0), ("FPN", 0), (FULL, 1)))  # fmt: skip
    settings = trial_of().settings
    assert len(first.train_x) == settings.patches
    assert len(first.test_x) == settings.judged == 2 * len(first.clean_x)
    assert bool(first.test_g.flatten(1).any(1).all())
    assert int(first.train_g.flatten(1).any(1).sum()) == settings.patches * 3 // 4
    assert torch.equal(first.train_x, second.train_x)
    assert torch.equal(first.test_g, second.test_g)
    assert not torch.equal(first.train_x, other.train_x)
    train, test = surfaces(trial_of())
    for (left, _), (right, _) in zip(train, test, strict=True):
        assert left.shape[1] + right.shape[1] < 640


def test_image_and_mask_are_mirrored_together() -> None:
    images = torch.rand(40, 1, 5, 6, generator=generator())
    masks = (images[:, 0] > 0.5).long()
    changed, same = mirrored((images, masks), generator())
    assert torch.equal(same, (changed[:, 0] > 0.5).long())
    turned = [torch.equal(a, b.flip(2)) for a, b in zip(changed, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(changed, images, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True))
    assert 8 < sum(turned) < 32


# --- networks and losses ----------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["smoke", "default"])
def test_wide_networks_have_as_many_weights(budget: str) -> None:
    settings = trial_of(budget=budget).settings
    wanted = count_parameters(network(settings))
    for build in (wide_pyramid, wide_unet):
        assert count_parameters(build(settings)) == pytest.approx(wanted, rel=0.04)
    assert count_parameters(pyramid(settings)) < 0.8 * wanted


def test_arms_differ_in_what_they_are_named_after() -> None:
    trial = trial_of()

    def built(build):
        with trial.seeded("init"):
            return build(trial.settings)

    found = {build: built(build) for build in (pyramid, with_mflm, with_farfm, network)}
    for build, model in found.items():
        kinds = {type(module) for module in model.modules()}
        assert (MultiScaleFeatureLearning in kinds) == (build in (with_mflm, network))
        assert (FARFMDecoder in kinds) == (build in (with_farfm, network))
    encoders = [model.encoder.state_dict() for model in found.values()]
    encoders.append(built(wide_pyramid).encoder.state_dict())
    encoders.append(built(wide_unet).model.encoder.state_dict())
    for state in encoders[1:]:
        assert all(torch.equal(value, encoders[0][name]) for name, value in state.items())
    assert len(built(without_feedback).decoder.passes) == 1
    x = torch.rand(2, 1, 32, 32, generator=generator())
    unet = built(wide_unet)
    assert len(unet(x)) == 1
    torch.testing.assert_close(unet.eval()(x), unet.model(x).sigmoid())


def test_the_pyramid_adds_from_the_coarsest_down() -> None:
    module = mflm_farfm.Pyramid(1, 2).eval()
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.weight.data.zero_()[0, 0, 1, 1] = 1.0
            if part.bias is not None:
                part.bias.data.zero_()
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_var.fill_(1 - part.eps)
    fine, coarse = torch.rand(1, 1, 4, 4, generator=generator()), torch.full((1, 1, 2, 2), 3.0)
    found = module([fine, coarse])
    torch.testing.assert_close(found[0], fine + 3.0)
    torch.testing.assert_close(found[1], coarse)


def test_losses_of_all_maps_add_up_and_the_window_scales() -> None:
    maps = torch.randn(3, 4, 1, 12, 12, generator=generator()).unbind(0)
    masks = (torch.rand(4, 12, 12, generator=generator(1)) < 0.3).long()
    settings = Settings(side=12)
    for loss in (plain_loss(settings), weighted_loss(settings)):
        torch.testing.assert_close(
            summed(loss, maps, masks), sum(loss(item, masks) for item in maps)
        )
    sizes = {side: weighted_loss(Settings(side=side)).window for side in (352, 96, 32)}
    assert sizes == {352: 31, 96: 9, 32: 3}


def test_every_arm_has_the_optimiser_that_was_chosen_for_it() -> None:
    model = torch.nn.Linear(1, 1)
    assert set(CHOSEN) == {arm.name for arm in EXPERIMENT.arms}
    kinds = {"adamw": (torch.optim.AdamW, 0.01), "sgd": (torch.optim.SGD, 0.1)}
    for arm, name in CHOSEN.items():
        found = optimizer_of(trial_of(arm, budget="default"), model)
        assert (type(found), found.defaults["lr"]) == kinds[name]
        paper = optimizer_of(trial_of(arm, budget="full"), model)  # the same for all
        assert (type(paper), paper.defaults["lr"]) == (torch.optim.SGD, 0.005)


# --- trials -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", [arm.name for arm in EXPERIMENT.arms])
def test_a_trial_is_repeatable_and_gives_every_metric(arm: str) -> None:
    trial = trial_of(arm)
    found = EXPERIMENT.arm(arm).run(trial)
    assert EXPERIMENT.arm(arm).run(trial_of(arm)) == found
    assert set(found) == {metric.name for metric in EXPERIMENT.metrics}
    assert all(math.isfinite(value) for value in found.values())
    (picture,) = trial.record.pictures.values()
    assert picture.shape == (3 * 64, 3 * 64)
    assert {"steps", "parameters", "macs"} <= set(trial.record.costs)
