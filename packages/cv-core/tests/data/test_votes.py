import math

import numpy as np
import pytest
import torch
from cv_core.data.votes import (
    estimate_annotator_accuracy,
    expected_vote_quality,
    fleiss_kappa,
    majority_vote,
)


def _simulate(p, samples=400_000, annotators=3, classes=3, seed=0):
    """Votes of independent annotators on samples of class 0, errors spread evenly."""
    rng = np.random.default_rng(seed)
    wrong = rng.integers(1, classes, size=(samples, annotators))
    return np.where(rng.random((samples, annotators)) < p, 0, wrong)


def test_equals_counting_by_hand():
    rng = np.random.default_rng(1)
    votes = rng.integers(0, 4, size=(300, 5))
    votes[:4] = np.arange(4)[:, None]
    labels, status = majority_vote(votes, 4)
    for row, label, state in zip(votes.tolist(), labels, status, strict=True):
        counts = [row.count(c) for c in range(4)]
        if max(counts) == 5:
            assert (label, state) == (row[0], "unanimous")
        elif max(counts) >= 3:
            assert (label, state) == (counts.index(max(counts)), "majority")
        else:
            assert (label, state) == (-1, "tie")
    assert set(status.tolist()) == {"unanimous", "majority", "tie"}


def test_invariant_to_the_order_of_annotators():
    rng = np.random.default_rng(2)
    votes = rng.integers(0, 3, size=(200, 3))
    labels, status = majority_vote(votes, 3)
    shuffled = rng.permuted(votes, axis=1)
    np.testing.assert_array_equal(majority_vote(shuffled, 3).labels, labels)
    np.testing.assert_array_equal(majority_vote(torch.from_numpy(shuffled), 3).status, status)


def test_half_of_the_votes_is_a_tie_and_one_annotator_is_unanimous():
    labels, status = majority_vote(np.array([[0, 0, 1, 1], [0, 0, 0, 1]]), 2)
    assert labels.tolist() == [-1, 0]
    assert status.tolist() == ["tie", "majority"]
    assert majority_vote(np.array([[1], [0]]), 2).status.tolist() == ["unanimous"] * 2


@pytest.mark.parametrize("p", [0.2, 1 / 3, 0.6, 0.9])
def test_three_annotators_and_classes_have_the_closed_form(p):
    quality = expected_vote_quality(p)
    assert quality.right == pytest.approx(p**3 + 3 * p**2 * (1 - p), abs=1e-14)
    assert quality.tie == pytest.approx(1.5 * p * (1 - p) ** 2, abs=1e-14)
    assert quality.right + quality.wrong + quality.tie == pytest.approx(1.0)


@pytest.mark.parametrize(("p", "annotators", "classes"), [(0.9, 3, 3), (1 / 3, 3, 3), (0.5, 4, 5)])
def test_closed_forms_agree_with_simulation(p, annotators, classes):
    samples = 400_000
    vote = majority_vote(_simulate(p, samples, annotators, classes), classes)
    quality = expected_vote_quality(p, annotators, classes)
    seen = {
        "right": (vote.labels == 0).mean(),
        "wrong": (vote.labels > 0).mean(),
        "tie": (vote.status == "tie").mean(),
        "unanimous": (vote.status == "unanimous").mean(),
    }
    for name, share in seen.items():
        expected = getattr(quality, name)
        assert share == pytest.approx(expected, abs=5 * math.sqrt(expected / samples)), name


def test_numbers_of_the_paper():
    chance = expected_vote_quality(1 / 3)
    assert (chance.tie, chance.unanimous, chance.right) == pytest.approx((2 / 9, 1 / 9, 7 / 27))
    assert expected_vote_quality(1.0) == (1.0, 0.0, 0.0, 1.0)
    good = expected_vote_quality(0.9)
    assert (good.right, good.tie) == pytest.approx((0.972, 0.0135))
    accuracy = estimate_annotator_accuracy(2000 / 202_599)
    assert accuracy == pytest.approx(0.9152, abs=5e-5)
    quality = expected_vote_quality(accuracy)
    assert quality.right == pytest.approx(0.9796, abs=5e-5)
    assert quality.right_if_not_tied == pytest.approx(0.9894, abs=5e-5)


def test_estimate_inverts_the_tie_rate_above_chance():
    for p in np.linspace(1 / 3, 1.0, 101):
        tie = expected_vote_quality(float(p)).tie
        # at its ends the rate is flat, and the root is as exact as the square root of rounding
        assert estimate_annotator_accuracy(min(tie, 2 / 9)) == pytest.approx(p, abs=5e-8)
    with pytest.raises(ValueError, match="tie_rate must lie in"):
        estimate_annotator_accuracy(0.2223)


def test_many_annotators():
    quality = expected_vote_quality(0.6, annotators=2001)
    assert (quality.right, quality.wrong) == pytest.approx((1.0, 0.0), abs=1e-12)
    # hardly ever is there a majority; where there is one, it is each class alike
    rare = expected_vote_quality(0.001, annotators=101, classes=1000)
    assert rare.tie == pytest.approx(1.0)
    assert rare.right_if_not_tied == pytest.approx(0.001, rel=1e-9)


@pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int32])
def test_any_whole_number_is_a_vote(kind):
    vote = majority_vote(np.array([[0, 1, 1], [2, 2, 2], [0, 1, 2]], dtype=kind), 3)
    assert vote.labels.tolist() == [1, 2, -1]


def test_kappa_by_loops_over_pairs():
    votes = np.random.default_rng(3).integers(0, 4, size=(60, 5))
    agreeing = [
        np.mean([row[i] == row[j] for i in range(5) for j in range(5) if i != j]) for row in votes
    ]
    chance = sum(np.mean(votes == c) ** 2 for c in range(4))
    assert fleiss_kappa(votes) == pytest.approx((np.mean(agreeing) - chance) / (1 - chance))


def test_kappa_at_its_ends():
    agreed = np.repeat(np.arange(3), 10)[:, None].repeat(4, axis=1)
    assert fleiss_kappa(agreed) == pytest.approx(1.0)
    assert math.isnan(fleiss_kappa(np.zeros((5, 3), dtype=int)))
    by_chance = np.random.default_rng(4).integers(0, 3, size=(100_000, 3))
    assert fleiss_kappa(by_chance) == pytest.approx(0.0, abs=0.01)
    # two annotators who always differ, on two classes used equally: the least possible value
    assert fleiss_kappa(np.array([[0, 1], [1, 0]])) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("votes", "error", "message"),
    [
        (np.zeros((0, 3), dtype=int), ValueError, "majority_vote: votes is empty"),
        (np.zeros(3, dtype=int), ValueError, "must have shape"),
        (np.zeros((2, 3)), TypeError, "whole numbers"),
        (np.array([[0, 3, 1]]), ValueError, "votes must be at most 2"),
        (np.array([[0, -1, 1]]), ValueError, "votes must be at least 0"),
    ],
)
def test_refusals(votes, error, message):
    with pytest.raises(error, match=message):
        majority_vote(votes, 3)
