"""Common checks of what a card's public objects say of themselves."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from cv_core.testing.checks import ALL_KINDS, Subject, common_check


def resolve(dotted: str) -> Any:
    """Import the object of a dotted name."""
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


@common_check(*ALL_KINDS, once_per_card=True)
def check_docstrings(subject: Subject) -> None:
    """Every public object has a docstring that names each of its arguments."""
    for dotted in subject.card.objects:
        target = resolve(dotted)
        text = inspect.getdoc(target) or ""
        assert text, f"{dotted} has no docstring"
        missing = [name for name in _arguments(target) if not re.search(rf"\b{name}\b", text)]
        assert not missing, f"{dotted}: the docstring does not name {missing}"


@common_check(*ALL_KINDS, once_per_card=True)
def check_paper_named(subject: Subject) -> None:
    """The method's module names its paper, its deviations and a runnable example."""
    module = inspect.getdoc(inspect.getmodule(resolve(subject.card.objects[0]))) or ""
    text = module + "".join(inspect.getdoc(resolve(name)) or "" for name in subject.card.objects)
    words = _plain(text)
    assert _plain(subject.card.reference.title) in words, "the paper's title is not in a docstring"
    assert "deviations" in words, "no docstring states the deviations from the paper, or none"
    assert ">>>" in text, "no docstring holds a runnable example"


def _plain(text: str) -> str:
    return re.sub(r"\W+", " ", text).lower()


def _arguments(target: Any) -> list[str]:
    if not callable(target):
        return []
    return [
        name
        for name, item in inspect.signature(target).parameters.items()
        if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD) and name != "self"
    ]
