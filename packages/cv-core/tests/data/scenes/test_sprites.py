import numpy as np
import pytest
from cv_core.data.scenes.sprites import opacity


def _disc(size):
    place = np.arange(size) - (size - 1) / 2
    return (np.hypot(place[:, None], place[None, :]) < size / 3).astype(np.float32)


@pytest.mark.parametrize("side", [5, 13, 40])
@pytest.mark.parametrize("appearance", ["ink", "garment"])
def test_a_disc_keeps_its_area_at_every_size(side, appearance):
    alpha, shade = opacity(_disc(90), side, appearance)
    assert alpha.shape == shade.shape
    assert abs(alpha.shape[0] - side) <= 2
    assert alpha.sum() == pytest.approx(np.pi * side**2 / 4, rel=0.25 if side == 5 else 0.1)
    np.testing.assert_allclose(alpha, alpha.T, atol=1e-6)
    np.testing.assert_allclose(alpha, alpha[::-1, ::-1], atol=1e-6)


def test_trimmed_and_independent_of_where_and_how_bright_the_ink_is():
    glyph = np.zeros((20, 30), np.float32)
    glyph[3:11, 20:25] = np.random.default_rng(0).uniform(0.3, 1.0, (8, 5))
    moved = np.roll(glyph, (7, -15), axis=(0, 1))
    alpha, _ = opacity(glyph, 17)
    np.testing.assert_array_equal(opacity(moved, 17)[0], alpha)
    np.testing.assert_allclose(opacity(moved * np.float32(0.5), 17)[0], alpha, atol=1e-6)
    for line in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
        assert line.max() > 0


def test_a_garment_is_filled_and_ink_is_not():
    ring = _disc(60) - np.pad(_disc(30), 15)
    ink, _ = opacity(ring, 30)
    cloth, shade = opacity(ring, 30, "garment")
    middle = (cloth.shape[0] // 2, cloth.shape[1] // 2)
    assert ink[ink.shape[0] // 2, ink.shape[1] // 2] == 0.0
    assert cloth[middle] == 1.0
    assert shade[middle] == pytest.approx(0.0, abs=1e-6)  # the print in the middle stays dark
