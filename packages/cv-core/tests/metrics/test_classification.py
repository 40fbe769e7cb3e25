"""Class scores against scikit-learn and by hand."""

import math

import pytest
import torch
from cv_core.metrics.classification import (
    accuracy,
    balanced_accuracy,
    class_recall,
    group_gap,
    top_k_accuracy,
)
from sklearn import metrics as peer


def example(n=200, classes=6):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), target] += 1.0
    return logits, target


def test_equal_to_scikit_learn():
    logits, target = example()
    prediction = logits.argmax(1)
    assert accuracy(prediction, target) == pytest.approx(peer.accuracy_score(target, prediction))
    theirs = peer.balanced_accuracy_score(target, prediction)
    assert balanced_accuracy(prediction, target, 6) == pytest.approx(theirs)
    theirs = peer.recall_score(target, prediction, average=None)
    torch.testing.assert_close(class_recall(prediction, target, 6), torch.tensor(theirs))
    for k in range(1, 6):
        theirs = peer.top_k_accuracy_score(target, logits, k=k)
        assert top_k_accuracy(logits, target, k) == pytest.approx(theirs)
    assert top_k_accuracy(logits, target, 6) == 1.0


def test_a_constant_prediction_has_no_top_class():
    assert top_k_accuracy(torch.zeros(4, 5), torch.arange(4), 4) == 0.0
    assert top_k_accuracy(torch.zeros(4, 5), torch.arange(4), 5) == 1.0


def test_classes_without_samples_are_left_out():
    prediction, target = torch.tensor([0, 2, 2, 1]), torch.tensor([0, 0, 2, 2])
    recall = class_recall(prediction, target, 4)
    assert recall[[0, 2]].tolist() == [0.5, 0.5]
    assert recall[[1, 3]].isnan().all()
    assert balanced_accuracy(prediction, target, 4) == 0.5


def test_gaps_by_hand():
    right = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    groups = torch.tensor([0, 0, 1, 1, 3, 3])
    gap = group_gap(right, groups, 4)
    assert gap.means[[0, 1, 3]].tolist() == [0.5, 1.0, 0.0]
    assert math.isnan(gap.means[2])
    assert (gap.worst, gap.gap) == (0.0, 1.0)


def test_refusals():
    logits, target = example(5)
    with pytest.raises(ValueError, match="same shape"):
        accuracy(logits, target)
    with pytest.raises(ValueError, match="empty"):
        accuracy(target[:0], target[:0])
    with pytest.raises(ValueError, match="k must"):
        top_k_accuracy(logits, target, 7)
    with pytest.raises(ValueError, match="finite"):
        top_k_accuracy(logits * math.nan, target, 1)
    with pytest.raises(ValueError, match="target"):
        class_recall(target, target + 9, 6)
    with pytest.raises(TypeError, match="class indices"):
        class_recall(target.float(), target, 6)
    with pytest.raises(ValueError, match="groups"):
        group_gap(torch.ones(5), target, 2)
