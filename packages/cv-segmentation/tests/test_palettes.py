import numpy as np
import pytest
import torch
from cv_segmentation.overlays import OKABE_ITO, overlay_mask
from cv_segmentation.palettes import class_palette, write_mask
from PIL import Image


@pytest.mark.parametrize("bare", [True, False])
def test_colours_differ(bare):
    palette = class_palette(40, bare_first=bare)
    assert len(palette) == 40
    assert (palette[0] is None) == bare
    colours = [colour for colour in palette if colour is not None]
    assert colours[:7] == list(OKABE_ITO[1:])
    assert len({tuple(round(255 * part) for part in colour) for colour in colours}) == len(colours)
    assert all(0.0 <= part <= 1.0 for colour in colours for part in colour)
    image = overlay_mask(torch.zeros(3, 5, 8), torch.arange(40).view(5, 8), palette)
    assert np.isfinite(image).all()


def test_masks_come_back_as_they_were(tmp_path):
    mask = torch.arange(12).view(3, 4)
    palette = class_palette(12)
    path = write_mask(tmp_path / "a.png", mask, palette)
    assert path == tmp_path / "a.png"
    with Image.open(path) as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), mask.numpy())
        shown = np.asarray(picture.convert("RGB"))
    assert shown[0, 0].tolist() == [0, 0, 0]
    assert shown[0, 1].tolist() == [round(255 * part) for part in palette[1]]


def test_many_classes_are_written_in_sixteen_bits(tmp_path):
    mask = torch.tensor([[0, 255, 256, 299]])
    for classes in (256, 300):
        labels = mask.clamp(max=classes - 1)
        path = write_mask(tmp_path / "a.png", labels, class_palette(classes))
        with Image.open(path) as picture:
            assert np.array_equal(np.asarray(picture), labels.numpy())


def test_bad_masks(tmp_path):
    with pytest.raises(ValueError, match=r"mask must lie in \[0, 1\]; got 2"):
        write_mask(tmp_path / "a.png", torch.tensor([[2]]), class_palette(2))
    with pytest.raises(ValueError, match=r"mask must lie in \[0, 1\]; got -1"):
        write_mask(tmp_path / "a.png", torch.tensor([[-1]]), class_palette(2))
    with pytest.raises(TypeError, match="class indices"):
        write_mask(tmp_path / "a.png", torch.zeros(2, 2), class_palette(2))
    with pytest.raises(ValueError, match="shape"):
        write_mask(tmp_path / "a.png", torch.zeros(1, 2, 2).long(), class_palette(2))
    with pytest.raises(ValueError, match="classes must be at least 1"):
        class_palette(0)
    assert not list(tmp_path.iterdir())
