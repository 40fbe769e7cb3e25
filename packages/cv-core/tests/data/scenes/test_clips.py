import numpy as np
import pytest
import torch
from cv_core.data.scenes.clips import bounce, compose_clip
from cv_core.data.scenes.compose import compose
from cv_core.data.scenes.spec import SceneSpec
from sklearn.datasets import load_digits

SPEC = SceneSpec(height=40, width=48, objects=(3, 3), scale=(0.3, 0.5), max_overlap=0.4)


@pytest.fixture(scope="module")
def source():
    data = load_digits()
    backgrounds = np.random.default_rng(5).random((2, 3, 50, 60), dtype=np.float32)
    return (data.images / 16).astype(np.float32), data.target, backgrounds


@pytest.fixture(scope="module")
def clips(source):
    return [
        compose_clip(SPEC, *source, np.random.default_rng(seed), frames=25, speed=(2.0, 5.0))
        for seed in range(6)
    ]


def test_first_frame_is_the_scene_of_the_same_generator(source, clips):
    for seed, clip in enumerate(clips):
        scene = compose(SPEC, *source, np.random.default_rng(seed))
        assert torch.equal(clip.frames[0], scene.image)
        assert torch.equal(clip.masks[0], scene.masks)
        assert torch.equal(clip.boxes[0], scene.boxes)


def test_bounce_equals_small_steps():
    room, velocity = 13.0, 0.37
    position, direction = 2.0, 1.0
    for step in range(400):
        folded = bounce(np.array(2.0 + velocity * step), np.array(room))
        assert float(folded) == pytest.approx(position, abs=1e-9)
        position += direction * velocity
        if position > room:
            position, direction = 2 * room - position, -1.0
        if position < 0:
            position, direction = -position, 1.0
    assert bounce(np.array([-3.0, 5.0]), np.zeros(2)).tolist() == [0.0, 0.0]


def test_boxes_follow_the_positions_of_whole_objects(clips):
    whole = 0
    for clip in clips:
        top = len(clip.labels) - 1  # nothing lies above the last object: it is always whole
        boxes, positions = clip.boxes[:, top], clip.positions[:, top]
        assert torch.equal(boxes[:, :2].long(), positions.flip(1))
        sides = boxes[:, 2:] - boxes[:, :2]
        assert torch.equal(sides, sides[:1].expand_as(sides))
        steps = positions.diff(dim=0).double().norm(dim=1)
        # rounding moves each end by at most half a pixel per axis
        assert float(steps.max()) <= 5.0 + 2**0.5
        assert float(steps.max()) >= 2.0 - 2**0.5
        whole += len(boxes)
    assert whole == 150


def test_flow_carries_visible_pixels_onto_the_object(clips):
    for clip in clips:
        top = len(clip.labels) - 1
        for t in range(len(clip.frames) - 1):
            assert torch.equal(
                clip.flow[t][:, ~clip.masks[t].any(dim=0)],
                torch.zeros(2, 1).expand(2, int((~clip.masks[t].any(dim=0)).sum())),
            )
            rows, columns = clip.masks[t, top].nonzero().T
            x, y = clip.flow[t][:, rows, columns].long()
            assert bool(clip.masks[t + 1, top, rows + y, columns + x].all())


def test_occlusion_keeps_masks_disjoint_and_the_background_exact(clips):
    hidden = 0
    for clip in clips:
        assert int(clip.masks.sum(dim=1).max()) == 1
        for frame, masks in zip(clip.frames, clip.masks, strict=True):
            outside = ~masks.any(dim=0)
            assert torch.equal(frame[:, outside], clip.background[:, outside])
        area = clip.masks.sum(dim=(2, 3))
        hidden += int((area < area.amax(dim=0)).sum())
        assert torch.equal(clip.visible, area > 0)
    assert hidden > 0  # objects do pass behind others


def test_no_motion_and_no_objects(source):
    still = compose_clip(SPEC, *source, np.random.default_rng(0), frames=3, speed=(0.0, 0.0))
    assert torch.equal(still.frames[0], still.frames[2])
    assert float(still.flow.abs().max()) == 0.0
    empty = SceneSpec(height=40, width=48, objects=(0, 0))
    clip = compose_clip(empty, *source, np.random.default_rng(0), frames=2)
    assert clip.boxes.shape == (2, 0, 4)
    assert torch.equal(clip.frames, clip.background.expand(2, -1, -1, -1))


def test_refusals(source):
    with pytest.raises(ValueError, match="frames must be at least 1"):
        compose_clip(SPEC, *source, np.random.default_rng(0), frames=0)
    with pytest.raises(ValueError, match=r"speed\[1\] must lie in"):
        compose_clip(SPEC, *source, np.random.default_rng(0), speed=(3.0, 1.0))
