"""Seeds in loops, their mean IoU, and the CRF that refines them."""

from functools import partial

import pytest
import torch
from cv_segmentation.crf import dense_crf
from cv_segmentation.seeds import normalised_cam, refine_seeds, seed_labels, seed_miou
from torch.nn import functional


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def cam():
    maps = 5 * torch.rand(4, 3, 6, 5, generator=generator())
    shown = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]])
    return maps * shown[:, :, None, None]


def labels_in_loops(cam, threshold):
    found = torch.zeros(len(cam), *cam.shape[2:], dtype=torch.int64)
    for n, maps in enumerate(cam):
        tops = [float(each.max()) for each in maps]
        for i in range(maps.shape[1]):
            for j in range(maps.shape[2]):
                best = threshold
                for c, top in enumerate(tops):
                    if top > 0 and float(maps[c, i, j]) / top > best:
                        best, found[n, i, j] = float(maps[c, i, j]) / top, c + 1
    return found


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8])
def test_seeds_in_loops(cam, threshold):
    cam = cam.double()
    found = seed_labels(cam, threshold)
    assert torch.equal(found, labels_in_loops(cam, threshold))
    large = functional.interpolate(cam, size=(13, 9), mode="bilinear", align_corners=False)
    expected = labels_in_loops(large, threshold)
    assert torch.equal(seed_labels(cam, threshold, (13, 9)), expected)
    assert not found[3].any()
    assert set(found[0].unique().tolist()) <= {0, 1, 3}


def test_each_map_is_scaled_by_its_maximum_after_it_is_enlarged(cam):
    scaled = normalised_cam(cam, (12, 11))
    tops = scaled.amax((2, 3))
    torch.testing.assert_close(tops, (cam.amax((2, 3)) > 0).float())
    torch.testing.assert_close(normalised_cam(7 * cam, (12, 11)), scaled)


def test_mean_iou_in_loops(cam):
    masks = torch.randint(4, (4, 6, 5), generator=generator(1))
    masks[0, 0] = 255
    thresholds = [0.1, 0.5, 0.9]
    expected = []
    for threshold in thresholds:
        said, ious = seed_labels(cam, threshold), []
        for c in range(4):
            right, either = 0, 0
            for a, b in zip(said.flatten().tolist(), masks.flatten().tolist(), strict=True):
                if b != 255:
                    right += (a, b) == (c, c)
                    either += c in {a, b}
            if either:
                ious.append(right / either)
        expected.append(sum(ious) / len(ious))
    torch.testing.assert_close(seed_miou(cam, masks, thresholds), torch.tensor(expected))


def test_perfect_maps_have_perfect_seeds():
    masks = torch.randint(3, (3, 8, 8), generator=generator(2))
    cam = functional.one_hot(masks, 3).movedim(3, 1)[:, 1:].float()
    assert seed_miou(cam, masks, [0.0, 0.5, 0.99]).tolist() == [1, 1, 1]


def test_a_crf_that_does_nothing_returns_the_seeds(cam):
    images = torch.rand(4, 3, 12, 10, generator=generator(3))
    seeds = seed_labels(cam, 0.4, (12, 10))
    refined = refine_seeds(cam, images, 0.4, crf=partial(dense_crf, steps=0))
    assert torch.equal(refined, seeds)
    plain = refine_seeds(cam, images, 0.4, crf=lambda logits, _: logits.softmax(1))
    assert torch.equal(plain, seeds)


def test_probabilities_of_the_seed_and_of_what_else_is_shown(cam):
    given = []

    def crf(logits, images):
        given.append(logits.softmax(1))
        return given[-1]

    seeds = refine_seeds(cam, torch.rand(4, 3, 6, 5), 0.4, confidence=0.6, crf=crf)
    (p,) = given
    assert torch.equal(p.argmax(1), seeds)
    torch.testing.assert_close(p.amax(1)[:3], torch.full((3, 6, 5), 0.6))
    torch.testing.assert_close(p.amax(1)[3], torch.ones(6, 5))  # nothing else is shown
    # in the first image background, class 0 and class 2 are shown: two others share 0.4
    rest = p[0].sort(0).values[:3, 0, 0]
    torch.testing.assert_close(rest, torch.tensor([0.0, 0.2, 0.2]), atol=1e-6, rtol=0)
    assert p[0, 2].max() < 1e-6


def test_borders_move_to_those_of_the_image():
    images = torch.zeros(1, 3, 20, 20)
    images[:, :, :, 8:] = 1.0
    cam = torch.zeros(1, 1, 20, 20)
    cam[:, :, :, 10:] = 1.0  # two columns too narrow
    truth = (images[:, 0] > 0.5).long()
    crf = partial(dense_crf, position_scale=8.0, gaussian_scale=1.0)
    assert torch.equal(refine_seeds(cam, images, 0.5, crf=crf), truth)


def test_wrong_arguments_are_named(cam):
    with pytest.raises(ValueError, match="seed_labels: threshold"):
        seed_labels(cam, 1.0)
    with pytest.raises(ValueError, match="seed_miou: thresholds"):
        seed_miou(cam, torch.zeros(4, 6, 5, dtype=torch.int64), [0.5, -0.1])
    with pytest.raises(ValueError, match="seed_miou: cam must have shape"):
        seed_miou(cam, torch.zeros(3, 6, 5, dtype=torch.int64), [0.5])
    with pytest.raises(ValueError, match="refine_seeds: confidence"):
        refine_seeds(cam, torch.rand(4, 3, 6, 5), 0.5, confidence=1.0)
    with pytest.raises(ValueError, match="refine_seeds: cam must have shape"):
        refine_seeds(cam, torch.rand(3, 3, 6, 5), 0.5)
    with pytest.raises(TypeError, match="cam must be a floating"):
        seed_labels(cam.long(), 0.5)
