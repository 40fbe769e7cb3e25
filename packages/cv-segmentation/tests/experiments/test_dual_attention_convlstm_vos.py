"""The composed clips' truth, what each control can see, and how the scores are counted."""

import numpy as np
import pytest
import torch
from cv_core.data.kinds import Clip
from cv_core.data.origin import Origin
from cv_core.experiment.trial import Settings, Trial
from cv_core.metrics.cost import count_parameters
from cv_segmentation.experiments._clips import Film, compose_clips, shrink, windows
from cv_segmentation.experiments._following import judge, judge_film
from cv_segmentation.experiments.dual_attention_convlstm_vos import (
    EXPERIMENT,
    IOU,
    PAPER,
    ClipTask,
    build,
    composed,
    training_clips,
)
from cv_segmentation.methods.dual_attention_convlstm_vos import DualAttentionVOS
from cv_segmentation.video.losses import VideoObjectLoss

UNTRAINED = ("copy",)


def trial(arm=PAPER, seed=0, **changes) -> Trial:
    settings = Settings({**EXPERIMENT.settings["smoke"], **changes})
    return Trial(arm=arm, case="", seed=seed, budget="smoke", source="digits", settings=settings)


def network(arm: str) -> DualAttentionVOS:
    given = EXPERIMENT.arm(arm).run.keywords
    return build(trial(arm), given.get("network", DualAttentionVOS), given["options"]).eval()


def draw(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clips():
    return composed(trial(side=48, frames=6), "test", 12, 6)


def test_visible_parts_are_whole_objects_less_what_hides_them(clips):
    seen, whole = clips.visible.bool(), clips.whole.bool()
    assert not (seen & ~whole).any()
    assert not seen.all(2).any()  # one object at most is seen at a place
    assert torch.equal(seen.any(2), whole.any(2))  # where an object is, one is seen
    hidden = whole & ~seen
    assert not hidden[:, 0].any()  # the first frame shows all of every object
    assert hidden.any(), "objects should run into each other"
    # an object keeps its shape
    areas = whole.sum((3, 4))
    assert torch.equal(areas, areas[:, :1].expand_as(areas))


def test_frames_change_only_where_an_object_was_or_is(clips):
    moved = (clips.frames[:, 1:] != clips.frames[:, :-1]).any(2)
    covered = clips.whole[:, 1:].bool().any(2) | clips.whole[:, :-1].bool().any(2)
    assert not (moved & ~covered).any()
    assert 0 <= float(clips.frames.min()) <= float(clips.frames.max()) <= 1


def test_the_number_of_an_object_says_nothing_of_its_depth(clips):
    hidden = (clips.whole.bool() & ~clips.visible.bool()).any((1, 3, 4))
    behind = hidden.sum(0)
    assert (behind > 0).all()
    assert not hidden.all(1).any()


def test_clips_come_from_the_seed_alone_and_parts_differ():
    run = trial()
    first, again = (composed(run, "train", 3, 2) for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first.frames, composed(run, "test", 3, 2).frames)
    data = run.data
    labels = data.test_y.numpy()
    only = compose_clips(
        2, np.ones((len(labels), 4, 4), np.float32), labels, run.rng("x"), side=24, frames=2,
        speed=(1.0, 1.0),
    )  # fmt: skip
    assert only.frames.shape == (2, 2, 3, 24, 24)


def test_windows_show_the_film_and_lack_one_object():
    masks = torch.zeros(9, 6, 10)
    for t in range(9):
        masks[t, 2:4, t // 2 : t // 2 + 3] = 1.0
    film = Film(masks[:, None].expand(-1, 3, -1, -1) * 0.5 + 0.25, masks)
    cut = windows(film, 30, np.random.default_rng(0), frames=3)
    assert cut.frames.shape == (30, 3, 3, 6, 6)
    torch.testing.assert_close(cut.frames[:, :, 0], cut.visible.sum(2) * 0.5 + 0.25)
    there = cut.visible.flatten(3).any(3)
    assert (there.sum(2) == 1).all()
    assert set(there[:, 0].long().argmax(1).tolist()) == {0, 1}


def test_a_clip_is_shrunk_in_proportion():
    origin = Origin(name="x", title="x", reference="", url="", licence="", changed="")
    masks = torch.zeros(4, 24, 40, dtype=torch.long)
    masks[:, :12] = 1
    film = shrink(Clip(draw(4, 1, 24, 40), masks, origin), 12)
    assert film.frames.shape == (4, 3, 12, 20)
    assert film.masks[:, :6].all()
    assert not film.masks[:, 6:].any()


def test_training_sees_the_first_half_of_the_long_clip_only():
    run = trial()
    film = Film(draw(8, 3, 24, 40), torch.ones(8, 24, 40))
    film.frames[4:] = torch.nan
    made = training_clips(run, film, 4)
    assert torch.isfinite(made.frames).all()
    assert len(made.frames) == run.settings.train + run.settings.windows


def test_arms_share_the_weights_of_the_parts_they_share():
    paper = network(PAPER).state_dict()
    for arm in EXPERIMENT.arms:
        if arm.name in UNTRAINED:
            continue
        own = network(arm.name).state_dict()
        for name in own.keys() & paper.keys():
            if own[name].shape == paper[name].shape:
                assert torch.equal(own[name], paper[name]), (arm.name, name)
    same = {
        count_parameters(network(name)) for name in (PAPER, "per frame", "no memory", "one round")
    }
    assert len(same) == 1
    assert count_parameters(network("non-local")) > same.pop()


def test_the_frame_wise_arm_sees_neither_order_nor_other_frames():
    model, frames = network("per frame"), draw(2, 4, 3, 24, 24)
    first, order = (draw(2, 2, 24, 24) > 0.7).float(), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(frames[:, order], first), model(frames, first)[:, order])
    paper = network(PAPER)
    torch.testing.assert_close(model(frames[:, :1], first), paper(frames[:, :1], first))
    assert not torch.equal(paper(frames[:, order], first), paper(frames, first)[:, order])


def test_without_memory_a_frame_is_the_first_of_a_new_clip():
    model, frames = network("no memory"), draw(1, 3, 3, 24, 24)
    first = (draw(1, 2, 24, 24) > 0.7).float()
    said = model(frames, first)
    torch.testing.assert_close(model(frames[:, 1:], said[:, 0]), said[:, 1:])


def test_truth_is_read_in_the_first_part_of_training_only():
    class Recorder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.given = []

        def logits(self, _frames, _first, truth):
            self.given.append(truth is not None)
            return torch.zeros(1, 2, 2, 4, 4)

    task = ClipTask(Recorder(), VideoObjectLoss(), forced=2)
    batch = draw(1, 2, 3, 4, 4), torch.zeros(1, 2, 2, 4, 4)
    for _ in range(4):
        task.step(batch)
    assert task.model.given == [True, True, False, False]


def test_scores_of_perfect_absent_and_overlapping_predictions(clips):
    run = trial(seed=1)
    perfect = judge(run, lambda _, first: clips.visible[: len(first)], clips, "visible")
    wanted = {"J": 100.0, "F": 100.0, "J exclusive": 100.0, "F exclusive": 100.0,
              "J recall": 100.0, "J decay": 0.0, "overlap": 0.0}  # fmt: skip
    assert perfect == pytest.approx(wanted)
    alike = clips.visible.sum(2, keepdim=True).expand_as(clips.visible)
    both = judge(run, lambda *_: alike, clips, "visible")
    assert both["overlap"] == pytest.approx(100.0)
    assert both["J"] < 75.0
    one_gone = clips.visible.clone()
    one_gone[:, :, 1] = 0.0
    absent = clips._replace(visible=one_gone)
    alone = judge(run, lambda *_: torch.ones_like(one_gone), absent, "visible")
    share = one_gone[:, 1:, 0].mean((2, 3))  # J of a mask that is everywhere
    assert alone["J"] == pytest.approx(100.0 * float(share.mean()), rel=1e-5)


def test_the_long_clips_first_frame_is_given_and_not_judged():
    film = Film(draw(4, 3, 24, 40), (draw(4, 24, 40) > 0.5).float())

    def follow(frames, first):
        assert torch.equal(first[0, 0], film.masks[0])
        assert not first[0, 1].any()
        said = torch.stack([film.masks, film.masks], dim=1)[None].clone()
        said[:, 0] = 0.0
        return said

    assert judge_film(follow, film) == {"J, long clip": 100.0, "F, long clip": 100.0}


def test_arms_report_what_is_declared_and_repeat():
    seen = set()
    for name in (PAPER, "copy", f"layers, {IOU}"):
        arm = EXPERIMENT.arm(name)
        run = trial(name)
        found = arm.run(run)
        if name == PAPER:
            assert arm.run(trial(name)) == found
        assert all(np.isfinite(value) for value in found.values())
        assert run.record.costs["steps"] == (0 if name == "copy" else 2)
        seen |= set(found)
    assert seen == {metric.name for metric in EXPERIMENT.metrics}
