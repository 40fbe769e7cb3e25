"""Spatial features of pairs, scores of detections, HICO-Det's mean average precision."""

import math

import pytest
import torch
from cv_core.random import torch_generator
from cv_graph.interactions import hoi_mean_ap, interaction_scores, pair_spatial_features


def boxes(count, name="boxes", *lead):
    corners = torch.rand(
        *lead, count, 2, 2, generator=torch_generator(0, name), dtype=torch.float64
    )
    low = 40 * corners.amin(-2)
    return torch.cat([low, low + 1 + 20 * corners.amax(-2)], dim=-1)


def slow(a, b, size, origin):
    """One pair, number by number."""
    u = [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]
    w, h = u[2] - u[0], u[3] - u[1]
    left, top = (u[0], u[1]) if origin == "union" else (0.0, 0.0)
    numbers = []
    for box in (a, b):
        numbers += [(box[0] - left) / w, (box[1] - top) / h]
        numbers += [(box[2] - left) / w, (box[3] - top) / h]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    numbers += [area / (w * h) for area in areas] + [area / (size[0] * size[1]) for area in areas]
    numbers += [(a[0] - b[0]) / (b[2] - b[0]), (a[1] - b[1]) / (b[3] - b[1])]
    numbers += [math.log((a[2] - a[0]) / (b[2] - b[0])), math.log((a[3] - a[1]) / (b[3] - b[1]))]
    return numbers


@pytest.mark.parametrize("origin", ["union", "image"])
def test_spatial_features_against_a_slow_loop(origin):
    a, b = boxes(3, "a"), boxes(4, "b")
    found = pair_spatial_features(a, b, (64, 80), origin=origin)
    expected = [[slow(i, j, (64, 80), origin) for j in b.tolist()] for i in a.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    batch = pair_spatial_features(a[None], b[None], (64, 80), origin=origin)
    assert torch.equal(batch[0], found)


def test_from_the_unions_corner_only_the_image_area_sees_a_scale():
    """Property 5."""
    a, b, move = boxes(3, "a"), boxes(4, "b"), torch.tensor([5.0, -3.0, 5.0, -3.0])
    plain = pair_spatial_features(a, b, (64, 80))
    torch.testing.assert_close(pair_spatial_features(a + move, b + move, (64, 80)), plain)
    scaled = pair_spatial_features(3 * a, 3 * b, (64, 80))
    of_image = torch.zeros(16, dtype=torch.bool)
    of_image[10:12] = True
    torch.testing.assert_close(scaled[..., ~of_image], plain[..., ~of_image])
    torch.testing.assert_close(scaled[..., of_image], 9 * plain[..., of_image])


def test_as_printed_the_first_eight_numbers_move():
    """Property 5."""
    a, b, move = boxes(3, "a"), boxes(4, "b"), torch.tensor([5.0, -3.0, 5.0, -3.0])
    pair = [pair_spatial_features(a + m, b + m, (64, 80), origin="image") for m in (0 * move, move)]
    changed = ((pair[0] - pair[1]).abs() > 1e-9).flatten(0, 1)
    assert changed[:, :8].all()
    assert not changed[:, 8:].any()


def test_scores_of_other_objects_are_zero():
    scores = torch.tensor([[0.5, 0.4, 0.2], [0.1, 0.8, 0.6]])
    found = interaction_scores(
        scores,
        torch.tensor([0, 1, 0]),
        torch.tensor([0, 1]),
        subject_score=torch.tensor([0.5, 1.0]),
        object_score=torch.tensor([1.0, 0.5]),
    )
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.0, 0.1], [0.0, 0.4, 0.0]]))


NEAR, FAR = [0.0, 0.0, 4.0, 4.0], [10.0, 10.0, 14.0, 14.0]


def found(rows):
    """An image's predictions from rows (subject, object, scores)."""
    subject, target, scores = zip(*rows, strict=True)
    return {
        "subject_boxes": torch.tensor(subject),
        "object_boxes": torch.tensor(target),
        "scores": torch.tensor(scores),
    }


def real(rows):
    """An image's annotations from rows (subject, object, label)."""
    if not rows:
        return {"subject_boxes": torch.zeros(0, 4), "object_boxes": torch.zeros(0, 4),
                "labels": torch.zeros(0, dtype=torch.long)}  # fmt: skip
    subject, target, labels = zip(*rows, strict=True)
    return {
        "subject_boxes": torch.tensor(subject),
        "object_boxes": torch.tensor(target),
        "labels": torch.tensor(labels),
    }


def test_mean_ap_by_hand():
    """Label 0: right, wrong, right; label 1: never found; label 2: not annotated."""
    predictions = [
        found([(NEAR, FAR, [0.9, 0.1, 0.1]), (FAR, NEAR, [0.8, 0.0, 0.3])]),
        found([(NEAR, FAR, [0.7, 0.2, 0.0])]),
    ]
    targets = [real([(NEAR, FAR, 0), (FAR, FAR, 1)]), real([(NEAR, FAR, 0)])]
    counts = torch.tensor([30, 9, 3])
    plain = hoi_mean_ap(predictions, targets, train_counts=counts, interpolation="none")
    assert plain.per_label[:2].tolist() == pytest.approx([(1 + 2 / 3) / 2, 0.0])
    assert math.isnan(plain.per_label[2])
    assert (plain.full, plain.rare, plain.non_rare) == pytest.approx((5 / 12, 0.0, 5 / 6))
    eleven = hoi_mean_ap(predictions, targets, train_counts=counts)
    assert eleven.non_rare == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert math.isnan(hoi_mean_ap(predictions, targets).rare)


def test_both_boxes_have_to_overlap():
    target = [real([(NEAR, FAR, 0)])]
    shifted = [[0.0, 0.0, 4.0, 3.0], [10.0, 10.0, 14.0, 13.0]]  # an overlap of 3/4
    for subject, other, expected in (
        (shifted[0], shifted[1], 1.0), (NEAR, NEAR, 0.0), (FAR, FAR, 0.0), (NEAR, FAR, 1.0),
    ):  # fmt: skip
        prediction = [found([(subject, other, [0.5])])]
        assert hoi_mean_ap(prediction, target).full == pytest.approx(expected)
    prediction = [found([(shifted[0], FAR, [0.5])])]
    assert hoi_mean_ap(prediction, target, iou_threshold=0.76).full == 0.0


def test_a_second_box_on_one_annotation_is_wrong():
    twice = [found([(NEAR, FAR, [0.9]), (NEAR, FAR, [0.8])])]
    one, two = [real([(NEAR, FAR, 0)])], [real([(NEAR, FAR, 0)] * 2)]
    assert hoi_mean_ap(twice, one, interpolation="none").full == 1.0
    # of two equal annotations the nearest is the first one for both predictions, as in HICO-Det
    assert hoi_mean_ap(twice, two, interpolation="none").full == 0.5


def test_a_score_of_zero_is_no_prediction():
    target = [real([(NEAR, FAR, 0)]), real([])]
    silent = [found([(NEAR, FAR, [0.0])]), found([(NEAR, FAR, [0.4])])]
    spoken = [found([(NEAR, FAR, [0.1])]), found([(NEAR, FAR, [0.4])])]
    assert hoi_mean_ap(silent, target, interpolation="none").full == 0.0
    assert hoi_mean_ap(spoken, target, interpolation="none").full == 0.5


def test_mean_ap_of_images_without_boxes():
    nothing = {"subject_boxes": torch.zeros(0, 4), "object_boxes": torch.zeros(0, 4),
               "scores": torch.zeros(0, 1)}  # fmt: skip
    assert hoi_mean_ap([nothing], [real([(NEAR, FAR, 0)])]).full == 0.0
    assert math.isnan(hoi_mean_ap([nothing], [real([])]).full)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pair_spatial_features(torch.zeros(1, 4), torch.rand(1, 4), (8, 8)),
         ValueError, "pair_spatial_features: boxes_a must be xyxy with left < right"),
        (lambda: pair_spatial_features(boxes(2), boxes(2, "b", 3), (8, 8)),
         ValueError, "leading axes"),
        (lambda: pair_spatial_features(boxes(2), boxes(2), (0, 8)), ValueError, "image_size"),
        (lambda: pair_spatial_features(boxes(2), boxes(2), (8, 8), origin="unions"),
         ValueError, "Did you mean 'union'"),
        (lambda: interaction_scores(torch.rand(2, 3), torch.zeros(2), torch.zeros(2)),
         ValueError, "interaction_scores: label_object"),
        (lambda: hoi_mean_ap([], []), ValueError, "hoi_mean_ap: .*at least one"),
        (lambda: hoi_mean_ap([found([(NEAR, FAR, [-0.1])])], [real([])]), ValueError, "at least 0"),
        (lambda: hoi_mean_ap([found([(NEAR, FAR, [torch.nan])])], [real([])]),
         ValueError, "no NaN"),
        (lambda: hoi_mean_ap([found([(NEAR, FAR, [0.1])])], [real([(NEAR, FAR, 1)])]),
         ValueError, "labels must lie in"),
        (lambda: hoi_mean_ap([{"scores": torch.rand(1, 1)}], [real([])]), ValueError, "must have"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
