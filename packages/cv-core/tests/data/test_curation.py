import math

import numpy as np
import pytest
import torch
from cv_core.data.curation import (
    balance_report,
    balanced_subset,
    cap_per_group,
    drop_conflicting_groups,
    per_group_report,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, recall_score

# Composition of FDEA as the paper prints it: Caucasian, Asian, African, total of each source.
COMPOSITION = {
    "LFWA": (6_006, 514, 265, 6_785),
    "UTKFace": (8_493, 2_336, 4_124, 14_953),
    "MORPH": (7_584, 151, 12_874, 20_609),
    "CelebA": (10_358, 9_852, 9_942, 30_152),
    "FairFace": (17_765, 25_946, 14_636, 58_347),
    "web": (4_232, 22_723, 0, 26_955),
}
FDEA = (54_438, 61_522, 41_841, 157_801)
CLASSES = ("Caucasian", "Asian", "African")


@pytest.fixture(scope="module")
def report():
    labels, sources = [], []
    for source, (*counts, _) in COMPOSITION.items():
        labels.append(np.repeat(CLASSES, counts))
        sources.append(np.repeat(source, sum(counts)))
    return {
        row.source: row for row in balance_report(np.concatenate(labels), np.concatenate(sources))
    }


def test_the_papers_composition_adds_up(report):
    for source, (*counts, total) in COMPOSITION.items():
        assert [report[source].counts[name] for name in CLASSES] == counts
        assert report[source].total == total
    assert [report["all"].counts[name] for name in CLASSES] == list(FDEA[:3])
    assert report["all"].total == FDEA[3]


def test_the_papers_subtotals(report):
    before_morph = [report[name].total for name in ("CelebA", "LFWA", "FairFace", "UTKFace")]
    assert sum(before_morph) == 110_237  # the text prints 110 388
    assert sum(before_morph) + report["MORPH"].total == 130_846
    assert 202_599 / 3 == 67_533


def test_the_papers_ratios_entropy_and_imbalance(report):
    lfwa = [100 * report["LFWA"].ratios[name] for name in CLASSES]
    assert lfwa == pytest.approx([88.5, 7.6, 3.9], abs=0.05)
    shares = np.array(FDEA[:3]) / FDEA[3]
    entropy = sum(-share * math.log(share, 3) for share in shares)
    assert report["all"].entropy == pytest.approx(entropy)
    assert report["all"].imbalance == pytest.approx(61_522 / 41_841)
    assert report["web"].imbalance == math.inf
    order = ["LFWA", "UTKFace", "FairFace", "all"]
    assert sorted(order, key=lambda name: report[name].entropy) == order


def test_balance_at_its_ends():
    assert balance_report([0, 1, 2, 0, 1, 2])[0].entropy == pytest.approx(1.0)
    assert balance_report([5, 5])[0].entropy == 1.0
    mixed = balance_report([0, 0, 1], ["a", "a", "b"])
    assert [row.source for row in mixed] == ["a", "b", "all"]
    assert mixed[0].entropy == 0.0
    assert mixed[0].counts == {0: 2, 1: 0}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_dropping_removes_all_of_an_inconsistent_group_and_no_other(data):
    size = data.draw(st.integers(1, 30))
    labels = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    groups = data.draw(st.lists(st.sampled_from("abcdef"), min_size=size, max_size=size))
    kept = set(drop_conflicting_groups(labels, groups).tolist())
    for i in range(size):
        own = {label for label, group in zip(labels, groups, strict=True) if group == groups[i]}
        assert (i in kept) == (len(own) == 1)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_capping_keeps_the_first_k_of_each_group_in_order(data):
    size, k = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 4))
    groups = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    indices = data.draw(st.permutations(range(size)))[: data.draw(st.integers(1, size))]
    expected, seen = [], dict.fromkeys(groups, 0)
    for index in indices:
        seen[groups[index]] += 1
        if seen[groups[index]] <= k:
            expected.append(index)
    assert cap_per_group(indices, groups, k).tolist() == expected


def test_balanced_subset_is_exactly_balanced_and_seeded():
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 4, 200))
    chosen = balanced_subset(labels, 20, seed=1)
    assert torch.bincount(labels[chosen]).tolist() == [20] * 4
    assert len(set(chosen.tolist())) == 80
    np.testing.assert_array_equal(balanced_subset(labels, 20, seed=1), chosen)
    assert balanced_subset(labels, 20, seed=2).tolist() != chosen.tolist()
    with pytest.raises(ValueError, match="the samples of class 'b'; got 2"):
        balanced_subset(["a", "a", "b"], 2, seed=0)


def test_recall_per_class_equals_scikit_learn():
    rng = np.random.default_rng(0)
    y_true, y_pred = rng.integers(0, 5, size=(2, 400))
    report = per_group_report(y_true, y_pred)
    recall = recall_score(y_true, y_pred, average=None)
    assert list(report.recall.values()) == pytest.approx(recall.tolist())
    assert report.balanced_accuracy == pytest.approx(balanced_accuracy_score(y_true, y_pred))
    assert report.range == pytest.approx(recall.max() - recall.min())
    assert report.worst_group == int(recall.argmin())
    assert report.worst_recall == pytest.approx(recall.min())


def test_groups_need_not_be_classes():
    y_true, y_pred = [0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]
    report = per_group_report(y_true, y_pred, ["x", "x", "x", "y", "y", "z"])
    assert report.recall == pytest.approx({"x": 2 / 3, "y": 1 / 2, "z": 1.0})
    assert report.counts == {"x": 3, "y": 2, "z": 1}
    assert report.worst_group == "y"


def test_equal_recall_has_range_zero():
    y_true = np.repeat(np.arange(4), 10)
    y_pred = np.where(np.arange(40) % 10 < 7, y_true, (y_true + 1) % 4)
    assert per_group_report(y_true, y_pred).range == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: drop_conflicting_groups([0, 1], ["a"]), "group_ids must have shape"),
        (lambda: cap_per_group([0, 3], [0, 0, 1], 2), "indices must be at least 0 and at most 2"),
        (lambda: cap_per_group([0], [0], 0), "k must be at least 1"),
        (lambda: balance_report([]), "labels is empty"),
        (lambda: balance_report([0.0, math.nan]), "must not hold NaN"),
        (lambda: per_group_report([0, 1], [0]), "y_pred must have shape"),
        (lambda: per_group_report([0, 1], [0, 1], [0]), "groups must have shape"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cap_per_group(np.array([True, False, True]), [0, 1, 2], 1), "numpy.flatnonzero"),
        (lambda: cap_per_group([0.9, 1.2], [0, 1, 2], 1), "indices must be whole numbers"),
        (lambda: per_group_report(["cat", "dog"], [0, 1]), "y_true and y_pred must be of one kind"),
    ],
)
def test_what_would_silently_count_wrong_is_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_names_may_be_text_or_objects():
    names = np.array(["cat", "dog"], dtype=object)
    assert per_group_report(names, ["cat", "cat"]).recall == {"cat": 1.0, "dog": 0.0}
