"""How well clusters agree with known classes.

Normalised mutual information and the adjusted Rand index are scikit-learn's own:
``sklearn.metrics.normalized_mutual_info_score`` and ``sklearn.metrics.adjusted_rand_score``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Shaped

from cv_core.checks import check_shape


def clustering_accuracy(
    y_true: Shaped[np.ndarray, " n"], y_pred: Shaped[np.ndarray, " n"]
) -> float:
    r"""Compute the share of samples that are right under the best matching of clusters to classes.

    :math:`\max_\pi \frac1n \sum_i [y_i = \pi(\hat y_i)]` over all one-to-one matchings
    :math:`\pi`, found by the Hungarian method. Surplus clusters match nothing.

    Args:
        y_true: Classes; any values that can be told apart.
        y_pred: Clusters; their names are of no account.

    Returns:
        A share in (0, 1].

    Raises:
        ValueError: If the two differ in length, are empty or are not one-dimensional.

    Example:
        >>> import numpy as np
        >>> clustering_accuracy(np.array([0, 0, 1, 1]), np.array([5, 5, 5, 2]))
        0.75
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    _check_labels("clustering_accuracy", y_true, y_pred)
    counts = contingency_matrix(y_true, y_pred)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / len(y_true))


def pairwise_f_score(y_true: Shaped[np.ndarray, " n"], y_pred: Shaped[np.ndarray, " n"]) -> float:
    r"""Compute the F-score of "these two samples belong together" over all pairs of samples.

    :math:`2PR / (P + R)`, where :math:`P` is the share of the pairs put into one cluster that are
    of one class, and :math:`R` the share of the pairs of one class that were put into one cluster.

    Args:
        y_true: Classes; any values that can be told apart.
        y_pred: Clusters; their names are of no account.

    Returns:
        A number in [0, 1]; 1 for equal partitions.

    Raises:
        ValueError: If the two differ in length, are empty or are not one-dimensional.

    Example:
        >>> import numpy as np
        >>> pairwise_f_score(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]))
        0.4
    """
    from sklearn.metrics.cluster import pair_confusion_matrix

    _check_labels("pairwise_f_score", y_true, y_pred)
    (_, false_positive), (false_negative, true_positive) = pair_confusion_matrix(y_true, y_pred)
    total = 2 * true_positive + false_positive + false_negative
    return float(2 * true_positive / total) if total else 1.0  # nothing together in either


def _check_labels(owner: str, y_true: Any, y_pred: Any) -> None:
    n = check_shape(owner, "y_true", y_true, "n")["n"]
    check_shape(owner, "y_pred", y_pred, "n", n=n)
