import numpy as np
import pytest
import torch
from cv_core.data.scenes.backgrounds import sample_photographs
from cv_core.data.scenes.dataset import SceneDataset, detection_batch, segmentation_batch
from cv_core.data.scenes.spec import SceneSpec
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader


@pytest.fixture(scope="module")
def dataset():
    data = load_digits()
    glyphs = (data.images / 16).astype(np.float32)
    photographs = sample_photographs((0.25,))
    return SceneDataset(SceneSpec(), glyphs, data.target, photographs, length=10, seed=3)


def test_a_scene_does_not_depend_on_the_order_of_access(dataset):
    forward = [dataset[i].image for i in range(10)]
    for index in (7, 2, 9, -1, 0):
        assert torch.equal(dataset[index].image, forward[index])
    assert len({image.numpy().tobytes() for image in forward}) == 10
    assert [scene.caption for scene in dataset] == [dataset[i].caption for i in range(10)]


def test_global_generators_stay_as_they_were(dataset):
    before = torch.get_rng_state()
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - the global one is what is checked
    dataset[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_batches_for_detection_and_segmentation(dataset):
    images, targets = next(iter(DataLoader(dataset, batch_size=4, collate_fn=detection_batch)))
    assert [torch.equal(image, dataset[i].image) for i, image in enumerate(images)] == [True] * 4
    assert all(torch.equal(t["boxes"], dataset[i].boxes) for i, t in enumerate(targets))
    stack, masks = segmentation_batch([dataset[0], dataset[1]])
    assert torch.equal(stack[1], dataset[1].image)
    assert torch.equal(masks[1], dataset[1].semantic_mask())


def test_photographs_are_real_and_shrink_by_averaging():
    large, small = sample_photographs((1.0, 0.25))[::2]
    assert large.shape == (3, 427, 640)
    assert small.shape == (3, 107, 160)
    for image in (large, small):
        assert 0.0 <= image.min() < 0.1
        assert 0.9 < image.max() <= 1.0
    np.testing.assert_allclose(large.mean(axis=(1, 2)), small.mean(axis=(1, 2)), atol=5e-3)


def test_refusals(dataset):
    with pytest.raises(IndexError, match="outside a set of 10"):
        dataset[10]
    given = (dataset.glyphs, dataset.labels)
    with pytest.raises(ValueError, match=r"at least \(200, 64\)"):
        SceneDataset(SceneSpec(height=200), *given, dataset.backgrounds, length=1, seed=0)
    with pytest.raises(ValueError, match="label must be"):
        SceneDataset(SceneSpec(names=("a",)), *given, dataset.backgrounds, length=1, seed=0)
