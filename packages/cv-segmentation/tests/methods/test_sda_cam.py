"""SDA-CAM as a whole: every class that is shown climbs by itself."""

from functools import partial

import pytest
import torch
from cv_segmentation.cam_classifier import CAMClassifier
from cv_segmentation.climbing import adversarial_climb
from cv_segmentation.methods.sda_cam import sda_cam
from torch import nn


@pytest.fixture
def model():
    return CAMClassifier(nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU()), 4, channels=6)


@pytest.fixture
def images():
    return torch.rand(5, 3, 12, 10, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]])


@pytest.mark.parametrize("batch_size", [2, 64])
def test_each_pair_of_image_and_class_climbs_alone(model, images, batch_size):
    climb = partial(adversarial_climb, steps=4, delta=0.5)
    found = sda_cam(model, images, LABELS, climb=climb, batch_size=batch_size)
    for n in range(5):
        for c in range(4):
            alone = climb(model, images[n : n + 1], c)[1][0]
            torch.testing.assert_close(found[n, c], LABELS[n, c] * alone)
    assert found.any()


def test_it_runs_in_inference_mode_and_on_few_images_at_once(model, images):
    sizes = []
    model.backbone.register_forward_hook(lambda _module, inputs, _: sizes.append(len(inputs[0])))
    climb = partial(adversarial_climb, steps=2)
    with torch.inference_mode():
        found = sda_cam(model, images, LABELS, climb=climb, batch_size=2)
    assert max(sizes) == 2
    assert torch.equal(found, sda_cam(model, images, LABELS, climb=climb, batch_size=2))


def test_without_steps_it_is_the_map_of_the_classes_shown(model, images):
    found = sda_cam(model, images, LABELS.bool(), climb=partial(adversarial_climb, steps=0))
    torch.testing.assert_close(found, model.cam(images) * LABELS[:, :, None, None])


def test_the_default_is_the_published_climb(model, images):
    expected = sda_cam(
        model, images, LABELS,
        climb=partial(adversarial_climb, steps=27, step_size=0.08, delta=7.0, beta=0.5),
    )  # fmt: skip
    assert torch.equal(sda_cam(model, images, LABELS), expected)
    assert not torch.allclose(expected, model.cam(images) * LABELS[:, :, None, None])


def test_wrong_arguments_are_named(model, images):
    with pytest.raises(ValueError, match="sda_cam: labels must have shape"):
        sda_cam(model, images, LABELS[:, :3])
    with pytest.raises(ValueError, match="sda_cam: batch_size"):
        sda_cam(model, images, LABELS, batch_size=0)
