from __future__ import annotations

import math

import pytest
import torch
from cv_core.random import torch_generator
from cv_pruning.pruning.selection import Candidate, select


def candidate(scores, ratio=0.5, blocks=1):
    return Candidate(torch.tensor(scores, dtype=torch.float32), blocks, ratio)


def kept(*candidates, together=False, round_to=None):
    return [index.tolist() for index in select(candidates, together=together, round_to=round_to)]


def test_keeps_the_best_channels_in_their_old_order():
    assert kept(candidate([3.0, 0.0, 1.0, 2.0])) == [[0, 3]]


def test_a_tie_keeps_the_lower_index():
    assert kept(candidate([1.0] * 6)) == [[0, 1, 2]]


@pytest.mark.parametrize("number", [1, 2, 7, 10, 64])
@pytest.mark.parametrize("percent", [1, 10, 30, 50, 70, 90, 99])
def test_count_is_the_floor_in_exact_arithmetic_and_never_zero(number, percent):
    (index,) = kept(candidate(list(range(number)), ratio=percent / 100))
    assert len(index) == max(1, (100 - percent) * number // 100)


@pytest.mark.parametrize("round_to", [1, 4, 8, 3])
def test_round_to_makes_multiples(round_to):
    (index,) = kept(candidate(list(range(30)), ratio=0.3), round_to=round_to)
    assert len(index) == 21 - 21 % round_to


def test_round_to_above_the_width_leaves_the_layer_whole():
    assert kept(candidate([1.0, 2.0, 3.0]), round_to=8) == [[0, 1, 2]]


def test_round_to_counts_channels_of_all_blocks():
    (index,) = kept(candidate(list(range(24)), ratio=0.4, blocks=4), round_to=8)
    assert len(index) == 8  # 3 of 6 offsets, rounded to 2 of 6: 2 x 4 is a multiple of 8


def test_blocks_lose_the_same_offsets_by_their_mean():
    scores = [0.0, 9.0, 5.0, 5.0, 0.0, 6.0]  # means of the offsets: 2.5, 4.5, 5.5
    assert kept(candidate(scores, ratio=0.5, blocks=2)) == [[2, 5]]


def test_together_removes_the_lowest_of_all_by_a_slow_reference():
    generator = torch_generator(0, "scores")
    parts = [torch.rand(n, generator=generator) for n in (5, 17, 8)]
    ranked = sorted(
        ((float(s), g, c) for g, part in enumerate(parts) for c, s in enumerate(part)),
        reverse=True,
    )
    stay = ranked[: math.floor(0.6 * 30)]
    expected = [sorted(c for _, g, c in stay if g == group) for group in range(3)]
    candidates = [Candidate(part, 1, 0.4) for part in parts]
    assert kept(*candidates, together=True) == expected


def test_together_leaves_one_channel_of_a_layer_that_loses_all():
    assert kept(candidate([0.1, 0.2]), candidate([5.0, 6.0]), together=True) == [[1], [0, 1]]
