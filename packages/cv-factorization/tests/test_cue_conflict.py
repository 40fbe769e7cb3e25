import pytest
import torch
from cv_core.data.sources import load
from cv_factorization.cue_conflict import cue_conflict, gratings


def made(count=200, seed=0, **options):
    digits = load("digits")
    generator = torch.Generator().manual_seed(seed)
    x, y = digits.train_x[:count], digits.train_y[:count]
    return y, cue_conflict(x, y, generator=generator, **options)


@pytest.mark.parametrize(("correlation", "share"), [(0.0, 0.1), (1.0, 1.0), (0.5, 0.55)])
def test_cues_are_tied_as_often_as_asked(correlation, share):
    y, found = made(800, correlation=correlation)
    assert torch.equal(found.shape, y)
    same = float((found.shape == found.texture).float().mean())
    assert abs(same - share) <= 4 * (share * (1 - share) / 800) ** 0.5


def test_brightness_tells_nothing_and_ground_is_grey():
    _, found = made()
    assert 0.0 <= float(found.images.min()) <= float(found.images.max()) <= 1.0
    assert bool((found.images[:, :, 0, 0] == 0.5).all())
    assert float((found.images == 0.5).float().mean()) > 0.3
    means = found.images.mean(dim=(1, 2, 3))
    assert float((means - 0.5).abs().max()) < 0.03


def test_gratings_have_their_period_and_direction():
    texture = torch.arange(4)
    found = gratings(texture, torch.zeros(4), n_textures=4, size=30)
    for index, (axis, period) in enumerate([(1, 3), (1, 5), (0, 3), (0, 5)]):
        torch.testing.assert_close(found[index].roll(period, axis), found[index], rtol=0, atol=1e-4)
        across = found[index].roll(1, 1 - axis)
        torch.testing.assert_close(across, found[index], rtol=0, atol=1e-4)
        assert float((found[index].roll(1, axis) - found[index]).abs().max()) > 0.3


def test_same_generator_makes_the_same_images_and_another_others():
    assert torch.equal(made(20)[1].images, made(20)[1].images)
    assert not torch.equal(made(20)[1].texture, made(20, seed=1)[1].texture)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_textures": 1}, "n_textures must be at least 2"),
        ({"correlation": 1.5}, "correlation must lie in"),
        ({"size": 4}, "size must be at least 8"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(5, **options)
