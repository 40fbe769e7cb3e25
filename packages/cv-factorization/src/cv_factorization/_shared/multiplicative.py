"""Non-negative factorisation by multiplicative updates: the steps that its variants share.

Samples are rows: X (n, d) is near V U with codes V (n, m) >= 0 and atoms U (m, d) >= 0. Where the
gradient of a penalty of V is split into a non-negative rising and a non-negative falling part, the
falling part joins the numerator and the rising part the denominator. A name that ends in an
underscore changes its array in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

EPS = 1e-12
"""Least denominator."""

BLOCK = 2**18
"""Entries of the n x n matrix K that exist at one time: 2 MiB, so that they stay in the cache."""


def multiply_(
    factor: Float[np.ndarray, "a b"],
    numerator: Float[np.ndarray, "a b"],
    denominator: Float[np.ndarray, "a b"],
    exponent: float = 1.0,
) -> None:
    """Multiply a factor by (numerator / denominator) ** exponent; zeros stay zeros."""
    ratio = numerator / np.maximum(denominator, EPS)
    factor *= ratio if exponent == 1 else ratio**exponent


def update_atoms_(
    U: Float[np.ndarray, "m d"], X: Float[np.ndarray, "n d"], V: Float[np.ndarray, "n m"]
) -> None:
    """Take one step of Lee and Seung in the atoms: U *= V'X / V'VU."""
    multiply_(U, V.T @ X, (V.T @ V) @ U)


@dataclass
class Pull:
    """The two parts of half the gradient of a penalty of the codes; both (n, m) and >= 0.

    Args:
        falling: What the penalty's negative gradient part adds to the numerator.
        rising: What its positive gradient part adds to the denominator.
    """

    falling: Float[np.ndarray, "n m"] | float = 0.0
    rising: Float[np.ndarray, "n m"] | float = 0.0


def update_codes_(
    V: Float[np.ndarray, "n m"],
    X: Float[np.ndarray, "n d"],
    U: Float[np.ndarray, "m d"],
    pull: Pull,
    exponent: float = 1.0,
) -> float:
    """Take one step in the codes: V *= ((XU' + falling) / (VUU' + rising)) ** exponent.

    Returns:
        ||X - VU||^2 - ||X||^2 after the step, which the step's own products give for nothing.
    """
    XU = X @ U.T
    UU = U @ U.T
    multiply_(V, XU + pull.falling, V @ UU + pull.rising, exponent)
    return float(np.vdot(V.T @ V, UU) - 2 * np.vdot(V, XU))


def dependence_parts(
    V: Float[np.ndarray, "n m"], others: Sequence[Float[np.ndarray, "n _"]]
) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "n m"]]:
    r"""Split half the gradient of :math:`\sum_j \|V^\top H V_j\|_F^2` into its two parts.

    With :math:`K = \sum_j H V_j V_j^\top H`, which is positive semidefinite with zero row sums,
    and :math:`K^\pm = (|K| \pm K) / 2`, these are :math:`K^- V` and :math:`K^+ V`.

    Args:
        V: The codes of one view, non-negative.
        others: The codes of the other views.

    Returns:
        :math:`K^- V` and :math:`K^+ V`, both non-negative.
    """
    n = len(V)
    centred = np.concatenate([other - other.mean(axis=0) for other in others], axis=1)
    falling = np.empty_like(V)
    rows = max(1, BLOCK // n)
    buffer = np.empty((min(rows, n), n))
    for start in range(0, n, rows):
        part = centred[start : start + rows]
        K = np.matmul(part, centred.T, out=buffer[: len(part)])
        np.minimum(K, 0.0, out=K)
        np.matmul(K, V, out=falling[start : start + rows])
    np.negative(falling, out=falling)
    # K V needs no n x n matrix; rounding may leave the difference a hair below zero
    rising = np.maximum(falling + centred @ (centred.T @ V), 0.0)
    return falling, rising


def unit_atoms_(U: Float[np.ndarray, "m d"], V: Float[np.ndarray, "n m"]) -> None:
    """Give every atom unit length and scale its codes against it; the product stays."""
    lengths = np.maximum(np.linalg.norm(U, axis=1), EPS)
    U /= lengths[:, None]
    V *= lengths


def balance_(U: Float[np.ndarray, "m d"], V: Float[np.ndarray, "n m"]) -> None:
    """Give every atom the length of its column of codes; the product stays."""
    atoms, codes = np.linalg.norm(U, axis=1), np.linalg.norm(V, axis=0)
    scale = np.sqrt(np.maximum(codes, EPS) / np.maximum(atoms, EPS))
    U *= scale[:, None]
    V /= scale


def random_factors(
    X: Float[np.ndarray, "n d"], n_components: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, "n m"]]:
    """Draw positive atoms and codes whose product has the mean of X."""
    n, d = X.shape
    scale = 2 * np.sqrt(X.mean() / n_components)
    U = scale * (1 - rng.random((n_components, d)))  # in (0, 1]: a zero could never be left
    V = scale * (1 - rng.random((n, n_components)))
    return U, V


def nonnegative_codes(
    X: Float[np.ndarray, "n d"], U: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    """Solve min ||x - vU|| over v >= 0 for every row x, to the exact minimum."""
    from scipy.optimize import nnls

    # With U' = QR the problem keeps its solutions at m rows instead of d.
    Q, R = np.linalg.qr(U.T)
    most = 30 * len(U)
    return np.stack([nnls(R, target, maxiter=most)[0] for target in X @ Q])
