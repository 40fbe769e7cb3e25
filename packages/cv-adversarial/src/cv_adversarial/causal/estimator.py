"""What all estimators of treatment effects share: checked data in, two outcomes per unit out."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from cv_adversarial.causal.checks import check_both_groups, check_treatment

Self = TypeVar("Self", bound="EffectEstimator")


class EffectEstimator(BaseEstimator):
    """Base of the estimators, with scikit-learn's conventions and a vector of treatments.

    A subclass defines ``_fit`` and ``_predict``.
    """

    _least_per_group = 1

    def fit(
        self: Self,
        X: Float[np.ndarray, "n d"],
        t: Int[np.ndarray, " n"],
        y: Float[np.ndarray, " n"],
    ) -> Self:
        """Learn the outcomes with and without treatment.

        Args:
            X: Covariates, units as rows.
            t: Treatments, 1 for treated units, else 0.
            y: The outcome that was observed under that treatment.

        Raises:
            ValueError: If lengths differ, an entry is not finite, a treatment is neither 0 nor 1,
                a group is missing, or an option is out of range.
        """
        self._check_options()
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        t = check_treatment(type(self).__name__, t, len(X))
        check_both_groups(type(self).__name__, t, self._least_per_group)
        self._fit(X, t, np.asarray(y, dtype=np.float64))
        return self

    def predict(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 2"]:
        """Return both outcomes of every unit: without and with treatment.

        Args:
            X: Covariates, with the columns of ``fit``.

        Returns:
            (n, 2), in the unit of y.

        Raises:
            ValueError: If X is not finite or has other columns.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        return self._predict(self._checked(X))

    def predict_effect(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Return the effect on every unit, the outcome with treatment less that without.

        Args:
            X: Covariates, with the columns of ``fit``.

        Returns:
            (n,); its mean is the estimate of the average effect.

        Raises:
            ValueError: If X is not finite or has other columns.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        outcomes = self.predict(X)
        return outcomes[:, 1] - outcomes[:, 0]

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return np.asarray(validate_data(self, X, reset=False, dtype=np.float64))

    def _check_options(self) -> None:
        """Refuse options out of range."""

    def _fit(self, X: np.ndarray, t: np.ndarray, y: np.ndarray) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define _fit.")

    def _predict(self, X: np.ndarray) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} must define _predict.")
