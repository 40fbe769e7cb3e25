import pytest
import torch
from cv_core.experiment.trial import Settings, Trial
from cv_pruning._shared.small_images import small_images


def trial(**changes: int) -> Trial:
    settings = Settings({"images": 100, "test_images": 30, "largest_side": 16, **changes})
    return Trial(arm="", case="", seed=0, budget="smoke", source="digits", settings=settings)


def test_channels_of_the_training_part_are_standardised():
    found = small_images(trial())
    assert (found.x.shape, found.test_x.shape) == ((100, 1, 8, 8), (30, 1, 8, 8))
    assert float(found.x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(found.x.std()) == pytest.approx(1, abs=1e-4)
    assert found.classes == 10


def test_large_images_are_halved_by_means_of_four_pixels():
    full, half = small_images(trial()), small_images(trial(largest_side=4))
    assert torch.equal(full.y, half.y)
    quarters = full.x.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    expected = (quarters - quarters.mean()) / quarters.std()
    torch.testing.assert_close(half.x, expected, atol=1e-4, rtol=1e-4)
