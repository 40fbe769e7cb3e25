"""The table of common checks: which apply to a card, by its kind and its declared properties.

A check is a plain function of a ``Subject``; it returns if the subject passes and raises
``AssertionError`` with a reason if it does not. Nothing is applied by name: a new card is tested
by being found. Checks live in the modules ``tensors``, ``losses``, ``estimators``, ``attacks``,
``graphs`` and ``documents`` beside this one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cv_core.random import derive_seed, seeded, torch_generator
from cv_core.registry import Card, Example, Kind, Property

TENSOR_KINDS: tuple[Kind, ...] = ("module", "loss", "function", "graph-module")
ALL_KINDS: tuple[Kind, ...] = (
    "module", "loss", "estimator", "attack", "function", "graph-module", "detector", "dataset",
)  # fmt: skip
_MODULES = ("tensors", "losses", "estimators", "attacks", "graphs", "documents")


@dataclass(frozen=True)
class Subject:
    """What a check looks at: a card, one of its examples, and a device."""

    card: Card
    example: Example
    device: str = "cpu"

    def build(self) -> Any:
        """Make the object afresh, always with the same initial weights."""
        with seeded(derive_seed(0, self.card.slug), "build"):
            built = self.example.build()
        return built.to(self.device) if isinstance(built, torch.nn.Module) else built

    def inputs(self) -> tuple[Any, ...]:
        """Make the arguments afresh, always the same."""
        made = self.example.inputs(torch_generator(derive_seed(0, self.card.slug), "inputs"))
        return tuple(move(item, self.device) for item in made)


@dataclass(frozen=True)
class Check:
    """A common check: its name, what it applies to, and the function."""

    name: str
    kinds: tuple[Kind, ...]
    run: Callable[[Subject], None]
    needs: Property | None = None
    once_per_card: bool = False

    def applies_to(self, card: Card) -> bool:
        """Tell whether this card has to pass the check."""
        return card.kind in self.kinds and (self.needs is None or self.needs in card.properties)


_CHECKS: dict[str, Check] = {}


def common_check(
    *kinds: Kind, needs: Property | None = None, once_per_card: bool = False
) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Register a function ``check_<name>`` as a common check.

    Args:
        *kinds: The kinds of card it applies to.
        needs: Only to cards that declare this property.
        once_per_card: Run on the first example only.
    """

    def register(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
        name = function.__name__.removeprefix("check_")
        if name in _CHECKS:
            raise ValueError(f"two common checks are named {name!r}.")
        _CHECKS[name] = Check(name, kinds, function, needs, once_per_card)
        return function

    return register


def all_checks() -> dict[str, Check]:
    """Return every common check by name."""
    for module in _MODULES:
        importlib.import_module(f"cv_core.testing.{module}")
    return dict(_CHECKS)


def cases(card: Card, device: str = "cpu") -> Iterator[tuple[Check, Subject]]:
    """Yield every check that a card has to pass, with what to run it on.

    Raises:
        ValueError: If the card makes an exception for a check that does not apply to it.
    """
    applying = [check for check in all_checks().values() if check.applies_to(card)]
    unknown = set(card.exceptions) - {check.name for check in applying}
    if unknown:
        raise ValueError(f"{card.slug}: exceptions name no check that applies: {sorted(unknown)}.")
    examples = list(card.examples())
    if not examples:
        raise ValueError(f"{card.slug}: a card needs at least one example.")
    for check in applying:
        for example in examples[:1] if check.once_per_card else examples:
            yield check, Subject(card, example, device)


def move(item: Any, device: str) -> Any:
    """Move tensors to a device and leave everything else as it is."""
    if isinstance(item, torch.Tensor | torch.nn.Module):
        return item.to(device)
    return item


def flatten(output: Any) -> list[torch.Tensor]:
    """Return all tensors of an output: a tensor, or containers of tensors, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        return [tensor for value in output.values() for tensor in flatten(value)]
    if isinstance(output, list | tuple):
        return [tensor for value in output for tensor in flatten(value)]
    return []


def names_owner(message: str, built: Any) -> bool:
    """Tell whether an error message names the object, as a class or as its functional twin."""
    built = getattr(built, "func", built)  # functools.partial
    owner = str(getattr(built, "__name__", type(built).__name__))
    return _squeezed(owner) in _squeezed(message)


def _squeezed(text: str) -> str:
    return text.lower().replace("_", "")  # GCELoss is gce_loss
