import dataclasses

import numpy as np
import pytest
import torch
from cv_core.data.scenes.compose import arrange, compose, render
from cv_core.data.scenes.scene import KEYPOINTS
from cv_core.data.scenes.spec import PALETTE, SceneSpec
from sklearn.datasets import load_digits

CROWDED = SceneSpec(height=48, width=64, objects=(2, 6), scale=(0.3, 0.7), max_overlap=0.5)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.images / 16).astype(np.float32), data.target


@pytest.fixture(scope="module")
def backgrounds():
    return np.random.default_rng(9).random((3, 3, 70, 80), dtype=np.float32)


@pytest.fixture(scope="module")
def scenes(digits, backgrounds):
    specs = (CROWDED, dataclasses.replace(CROWDED, appearance="garment", max_overlap=0.0))
    return [
        (spec, compose(spec, *digits, backgrounds, np.random.default_rng(seed)))
        for spec in specs
        for seed in range(20)
    ]


def test_objects_are_there(scenes):
    counts = [len(scene.labels) for _, scene in scenes]
    assert min(counts) >= 1
    assert max(counts[:20]) >= 5
    assert sum(counts) > 100


def test_boxes_are_the_extent_of_the_visible_mask(scenes):
    for _, scene in scenes:
        for mask, box in zip(scene.masks, scene.boxes.tolist(), strict=True):
            pixels = mask.nonzero()
            top, left = pixels.amin(dim=0).tolist()
            bottom, right = pixels.amax(dim=0).tolist()
            assert box == [left, top, right + 1, bottom + 1]


def test_masks_are_disjoint_and_the_rest_is_background_to_the_bit(scenes):
    for _, scene in scenes:
        assert int(scene.masks.sum(dim=0).max()) == 1
        outside = ~scene.masks.any(dim=0)
        assert torch.equal(scene.image[:, outside], scene.background[:, outside])
        inside = scene.masks.any(dim=0)
        changed = (scene.image != scene.background).any(dim=0)
        assert changed[inside].double().mean().item() > 0.99


def test_image_and_background_lie_in_the_unit_interval(scenes):
    for _, scene in scenes:
        assert scene.image.dtype == torch.float32
        assert float(scene.image.min()) >= 0.0
        assert float(scene.image.max()) <= 1.0


def test_colours_are_those_of_the_attributes(scenes):
    for spec, scene in scenes:
        if spec.appearance == "garment":
            continue
        for mask, attributes in zip(scene.masks, scene.attributes, strict=True):
            colour = torch.tensor(PALETTE[attributes.colour])
            pixels = scene.image[:, mask]
            # somewhere the ink is opaque, and there the colour is exact
            assert float((pixels - colour[:, None]).abs().sum(dim=0).min()) < 1e-6


def test_one_object_is_blended_by_its_alpha(digits):
    white, black = (np.full((1, 3, 20, 20), value, np.float32) for value in (1.0, 0.0))
    spec = SceneSpec(height=20, width=20, objects=(1, 1), colours=("red",), scale=(0.5, 0.9))
    over_white = compose(spec, *digits, white, np.random.default_rng(4))
    over_black = compose(spec, *digits, black, np.random.default_rng(4))
    assert torch.equal(over_white.masks, over_black.masks)
    # a c + (1 - a) * 1 - a c = 1 - a in every channel: alpha can be read off two pictures
    alpha = 1 - (over_white.image - over_black.image)
    torch.testing.assert_close(alpha[0], alpha[1], rtol=0, atol=1e-6)
    assert torch.equal(alpha[0] > 1e-6, over_white.masks[0])
    red = torch.tensor(PALETTE["red"])[:, None, None]
    torch.testing.assert_close(over_black.image, alpha * red, rtol=0, atol=1e-6)


@pytest.mark.parametrize("limit", [0.0, 0.3])
def test_overlap_stays_within_the_limit(digits, limit):
    glyphs, labels = digits
    black = np.zeros((3, 64, 64), np.float32)
    spec = dataclasses.replace(CROWDED, height=64, objects=(6, 6), max_overlap=limit)
    worst = 0.0
    for seed in range(15):
        sprites, places = arrange(spec, glyphs, labels, black, np.random.default_rng(seed))
        _, visible = render(black, sprites, places)
        for sprite, mask in zip(sprites, visible, strict=True):
            worst = max(worst, 1.0 - mask.sum() / sprite.mask.sum())
    # the limit is kept, and it is made use of
    assert limit - 0.1 <= worst <= limit


def test_keypoints_are_extreme_and_visible_where_the_mask_is(scenes):
    top, bottom, left, right = (KEYPOINTS.index(n) for n in ("top", "bottom", "left", "right"))
    for spec, scene in scenes:
        for mask, box, points in zip(scene.masks, scene.boxes, scene.keypoints, strict=True):
            x, y, seen = points[1:].T
            pixel = mask[y.long(), x.long()]
            assert torch.equal(pixel, seen.bool())
            if bool(seen.all()) and spec.max_overlap == 0:  # nothing is hidden
                x0, y0, x1, y1 = box.tolist()
                assert points[top, 1] - 0.5 == y0
                assert points[bottom, 1] + 0.5 == y1
                assert points[left, 0] - 0.5 == x0
                assert points[right, 0] + 0.5 == x1
                centroid = mask.nonzero().double().mean(dim=0) + 0.5
                assert points[0, :2].tolist() == pytest.approx(centroid.flip(0).tolist(), abs=1e-4)


def test_semantic_and_instance_masks_and_target(scenes):
    for _, scene in scenes:
        semantic, instance = scene.semantic_mask(), scene.instance_mask()
        for row in range(0, 48, 5):
            for column in range(0, 64, 5):
                owner = [k for k in range(len(scene.labels)) if scene.masks[k, row, column]]
                expected = (owner[0] + 1, int(scene.labels[owner[0]]) + 1) if owner else (0, 0)
                assert (int(instance[row, column]), int(semantic[row, column])) == expected
        target = scene.target()
        assert torch.equal(target["labels"], scene.labels + 1)
        sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
        assert torch.equal(target["area"], sides[:, 0] * sides[:, 1])


def test_sizes_keep_to_the_range(digits, backgrounds):
    spec = SceneSpec(height=48, width=64, objects=(1, 1), scale=(0.25, 0.5))
    low, high = spec.sides()
    assert (low, high) == (12, 24)
    for seed in range(40):
        scene = compose(spec, *digits, backgrounds, np.random.default_rng(seed))
        longest = float((scene.boxes[0, 2:] - scene.boxes[0, :2]).max())
        # the outline fades over half a source pixel to each side
        assert low - 2 <= longest <= high * (1 + 2 / 8) + 1
        middle = (low + high) / 2
        if longest > middle * 1.3:
            assert scene.attributes[0].size == "large"
        if longest < middle * 0.9:
            assert scene.attributes[0].size == "small"


def test_same_seed_same_bytes_and_other_seed_other_scene(digits, backgrounds):
    first, second, other = (
        compose(CROWDED, *digits, backgrounds, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.keypoints, second.keypoints)
    assert first.caption == second.caption
    assert not torch.equal(first.image, other.image)


def test_inputs_are_left_alone_and_tensors_are_taken(digits, backgrounds):
    glyphs, labels = digits
    before = backgrounds.copy()
    arrays = compose(CROWDED, glyphs, labels, backgrounds, np.random.default_rng(3))
    tensors = compose(
        CROWDED,
        torch.from_numpy(glyphs)[:, None],
        torch.from_numpy(labels),
        [torch.from_numpy(image) for image in backgrounds],
        np.random.default_rng(3),
    )
    assert torch.equal(arrays.image, tensors.image)
    np.testing.assert_array_equal(backgrounds, before)


def test_empty_scene(digits, backgrounds):
    spec = SceneSpec(objects=(0, 0))
    scene = compose(spec, *digits, backgrounds, np.random.default_rng(0))
    assert scene.boxes.shape == (0, 4)
    assert scene.masks.shape == (0, 64, 64)
    assert scene.keypoints.shape == (0, 5, 3)
    assert scene.caption == "an empty scene"
    assert torch.equal(scene.image, scene.background)
    assert int(scene.semantic_mask().sum()) == 0
    assert scene.target()["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"glyphs": np.zeros((2, 8, 8), np.uint8)}, TypeError, "Divide uint8"),
        ({"glyphs": np.zeros((2, 8, 8))}, ValueError, "must hold ink"),
        ({"glyphs": np.full((2, 8, 8), np.nan)}, ValueError, "must lie in"),
        ({"glyphs": np.full((2, 8, 8), 16.0)}, ValueError, "must lie in"),
        ({"labels": [1]}, ValueError, "labels must have shape"),
        ({"labels": [0.5, 1.0]}, TypeError, "whole numbers"),
        ({"backgrounds": np.zeros((1, 3, 40, 90))}, ValueError, "at least \\(64, 64\\)"),
        ({"backgrounds": np.zeros((1, 3, 90, 90), np.uint8)}, TypeError, "Divide uint8"),
        ({"backgrounds": []}, ValueError, "at least one image"),
        ({"backgrounds": np.full((1, 3, 90, 90), 255.0)}, ValueError, r"must lie in \[0, 1\]"),
        ({"backgrounds": np.full((1, 3, 90, 90), np.nan)}, ValueError, r"must lie in \[0, 1\]"),
    ],
)
def test_refusals(change, error, message):
    given = {
        "glyphs": np.ones((2, 8, 8)),
        "labels": [0, 1],
        "backgrounds": np.zeros((1, 3, 64, 64)),
        **change,
    }
    with pytest.raises(error, match=message):
        compose(SceneSpec(objects=(1, 1)), **given, generator=np.random.default_rng(0))
