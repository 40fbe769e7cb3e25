import pytest
import torch
from cv_attention.localization import heatmap_to_box, localization_error


def draws(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def parts_of(mask):
    """Connected parts by flooding, in reading order; pixels touch at sides and corners."""
    height, width = mask.shape
    left = {(y, x) for y in range(height) for x in range(width) if mask[y, x]}
    found = []
    for start in sorted(left):
        if start not in left:
            continue
        part, edge = set(), [start]
        while edge:
            y, x = edge.pop()
            if (y, x) in left:
                left.remove((y, x))
                part.add((y, x))
                edge += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        found.append(part)
    return found


def box_of(part):
    rows, columns = zip(*part, strict=True)
    return [min(columns), min(rows), max(columns) + 1, max(rows) + 1]


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.7, 0.95, 1.0])
def test_boxes_against_flooding(threshold):
    heat = draws(20, 7, 9) * 4 - 1
    largest = heatmap_to_box(heat, threshold).tolist()
    everything = heatmap_to_box(heat, threshold, largest_component=False).tolist()
    for image, one, whole in zip(heat.double(), largest, everything, strict=True):
        # the threshold's place is computed in single precision: pixels very near it may differ
        share = (image - image.min()) / (image.max() - image.min())
        assert (share - threshold).abs()[share < 1 - 1e-6].min() > 1e-6 or threshold == 0.0
        parts = parts_of(share >= threshold)
        assert one == box_of(max(parts, key=len))  # max takes the first of equal ones
        assert whole == box_of(set().union(*parts))


def test_the_largest_part_wins_and_corners_touch():
    heat = torch.zeros(2, 8, 8)
    heat[0, 0, 0] = 5.0  # the maximum, alone
    heat[0, 3, 3] = heat[0, 4, 4] = heat[0, 5, 3] = 2.0
    heat[1, 7, :3] = 1.0
    assert heatmap_to_box(heat).tolist() == [[3, 3, 5, 6], [0, 7, 3, 8]]
    assert heatmap_to_box(heat, 0.5).tolist()[0] == [0, 0, 1, 1]
    assert heatmap_to_box(heat, largest_component=False).tolist()[0] == [0, 0, 5, 6]


def test_parts_do_not_connect_over_the_batch():
    heat = torch.zeros(3, 5, 5)
    heat[:, 2, 2] = 1.0
    heat[1, 2, 3] = 1.0
    assert heatmap_to_box(heat).tolist() == [[2, 2, 3, 3], [2, 2, 4, 3], [2, 2, 3, 3]]


def test_only_the_shape_of_a_map_counts():
    heat = draws(6, 8, 8).double()
    boxes = heatmap_to_box(heat, 0.6)
    for other in (3 * heat, heat - 10, 0.01 * heat + 5):
        assert torch.equal(heatmap_to_box(other, 0.6), boxes)


def test_a_constant_map_says_everywhere():
    for value in (0.0, -2.0, 0.3):
        heat = torch.full((1, 4, 6), value)
        assert heatmap_to_box(heat).tolist() == [[0, 0, 6, 4]]


def test_errors_of_boxes():
    truth = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).expand(4, -1)
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 1.9], [8, 8, 9, 9]])
    assert localization_error(boxes, truth).tolist() == [0, 0, 1, 1]  # 0.5 itself is no error
    assert localization_error(boxes, truth, iou=0.51).tolist() == [0, 1, 1, 1]
    right = torch.tensor([False, True, True, True])
    assert localization_error(boxes, truth, correct=right).tolist() == [1, 0, 1, 1]


def test_errors_of_many_boxes_in_a_loop():
    corner, size = 10 * draws(150, 2), 5 * draws(150, 2, seed=1)
    boxes = torch.cat([corner, corner + size], 1)
    truth = boxes + draws(150, 1, seed=2)
    for one, other, found in zip(
        boxes.tolist(), truth.tolist(), localization_error(boxes, truth).tolist(), strict=True
    ):
        width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
        height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
        overlap = width * height / (sum(areas) - width * height)
        assert abs(overlap - 0.5) > 1e-5
        assert found == (overlap < 0.5)


def test_wrong_arguments_are_named():
    heat, boxes = torch.rand(2, 4, 4), torch.rand(2, 4).cumsum(1)
    with pytest.raises(ValueError, match="heatmap_to_box: threshold must lie in"):
        heatmap_to_box(heat, 1.1)
    with pytest.raises(ValueError, match="heatmap_to_box: heat must be finite"):
        heatmap_to_box(heat.log() * 0 + torch.nan)
    with pytest.raises(ValueError, match="heatmap_to_box: heat must have shape"):
        heatmap_to_box(heat[0])
    with pytest.raises(TypeError, match="heatmap_to_box: heat must be a floating"):
        heatmap_to_box(heat > 0)
    with pytest.raises(ValueError, match="localization_error: boxes and target must have the same"):
        localization_error(boxes, boxes[:1])
    with pytest.raises(ValueError, match="localization_error: iou must lie in"):
        localization_error(boxes, boxes, iou=0.0)
    with pytest.raises(TypeError, match="localization_error: correct must be of type bool"):
        localization_error(boxes, boxes, correct=torch.ones(2))
