import numpy as np
import pytest
import torch
from cv_core.data.kinds import ImageSet
from cv_core.data.origin import Origin
from cv_core.experiment.trial import Settings, SkipTrial, Trial
from cv_core.imaging.kernels import motion_kernel
from cv_core.imaging.patches import Region
from cv_factorization.experiments.saliency_partition_deblurring import (
    EXPERIMENT,
    Scene,
    bounded,
    busiest_place,
    gradient_spread,
    make_scene,
    mean_similarity,
    shuffled,
)


def trial(arm="saliency", case="one kernel", seed=0, source="sample-photographs"):
    settings = Settings({**EXPERIMENT.settings["smoke"], **EXPERIMENT.case(case).settings})
    return Trial(arm=arm, case=case, seed=seed, budget="smoke", source=source, settings=settings)


def user_trial(arm):
    picture = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    run = trial(arm, source="folder:photos")
    run.settings["photo_side"] = 48
    run.__dict__["data"] = ImageSet((picture,), ("mine",), Origin("mine", "mine"))
    return run


def test_arms_see_one_scene_and_seeds_another():
    one, same, other = (make_scene(trial(arm, seed=s)) for arm, s in (("a", 0), ("b", 0), ("a", 1)))
    assert torch.equal(one.blurred, same.blurred)
    assert one.sharp is not None
    assert not torch.equal(one.blurred, other.blurred)
    assert one.blurred.shape == one.sharp.shape == (1, 64, 64)


def test_two_kernels_blur_two_halves():
    scene = make_scene(trial(case="two kernels"))
    assert scene.regions == [Region(0, 0, 64, 32), Region(0, 32, 64, 32)]
    assert len(scene.kernels) == 2
    assert not torch.equal(scene.kernels[0], scene.kernels[1])


def test_shuffled_weights_are_the_same_values_elsewhere():
    image = torch.rand(1, 1, 30, 30, generator=torch.Generator().manual_seed(0))
    from cv_core.imaging.saliency import sun_saliency

    weights, plain = shuffled(trial())(image), sun_saliency(image)
    assert torch.equal(weights.flatten().sort().values, plain.flatten().sort().values)
    assert not torch.equal(weights, plain)


def test_similarity_weighs_kernels_by_their_area():
    across, down = motion_kernel(9.0, 0.0, 11), motion_kernel(9.0, 90.0, 11)
    image = torch.zeros(1, 10, 20)
    halves = [Region(0, 0, 10, 10), Region(0, 10, 10, 10)]
    scene = Scene(image, image, halves, [across, down])
    assert mean_similarity(scene, halves, [across, down]) == pytest.approx(1.0, abs=1e-5)
    cross = mean_similarity(scene, halves, [down, across])
    whole = mean_similarity(scene, [Region(0, 0, 10, 20)], [across])
    assert whole == pytest.approx((1.0 + cross) / 2.0, abs=1e-5)
    assert cross < 0.5


def test_square_with_contrast_is_taken_and_sharper_spreads_less():
    picture = torch.zeros(1, 40, 200)
    picture[:, :, 150:] = torch.rand(40, 50, generator=torch.Generator().manual_seed(0))
    _, left = busiest_place(picture, 40, torch.Generator().manual_seed(1))
    assert left > 110
    edge = torch.zeros(1, 20, 20)
    edge[..., 10:] = 1.0
    ramp = torch.linspace(0.0, 1.0, 20).expand(1, 20, 20)
    assert gradient_spread(edge) < 0.5 * gradient_spread(ramp)
    assert bounded(picture, 100).shape == (1, 20, 100)
    assert bounded(picture, 200) is picture


def test_users_picture_is_restored_and_shown_without_a_reference():
    shown = {}
    for arm in EXPERIMENT.arms:
        run = user_trial(arm.name)
        try:
            numbers = arm.run(run)
        except SkipTrial as reason:
            assert "true" in str(reason)  # noqa: PT017 - some arms skip, others do not
            continue
        assert set(numbers) <= {"gradient spread", "regions"}
        assert np.isfinite(numbers["gradient spread"])
        shown[arm.name] = run.record.pictures["picture"]
        assert shown[arm.name].shape == (32, 48, 3)
    assert len(shown) == 7
    assert not np.array_equal(shown["blurred"], shown["saliency, partition"])


def test_arms_return_declared_numbers():
    declared = {metric.name for metric in EXPERIMENT.metrics}
    values = {}
    for name in ("blurred", "true kernel", "saliency, partition"):
        run = trial(name, seed=1)
        numbers = EXPERIMENT.arm(name).run(run)
        assert set(numbers) <= declared
        values[name] = numbers["PSNR"]
    assert values["true kernel"] > values["blurred"]
