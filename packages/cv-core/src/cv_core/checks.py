"""Checks of what a user hands in, with one scheme of message.

Every message names the owner (the class or function), the argument, what was expected, what came,
and, where it is not obvious, what to do. A check raises before any work is done: ``ValueError``
for a wrong value or shape, ``TypeError`` for a wrong type.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Number = TypeVar("Number", int, float)


def nearest(value: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """Return the choices that look most like a mistyped value, best first.

    Args:
        value: What the user typed.
        choices: What is allowed.
        count: How many to return at the most.
    """
    return difflib.get_close_matches(value, list(choices), n=count, cutoff=0.4)


def check_choice(owner: str, name: str, value: object, choices: Iterable[Any]) -> None:
    """Refuse a value that is not one of the choices; name the nearest ones.

    Raises:
        ValueError: If ``value`` is not among ``choices``.
    """
    allowed = list(choices)
    if value in allowed:
        return
    close = nearest(str(value), [str(choice) for choice in allowed])
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    listed = ", ".join(map(repr, allowed))
    raise ValueError(f"{owner}: {name} must be one of {listed}; got {value!r}.{hint}")


def check_range(
    owner: str,
    name: str,
    value: float,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Refuse a number outside an interval, or one that is not a finite number.

    Args:
        owner: The class or function that takes the argument.
        name: The argument.
        value: What came.
        low: Lower end of the interval.
        high: Upper end of the interval.
        low_open: Whether ``low`` itself is excluded.
        high_open: Whether ``high`` itself is excluded.

    Raises:
        TypeError: If ``value`` is not a number (a ``bool`` is none).
        ValueError: If it is NaN, infinite or outside the interval.
    """
    number = _as(float, value)
    if number is None:
        raise TypeError(f"{owner}: {name} must be a number; got {value!r}.")
    above = number > low if low_open else number >= low
    below = number < high if high_open else number <= high
    if math.isfinite(number) and above and below:
        return
    left = "(" if low_open or low == -math.inf else "["
    right = ")" if high_open or high == math.inf else "]"
    raise ValueError(f"{owner}: {name} must lie in {left}{low:g}, {high:g}{right}; got {value!r}.")


def check_integer(
    owner: str, name: str, value: object, *, low: int | None = None, high: int | None = None
) -> None:
    """Refuse what is not a whole number between ``low`` and ``high``, both included.

    Raises:
        TypeError: If ``value`` is not an integer (a ``bool`` is none).
        ValueError: If it lies outside the range.
    """
    number = _as(operator.index, value)
    if number is None:
        raise TypeError(f"{owner}: {name} must be a whole number; got {value!r}.")
    if (low is not None and number < low) or (high is not None and number > high):
        ends = (f"at least {low}" if low is not None else "") + (
            f"{' and ' if low is not None else ''}at most {high}" if high is not None else ""
        )
        raise ValueError(f"{owner}: {name} must be {ends}; got {number}.")


def check_odd(owner: str, name: str, value: object, *, low: int = 1) -> None:
    """Refuse what is not an odd whole number, such as the side of a kernel that has a centre.

    Raises:
        TypeError: If ``value`` is not an integer (a ``bool`` is none).
        ValueError: If it is even or below ``low``.
    """
    check_integer(owner, name, value, low=low)
    if operator.index(value) % 2 == 0:  # type: ignore[arg-type]  # just checked
        raise ValueError(f"{owner}: {name} must be odd; got {value}.")


def _as(convert: Callable[[Any], Number], value: object) -> Number | None:
    """Convert what is one number; a bool, NumPy's too, and a text are none."""
    plain = type(value) is int or type(value) is float  # what older torch.compile can follow
    if not plain and (type(value).__name__ in ("bool", "bool_") or isinstance(value, str)):
        return None
    try:
        return convert(value)
    except (TypeError, ValueError, RuntimeError):  # which differ between NumPy and torch
        return None


def check_shape(
    owner: str, name: str, array: Tensor | np.ndarray, pattern: str, **sizes: int
) -> dict[str, int]:
    """Refuse an array whose shape does not fit a pattern of axis names.

    Args:
        owner: The class or function that takes the argument.
        name: The argument.
        array: A tensor or array.
        pattern: Axis names in order, as in ``"b c h w"``; a number fixes a size, ``...`` stands
            for any axes and may occur once; a name used twice must have one size.
        **sizes: Sizes of named axes that are known from elsewhere.

    Returns:
        The size of every named axis.

    Raises:
        TypeError: If ``array`` has no shape.
        ValueError: If the shape does not fit, or a named axis is empty.
    """
    if not hasattr(array, "shape"):
        raise TypeError(f"{owner}: {name} must be a tensor or array; got {type(array).__name__}.")
    shape = tuple(int(size) for size in array.shape)
    found = _match(shape, pattern.split(), dict(sizes))
    if found is None:
        known = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        known = f" with {known}" if known else ""
        wanted = ", ".join(pattern.split())
        raise ValueError(f"{owner}: {name} must have shape ({wanted}){known}; got {shape}.")
    empty = [axis for axis, size in found.items() if size == 0]
    if empty:
        raise ValueError(f"{owner}: {name} is empty along axis {empty[0]!r}: shape {shape}.")
    return found


def _match(shape: tuple[int, ...], axes: list[str], known: dict[str, int]) -> dict[str, int] | None:
    if "..." in axes:
        split = axes.index("...")
        tail = len(axes) - split - 1
        if len(shape) < split + tail:
            return None
        shape = shape[:split] + shape[len(shape) - tail :]
        axes = axes[:split] + axes[split + 1 :]
    if len(shape) != len(axes):
        return None
    for axis, size in zip(axes, shape, strict=True):
        wanted = int(axis) if axis.isdigit() else known.setdefault(axis, size)
        if wanted != size:
            return None
    return known


def check_same_shape(owner: str, **arrays: Tensor | np.ndarray) -> None:
    """Refuse arrays whose shapes differ.

    Raises:
        ValueError: If any two shapes differ; the message shows all of them.
    """
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{owner}: {' and '.join(shapes)} must have the same shape; got {listed}.")


def check_finite(owner: str, name: str, array: Tensor | np.ndarray) -> None:
    """Refuse an array that holds NaN or an infinity.

    Raises:
        ValueError: With the number of offending entries.
    """
    import numpy as np
    import torch

    if isinstance(array, torch.Tensor):
        bad = int((~torch.isfinite(array)).sum())
    else:
        bad = int((~np.isfinite(array)).sum())
    if bad:
        raise ValueError(
            f"{owner}: {name} must be finite; {bad} of {math.prod(array.shape)} entries are NaN or "
            "infinite. Clean or impute the data first."
        )


def check_floating(owner: str, name: str, array: Tensor) -> None:
    """Refuse a tensor that is not of a real floating type.

    Raises:
        TypeError: With the type that came and the call that converts it.
    """
    import torch

    if not isinstance(array, torch.Tensor):
        raise TypeError(f"{owner}: {name} must be a tensor; got {type(array).__name__}.")
    if not array.is_floating_point():
        raise TypeError(
            f"{owner}: {name} must be a floating-point tensor; got {array.dtype}. "
            f"Convert it with {name}.float()."
        )


def check_indices(owner: str, name: str, array: Tensor, *, high: int, ignore: int | None) -> None:
    """Refuse class indices of the wrong type or outside ``[0, high)``.

    Args:
        owner: The class or function that takes the argument.
        name: The argument.
        array: Class indices of any shape.
        high: Number of classes.
        ignore: A further value that is allowed, or ``None``.

    Raises:
        TypeError: If the tensor does not hold integers.
        ValueError: If an index lies outside the range.
    """
    import torch

    if not isinstance(array, torch.Tensor):
        raise TypeError(f"{owner}: {name} must be a tensor; got {type(array).__name__}.")
    if array.is_floating_point() or array.is_complex() or array.dtype == torch.bool:
        raise TypeError(
            f"{owner}: {name} must hold class indices (int64); got {array.dtype}. "
            f"Convert it with {name}.long()."
        )
    indices = array.long()  # in uint8, 156 equals -100
    valid = (indices >= 0) & (indices < high)
    if ignore is not None:
        valid |= indices == ignore
    if not bool(valid.all()):
        wrong = array[~valid].flatten()[0].item()
        raise ValueError(f"{owner}: {name} must lie in [0, {high - 1}]; got {wrong}.")
