"""Several feature sets of the same samples: in, checked, as tensors, and out."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import torch
from cv_core.checks import check_finite, check_shape
from scipy import sparse
from torch import Tensor

from cv_factorization._shared.arrays import as_floating, as_samples, check_tensor, like_given


def holds_views(X: Any) -> bool:
    """Tell a list of (n, d_v) matrices, or one (views, n, d) array, from a single matrix."""
    if isinstance(X, list | tuple):
        return not X or np.ndim(X[0]) == 2
    return getattr(X, "ndim", 2) == 3


def as_views(estimator: Any, X: Any, *, reset: bool, min_samples: int = 1) -> list[Tensor]:
    """Check views and return them as tensors of one type; a single matrix is one view.

    ``n_features_in_`` becomes the number of columns of a matrix, or the list of those of views.

    Args:
        estimator: Whose ``n_features_in_`` is set or compared.
        X: A sequence of (n, d_v) arrays or tensors, one (views, n, d) of either, or one (n, d)
            matrix, which is checked in scikit-learn's words.
        reset: Whether this is a fit.
        min_samples: Least rows.

    Raises:
        TypeError: If a tensor is neither float32 nor float64, or a view is sparse.
        ValueError: If the views differ in rows, have other columns than those of ``fit``, are too
            few or too short, or an entry is not finite.
    """
    known = None if reset else estimator.n_features_in_
    if not holds_views(X):
        if not isinstance(known, list):
            return [as_samples(estimator, X, reset=reset, min_samples=min_samples)]
        X = [X]
    owner = type(estimator).__name__
    views = _checked(owner, X, min_samples)
    sizes = [view.shape[1] for view in views]
    if reset:
        estimator.n_features_in_ = sizes
    elif sizes != (wanted := known if isinstance(known, list) else [known]):
        raise ValueError(
            f"{owner}: X must hold views with the columns of fit, {wanted}; got {sizes}."
        )
    return views


def _checked(owner: str, X: Any, min_samples: int) -> list[Tensor]:
    if len(X) == 0:
        raise ValueError(f"{owner}: X must hold at least one view; got none.")
    views: list[Tensor] = []
    for index, given in enumerate(X):
        name = f"X[{index}]"
        if sparse.issparse(given):
            raise TypeError(f"{owner}: {name} must be dense; call {name}.toarray() first.")
        view = as_floating(given)
        check_tensor(owner, name, view)
        check_shape(owner, name, view, "n d", **({"n": len(views[0])} if views else {}))
        check_finite(owner, name, view)
        views.append(view)
    if len(views[0]) < min_samples:
        raise ValueError(
            f"{owner}: X must hold at least {min_samples} samples; got {len(views[0])}."
        )
    dtype = reduce(torch.promote_types, (view.dtype for view in views))
    return [view.to(dtype) for view in views]


def like_views(result: Tensor, X: Any) -> Any:
    """Return a result as what came in: a tensor for tensors, else a NumPy array."""
    return like_given(result, X[0] if isinstance(X, list | tuple) else X)
