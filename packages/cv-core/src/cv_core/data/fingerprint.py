"""Fingerprints of data in memory."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from cv_core.data.origin import Origin

if TYPE_CHECKING:
    from hashlib import _Hash


def fingerprint(data: Any) -> str:
    """Return a sha256 over everything a data set holds except its origin.

    Args:
        data: One of the classes in ``cv_core.data.kinds``, or arrays, numbers, strings, and
            sequences, mappings and dataclasses of them.

    Returns:
        ``sha256:`` and the digits; equal for equal values, types and shapes.

    Raises:
        TypeError: For a value of another type.
    """
    digest = hashlib.sha256()
    _add(digest, data)
    return f"sha256:{digest.hexdigest()}"


def _add(digest: _Hash, value: Any) -> None:
    if isinstance(value, Origin):
        return
    if isinstance(value, (Tensor, np.ndarray)):
        _add_array(digest, value)
    elif value is None or isinstance(value, (str, int, float)):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    else:
        parts = _parts(value)
        digest.update(f"parts {len(parts)};".encode())
        for part in parts:
            _add(digest, part)


def _add_array(digest: _Hash, value: Tensor | np.ndarray) -> None:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    if array.dtype.hasobject:
        raise TypeError("fingerprint: arrays must hold plain values, not objects.")
    digest.update(f"array {array.dtype.str} {array.shape};".encode())
    digest.update(np.ascontiguousarray(array).tobytes())


def _parts(value: Any) -> list[Any]:
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return [(key, value[key]) for key in value]
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"fingerprint: data must be arrays and plain values; got {type(value)}.")
