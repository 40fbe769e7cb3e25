r"""Votes: from the answers of several annotators to labels, and what such labels are worth.

After Chen, Liu, Ou, Wang, "FDEA: Face Dataset with Ethnicity Attribute", PRCV 2021, LNCS 13022,
pp. 437-446, where three annotators label every image.

*Deviations from the paper*: it settles three different votes by looking up the person. Here they
stay a tie with the label -1, for the user to settle.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64, Shaped
from torch import Tensor

from cv_core.checks import check_integer, check_range, check_shape

UNANIMOUS, MAJORITY, TIE = "unanimous", "majority", "tie"


class Vote(NamedTuple):
    """What annotators agreed on.

    Args:
        labels: The class with strictly more than half of the votes, or -1.
        status: ``"unanimous"``, ``"majority"`` or ``"tie"`` (no class has more than half).
    """

    labels: Int64[np.ndarray, " n"]
    status: Shaped[np.ndarray, " n"]


class VoteQuality(NamedTuple):
    """What a vote of independent annotators is worth; the first three sum to one.

    Args:
        right: Probability that the majority is right.
        wrong: Probability that the majority is wrong.
        tie: Probability that no class has more than half of the votes.
        unanimous: Probability that all agree, rightly or wrongly.
    """

    right: float
    wrong: float
    tie: float
    unanimous: float

    @property
    def right_if_not_tied(self) -> float:
        """Accuracy of the labels that the vote gives; NaN if it never gives one."""
        settled = self.right + self.wrong
        return self.right / settled if settled > 0.0 else math.nan


def majority_vote(votes: Int[np.ndarray, "n a"] | Int[Tensor, "n a"], num_classes: int) -> Vote:
    """Turn the votes of several annotators into labels.

    The rule of "FDEA: Face Dataset with Ethnicity Attribute" (Chen et al., PRCV 2021) for three
    annotators, for any number: a class needs strictly more than half of the votes.

    Args:
        votes: One class in ``[0, num_classes)`` per sample (row) and annotator (column).
        num_classes: Number of classes, at least 2.

    Returns:
        Labels (-1 where the vote is tied) and status.

    Raises:
        TypeError: If votes are not whole numbers.
        ValueError: If votes are empty, not of two axes or out of range.

    Example:
        >>> vote = majority_vote(np.array([[2, 2, 2], [0, 1, 0], [0, 1, 2]]), num_classes=3)
        >>> vote.labels.tolist(), vote.status.tolist()
        ([2, 0, -1], ['unanimous', 'majority', 'tie'])
    """
    check_integer("majority_vote", "num_classes", num_classes, low=2)
    table = _vote_counts("majority_vote", votes, num_classes)
    annotators = int(table[0].sum())
    most = table.max(axis=1)
    tied = 2 * most <= annotators
    labels = np.where(tied, -1, table.argmax(axis=1)).astype(np.int64)
    status = np.select([tied, most == annotators], [TIE, UNANIMOUS], default=MAJORITY)
    return Vote(labels, status)


def expected_vote_quality(p: float, annotators: int = 3, classes: int = 3) -> VoteQuality:
    r"""Return what a vote is worth if annotators err independently.

    With accuracy :math:`p` and errors spread evenly, :math:`q = (1-p)/(C-1)`, the number of votes
    for one class is binomial: :math:`P(right) = P(Bin(A, p) > A/2)` and
    :math:`P(wrong) = (C-1) P(Bin(A, q) > A/2)`. For three annotators and classes
    :math:`P(right) = p^3 + 3p^2(1-p)` and :math:`P(tie) = 1.5\,p(1-p)^2`.

    Args:
        p: Accuracy of one annotator, in [0, 1].
        annotators: Votes per sample, :math:`A`, at least 1.
        classes: Number of classes, :math:`C`, at least 2.

    Example:
        >>> quality = expected_vote_quality(0.9)
        >>> round(quality.right, 4), round(quality.tie, 4)
        (0.972, 0.0135)
    """
    check_range("expected_vote_quality", "p", p, low=0.0, high=1.0)
    check_integer("expected_vote_quality", "annotators", annotators, low=1)
    check_integer("expected_vote_quality", "classes", classes, low=2)
    error = (1.0 - p) / (classes - 1)
    right = _more_than_half(p, annotators)
    wrong = (classes - 1) * _more_than_half(error, annotators)
    unanimous = p**annotators + (classes - 1) * error**annotators
    return VoteQuality(right, wrong, max(0.0, 1.0 - right - wrong), unanimous)


def estimate_annotator_accuracy(tie_rate: float) -> float:
    r"""Return the accuracy at which three annotators tie this often over three classes.

    Solves :math:`1.5\,p(1-p)^2 = t` for :math:`p \ge 1/3`; the tie rate peaks there, so that a
    second root lies below chance. Annotators who err on the same samples tie less often: the
    result is an upper estimate.

    Args:
        tie_rate: Share of samples with three different votes, in [0, 2/9].

    Raises:
        ValueError: If the rate is above 2/9, which no accuracy explains.

    Example:
        >>> round(estimate_annotator_accuracy(2000 / 202599), 4)
        0.9152
    """
    check_range("estimate_annotator_accuracy", "tie_rate", tie_rate, low=0.0, high=2.0 / 9.0)
    # p = (2 + 2 cos a) / 3 turns the cubic into cos 3a = 9 t - 1; a in [4 pi / 3, 5 pi / 3] gives
    # the root between 1/3 and 1
    angle = math.acos(min(1.0, 9.0 * tie_rate - 1.0))
    return (2.0 + 2.0 * math.cos((angle + 4.0 * math.pi) / 3.0)) / 3.0


def fleiss_kappa(votes: Int[np.ndarray, "n a"] | Int[Tensor, "n a"]) -> float:
    r"""Return Fleiss' kappa, the agreement beyond chance of any number of annotators.

    :math:`\kappa = (\bar P - \bar P_e) / (1 - \bar P_e)` with the share of agreeing pairs
    :math:`\bar P` and :math:`\bar P_e = \sum_k p_k^2` (Fleiss, Psychological Bulletin 76, 1971).

    Args:
        votes: One class, from 0 on, per sample (row) and annotator (column; at least two).

    Returns:
        1 for full agreement, 0 for agreement as by chance; NaN if only one class was ever voted
        for, where chance alone agrees fully.
    """
    table = _vote_counts("fleiss_kappa", votes, None)
    annotators = int(table[0].sum())
    check_integer("fleiss_kappa", "number of annotators", annotators, low=2)
    pairs = (table * (table - 1)).sum(axis=1) / (annotators * (annotators - 1))
    chance = float(((table.sum(axis=0) / table.sum()) ** 2).sum())
    if chance == 1.0:
        return math.nan
    return float((pairs.mean() - chance) / (1.0 - chance))


def _vote_counts(owner: str, votes: np.ndarray | Tensor, num_classes: int | None) -> np.ndarray:
    """Count how often each class was voted for: (n, classes)."""
    array = np.asarray(votes)
    check_shape(owner, "votes", array, "n a")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{owner}: votes must be whole numbers; got {array.dtype}.")
    classes = int(array.max()) + 1 if num_classes is None else num_classes
    check_integer(owner, "votes", int(array.min()), low=0)
    check_integer(owner, "votes", int(array.max()), high=classes - 1)
    place = np.arange(len(array))[:, None] * classes + array.astype(np.int64)
    return np.bincount(place.ravel(), minlength=len(array) * classes).reshape(-1, classes)


def _more_than_half(p: float, annotators: int) -> float:
    from scipy.special import bdtrc

    return float(bdtrc(annotators // 2, annotators, p))
