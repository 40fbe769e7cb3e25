"""The best k-means clusters of numbers, computed exactly.

Clusters of numbers are intervals, so that dynamic programming over the sorted numbers finds those
with the least sum of squares: in O(k n log n), as the places of the best splits rise with n.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float


def least_of_top_clusters(values: Float[np.ndarray, " n"], k: int, m: int) -> float:
    """Return the least value in the m upper ones of the k clusters of numbers.

    Args:
        values: At least one number, finite.
        k: How many clusters; with fewer different numbers, each of them is one.
        m: How many of them, from the top, are taken.
    """
    points, weights = np.unique(values, return_counts=True)  # equal values stay together
    if len(points) <= k:
        return float(points[-min(m, len(points))])
    x = (points - points.mean()) / (points[-1] - points[0])
    w, s, q = (
        np.concatenate([[0.0], np.cumsum(weights * power)]) for power in (np.ones_like(x), x, x * x)
    )

    def cost(first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Sum of squares about the mean of the points first to last - 1."""
        return q[last] - q[first] - (s[last] - s[first]) ** 2 / (w[last] - w[first])

    count = len(points)
    best = np.full(count + 1, np.inf)  # of the first i points in one cluster
    best[1:] = cost(np.zeros(count, dtype=int), np.arange(1, count + 1))
    splits = []
    for _ in range(k - 1):
        split = _increasing_argmin(best, cost)
        best = np.concatenate(
            [[np.inf], best[split[1:]] + cost(split[1:], np.arange(1, count + 1))]
        )
        splits.append(split)
    end = count
    for split in reversed(splits[k - 1 - m :]):
        end = int(split[end])
    return float(points[end])


def _increasing_argmin(
    best: np.ndarray, cost: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return for each i from 1 on the least a < i that minimises best[a] + cost(a, i).

    The minimisers of a sum of squares rise with i, so that those of every second i bound the ones
    between: all values of one level are computed at once, and there are log2(count) levels.
    """
    count = len(best) - 1
    chosen = np.zeros(count + 1, dtype=int)
    stride = 1 << (count.bit_length() - 1)
    while stride:
        rows = np.arange(stride, count + 1, 2 * stride)
        above = np.minimum(rows + stride, count)
        low = chosen[rows - stride]
        high = np.where(rows + stride <= count, np.minimum(chosen[above], rows - 1), rows - 1)
        sizes = high - low + 1
        begins = np.cumsum(sizes) - sizes
        candidates = np.arange(sizes.sum()) - np.repeat(begins - low, sizes)
        values = best[candidates] + cost(candidates, np.repeat(rows, sizes))
        least = np.repeat(np.minimum.reduceat(values, begins), sizes)
        chosen[rows] = np.minimum.reduceat(np.where(values == least, candidates, count), begins)
        stride //= 2
    return chosen
