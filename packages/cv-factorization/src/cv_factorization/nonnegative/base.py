"""What the factorisations with non-negative codes have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from cv_core.checks import check_integer, check_range
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from cv_factorization._shared.arrays import as_samples, like_given, warn_unfinished
from cv_factorization.nonnegative.steps import (
    descend,
    fit_value,
    nonnegative_least_squares,
    product,
    square_sum,
)


class Run(NamedTuple):
    """A factorisation on its way: atoms (m, d), codes (m, n), and what updates them in place."""

    U: Tensor
    C: Tensor
    sweeps: Iterator[float]


class NonnegativeCoding(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Base of the estimators of :math:`X \approx VU` with codes :math:`V \ge 0`.

    It brings data to the size 1, so that nothing under- or overflows, runs the sweeps of a
    subclass, and gives each factor its half of the size back. NumPy arrays come back as NumPy
    arrays, tensors as tensors on their device; float32 is computed and returned as float32.
    """

    _nonnegative_data = True
    _accept_sparse = True
    _min_samples = 1
    _power = 2
    """The objective of s X is s ** _power times that of X."""

    n_components: int
    max_iter: int
    tol: float
    random_state: int | np.random.Generator | None

    @abstractmethod
    def _begin(self, X: Tensor, scale: float, rng: np.random.Generator) -> Run:
        """Start from data whose largest entry is 1 after a division by ``scale``."""

    def _check_options(self) -> None:
        owner = type(self).__name__
        check_integer(owner, "n_components", self.n_components, low=1)
        check_integer(owner, "max_iter", self.max_iter, low=1)
        check_range(owner, "tol", self.tol, low=0)

    @torch.no_grad()
    def fit(self, X: Any, y: object = None) -> Any:  # noqa: ARG002 - scikit-learn's signature
        """Factorise X.

        Args:
            X: Samples as rows: an array, a tensor, or (where the class says so) a sparse matrix.
            y: Not used; for scikit-learn's conventions.

        Raises:
            TypeError: If X is a tensor that is neither float32 nor float64, or sparse.
            ValueError: If X is not finite, negative where it must not be, empty or of a wrong
                shape, or an option is out of range.
        """
        self._check_options()
        data = self._checked(X, reset=True)
        scale = _largest(data)
        run = self._begin(data / scale, scale, np.random.default_rng(self.random_state))
        history, rested = descend(run.sweeps, self.max_iter, self.tol)
        if not rested:
            warn_unfinished(self, self.max_iter, self.tol)
        U, C = self._settle(data, run.U * math.sqrt(scale), run.C * math.sqrt(scale))
        self.objective_ = np.array(history) * scale**self._power
        self.n_iter_ = len(history) - 1
        self.reconstruction_err_ = self._error(data, U, C)
        self.components_ = like_given(U, X)
        self.embedding_ = like_given(C.mT.contiguous(), X)
        return self

    def fit_transform(self, X: Any, y: object = None) -> Any:
        """Factorise X and return the codes of its rows, ``embedding_``.

        Args:
            X: Samples as rows.
            y: Not used; for scikit-learn's conventions.
        """
        return self.fit(X, y).embedding_

    @torch.no_grad()
    def transform(self, X: Any) -> Any:
        r"""Return codes of new samples: :math:`\min_{v \ge 0} \|x - vU\|` for each row.

        Args:
            X: Samples as rows.

        Returns:
            (n, m), of the kind of X.

        Raises:
            ValueError: If X is refused by ``fit`` or has not its columns.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        check_is_fitted(self)
        data = self._checked(X, reset=False)
        return like_given(self._codes(data, self._like(self.components_, data)), X)

    @torch.no_grad()
    def inverse_transform(self, V: Any) -> Any:
        """Return the samples that codes stand for.

        Args:
            V: Codes (n, m), an array or a tensor.

        Returns:
            V U, (n, d), of the kind of V.

        Raises:
            ValueError: If V is not (n, m).
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        check_is_fitted(self)
        codes = V if isinstance(V, Tensor) else torch.as_tensor(np.asarray(V))
        m = self.components_.shape[0]
        if codes.ndim != 2 or codes.shape[1] != m:
            raise ValueError(
                f"{type(self).__name__}: V must have shape (n, {m}); got {tuple(codes.shape)}."
            )
        U = torch.as_tensor(self.components_).to(codes.device)
        return like_given(codes.to(U.dtype) @ U, V)

    def _settle(self, X: Tensor, U: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return atoms and codes that ``fit`` ends with, from those of the last sweep."""
        return U, C

    def _codes(self, X: Tensor, U: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        return nonnegative_least_squares(X, U)

    def _checked(self, X: Any, *, reset: bool) -> Tensor:
        return as_samples(
            self,
            X,
            reset=reset,
            nonnegative=self._nonnegative_data,
            accept_sparse=self._accept_sparse,
            min_samples=self._min_samples if reset else 1,
        )

    @staticmethod
    def _like(factor: Any, X: Tensor) -> Tensor:
        return torch.as_tensor(factor).to(X.device, X.dtype)

    def _error(self, X: Tensor, U: Tensor, C: Tensor) -> float:
        if X.is_sparse:
            return math.sqrt(fit_value(square_sum(X), C, product(U, X), U @ U.mT))
        return float(torch.linalg.vector_norm(X - C.mT @ U))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = self._nonnegative_data
        tags.input_tags.sparse = self._accept_sparse
        return tags

    @property
    def _n_features_out(self) -> int:
        return int(self.components_.shape[0])


def _largest(X: Tensor) -> float:
    values = X.values() if X.is_sparse else X
    return (float(values.abs().max()) if values.numel() else 0.0) or 1.0
