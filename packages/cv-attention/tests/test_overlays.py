import sys

import numpy as np
import pytest
import torch
from cv_attention.overlays import explanation_grid, overlay

mpl = pytest.importorskip("matplotlib", reason="pictures need the extra lab")


def draw(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_positive_map_pixel_by_pixel():
    image, values = draw(3, 4, 5), draw(4, 5)
    found = overlay(image, values, strength=0.6)
    assert found.dtype == np.float32
    span = values.double() - values.double().min()
    top = np.quantile(span.numpy(), 0.995)
    for i in range(4):
        for j in range(5):
            weight = min(1.0, float(span[i, j]) / top)
            colour = mpl.colormaps["plasma"](weight)[:3]
            grey = float(image[:, i, j].mean())
            expected = [(1 - 0.6 * weight) * grey + 0.6 * weight * part for part in colour]
            np.testing.assert_allclose(found[i, j], expected, atol=1e-6)


def test_signs_have_their_colours_and_no_evidence_is_grey():
    values = torch.tensor([[2.0, -2.0, 0.0, 1.0]])
    found = overlay(torch.full((1, 1, 4), 0.5), values)
    red, blue = found[0, 0], found[0, 1]
    assert red[0] > 0.5 > red[2]
    assert blue[2] > 0.5 > blue[0]
    np.testing.assert_allclose(found[0, 2], 0.5, atol=1e-6)
    between = (found[0, 3, 0] - found[0, 3, 2], red[0] - red[2])
    assert 0 < between[0] < between[1]


def test_a_constant_map_leaves_the_grey_image():
    image = draw(3, 4, 5)
    grey = image.mean(0)[:, :, None].expand(4, 5, 3)
    for value in (0.0, 3.0):
        found = overlay(image, torch.full((4, 5), value))
        np.testing.assert_allclose(found, grey.numpy(), atol=1e-6)


def test_one_outlier_does_not_darken_the_rest():
    values = draw(20, 20)
    spoilt = values.clone()
    spoilt[3, 3] = 1e6
    image = draw(3, 20, 20)
    apart = np.abs(overlay(image, values) - overlay(image, spoilt)).max(2)
    assert (apart > 0.05).sum() <= 4


def test_grid_shows_every_image_beside_its_maps():
    images = draw(2, 1, 8, 8)
    maps = {"first": draw(2, 8, 8), "second": draw(2, 8, 8) - 0.5}
    loaded = set(sys.modules)
    figure = explanation_grid(images, maps, titles=["a", "b"])
    assert "matplotlib.pyplot" not in set(sys.modules) - loaded
    axes = figure.get_axes()
    assert len(axes) == 6
    assert [item.get_title() for item in axes] == ["image", "first", "second", "", "", ""]
    assert [item.get_ylabel() for item in axes] == ["a", "", "", "b", "", ""]
    for row in range(2):
        picture, first, second = (axes[3 * row + k].get_images()[0].get_array() for k in range(3))
        for channel in range(3):
            np.testing.assert_array_equal(picture[:, :, channel], images[row, 0].numpy())
        np.testing.assert_array_equal(first, overlay(images[row], maps["first"][row]))
        np.testing.assert_array_equal(second, overlay(images[row], maps["second"][row]))


def test_bad_use_is_refused():
    image, values = draw(3, 4, 5), draw(4, 5)
    with pytest.raises(ValueError, match="Draw it as it was before it was normalised"):
        overlay(image * 2 - 1, values)
    with pytest.raises(ValueError, match="the number of image channels must be one of 1, 3; got 2"):
        overlay(image[:2], values)
    with pytest.raises(ValueError, match=r"heatmap must have shape \(h, w\) with h=4, w=5"):
        overlay(image, values.T)
    with pytest.raises(ValueError, match="heatmap must be finite"):
        overlay(image, values * torch.nan)
    with pytest.raises(ValueError, match="strength must lie in"):
        overlay(image, values, strength=1.5)
    with pytest.raises(ValueError, match="maps must hold at least one"):
        explanation_grid(image[None], {})
    with pytest.raises(ValueError, match=r"maps\['a'\] must have shape"):
        explanation_grid(image[None], {"a": values[None, :3]})
    with pytest.raises(ValueError, match="titles must be 1, one per image; got 2"):
        explanation_grid(image[None], {"a": values[None]}, titles=["x", "y"])
