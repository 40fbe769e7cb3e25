"""Reading old pickles that hold arrays, without the power that a pickle has otherwise.

A pickle may name any function and call it. Here only the classes that arrays, sparse matrices and
plain containers need can be named; anything else is refused by name before it is imported.
"""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from cv_core.data.root import CorruptData

_PLAIN = (list, dict, set, frozenset, tuple, int, float, complex, str, bytes)


def load_arrays(path: Path, *, encoding: str = "latin1") -> Any:
    """Load a pickle of arrays, sparse matrices and plain containers.

    Args:
        path: The file.
        encoding: How strings of Python 2 are read; ``latin1`` suits arrays.

    Returns:
        What was pickled. Sparse matrices have been checked, so that their indices are in range.

    Raises:
        CorruptData: If the file is no pickle, or holds a type that is not admitted; the message
            names file and type.
    """
    try:
        value = _Restricted(io.BytesIO(path.read_bytes()), encoding=encoding).load()
        return _checked(value)
    except _Foreign as error:
        raise CorruptData(
            f"{path}: the pickle holds {error}, which is not admitted: only NumPy arrays, "
            "scipy.sparse.csr_matrix and plain containers are."
        ) from None
    except Exception as error:  # a damaged pickle can raise almost anything
        raise CorruptData(f"{path}: not a readable pickle of arrays: {error}") from error


class _Foreign(Exception):  # noqa: N818 - it carries the name of the type
    """A type that is not admitted."""


class _Restricted(pickle.Unpickler):
    """An unpickler that knows the admitted classes only."""

    def find_class(self, module: str, name: str) -> Any:
        admitted = _admitted().get((module, name))
        if admitted is None:
            raise _Foreign(f"{module}.{name}")
        return admitted


def _admitted() -> dict[tuple[str, str], Any]:
    from scipy.sparse import csr_matrix

    # The functions' home moved between NumPy 1 and 2; ask the arrays themselves.
    reconstruct = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    found: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "defaultdict"): collections.defaultdict,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("scipy.sparse.csr", "csr_matrix"): csr_matrix,
        ("scipy.sparse._csr", "csr_matrix"): csr_matrix,
    }
    for home in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found[home, "_reconstruct"] = reconstruct
        found[home, "scalar"] = scalar
    for plain in _PLAIN:
        for home in ("builtins", "__builtin__"):
            found[home, plain.__name__] = plain
    return found


def _checked(value: Any) -> Any:
    """Rebuild a sparse matrix from its parts with a full check: a pickle may hold any parts."""
    from scipy.sparse import csr_matrix

    if not isinstance(value, csr_matrix):
        return value
    state = value.__dict__
    parts = (state["data"], state["indices"], state["indptr"])
    rebuilt = csr_matrix(parts, shape=state.get("_shape", state.get("shape")))
    rebuilt.check_format(full_check=True)
    return rebuilt
