"""Robust principal component analysis: a matrix of low rank under sparse errors of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from cv_core.checks import check_integer, check_range
from jaxtyping import Float
from sklearn.base import BaseEstimator
from torch import Tensor

from cv_factorization._shared.arrays import as_samples, like_given, warn_unfinished

GROWTH = 1.5
"""By what the penalty of the constraint grows in every iteration."""


class RobustPCA(BaseEstimator):
    r"""Principal component pursuit (Candès, Li, Ma, Wright, JACM 2011).

    .. math:: \min_{L, S}\; \|L\|_* + \lambda \|S\|_1 \quad\text{subject to}\quad L + S = X

    by the inexact method of augmented Lagrange multipliers: with multipliers Y and a growing
    penalty :math:`\mu`, singular values of :math:`X - S + Y / \mu` are shrunk by :math:`1 / \mu`,
    entries of :math:`X - L + Y / \mu` by :math:`\lambda / \mu`, and
    :math:`Y \leftarrow Y + \mu (X - L - S)`.

    E. J. Candès, X. Li, Y. Ma, J. Wright: Robust principal component analysis? Journal of the ACM
    58(3), 2011. Z. Lin, M. Chen, Y. Ma: The augmented Lagrange multiplier method for exact recovery
    of corrupted low-rank matrices. arXiv:1009.5055, 2010.

    Args:
        lam: :math:`\lambda > 0`; by default :math:`1 / \sqrt{\max(n, d)}`, with which the paper
            proves recovery.
        max_iter: Most iterations.
        tol: Iterations end once :math:`\|X - L - S\|_F \le` tol :math:`\|X\|_F`; float32 reaches
            about 1e-6.

    Attributes:
        low_rank_: (n, d) the L.
        sparse_: (n, d) the S.
        components_: (r, d) orthonormal directions of the rows of L, r its rank.
        singular_values_: (r,) of L, falling.
        residual_: (n_iter_,) :math:`\|X - L - S\|_F / \|X\|_F` after every iteration.
        objective_: (n_iter_,) :math:`\|L\|_* + \lambda \|S\|_1` after every iteration. It does not
            fall: the way leads through pairs that do not add up to X.
        n_iter_: Iterations taken.
        n_features_in_: d.
        feature_names_in_: Names of the columns of X, if they all had names.

    Deviations from the paper: none. There is no ``transform``: a row alone does not tell its error
    from its part of low rank.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> low = np.outer(rng.standard_normal(40), rng.standard_normal(30))
        >>> X = low.copy()
        >>> X[rng.random(X.shape) < 0.05] += 10
        >>> bool(np.abs(RobustPCA().fit(X).low_rank_ - low).max() < 1e-4)
        True
    """

    def __init__(self, lam: float | None = None, *, max_iter: int = 200, tol: float = 1e-7) -> None:
        self.lam = lam
        self.max_iter = max_iter
        self.tol = tol

    @torch.no_grad()
    def fit(self, X: Any, y: object = None) -> RobustPCA:  # noqa: ARG002 - scikit-learn's signature
        """Split X.

        Args:
            X: (n, d), an array or a tensor.
            y: Not used; for scikit-learn's conventions.

        Raises:
            TypeError: If X is a tensor that is neither float32 nor float64, or sparse.
            ValueError: If X is not finite, empty or of a wrong shape, or an option is out of range.
        """
        owner = type(self).__name__
        if self.lam is not None:
            check_range(owner, "lam", self.lam, low=0, low_open=True)
        check_integer(owner, "max_iter", self.max_iter, low=1)
        check_range(owner, "tol", self.tol, low=0, low_open=True)
        data = as_samples(self, X, reset=True)
        lam = max(data.shape) ** -0.5 if self.lam is None else float(self.lam)
        scale = float(data.abs().max()) or 1.0
        L, S = self._pursue(data / scale, lam)
        self.objective_ *= scale
        _, values, right = torch.linalg.svd(L, full_matrices=False)
        rank = int((values > max(L.shape) * torch.finfo(L.dtype).eps * values[0]).sum())
        self.low_rank_ = like_given(L * scale, X)
        self.sparse_ = like_given(S * scale, X)
        self.components_ = like_given(right[:rank], X)
        self.singular_values_ = like_given(values[:rank] * scale, X)
        return self

    def _pursue(
        self, X: Float[Tensor, "n d"], lam: float
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        size = float(torch.linalg.vector_norm(X)) or 1.0
        spectral = float(torch.linalg.matrix_norm(X, 2)) or 1.0
        # the start of Lin, Chen and Ma: as large as multipliers may be
        Y = X / max(spectral, float(X.abs().max()) / lam)
        mu, most = 1.25 / spectral, 1.25e7 / spectral
        S = torch.zeros_like(X)
        objective, residual = [], []
        for _ in range(self.max_iter):
            left, values, right = torch.linalg.svd(X - S + Y / mu, full_matrices=False)
            values = (values - 1 / mu).clamp(min=0)
            L = (left * values) @ right
            S = _shrink(X - L + Y / mu, lam / mu)
            rest = X - L - S
            Y = Y + mu * rest
            mu = min(mu * GROWTH, most)
            objective.append(float(values.sum() + lam * S.abs().sum()))
            residual.append(float(torch.linalg.vector_norm(rest)) / size)
            if residual[-1] <= self.tol:
                break
        else:
            warn_unfinished(self, self.max_iter, self.tol, stacklevel=5)
        self.objective_, self.residual_ = np.array(objective), np.array(residual)
        self.n_iter_ = len(objective)
        return L, S


def _shrink(A: Tensor, by: float) -> Tensor:
    return A.sign() * (A.abs() - by).clamp(min=0)
