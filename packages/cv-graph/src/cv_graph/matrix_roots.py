r"""Square roots of symmetric positive semidefinite matrices such as graph Laplacians.

Of the eigenvalues, those within rounding of 0 (n times the machine's precision times the largest)
count as 0 in all three functions, so that what they call the null space is the same.
"""

from __future__ import annotations

import numpy as np
from cv_core.checks import check_finite, check_shape
from jaxtyping import Float


def psd_sqrt(L: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    r"""Return the symmetric square root :math:`U S^{1/2} U^\top` of :math:`L = U S U^\top`.

    Args:
        L: Symmetric and positive semidefinite; its lower triangle is read.

    Raises:
        ValueError: If L is not square, not finite, or has a negative eigenvalue.
    """
    values, vectors = _eigen("psd_sqrt", L)
    root: np.ndarray = (vectors * np.sqrt(values)) @ vectors.T
    return root


def psd_sqrt_pinv(L: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    r"""Return the pseudo-inverse of the symmetric square root of L.

    Args:
        L: Symmetric and positive semidefinite; its lower triangle is read.

    Raises:
        ValueError: If L is not square, not finite, or has a negative eigenvalue.
    """
    values, vectors = _eigen("psd_sqrt_pinv", L)
    roots = np.sqrt(values)
    inverse = np.divide(1.0, roots, out=np.zeros_like(roots), where=roots > 0)
    root: np.ndarray = (vectors * inverse) @ vectors.T
    return root


def psd_null_space(L: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n r"]:
    """Return an orthonormal basis of the null space of L as columns.

    Args:
        L: Symmetric and positive semidefinite; its lower triangle is read.

    Raises:
        ValueError: If L is not square, not finite, or has a negative eigenvalue.
    """
    values, vectors = _eigen("psd_null_space", L)
    return vectors[:, values == 0]


def _eigen(owner: str, L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    check_shape(owner, "L", L, "n n")
    check_finite(owner, "L", L)
    values, vectors = np.linalg.eigh(L)
    rounding = len(L) * np.finfo(values.dtype).eps * max(values[-1], -values[0])
    if values[0] < -rounding:
        raise ValueError(
            f"{owner}: L must be positive semidefinite; it has the eigenvalue {values[0]:g}."
        )
    values[values <= rounding] = 0.0
    return values, vectors
