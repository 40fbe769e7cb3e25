from itertools import permutations

import numpy as np
import pytest
from cv_core.metrics.clustering import clustering_accuracy, pairwise_f_score


@pytest.fixture(params=range(5))
def labels(request):
    rng = np.random.default_rng(request.param)
    y = rng.integers(4, size=25)
    noisy = np.where(rng.random(25) < 0.4, rng.integers(4, size=25), (y + 1) % 4)
    return y, noisy


def test_accuracy_is_the_best_of_all_matchings(labels):
    y, clusters = labels
    best = max(
        np.mean([y_i == matching[c] for y_i, c in zip(y, clusters, strict=True)])
        for matching in permutations(range(4))
    )
    assert clustering_accuracy(y, clusters) == pytest.approx(best, abs=1e-15)


def test_f_score_counts_pairs(labels):
    y, clusters = labels
    pairs = [(i, j) for i in range(25) for j in range(i)]
    same_class = np.array([y[i] == y[j] for i, j in pairs])
    same_cluster = np.array([clusters[i] == clusters[j] for i, j in pairs])
    precision = same_class[same_cluster].mean()
    recall = same_cluster[same_class].mean()
    expected = 2 * precision * recall / (precision + recall)
    assert pairwise_f_score(y, clusters) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("measure", [clustering_accuracy, pairwise_f_score])
def test_names_of_clusters_and_order_of_samples_are_of_no_account(measure, labels):
    y, clusters = labels
    order = np.random.default_rng(0).permutation(25)
    names = np.array(["d", "a", "c", "b"])
    assert measure(y[order], names[clusters][order]) == measure(y, clusters)
    assert measure(y, names[y]) == 1.0


def test_extreme_partitions():
    y = np.array([0, 0, 1, 1])
    assert clustering_accuracy(y, np.zeros(4)) == 0.5
    assert clustering_accuracy(y, np.arange(4)) == 0.5  # two of four clusters match nothing
    assert pairwise_f_score(y, np.arange(4)) == 0.0
    assert pairwise_f_score(np.arange(4), np.arange(4)) == 1.0
    assert pairwise_f_score(y, np.zeros(4)) == 0.5  # P = 2/6, R = 1


@pytest.mark.parametrize("measure", [clustering_accuracy, pairwise_f_score])
def test_bad_input_is_refused(measure):
    y = np.array([0, 1, 1])
    for wrong in (y[:2], y[:, None], np.array([])):
        with pytest.raises(ValueError, match=f"{measure.__name__}: y_pred must have shape"):
            measure(y, wrong)
    with pytest.raises(ValueError, match="y_true is empty"):
        measure(y[:0], y[:0])
