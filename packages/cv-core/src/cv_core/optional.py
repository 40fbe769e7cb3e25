"""Libraries that only some users need, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, *, package: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional library, or say how to install it for the package that asks.

    Args:
        module: Dotted name of the module to import.
        package: The distribution that asks, such as ``"cv-attention"``.
        extra: Its extra that brings the library.
        purpose: What needs the library, for the message.

    Returns:
        The imported module.

    Raises:
        ImportError: If the library is missing, with the exact install line. What goes wrong inside
            an installed library is raised as it is.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the library is there, and something it needs is not: its own message is best
        raise ImportError(
            f"{purpose} needs {error.name}, which is not installed: "
            f'pip install "{package}[{extra}]"'
        ) from error
