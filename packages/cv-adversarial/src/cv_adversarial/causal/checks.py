"""What a vector of treatments must be."""

from __future__ import annotations

from typing import Any

import numpy as np
from cv_core.checks import check_shape
from jaxtyping import Int64


def check_treatment(owner: str, t: Any, n: int) -> Int64[np.ndarray, " n"]:
    """Refuse treatments that are not one 0 or 1 per unit.

    Args:
        owner: The class or function that takes the argument.
        t: Treatments: whole numbers, booleans, or floats that are whole.
        n: Number of units.

    Returns:
        The treatments as int64.

    Raises:
        ValueError: If the length is wrong or an entry is neither 0 nor 1 (NaN, say).
    """
    array = np.asarray(t)
    check_shape(owner, "t", array, "n", n=n)
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        wrong = array[~np.isin(array, (0, 1))][:1] if array.dtype.kind in "biuf" else array[:1]
        raise ValueError(
            f"{owner}: t must hold 0 (control) and 1 (treated) only; got {wrong[0]!r}. "
            "Binarise the treatment first."
        )
    return array.astype(np.int64)


def check_both_groups(owner: str, t: np.ndarray, least: int) -> None:
    """Refuse treatments that leave a group with too few units to learn its outcomes.

    Raises:
        ValueError: With the sizes of both groups.
    """
    treated = int(t.sum())
    if min(treated, len(t) - treated) < least:
        raise ValueError(
            f"{owner}: t must hold at least {least} treated and {least} control units; got "
            f"{treated} treated and {len(t) - treated} control."
        )
