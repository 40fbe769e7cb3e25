"""The proxy task and the controls: what a frame can tell, and what each arm can see."""

import numpy as np
import pytest
import torch
from cv_adversarial.experiments.aglnet import (
    EXPERIMENT,
    FLICKER,
    MIXED,
    EvenBlock,
    blend,
    build,
    make_clips,
)
from cv_core.experiment.trial import Settings, Trial, merge_settings
from cv_core.metrics.cost import count_parameters


def trial(case=FLICKER, arm="AGLNet", seed=0, **changes) -> Trial:
    settings = merge_settings(EXPERIMENT.settings["smoke"], EXPERIMENT.case(case).settings)
    settings = Settings({**settings, **changes})
    return Trial(arm=arm, case=case, seed=seed, budget="smoke", source="digits", settings=settings)


def network(run):
    options = dict(EXPERIMENT.arm(run.arm).run.keywords)
    network = options.pop("network", None)
    from cv_adversarial.methods.aglnet import AGLNet

    return build(run, network or AGLNet, options["attention"]).eval()


def clips(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_blend_by_loop():
    rng = np.random.default_rng(0)
    frames, donors = rng.random((2, 2, 3, 10, 10))
    centres, draws = np.array([[4.0, 5.0], [6.0, 3.0]]), rng.random((2, 3))
    out = blend(frames, centres, draws, donors)
    for t in range(2):
        down, right = centres[t] + 4 * draws[t, :2] - 2
        for i in range(10):
            for j in range(10):
                distance = np.hypot(i + 0.5 - down, j + 0.5 - right)
                share = (0.5 + 0.5 * draws[t, 2]) / (1 + np.exp(2 * (distance - 2)))
                mixed = (1 - share) * frames[t, :, i, j] + share * donors[t, :, i, j]
                np.testing.assert_allclose(out[t, :, i, j], mixed, atol=1e-6)


def test_a_single_frame_does_not_tell_a_flickering_from_a_constant_blend():
    """Of one frame both kinds make the same picture from the same draws."""
    rng = np.random.default_rng(1)
    frames, donors = rng.random((2, 5, 3, 12, 12))
    centres, draws = np.full((5, 2), 6.0), rng.random((5, 3))
    flickering = blend(frames, centres, draws, donors)
    for t in range(5):
        constant = blend(frames, centres, draws[t : t + 1], donors[t : t + 1])
        np.testing.assert_array_equal(flickering[t], constant[t])
        assert not np.allclose(np.delete(flickering, t, 0), np.delete(constant, t, 0))


def test_parts_are_balanced_equal_for_all_arms_and_differ():
    x, y = make_clips(trial(), "train")
    again, _ = make_clips(trial(arm="frames"), "train")
    assert torch.equal(x, again)
    assert y.tolist() == [0, 1] * 8
    assert x.shape == (16, 3, 3, 16, 16)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    assert not torch.equal(x[:8], make_clips(trial(), "val")[0])
    # where some genuine clips are left as composed, only those differ
    mixed, _ = make_clips(trial(MIXED), "train")
    same = [torch.equal(one, other) for one, other in zip(x, mixed, strict=True)]
    assert same == [number % 4 != 2 for number in range(16)]


def test_controls_have_the_parameters_and_the_start_of_the_papers_arm():
    models = {arm.name: network(trial(arm=arm.name)) for arm in EXPERIMENT.arms}
    paper = models.pop("AGLNet")
    fewer = models.pop("no attention")
    assert count_parameters(fewer) < count_parameters(paper)
    for name, model in models.items():
        assert count_parameters(model) == count_parameters(paper), name
        for key, value in model.state_dict().items():
            assert torch.equal(value, paper.state_dict()[key]), (name, key)


@pytest.mark.parametrize("arm", ["frames", "no recurrence"])
def test_arms_without_recurrence_do_not_see_the_order(arm):
    x, order = clips(2, 4, 3, 16, 16), torch.tensor([2, 0, 3, 1])
    model = network(trial(arm=arm))
    torch.testing.assert_close(model(x[:, order]), model(x))
    paper = network(trial())
    assert not torch.allclose(paper(x[:, order]), paper(x), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(model(x[:, :1]), paper(x[:, :1]))  # of one frame all see the same


def test_the_framewise_arm_averages_its_frames():
    x, model = clips(2, 4, 3, 16, 16), network(trial(arm="frames"))
    each = torch.stack([model(x[:, t : t + 1]) for t in range(4)], dim=1)
    torch.testing.assert_close(model(x), each.mean(1))


def test_even_block_is_the_non_local_block_without_queries():
    torch.manual_seed(0)
    even, x = EvenBlock(6), clips(2, 6, 3, 4)
    from cv_core.nn.attention import NonLocalBlock

    other = NonLocalBlock(6)
    other.load_state_dict(even.state_dict())
    torch.nn.init.zeros_(other.t.weight)
    torch.nn.init.zeros_(other.t.bias)
    torch.testing.assert_close(even(x), other(x))


def test_arms_report_what_is_declared_and_repeat():
    for arm in EXPERIMENT.arms:
        run = trial(arm=arm.name)
        found = arm.run(run)
        assert set(found) == {metric.name for metric in EXPERIMENT.metrics}
        assert arm.run(trial(arm=arm.name)) == found
        assert run.record.costs["steps"] == 1
    assert run.record.pictures["genuine above, forged below"].shape == (32, 48, 3)


def test_selection_does_not_see_the_test_clips(monkeypatch):
    found = []
    for flip in (False, True):
        made = {part: make_clips(trial(), part) for part in ("train", "val", "test")}
        if flip:
            made["test"] = made["test"][0], 1 - made["test"][1]
        monkeypatch.setattr(
            "cv_adversarial.experiments.aglnet.make_clips", lambda _, part, kept=made: kept[part]
        )
        found.append(EXPERIMENT.arm("AGLNet").run(trial(rates=(1e-3, 1e-2), epochs=2)))
        monkeypatch.undo()
    assert found[0]["learning rate"] == found[1]["learning rate"]
    assert found[0]["accuracy"] == pytest.approx(1 - found[1]["accuracy"])
