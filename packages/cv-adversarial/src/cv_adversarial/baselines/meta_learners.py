"""Effects of a treatment by any regressor: one for all units, or one for each group."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import LinearRegression

from cv_adversarial.causal.estimator import EffectEstimator


class SLearner(EffectEstimator):
    """One regressor for all units, with the treatment as one more covariate.

    By the names of Künzel et al., PNAS 2019. With a linear regressor the effect is the same for
    all units.

    Args:
        regressor: Any regressor of scikit-learn; ordinary least squares by default. It is cloned.

    Attributes:
        regressor_: The fitted clone.

    Example:
        >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
        >>> t = np.array([0, 1, 0, 1])
        >>> SLearner().fit(X, t, X[:, 0] + 5.0 * t).predict_effect(X).round(6)
        array([5., 5., 5., 5.])
    """

    def __init__(self, regressor: Any = None) -> None:
        self.regressor = regressor

    def _fit(self, X: np.ndarray, t: np.ndarray, y: np.ndarray) -> None:
        self.regressor_ = _fresh(self.regressor).fit(np.column_stack([X, t]), y)

    def _predict(self, X: np.ndarray) -> np.ndarray:
        groups = [np.column_stack([X, np.full(len(X), group)]) for group in (0, 1)]
        return np.column_stack([self.regressor_.predict(rows) for rows in groups])


class TLearner(EffectEstimator):
    """A regressor for the control units and another one for the treated.

    By the names of Künzel et al., PNAS 2019. With k nearest neighbours it is matching.

    Args:
        regressor: Any regressor of scikit-learn; ordinary least squares by default. It is cloned.

    Attributes:
        regressors_: The fitted clones, of the control and of the treated units.

    Example:
        >>> X = np.array([[0.0], [0.0], [2.0], [2.0]])
        >>> t = np.array([0, 1, 0, 1])
        >>> TLearner().fit(X, t, X[:, 0] * t).predict_effect(X).round(6)
        array([0., 0., 2., 2.])
    """

    def __init__(self, regressor: Any = None) -> None:
        self.regressor = regressor

    def _fit(self, X: np.ndarray, t: np.ndarray, y: np.ndarray) -> None:
        self.regressors_ = [
            _fresh(self.regressor).fit(X[t == group], y[t == group]) for group in (0, 1)
        ]

    def _predict(self, X: np.ndarray) -> np.ndarray:
        return np.column_stack([regressor.predict(X) for regressor in self.regressors_])


def _fresh(regressor: Any) -> Any:
    return LinearRegression() if regressor is None else clone(regressor)
