import numpy as np
import pytest
import torch
from cv_core.experiment.trial import Settings, SkipTrial, Trial
from cv_factorization.experiments.shape_texture_bias import EXPERIMENT, labels, mixed, parts


def trial(arm, case="label is the shape", **settings):
    declared = {**EXPERIMENT.settings["smoke"], **EXPERIMENT.case(case).settings, **settings}
    return Trial(
        arm=arm, case=case, seed=0, budget="smoke", source="digits", settings=Settings(declared)
    )


def test_parts_are_apart_the_same_for_all_arms_and_labelled_by_the_case():
    one, same = parts(trial("a")), parts(trial("b"))
    assert [len(part.images) for part in one] == [192, 64, 100]
    assert all(torch.equal(p.images, q.images) for p, q in zip(one, same, strict=True))
    shape, texture = trial("a"), trial("a", "label is the texture")
    assert torch.equal(labels(shape, one[0]), one[0].shape)
    assert torch.equal(labels(texture, one[0]), one[0].texture)
    assert not torch.equal(one[0].shape, one[0].texture)
    both = parts(trial("a", "label is both"))[0]
    assert torch.equal(both.shape, both.texture)


def test_vote_mixes_the_two_views():
    out = {"p": torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])}
    assert mixed(out, 0.25)[0].tolist() == [0.25, 0.75]


def test_arms_return_declared_numbers_and_repeat_them():
    declared = {metric.name for metric in EXPERIMENT.metrics}
    for arm in EXPERIMENT.arms:
        numbers = arm.run(trial(arm.name, steps=2))
        assert set(numbers) == declared
        assert all(np.isfinite(value) for value in numbers.values())
        assert numbers["weight of shape"] + numbers["weight of texture"] == pytest.approx(1.0)
    assert arm.run(trial(arm.name, steps=2)) == numbers


def test_starts_are_where_they_say():
    for name, start in (("start at 0.8", 0.8), ("start at 0.2", 0.2)):
        numbers = EXPERIMENT.arm(name).run(trial(name, steps=1, weight_rate=0.0))
        assert numbers["weight of shape"] == pytest.approx(start, abs=1e-6)


def test_controls_are_left_out_where_the_answer_is_not_known():
    with pytest.raises(SkipTrial, match="where the answer is known"):
        EXPERIMENT.arm("one code twice").run(trial("one code twice", label="class"))
