"""How far two representations of the same samples depend on each other: HSIC and CKA."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from cv_core.checks import check_choice, check_finite, check_range, check_shape

Kernel = Literal["linear", "rbf"]


def hsic(
    A: Float[np.ndarray, "n p"],
    B: Float[np.ndarray, "n q"],
    *,
    kernel: Kernel = "linear",
    bandwidth: float | None = None,
) -> float:
    r"""Estimate the Hilbert-Schmidt independence criterion (Gretton et al., ALT 2005).

    :math:`(n - 1)^{-2}\, \mathrm{tr}(K_A H K_B H)` with :math:`H = I - 11^\top / n`. For the linear
    kernel this is :math:`\|A^\top H B\|_F^2 / (n - 1)^2` and is computed that way: no n x n matrix
    is formed, the value is never negative, and nothing cancels.

    Args:
        A: One representation, samples as rows.
        B: Another representation of the same samples.
        kernel: ``"linear"``, or ``"rbf"`` for :math:`\exp(-\|x - y\|^2 / 2\sigma^2)`.
        bandwidth: The rbf kernel's :math:`\sigma` for both sides; by default each side's median
            distance between two samples that differ.

    Returns:
        A number >= 0, and 0 if a side is constant. The estimate is biased: of independent
        representations it is above 0 by a term that vanishes as 1 / n. With the linear kernel it
        sees correlation only, with ``"rbf"`` any dependence.

    Raises:
        ValueError: If the rows do not match, fewer than two came, an entry is not finite, or an
            option is unknown or out of range.

    Example:
        >>> import numpy as np
        >>> hsic(np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]]))
        1.0
    """
    a, b = _checked("hsic", A, B, kernel, bandwidth)
    return _cross(a, b, kernel, bandwidth) / (len(a) - 1) ** 2


def cka(
    A: Float[np.ndarray, "n p"],
    B: Float[np.ndarray, "n q"],
    *,
    kernel: Kernel = "linear",
    bandwidth: float | None = None,
) -> float:
    r"""Compute the centred kernel alignment (Kornblith et al., ICML 2019), HSIC free of scale.

    :math:`\mathrm{HSIC}(A, B) / \sqrt{\mathrm{HSIC}(A, A)\, \mathrm{HSIC}(B, B)}`.

    Args:
        A: One representation, samples as rows.
        B: Another representation of the same samples.
        kernel: As in ``hsic``.
        bandwidth: As in ``hsic``.

    Returns:
        A number in [0, 1], unchanged by shifts, rotations and scaling of either side; 0 if a side
        is constant, which depends on nothing. With few samples for many columns it is near 1 even
        for independent sides: compare it only at equal shapes.

    Raises:
        ValueError: As ``hsic``.

    Example:
        >>> import numpy as np
        >>> A = np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 0.0]])
        >>> round(cka(A, 5 * A + 1), 12)
        1.0
    """
    a, b = _checked("cka", A, B, kernel, bandwidth)
    own = np.sqrt(_cross(a, a, kernel, bandwidth)) * np.sqrt(_cross(b, b, kernel, bandwidth))
    return float(min(_cross(a, b, kernel, bandwidth) / own, 1.0)) if own > 0 else 0.0


def _checked(
    owner: str, A: np.ndarray, B: np.ndarray, kernel: Kernel, bandwidth: float | None
) -> tuple[np.ndarray, np.ndarray]:
    check_choice(owner, "kernel", kernel, ("linear", "rbf"))
    if bandwidth is not None:
        check_range(owner, "bandwidth", bandwidth, low=0, low_open=True)
    n = check_shape(owner, "A", A, "n p")["n"]
    check_shape(owner, "B", B, "n q", n=n)
    if n < 2:
        raise ValueError(f"{owner}: A and B must have at least 2 rows; got {n}.")
    check_finite(owner, "A", A)
    check_finite(owner, "B", B)
    return _centred(A), _centred(B)


def _centred(A: np.ndarray) -> np.ndarray:
    # A constant column's mean is off by rounding, which a relative measure would take for signal.
    A = np.asarray(A, dtype=np.float64)
    return np.where(A.min(axis=0) == A.max(axis=0), 0.0, A - A.mean(axis=0))


def _cross(a: np.ndarray, b: np.ndarray, kernel: Kernel, bandwidth: float | None) -> float:
    """Return tr(K_a H K_b H) for centred columns."""
    if kernel == "linear":
        return float(np.square(a.T @ b).sum())
    return float((_centred_rbf(a, bandwidth) * _centred_rbf(b, bandwidth)).sum())


def _centred_rbf(A: np.ndarray, bandwidth: float | None) -> np.ndarray:
    from scipy.spatial.distance import pdist, squareform

    distance = pdist(A)
    if bandwidth is None:
        bandwidth = float(np.median(distance[distance > 0])) if distance.any() else 1.0
    K = squareform(np.exp(-np.square(distance / bandwidth) / 2))
    np.fill_diagonal(K, 1.0)
    rows = K.mean(axis=0)
    return K - rows - rows[:, None] + rows.mean()
