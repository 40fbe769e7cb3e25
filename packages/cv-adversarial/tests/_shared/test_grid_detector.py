"""The grid detector: boxes there and back, the assignment, the loss, what is kept."""

import math

import pytest
import torch
from cv_adversarial._shared.grid_detector import (
    GridDetector,
    GridMaps,
    cell_centres,
    cell_targets,
    decode,
    detections,
    encode,
    grid_loss,
)

BOXES = torch.tensor([[0.0, 0.0, 10.0, 12.0], [20.0, 9.0, 31.0, 30.0]])
LABELS = torch.tensor([2, 0])


def perfect(confidence=8.0):
    """Maps that say exactly what the targets of ``BOXES`` in a 32 x 40 image are."""
    classes, offsets = cell_targets(BOXES, LABELS, (32, 40))
    logits = torch.full((1, 20), -confidence).masked_fill(classes >= 0, confidence)
    named = torch.zeros(1, 20, 3)
    named[0, torch.arange(20), classes.clamp(min=0)] = confidence
    return GridMaps(logits, named, offsets[None]), classes[None], offsets[None]


def test_centres_and_offsets_by_hand():
    centres = cell_centres(16, 24)
    assert centres.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    box = torch.tensor([4.0, 0.0, 36.0, 16.0])  # centre (20, 8), sides 32 and 16
    expected = torch.tensor([1.0, -0.5, 0.0, math.log(0.5)])
    torch.testing.assert_close(encode(box, torch.tensor([12.0, 12.0])), expected)


def test_decoding_undoes_encoding():
    centres = torch.tensor([[4.0, 4.0], [28.0, 20.0]])
    torch.testing.assert_close(decode(encode(BOXES, centres), centres), BOXES)


def test_objects_go_to_the_cells_of_their_centres():
    classes, _ = cell_targets(BOXES, LABELS, (32, 40))
    assert classes[0] == 2  # centre (5, 6)
    assert classes[2 * 5 + 3] == 0  # centre (25.5, 19.5): row 2, column 3
    assert int((classes >= 0).sum()) == 2


def test_loss_is_small_where_the_maps_are_right_and_grows_with_each_error():
    maps, classes, offsets = perfect()
    least = float(grid_loss(maps, classes, offsets))
    assert 0 < least < 0.02
    for wrong in (
        maps._replace(objectness=-maps.objectness),
        maps._replace(classes=-maps.classes),
        maps._replace(offsets=maps.offsets + 0.5),
    ):
        assert float(grid_loss(wrong, classes, offsets)) > least + 0.5


@pytest.mark.parametrize("score", ["objectness", "product"])
def test_what_is_right_is_found(score):
    (found,) = detections(perfect()[0], (32, 40), threshold=0.5, score=score)
    order = found["labels"].argsort(descending=True)
    torch.testing.assert_close(found["boxes"][order], BOXES)
    assert found["labels"][order].tolist() == [2, 0]


def test_scores_and_thresholds():
    maps, _, _ = perfect(confidence=1.0)
    share = math.exp(1) / (math.exp(1) + 2)
    objectness = 1 / (1 + math.exp(-1))
    (found,) = detections(maps, (32, 40), threshold=0.5, score="product")
    assert len(found["boxes"]) == 0, "0.73 x 0.58 is below one half"
    (found,) = detections(maps, (32, 40), threshold=0.4, score="product")
    assert found["scores"].tolist() == pytest.approx([objectness * share] * 2)
    (found,) = detections(maps, (32, 40), threshold=0.5)
    assert found["scores"].tolist() == pytest.approx([objectness] * 2)


def test_of_overlapping_boxes_of_one_class_the_best_is_kept():
    centres = cell_centres(8, 16)
    offsets = encode(torch.tensor([[2.0, 0.0, 14.0, 8.0]]).repeat(2, 1), centres)[None]
    objectness = torch.tensor([[1.0, 2.0]])
    same = GridMaps(objectness, torch.tensor([[[5.0, 0.0], [5.0, 0.0]]]), offsets)
    (found,) = detections(same, (8, 16), threshold=0.5)
    torch.testing.assert_close(found["scores"], torch.tensor([2.0]).sigmoid())
    other = same._replace(classes=torch.tensor([[[5.0, 0.0], [0.0, 5.0]]]))
    (found,) = detections(other, (8, 16), threshold=0.5)
    assert found["labels"].tolist() == [1, 0]


def test_maps_are_laid_out_in_rows_and_sizes_are_checked():
    detector = GridDetector(3, width=2).eval()
    x = torch.rand(1, 3, 16, 24)
    maps = detector(x)
    rows = detector.objectness(detector.features(x))[0, 0].flatten()
    assert torch.equal(maps.objectness[0], rows)
    assert (maps.classes.shape, maps.offsets.shape) == ((1, 6, 3), (1, 6, 4))
    with pytest.raises(ValueError, match="GridDetector: x must have sides divisible by 8"):
        detector(torch.rand(1, 3, 12, 16))
