from __future__ import annotations

import pytest
import torch
from cv_attention.experiments.fd_module import (
    EXPERIMENT,
    PASTED,
    Images,
    crop_and_flip,
    half,
    network,
    of_input,
    of_other_image,
    of_output,
    pasted_digits,
)
from cv_attention.methods.fd_module import add_feature_difference, feature_difference_mask
from cv_core.experiment.trial import Trial, merge_settings
from cv_core.models.resnet import cifar_resnet


def smoke_trial(case: str, arm: str = "FD") -> Trial:
    settings = merge_settings(EXPERIMENT.settings["smoke"], EXPERIMENT.case(case).settings)
    return Trial(arm=arm, case=case, seed=0, budget="smoke", source="digits", settings=settings)


def test_controls_are_the_method_without_one_of_its_parts() -> None:
    x, f = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros_like(x)
    assert torch.equal(of_output(x, f), feature_difference_mask(zero, f))
    assert torch.equal(of_input(x, f), feature_difference_mask(x, zero))
    assert torch.equal(half(x, f), feature_difference_mask(f, f))
    for row in range(4):
        other = feature_difference_mask(x[[row - 1]], f[[row]])
        torch.testing.assert_close(of_other_image(x, f)[[row]], other)


@pytest.mark.parametrize("mask", [None, feature_difference_mask, half, of_other_image])
def test_all_arms_start_from_the_same_weights(mask) -> None:
    trial = smoke_trial(PASTED)
    images = Images(torch.rand(8, 3, 8, 8), torch.arange(8), 10)
    with trial.seeded("init"):
        plain = cifar_resnet(8, 10, width=trial.settings.width)
    model = network(trial, images, mask)
    state = model[1].state_dict()
    assert list(state) == list(plain.state_dict())
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    if mask is feature_difference_mask:
        x = torch.rand(2, 3, 8, 8)
        expected = add_feature_difference(plain).eval()(
            (x - images.x.mean((0, 2, 3), True)) / (images.x.std((0, 2, 3), keepdim=True) + 1e-6)
        )
        torch.testing.assert_close(model.eval()(x), expected)


def test_crop_and_flip_against_a_loop() -> None:
    x = torch.rand(40, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    changed, _ = crop_and_flip((x, torch.arange(40)), torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    seen = set()
    for image, out in zip(padded, changed, strict=True):
        crops = {
            (top, left, flip): crop.flip(2) if flip else crop
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
            for crop in [image[:, top : top + 6, left : left + 7]]
        }
        fitting = [key for key, crop in crops.items() if torch.equal(crop, out)]
        assert fitting
        seen.update(fitting)
    assert {flip for *_, flip in seen} == {False, True}
    assert len({key[:2] for key in seen}) > 20


def test_scenes_are_repeatable_and_know_their_object() -> None:
    fitted, test = pasted_digits(smoke_trial(PASTED))
    again, _ = pasted_digits(smoke_trial(PASTED, arm="plain"))
    assert torch.equal(fitted.x, again.x)
    assert torch.equal(fitted.y, again.y)
    assert test.on_object is not None
    assert test.on_object.flatten(1).any(1).all()
    on = test.x.mean(1)[test.on_object].mean()  # white ink
    assert on > test.x.mean(1)[~test.on_object].mean() + 0.1


def test_a_trial_of_the_method_is_repeatable_and_leaves_what_the_report_shows() -> None:
    trial, again = smoke_trial(PASTED), smoke_trial(PASTED)
    found = EXPERIMENT.arm("FD").run(trial)
    assert EXPERIMENT.arm("FD").run(again) == found
    assert set(found) == {metric.name for metric in EXPERIMENT.metrics}
    assert trial.record.costs["steps"] == trial.settings.scene_steps
    assert set(trial.record.curves) == {"train loss", "mask above 0.5, by block"}
    (picture,) = trial.record.pictures.values()
    side = 5 * trial.settings.side
    assert picture.shape == (3 * side, 2 * side, 3)
