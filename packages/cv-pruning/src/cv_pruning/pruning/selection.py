"""Which channels stay: a ratio and scores become kept indices, the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Candidate:
    """A group's scores and what its width is held to.

    Args:
        scores: One per channel of the group.
        blocks: Blocks (conv groups, heads) that have to lose the same offsets.
        ratio: Share of the channels to remove.
    """

    scores: Float[Tensor, " channels"]
    blocks: int
    ratio: float

    @property
    def offsets(self) -> Float[Tensor, " offsets"]:
        """Scores per offset, the mean over the blocks."""
        return self.scores.view(self.blocks, -1).mean(0)


def select(
    candidates: Sequence[Candidate], *, together: bool, round_to: int | None
) -> list[Int[Tensor, " kept"]]:
    """Choose the channels that stay.

    Of ``n`` offsets (channels, or channels per block) ``floor((1 - ratio) n)`` stay, rounded down
    to what ``round_to`` allows, and never fewer than one. In a tie the lower index stays.

    Args:
        candidates: The groups.
        together: Whether all groups compete for one budget; the first group's ratio holds then.
        round_to: Multiple that the number of channels of each group has to have.

    Returns:
        Kept channels of each group, in order.
    """
    offsets = [candidate.offsets for candidate in candidates]
    if together:
        counts = _compete(offsets, candidates[0].ratio)
    else:
        pairs = zip(offsets, candidates, strict=True)
        counts = [_floor(len(scores), candidate.ratio) for scores, candidate in pairs]
    return [
        _best(scores, _rounded(count, len(scores), candidate.blocks, round_to), candidate.blocks)
        for scores, count, candidate in zip(offsets, counts, candidates, strict=True)
    ]


def _floor(number: int, ratio: float) -> int:
    return math.floor(number * (1.0 - ratio) + 1e-9)  # 10 * (1 - 0.9) is one


def _compete(offsets: list[Tensor], ratio: float) -> list[int]:
    scores = torch.cat(offsets)
    owner = torch.repeat_interleave(torch.tensor([len(part) for part in offsets]))
    order = torch.sort(scores, descending=True, stable=True).indices
    stay = owner[order[: _floor(len(scores), ratio)]]
    return torch.bincount(stay, minlength=len(offsets)).tolist()


def _rounded(count: int, number: int, blocks: int, round_to: int | None) -> int:
    step = 1 if round_to is None else round_to // math.gcd(round_to, blocks)
    return min(number, max(step, count - count % step))


def _best(scores: Tensor, count: int, blocks: int) -> Tensor:
    order = torch.sort(scores, descending=True, stable=True).indices
    kept = order[:count].sort().values
    starts = torch.arange(blocks)[:, None] * len(scores)
    return (starts + kept).reshape(-1)
