"""Cards: what a method says of itself, and how the cards of all installed packages are found.

A module ``methods/<name>.py`` ends in a ``CARD``. A package names its ``methods`` subpackage in the
entry-point group ``cvlab.methods``; nothing is listed by hand. ``discover`` imports the methods and
returns their cards. ``read_index`` returns the same facts from the ``index.json`` files inside the
installed packages without importing any of them, which is what keeps ``cvlab list`` fast.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, get_args

from cv_core.checks import check_choice

GROUP = "cvlab.methods"

Kind = Literal[
    "module", "loss", "estimator", "attack", "function", "graph-module", "detector", "dataset"
]
"""What the common checks expect of a method's main object; see ``cv_core.testing``."""

Property = Literal[
    "batch-independent",  # a sample's output does not depend on the others in the batch
    "deterministic",  # two calls on one input agree, training mode included
    "non-negative",  # outputs are >= 0
    "parameter-free",  # no parameters, no buffers, nothing in the state_dict
    "shape-preserving",  # the output has the shape of the first input
    "twice-differentiable",  # gradgradcheck passes
]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Where a method was published.

    Args:
        title: Title of the paper.
        authors: Authors as printed, separated by commas.
        venue: Journal or conference, with volume.
        year: Year of publication.
        pages: Pages, such as ``"78-89"``; empty if unknown.
    """

    title: str
    authors: str
    venue: str
    year: int
    pages: str = ""

    def __str__(self) -> str:
        pages = f", pp. {self.pages}" if self.pages else ""
        return f"{self.authors}: {self.title}. {self.venue}, {self.year}{pages}."


@dataclass(frozen=True, kw_only=True)
class Example:
    """One way to build a method's object and to call it, for the common checks.

    Args:
        build: Makes the object: a module, a loss, an estimator, a callable. Called afresh by every
            check; modules draw their initial weights from torch's global generator, which the
            checks seed.
        inputs: Makes the call's arguments from a ``torch.Generator``: floating tensors in float32,
            labels in int64. An estimator's inputs are the arguments of ``fit``.
        output_shapes: The documented shape of each output for these inputs; empty to leave it open.
    """

    build: Callable[[], Any]
    inputs: Callable[..., tuple[Any, ...]]
    output_shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a method says of itself.

    Args:
        slug: The paper's short name in kebab case; the same stem everywhere.
        title: What it does, in a few words.
        reference: The paper.
        kind: Which common checks apply.
        objects: Dotted names of the public objects; the last part becomes the package's name for
            it, so that ``cv_x.methods.m.Thing`` is imported as ``from cv_x import Thing``.
        examples: Makes the examples that the common checks run on; called when they run.
        properties: Declared properties, each with a check of its own.
        exceptions: Common checks that do not hold, by name, with the reason. Such a check has to
            fail: once it passes, the exception is refused.
    """

    slug: str
    title: str
    reference: Reference
    kind: Kind
    objects: tuple[str, ...]
    examples: Callable[[], Sequence[Example]]
    properties: tuple[Property, ...] = ()
    exceptions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.slug):
            raise ValueError(f"Card: slug must be in kebab case; got {self.slug!r}.")
        check_choice("Card", "kind", self.kind, get_args(Kind))
        for name in self.properties:
            check_choice("Card", "properties", name, get_args(Property))
        if not self.objects:
            raise ValueError(f"Card: {self.slug} must name at least one public object.")

    @property
    def stem(self) -> str:
        """The slug as a module name: ``eog-pruning`` is ``eog_pruning``."""
        return self.slug.replace("-", "_")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A card and the distribution that it comes from."""

    package: str
    card: Card

    @property
    def import_package(self) -> str:
        """The name to import: ``cv-core`` is ``cv_core``."""
        return self.package.replace("-", "_")

    @property
    def experiment_module(self) -> str:
        """Dotted name of the module that declares the method's experiment."""
        return f"{self.import_package}.experiments.{self.card.stem}"


def _points() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


def discover(package: str | None = None) -> dict[str, Entry]:
    """Import the methods of the installed packages and return their cards by slug.

    Args:
        package: Only this distribution, such as ``"cv-attention"``; all by default.

    Raises:
        ValueError: If two methods use one slug, or a method module has no ``CARD`` of its stem.
    """
    found: dict[str, Entry] = {}
    for point in _points():
        if package is not None and point.name != package:
            continue
        methods = importlib.import_module(point.value)
        for info in sorted(pkgutil.iter_modules(methods.__path__), key=lambda item: item.name):
            if info.name.startswith("_"):
                continue
            module = importlib.import_module(f"{point.value}.{info.name}")
            entry = Entry(package=point.name, card=_card_of(module, info.name))
            if entry.card.slug in found:
                other = found[entry.card.slug].package
                raise ValueError(
                    f"two methods are named {entry.card.slug!r}: in {other} and in {point.name}."
                )
            found[entry.card.slug] = entry
    return found


def _card_of(module: Any, stem: str) -> Card:
    card = getattr(module, "CARD", None)
    if not isinstance(card, Card):
        raise ValueError(f"{module.__name__} must end in a CARD; it has none.")
    if card.stem != stem:
        raise ValueError(
            f"{module.__name__}: the card's slug {card.slug!r} must match the module's name."
        )
    return card


def index_path(import_package: str) -> Path | None:
    """Return the path of a package's ``index.json``, without importing the package."""
    spec = importlib.util.find_spec(import_package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "index.json"


def read_index() -> list[dict[str, Any]]:
    """Return what ``cvlab list`` shows: one dict per method of every installed package.

    Nothing but the index files is read: neither torch nor any package is imported.
    """
    rows: list[dict[str, Any]] = []
    for point in _points():
        path = index_path(point.value.partition(".")[0])
        if path is not None and path.is_file():
            rows.extend(json.loads(path.read_text(encoding="utf-8")))
    return sorted(rows, key=lambda row: (row["package"], row["slug"]))
