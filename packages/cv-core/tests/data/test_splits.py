import numpy as np
import pytest
import torch
from cv_core.data.splits import few_shot_split, group_split, k_fold, stratified_split
from hypothesis import given, settings
from hypothesis import strategies as st

LABELS = st.lists(st.integers(0, 5), min_size=12, max_size=200)


@settings(max_examples=50, deadline=None)
@given(LABELS, st.integers(0, 1000))
def test_stratified_parts_are_a_partition_in_proportion(y, seed):
    fractions = (0.5, 0.3, 0.2)
    parts = stratified_split(y, fractions, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(y)))
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * len(y)) < 1
        assert np.array_equal(part, np.sort(part))
        for label in set(y):
            count = sum(y[index] == label for index in part)
            assert abs(count - fraction * y.count(label)) <= 2  # both ends are rounded


def test_stratified_sizes_are_exact():
    y = np.repeat(np.arange(10), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    train, test = stratified_split(y, (1200 / 1797, 597 / 1797), seed=3)
    assert (len(train), len(test)) == (1200, 597)


def test_balanced_classes_divide_evenly():
    y = np.tile(np.arange(4), 25)
    for part, size in zip(stratified_split(y, (0.6, 0.2, 0.2), 0), (15, 5, 5), strict=True):
        assert np.bincount(y[part]).tolist() == [size] * 4


def test_seeds_decide():
    y = torch.arange(40) % 4
    first, again, other = (stratified_split(y, (0.5, 0.5), seed) for seed in (1, 1, 2))
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])


def test_splits_are_uniform():
    # every sample of a class is equally likely to train: 2,000 seeds, 4 standard errors
    y = [0] * 6 + [1] * 4
    hits = np.zeros(10)
    for seed in range(2000):
        hits[stratified_split(y, (0.5, 0.5), seed)[0]] += 1
    assert np.abs(hits / 2000 - 0.5).max() < 4 * 0.5 / 2000**0.5


@settings(max_examples=50, deadline=None)
@given(LABELS, st.integers(2, 12), st.integers(0, 1000))
def test_folds(y, folds, seed):
    parts = k_fold(y, folds, seed)
    assert len(parts) == folds
    assert sorted(np.concatenate([test for _, test in parts]).tolist()) == list(range(len(y)))
    sizes = [len(test) for _, test in parts]
    assert max(sizes) - min(sizes) <= 1
    for label in set(y):
        counts = [sum(y[index] == label for index in test) for _, test in parts]
        assert max(counts) - min(counts) <= 1
    for train, test in parts:
        assert not set(train.tolist()) & set(test.tolist())
        assert len(train) + len(test) == len(y)


def test_few_shots():
    y = np.array([0, 1, 2, -1] * 10)
    taken, rest = few_shot_split(y, 3, seed=0)
    assert np.bincount(y[taken]).tolist() == [3, 3, 3]
    assert np.bincount(y[rest]).tolist() == [7, 7, 7]  # those without a class are in neither
    assert not set(taken.tolist()) & set(rest.tolist())
    with pytest.raises(ValueError, match="class 0 must have at least 11"):
        few_shot_split(y, 11, seed=0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=60, max_size=200), st.integers(0, 1000))
def test_groups_stay_together(groups, seed):
    if len(set(groups)) < 3:
        return
    parts = group_split(groups, (0.6, 0.2, 0.2), seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    owners = [{groups[index] for index in part} for part in parts]
    assert all(owners)
    assert sum(map(len, owners)) == len(set(groups))
    largest = max(groups.count(group) for group in groups)
    for part, fraction in zip(parts, (0.6, 0.2, 0.2), strict=True):
        assert abs(len(part) - fraction * len(groups)) <= 2 * largest + 1


def test_as_many_groups_as_parts():
    parts = group_split([7] * 50 + [8] * 2 + [9], (0.8, 0.1, 0.1), seed=0)
    assert sorted(len(part) for part in parts) == [1, 2, 50]


@pytest.mark.parametrize("split", [stratified_split, group_split])
@pytest.mark.parametrize("fractions", [(0.5, 0.6), (1.0, 0.0), (), (-0.5, 1.5)])
def test_wrong_fractions_are_refused(split, fractions):
    with pytest.raises(ValueError, match="fractions must"):
        split([0, 1] * 10, fractions, seed=0)


def test_wrong_labels_are_refused():
    with pytest.raises(TypeError, match="whole numbers"):
        stratified_split(np.array([0.5, 1.0]), (0.5, 0.5), seed=0)
    with pytest.raises(ValueError, match="shape"):
        stratified_split(np.zeros((3, 2), dtype=int), (0.5, 0.5), seed=0)
    with pytest.raises(ValueError, match="empty"):
        stratified_split([0, 1], (0.9, 0.05, 0.05), seed=0)
    with pytest.raises(ValueError, match="at most 2"):
        k_fold([0, 1], 3, seed=0)
