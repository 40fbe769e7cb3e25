import sys

import numpy as np
import pytest
import torch
from cv_segmentation.overlays import OKABE_ITO, mask_grid, overlay_mask

pytest.importorskip("matplotlib", reason="pictures need the extra lab")


def draw(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_pixel_by_pixel(channels):
    image = draw(channels, 6, 7)
    mask = torch.zeros(6, 7, dtype=torch.int64)
    mask[1:5, 1:6] = 2
    mask[5, 6] = 9
    found = overlay_mask(image, mask, strength=0.4, ignore_index=9)
    assert found.dtype == np.float32
    for i in range(6):
        for j in range(7):
            bare = image[:, i, j].expand(3).numpy()
            colour = OKABE_ITO[2] if mask[i, j] == 2 else None
            rim = i in (1, 4) or j in (1, 5)
            cover = 0.0 if colour is None else 1.0 if rim else 0.4
            expected = (1 - cover) * bare + cover * np.array(colour or (0, 0, 0))
            np.testing.assert_allclose(found[i, j], expected, atol=1e-6)


def test_own_palette_and_the_border_of_the_image_is_a_rim():
    red, blue = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    mask = torch.zeros(3, 4, dtype=torch.uint8)
    mask[:, 2:] = 1
    found = overlay_mask(torch.ones(3, 3, 4), mask, (red, blue), strength=0.0)
    np.testing.assert_allclose(found[1, 1], red)
    np.testing.assert_allclose(found[1, 2], blue)
    wide = overlay_mask(torch.ones(3, 5, 5), torch.zeros(5, 5).long(), (red,), strength=0.0)
    np.testing.assert_allclose(wide[2, 2], 1.0)
    np.testing.assert_allclose(wide[0, 2], red)


def test_grid_shows_every_image_beside_its_masks():
    known = set(sys.modules)
    images = draw(2, 3, 8, 8)
    rng = torch.Generator().manual_seed(1)
    masks = {name: torch.randint(0, 3, (2, 8, 8), generator=rng) for name in ("truth", "guess")}
    figure = mask_grid(images, masks, classes=("sky", "road", "car"))
    assert "matplotlib.pyplot" not in set(sys.modules) - known
    axes = figure.get_axes()
    assert len(axes) == 6
    assert [axis.get_title() for axis in axes[:3]] == ["image", "truth", "guess"]
    shown = axes[5].get_images()[0].get_array()
    np.testing.assert_allclose(shown, overlay_mask(images[1], masks["guess"][1]))
    np.testing.assert_allclose(axes[3].get_images()[0].get_array(), images[1].permute(1, 2, 0))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["road", "car"]
    figure.draw_without_rendering()


def test_what_does_not_fit_is_refused():
    image, mask = draw(3, 4, 5), torch.zeros(4, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"overlay_mask: mask must lie in \[0, 7\]; got 8"):
        overlay_mask(image, mask + 8)
    with pytest.raises(TypeError, match="overlay_mask: mask must hold class indices"):
        overlay_mask(image, mask.float())
    with pytest.raises(ValueError, match="overlay_mask: mask must have shape"):
        overlay_mask(image, mask[1:])
    with pytest.raises(ValueError, match="image must lie in"):
        overlay_mask(2 * image, mask)
    with pytest.raises(ValueError, match="mask_grid: masks must hold"):
        mask_grid(image[None], {})
    with pytest.raises(ValueError, match="palette must have a colour for each of 9"):
        mask_grid(image[None], {"m": mask[None]}, classes=["c"] * 9)
