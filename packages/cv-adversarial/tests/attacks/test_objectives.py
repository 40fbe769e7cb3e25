"""Objectives against the papers' formulas by loops."""

import math

import pytest
import torch
from cv_adversarial.attacks.base import Goal
from cv_adversarial.attacks.objectives import cross_entropy, dlr, margin

LOGITS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
TARGET = (LABELS + 2) % 5


def slow(name, row, label, target):
    ordered = sorted(row, reverse=True)
    best_wrong = max(value for k, value in enumerate(row) if k != label)
    if name == "ce":
        total = math.log(sum(map(math.exp, row)))
        return total - row[label] if target is None else row[target] - total
    if name == "margin":
        if target is None:
            return best_wrong - row[label]
        return row[target] - max(value for k, value in enumerate(row) if k != target)
    if target is None:
        return -(row[label] - best_wrong) / (ordered[0] - ordered[2])
    spread = ordered[0] - (ordered[2] + ordered[3]) / 2
    return -(row[label] - row[target]) / spread


@pytest.mark.parametrize("name", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("aimed", [False, True])
def test_against_the_formulas(name, aimed):
    goal = Goal(LABELS, TARGET if aimed else None)
    got = {"ce": cross_entropy, "margin": margin, "dlr": dlr}[name](LOGITS, goal)
    targets = TARGET.tolist() if aimed else [None] * 6
    expected = [
        slow(name, *item) for item in zip(LOGITS.tolist(), LABELS.tolist(), targets, strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("target", [None, TARGET])
def test_dlr_ignores_shift_and_scale(target):
    goal = Goal(LABELS, target)
    torch.testing.assert_close(dlr(1000.0 * LOGITS + 7.0, goal), dlr(LOGITS, goal))


def test_margin_is_positive_exactly_where_the_goal_is_reached():
    for goal in (Goal(LABELS), Goal(LABELS, TARGET)):
        assert torch.equal(margin(LOGITS, goal) > 0, goal.reached(LOGITS))


def test_dlr_refuses_too_few_classes():
    with pytest.raises(ValueError, match="at least 3 classes"):
        dlr(LOGITS[:, :2], Goal(LABELS % 2))
    with pytest.raises(ValueError, match="at least 4 classes"):
        dlr(LOGITS[:, :3], Goal(LABELS % 3, TARGET % 3))
