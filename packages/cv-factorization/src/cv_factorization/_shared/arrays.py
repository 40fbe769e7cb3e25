"""The border between a user's arrays and torch: in, checked in scikit-learn's words, and out."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import validate_data
from torch import Tensor


def as_samples(
    estimator: Any,
    X: Any,
    *,
    reset: bool,
    nonnegative: bool = False,
    accept_sparse: bool = False,
    min_samples: int = 1,
) -> Float[Tensor, "n d"]:
    """Check samples as scikit-learn does and return them as a tensor.

    Args:
        estimator: Whose ``n_features_in_`` is set or compared.
        X: Samples as rows: a dense tensor of type float32 or float64, which stays where it is, or
            anything that scikit-learn takes.
        reset: Whether this is a fit.
        nonnegative: Whether negative entries are refused.
        accept_sparse: Whether a SciPy matrix may come, which becomes a sparse COO tensor.
        min_samples: Least rows.

    Raises:
        TypeError: If X is a tensor of another type, or a sparse one.
        ValueError: For a wrong shape, too few rows, NaN, infinities or negative entries.
    """
    checks = {
        "reset": reset,
        "ensure_non_negative": nonnegative,
        "ensure_min_samples": min_samples,
    }
    if isinstance(X, Tensor):
        check_tensor(type(estimator).__name__, "X", X)
        # an array of the same shape that takes no memory: the checks run without leaving the device
        if not bool(torch.isfinite(X).all()):
            blank = np.nan if bool(torch.isnan(X).any()) else np.inf
        else:
            blank = -1.0 if nonnegative and bool((X < 0).any()) else 0.0
        validate_data(estimator, np.broadcast_to(np.float32(blank), tuple(X.shape)), **checks)
        return X.detach()
    X = validate_data(
        estimator,
        X,
        dtype=[np.float64, np.float32],
        accept_sparse="csr" if accept_sparse else False,
        **checks,
    )
    return coo_tensor(X) if sparse.issparse(X) else as_tensor(X)


def check_tensor(owner: str, name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is sparse, or neither float32 nor float64.

    Raises:
        TypeError: With the call that converts it.
    """
    if tensor.layout != torch.strided:
        raise TypeError(f"{owner}: {name} must be dense; call {name}.to_dense() first.")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{owner}: {name} must be float32 or float64; got {tensor.dtype}. "
            f"Convert it with {name}.float()."
        )


def as_tensor(array: Any) -> Tensor:
    """Return an array as a tensor that shares its memory where torch can."""
    if isinstance(array, Tensor):
        return array.detach()
    # torch cannot share arrays that are read-only or run backwards
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def as_floating(array: Any) -> Tensor:
    """Return an array of any numbers as a tensor, float64 unless it is float32; tensors stay."""
    if isinstance(array, Tensor):
        return array.detach()
    array = np.asarray(array)
    return as_tensor(array if array.dtype == np.float32 else array.astype(np.float64))


def coo_tensor(matrix: Any) -> Tensor:
    """Return a sparse matrix of SciPy as a coalesced sparse tensor."""
    csr = sparse.csr_array(matrix, copy=True)
    csr.sum_duplicates()  # which also sorts
    coo = csr.tocoo()
    index = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
    # what is checked needs no sorting, and torch warns unless it is told whether to check
    return torch.sparse_coo_tensor(
        index, torch.from_numpy(coo.data), coo.shape, is_coalesced=True, check_invariants=True
    )


def like_given(result: Tensor, given: Any) -> Any:
    """Return a result as what came in: a tensor for a tensor, else a NumPy array."""
    return result if isinstance(given, Tensor) else result.cpu().numpy()


def drawn(rng: np.random.Generator, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Draw standard normal numbers on the CPU, so that the device does not change them."""
    return torch.from_numpy(rng.standard_normal(shape)).to(like.device, like.dtype)


def warn_unfinished(estimator: Any, max_iter: int, tol: float, *, stacklevel: int = 4) -> None:
    """Warn that the tolerance was not reached, as scikit-learn does."""
    warnings.warn(
        f"{type(estimator).__name__}: tol={tol:g} was not reached in max_iter={max_iter} sweeps. "
        "Raise either, or set tol=0 to take all sweeps.",
        ConvergenceWarning,
        stacklevel=stacklevel,
    )
