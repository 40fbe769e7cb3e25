import numpy as np
import pytest
import torch
from cv_core.data.scenes.clutter import cluttered_digits


def test_masks_boxes_and_prefix():
    data = cluttered_digits(12, 0, 48)
    for mask, box in zip(data.masks, data.boxes.tolist(), strict=True):
        rows, columns = mask.nonzero().T
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    fewer = cluttered_digits(5, 0, 48)
    assert torch.equal(fewer.images, data.images[:5])
    assert torch.equal(fewer.labels, data.labels[:5])
    assert len(data.labels.unique()) > 3


def test_without_fragments_only_the_digit_is_left():
    clean = cluttered_digits(10, 1, 40, fragments=0)
    assert torch.equal(clean.images[:, 0] > 0, clean.masks)
    assert float(clean.images.amax(dim=(1, 2, 3)).min()) > 0.9
    cluttered = cluttered_digits(10, 1, 40, fragments=12)
    outside = (cluttered.images[:, 0] > 0) & ~cluttered.masks
    assert float(outside.double().mean()) > 0.05


def test_the_digit_lies_whole_on_top():
    block = np.ones((2, 6, 6), np.float32)  # a square glyph, opaque but for its rim
    data = cluttered_digits(20, 0, 32, glyphs=block, labels=[4, 4], fragments=5, fragment=6)
    assert data.labels.tolist() == [4] * 20
    for image, box in zip(data.images[:, 0], data.boxes.long().tolist(), strict=True):
        x0, y0, x1, y1 = box
        assert float(image[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].min()) == 1.0


def test_fragments_are_no_larger_than_said():
    data = cluttered_digits(30, 2, 64, fragments=1, fragment=5)
    for image, mask in zip(data.images[:, 0], data.masks, strict=True):
        rest = ((image > 0) & ~mask).nonzero()
        if len(rest):
            assert int((rest.amax(dim=0) - rest.amin(dim=0)).max()) < 5


def test_nothing_and_refusals():
    assert cluttered_digits(0, 0).boxes.shape == (0, 4)
    with pytest.raises(ValueError, match="given together"):
        cluttered_digits(1, 0, glyphs=np.ones((1, 8, 8)))
    with pytest.raises(ValueError, match="size must be at least 16"):
        cluttered_digits(1, 0, 8)
