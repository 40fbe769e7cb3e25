import math

import pytest
import torch
from cv_segmentation.losses.pixelwise import (
    CrossEntropyLoss,
    FocalLoss,
    cross_entropy_loss,
    focal_loss,
)
from torch.nn import functional


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def labels(high, *shape):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1))


def test_cross_entropy_is_torchs():
    logits, target = draw(2, 3, 4, 5), labels(3, 2, 4, 5)
    target[0, 0] = 9
    expected = functional.cross_entropy(logits, target, ignore_index=9)
    found = cross_entropy_loss(logits, target, "multiclass", ignore_index=9)
    torch.testing.assert_close(found, expected)
    many = labels(2, 2, 3, 4, 5)
    expected = functional.binary_cross_entropy_with_logits(logits, many.double(), reduction="none")
    found = cross_entropy_loss(logits, many, "multilabel", reduction="none")
    torch.testing.assert_close(found, expected)


def test_focal_pixel_by_pixel():
    logits, target = draw(2, 1, 3, 4), labels(2, 2, 3, 4)
    found = focal_loss(logits, target, "binary", alpha=0.3, gamma=1.5, reduction="none")
    for n in range(2):
        for i in range(3):
            for j in range(4):
                p = 1 / (1 + math.exp(-float(logits[n, 0, i, j])))
                p, weight = (p, 0.3) if target[n, i, j] else (1 - p, 0.7)
                expected = -weight * (1 - p) ** 1.5 * math.log(p)
                assert float(found[n, 0, i, j]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("mode", "channels"), [("binary", 1), ("multiclass", 3)])
def test_focal_without_focus_is_cross_entropy(mode, channels):
    logits, target = draw(2, channels, 4, 5), labels(2, 2, 4, 5)
    plain = cross_entropy_loss(logits, target, mode)
    torch.testing.assert_close(focal_loss(logits, target, mode, gamma=0.0), plain)
    assert float(focal_loss(logits, target, mode)) < float(plain)


def test_mean_is_over_the_labels_that_count():
    logits, target = draw(2, 1, 4, 5), labels(2, 2, 4, 5)
    target[0] = 255
    found = cross_entropy_loss(logits, target, "binary", ignore_index=255)
    torch.testing.assert_close(found, cross_entropy_loss(logits[1:], target[1:], "binary"))


def test_options_are_refused_and_shown():
    with pytest.raises(ValueError, match="FocalLoss: gamma"):
        FocalLoss("binary", gamma=-1.0)
    with pytest.raises(ValueError, match="FocalLoss: alpha must lie"):
        FocalLoss("binary", alpha=1.5)
    with pytest.raises(ValueError, match="alpha weighs label 1 against label 0"):
        FocalLoss("multiclass", alpha=0.5)
    assert "gamma=3.0" in repr(FocalLoss("binary", gamma=3.0))
    assert "ignore_index=7" in repr(CrossEntropyLoss("binary", ignore_index=7))
