from itertools import combinations, pairwise

import numpy as np
import pytest
from cv_segmentation._shared.clusters import least_of_top_clusters


def spread(part):
    return sum((x - sum(part) / len(part)) ** 2 for x in part)


def by_trying_all(values, k, m):
    """All ways to cut the sorted numbers into k runs."""
    line = sorted(values)
    cuts = min(
        combinations(range(1, len(line)), k - 1),
        key=lambda cut: sum(
            spread(line[a:b]) for a, b in zip((0, *cut), (*cut, len(line)), strict=True)
        ),
    )
    return line[cuts[k - 1 - m]]


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_best_of_all_partitions(k):
    generator = np.random.default_rng(k)
    for draw in range(12):
        values = generator.exponential(size=9 + draw % 4) ** (1 + draw % 3)
        for m in range(1, k):
            assert least_of_top_clusters(values, k, m) == by_trying_all(values, k, m)


def test_scale_and_shift_and_repeats_do_not_matter():
    values = np.random.default_rng(0).exponential(size=40)
    chosen = least_of_top_clusters(values, 3, 1)
    again = least_of_top_clusters(np.tile(values, 5), 3, 1)
    assert again == chosen
    moved = least_of_top_clusters(values * 1e-9 + 1e-6, 3, 1)
    assert moved == pytest.approx(chosen * 1e-9 + 1e-6, rel=1e-12)


def test_few_different_numbers_are_their_own_clusters():
    values = np.array([1.0, 5.0, 1.0, 2.0, 5.0])
    assert least_of_top_clusters(values, 3, 1) == 5.0
    assert least_of_top_clusters(values, 3, 2) == 2.0
    assert least_of_top_clusters(values, 7, 3) == 1.0
    assert least_of_top_clusters(values, 7, 6) == 1.0
    assert least_of_top_clusters(np.array([4.0]), 3, 1) == 4.0


def test_many_numbers_against_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    values = np.random.default_rng(1).gamma(0.7, size=3000)
    found = cluster.KMeans(4, n_init=10, random_state=0, tol=0).fit(values[:, None])

    def cost(bounds):
        edges = [-np.inf, *bounds, np.inf]
        parts = [values[(values >= a) & (values < b)] for a, b in pairwise(edges)]
        return sum(((part - part.mean()) ** 2).sum() for part in parts)

    ours = [least_of_top_clusters(values, 4, m) for m in (3, 2, 1)]
    assert cost(ours) <= found.inertia_ * (1 + 1e-9)
    top = found.labels_ == found.cluster_centers_.argmax()
    assert ours[-1] == pytest.approx(values[top].min(), rel=0.02)
