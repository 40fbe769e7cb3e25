"""Overlaps against torchvision, matching against a loop, precision on cases that can be counted."""

import pytest
import torch
from cv_core.metrics.detection import box_iou, match_boxes, mean_average_precision
from torchvision.ops import box_iou as peer_iou

NONE = torch.zeros(0, 4)


def boxes(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = 40 * torch.rand(n, 2, generator=generator)
    return torch.cat([corner, corner + 5 + 40 * torch.rand(n, 2, generator=generator)], 1)


def test_overlaps_equal_torchvisions():
    torch.testing.assert_close(box_iou(boxes(7), boxes(5, 1)), peer_iou(boxes(7), boxes(5, 1)))
    point = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert box_iou(point, point).item() == 0.0
    assert box_iou(NONE, boxes(2)).shape == (0, 2)


def slow_match(predicted, scores, target, threshold):
    overlap = peer_iou(predicted, target)
    taken, matches = set(), [-1] * len(predicted)
    for i in sorted(range(len(predicted)), key=lambda i: -float(scores[i])):
        free = [j for j in range(len(target)) if j not in taken]
        best = max(free, key=lambda j: float(overlap[i, j]), default=None)
        if best is not None and float(overlap[i, best]) >= threshold:
            taken.add(best)
            matches[i] = best
    return matches


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7])
def test_matches_equal_a_loop(threshold):
    for seed in range(10):
        predicted, target = boxes(12, seed), boxes(8, seed + 100)
        scores = torch.rand(12, generator=torch.Generator().manual_seed(seed))
        ours = match_boxes(predicted, scores, target, iou_threshold=threshold)
        assert ours.tolist() == slow_match(predicted, scores, target, threshold)


def test_the_better_scored_duplicate_takes_the_box():
    target = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    predicted = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
    assert match_boxes(predicted, torch.tensor([0.2, 0.9]), target).tolist() == [-1, 0]


def test_matching_without_boxes():
    assert match_boxes(NONE, torch.zeros(0), boxes(3)).tolist() == []
    assert match_boxes(boxes(3), torch.ones(3), NONE).tolist() == [-1, -1, -1]


def item(box, label=1, score=None):
    result = {"boxes": box, "labels": torch.full((len(box),), label)}
    return result if score is None else {**result, "scores": torch.as_tensor(score)}


def test_average_precision_of_cases_that_can_be_counted():
    truth = [item(boxes(2)), item(NONE), item(boxes(1, 5))]
    perfect = [
        item(boxes(2), score=[0.9, 0.8]),
        item(NONE, score=[]),
        item(boxes(1, 5), score=[0.7]),
    ]
    scores = mean_average_precision(perfect, truth)
    assert scores["map"] == pytest.approx(1.0)
    assert scores["mar_100"] == pytest.approx(1.0)
    nothing = [item(NONE, score=[]) for _ in truth]
    assert mean_average_precision(nothing, truth)["map"] == 0.0
    # the wrong box comes first: precision is 1/2 at every recall
    wrong_first = [item(torch.cat([boxes(1, 5) + 200, boxes(1, 5)]), score=[0.9, 0.5])]
    assert mean_average_precision(wrong_first, truth[2:])["map"] == pytest.approx(0.5)
    assert all(isinstance(value, float) for value in scores.values())


def test_refusals():
    truth, found = [item(boxes(1))], [item(boxes(1), score=[0.5])]
    with pytest.raises(ValueError, match="as many images"):
        mean_average_precision(found * 2, truth)
    with pytest.raises(ValueError, match="scores"):
        mean_average_precision(truth, truth)
    with pytest.raises(ValueError, match="xyxy"):
        mean_average_precision([item(boxes(1).flip(1), score=[0.5])], truth)
    with pytest.raises(ValueError, match=r"\(0, 4\) for none"):
        box_iou(torch.zeros(0), boxes(1))
    with pytest.raises(ValueError, match="one entry per box"):
        match_boxes(boxes(2), torch.ones(3), boxes(1))
