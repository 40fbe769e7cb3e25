"""Whether predicted probabilities mean what they say: ECE, Brier score, log-likelihood.

All take logits; probabilities can be handed in as their logarithm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.nn import functional

from cv_core.checks import check_floating, check_indices, check_integer, check_shape


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: what was claimed and what was true, by bin of confidence.

    Args:
        confidence: Mean confidence of each bin; 0 for an empty bin.
        accuracy: Share of right predictions of each bin; 0 for an empty bin.
        count: Samples in each bin.
    """

    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]
    count: Int[Tensor, " bins"]


def reliability(
    logits: Float[Tensor, "n c"], target: Integer[Tensor, " n"], *, bins: int = 15
) -> Reliability:
    """Sort samples by confidence (the highest probability) into bins of equal width.

    Bin i of b holds confidences in (i/b, (i + 1)/b].

    Args:
        logits: Scores before the softmax.
        target: True class indices.
        bins: Number of bins, at least 1.

    Returns:
        Means in float64.
    """
    _check("reliability", logits, target)
    check_integer("reliability", "bins", bins, low=1)
    confidence, prediction = logits.double().softmax(1).max(1)
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(index, minlength=bins)
    samples = count.clamp(min=1)
    right = (prediction == target).double()
    return Reliability(
        torch.bincount(index, weights=confidence, minlength=bins) / samples,
        torch.bincount(index, weights=right, minlength=bins) / samples,
        count,
    )


def expected_calibration_error(
    logits: Float[Tensor, "n c"], target: Integer[Tensor, " n"], *, bins: int = 15
) -> float:
    r"""Return the expected calibration error with bins of equal width.

    .. math:: \sum_i \frac{n_i}{n} |\mathrm{accuracy}_i - \mathrm{confidence}_i|

    Args:
        logits: Scores before the softmax.
        target: True class indices.
        bins: Number of bins, at least 1.

    Returns:
        A number in [0, 1].
    """
    diagram = reliability(logits, target, bins=bins)
    gaps = (diagram.accuracy - diagram.confidence).abs()
    return float((gaps * diagram.count).sum() / diagram.count.sum())


def brier_score(logits: Float[Tensor, "n c"], target: Integer[Tensor, " n"]) -> float:
    r"""Return the Brier score, the mean over samples of :math:`\sum_c (p_c - y_c)^2`.

    Args:
        logits: Scores before the softmax.
        target: True class indices.

    Returns:
        A number in [0, 2].
    """
    _check("brier_score", logits, target)
    probabilities = logits.double().softmax(1)
    truth = functional.one_hot(target.long(), logits.shape[1])
    return float((probabilities - truth).square().sum(1).mean())


def negative_log_likelihood(logits: Float[Tensor, "n c"], target: Integer[Tensor, " n"]) -> float:
    """Return the mean of minus the natural logarithm of the true class's probability.

    Args:
        logits: Scores before the softmax.
        target: True class indices.

    Returns:
        A number at least 0.
    """
    _check("negative_log_likelihood", logits, target)
    return float(functional.cross_entropy(logits.double(), target.long()))


def _check(owner: str, logits: Tensor, target: Tensor) -> None:
    check_floating(owner, "logits", logits)
    shape = check_shape(owner, "logits", logits, "n c")
    if bool(logits.isnan().any()):  # minus infinity is the logarithm of probability 0
        raise ValueError(f"{owner}: logits must not hold NaN.")
    check_shape(owner, "target", target, "n", n=shape["n"])
    check_indices(owner, "target", target, high=shape["c"], ignore=None)
