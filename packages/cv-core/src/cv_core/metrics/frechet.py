"""Distances between two sets of features: Fréchet distance (as in FID) and kernel distance (KID).

Features come from any extractor, one row per image. Values depend on the extractor, on how images
are resized and on the number of samples (the Fréchet distance is biased upwards, the more so the
fewer samples there are), so compare only what agrees in all three. Below some 5000 samples prefer
the kernel distance, which is unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cv_core.checks import check_finite, check_floating, check_integer, check_range, check_shape
from cv_core.random import torch_generator


def frechet_distance(features_a: Float[Tensor, "n d"], features_b: Float[Tensor, "m d"]) -> float:
    r"""Return the squared Fréchet distance between the Gaussians fitted to two sets of features.

    .. math::
        \|\mu_a - \mu_b\|^2 + \mathrm{tr}\,\Sigma_a + \mathrm{tr}\,\Sigma_b
        - 2\, \mathrm{tr} (\Sigma_a \Sigma_b)^{1/2}

    With centred features :math:`A, B` divided by the roots of their degrees of freedom,
    :math:`\Sigma_a = A^\top A`, and the last trace is the sum of the singular values of
    :math:`A B^\top`. No matrix root is taken, no covariance is formed; a side with more samples
    than features is first reduced by QR to a d x d factor.

    Args:
        features_a: At least 2 rows.
        features_b: At least 2 rows, as many columns.

    Returns:
        The squared distance, computed in float64.
    """
    _check("frechet_distance", features_a, features_b)
    mean_a, root_a = _moments(features_a)
    mean_b, root_b = _moments(features_b)
    return _distance(mean_a - mean_b, root_a, root_b)


def frechet_from_moments(
    mean_a: Float[Tensor, " d"],
    covariance_a: Float[Tensor, "d d"],
    mean_b: Float[Tensor, " d"],
    covariance_b: Float[Tensor, "d d"],
) -> float:
    """Return the squared Fréchet distance between two Gaussians given by their moments.

    For statistics that were stored, or features that do not fit into memory. Where there are
    features, ``frechet_distance`` is faster and more exact.

    Args:
        mean_a: First mean.
        covariance_a: First covariance, symmetric positive semi-definite.
        mean_b: Second mean.
        covariance_b: Second covariance.

    Returns:
        The squared distance, computed in float64.
    """
    owner = "frechet_from_moments"
    size = check_shape(owner, "mean_a", mean_a, "d")["d"]
    check_shape(owner, "mean_b", mean_b, "d", d=size)
    for name, matrix in (("covariance_a", covariance_a), ("covariance_b", covariance_b)):
        check_shape(owner, name, matrix, "d d", d=size)
        check_finite(owner, name, matrix)
    gap = mean_a.double() - mean_b.double()
    return _distance(gap, _root(covariance_a.double()), _root(covariance_b.double()))


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    mean = features.mean(0)
    centred = (features - mean) / math.sqrt(len(features) - 1)
    if len(features) > features.shape[1]:
        centred = torch.linalg.qr(centred, mode="r").R
    return mean, centred


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0.0).sqrt()).mT


def _distance(gap: Tensor, root_a: Tensor, root_b: Tensor) -> float:
    cross = torch.linalg.svdvals(root_a @ root_b.mT).sum()
    traces = root_a.square().sum() + root_b.square().sum()
    return max(0.0, float(gap.square().sum() + traces - 2.0 * cross))


def kernel_distance(
    features_a: Float[Tensor, "n d"],
    features_b: Float[Tensor, "m d"],
    *,
    degree: int = 3,
    gamma: float | None = None,
    offset: float = 1.0,
) -> float:
    r"""Return the unbiased squared maximum mean discrepancy under a polynomial kernel (KID).

    Bińkowski, Sutherland, Arbel and Gretton, Demystifying MMD GANs, ICLR 2018.

    .. math:: k(x, y) = (\gamma\, x^\top y + c)^p

    Args:
        features_a: At least 2 rows.
        features_b: At least 2 rows, as many columns.
        degree: :math:`p`, at least 1.
        gamma: :math:`\gamma`, above 0; 1/d by default.
        offset: :math:`c`, at least 0.

    Returns:
        The estimate, computed in float64. It is negative by chance where the sets agree.
    """
    owner = "kernel_distance"
    size = _check(owner, features_a, features_b)
    check_integer(owner, "degree", degree, low=1)
    check_range(owner, "offset", offset, low=0.0)
    scale = 1.0 / size if gamma is None else gamma
    check_range(owner, "gamma", scale, low=0.0, low_open=True)
    a, b = features_a.double(), features_b.double()

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        return (scale * left @ right.mT + offset) ** degree

    def within(points: Tensor) -> Tensor:
        own = kernel(points, points)
        return (own.sum() - own.diagonal().sum()) / (len(points) * (len(points) - 1))

    return float(within(a) + within(b) - 2.0 * kernel(a, b).mean())


@dataclass(frozen=True)
class Interval:
    """Spread of a statistic over random subsets.

    Args:
        mean: Mean over the subsets.
        low: Lower quantile over the subsets.
        high: Upper quantile over the subsets.
    """

    mean: float
    low: float
    high: float


def subset_interval(
    statistic: Callable[[Tensor, Tensor], float],
    features_a: Float[Tensor, "n d"],
    features_b: Float[Tensor, "m d"],
    *,
    seed: int,
    subset_size: int,
    subsets: int = 100,
    level: float = 0.95,
) -> Interval:
    """Evaluate a statistic on random subsets of both sets, drawn without replacement.

    Subsets rather than bootstrap samples: repeated rows would bias the kernel distance. For the
    Fréchet distance the mean is the value *at the subset's size*; quote that size with it.

    Args:
        statistic: Such as ``frechet_distance`` or ``kernel_distance``.
        features_a: First set.
        features_b: Second set.
        seed: Of the draws.
        subset_size: Rows drawn from each set, at least 2.
        subsets: How often, at least 2.
        level: Share of the subsets between ``low`` and ``high``, in (0, 1).

    Returns:
        Mean and quantiles.
    """
    owner = "subset_interval"
    _check(owner, features_a, features_b)
    check_integer(
        owner, "subset_size", subset_size, low=2, high=min(len(features_a), len(features_b))
    )
    check_integer(owner, "subsets", subsets, low=2)
    check_range(owner, "level", level, low=0.0, high=1.0, low_open=True, high_open=True)
    generator = torch_generator(seed, owner)

    def draw(features: Tensor) -> Tensor:
        order = torch.randperm(len(features), generator=generator)[:subset_size]
        return features[order.to(features.device)]

    values = torch.tensor(
        [statistic(draw(features_a), draw(features_b)) for _ in range(subsets)],
        dtype=torch.float64,
    )
    tail = 0.5 * (1.0 - level)
    return Interval(
        float(values.mean()),
        float(torch.quantile(values, tail)),
        float(torch.quantile(values, 1.0 - tail)),
    )


def _check(owner: str, features_a: Tensor, features_b: Tensor) -> int:
    check_floating(owner, "features_a", features_a)
    check_floating(owner, "features_b", features_b)
    size = check_shape(owner, "features_a", features_a, "n d")["d"]
    check_shape(owner, "features_b", features_b, "m d", d=size)
    for name, features in (("features_a", features_a), ("features_b", features_b)):
        if len(features) < 2:
            raise ValueError(f"{owner}: {name} must have at least 2 rows; got {len(features)}.")
        check_finite(owner, name, features)
    return size
