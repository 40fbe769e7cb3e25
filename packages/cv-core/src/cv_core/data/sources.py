"""Data sets by name: what there is, where it lies, and loading it. Imports neither torch nor NumPy.

A name is one of the catalogue (``names()``), or the user's own data as ``folder:PATH``,
``npz:PATH``, ``coco:JSON`` or ``voc:PATH`` (see ``cv_core.data.user``).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.resources
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from cv_core.checks import nearest
from cv_core.data.origin import DataFile, Origin
from cv_core.data.root import MissingData, data_root, locate, verified

Where = Literal["bundled", "data root", "download"]

USER_SCHEMES = ("folder", "npz", "coco", "voc")
_KEPT = 4  # data sets kept in memory: a run uses one or two, in many trials
_RESERVED = frozenset(
    {"title", "kind", "reader", "files", "reference", "url", "licence", "changed"}
)


@dataclass(frozen=True, slots=True)
class Source:
    """A data set of the catalogue.

    Args:
        name: What ``load`` and ``cvlab run --data`` take.
        kind: The class in ``cv_core.data.kinds`` that it is loaded as.
        title: Full name.
        licence: The terms as stated by the origin.
        size: Bytes of its files; 0 for data inside a library.
        where: ``bundled`` (inside a library), ``download`` (``cvlab data get`` fetches it) or
            ``data root`` (the user puts its files there).
        available: Whether its files are on this machine.
    """

    name: str
    kind: str
    title: str
    licence: str
    size: int
    where: Where
    available: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """What the catalogue says of a data set: its origin, its kind and its reader.

    Args:
        origin: Origin with the files to read.
        kind: The class in ``cv_core.data.kinds``.
        reader: ``module:function`` below ``cv_core.data``.
        options: Further arguments of the reader.
    """

    origin: Origin
    kind: str
    reader: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> Where:
        """Where the data set comes from; see ``Source``."""
        files = self.origin.files
        if not files:
            return "bundled"
        return "download" if all(file.url for file in files) else "data root"

    def missing(self) -> list[DataFile]:
        """Return the files that are not in the data root."""
        return [file for file in self.origin.files if not locate(file.path).is_file()]


def names() -> list[Source]:
    """List the catalogue, by name."""
    return [
        Source(
            name=name,
            kind=entry.kind,
            title=entry.origin.title,
            licence=entry.origin.licence,
            size=sum(file.size for file in entry.origin.files),
            where=entry.where,
            available=not entry.missing(),
        )
        for name, entry in sorted(catalogue().items())
    ]


def entry_of(name: str) -> Entry:
    """Return the catalogue's entry.

    Raises:
        ValueError: For an unknown name, with the nearest ones.
    """
    known = catalogue()
    if name in known:
        return known[name]
    close = nearest(name, known)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    schemes = ", ".join(f"{scheme}:PATH" for scheme in USER_SCHEMES)
    raise ValueError(
        f"data: {name!r} is not a known data set.{hint} The known ones are "
        f"{', '.join(sorted(known))}; your own data are {schemes}."
    )


def resolve(name: str) -> None:
    """Refuse a name that cannot be loaded here, without reading the data.

    Raises:
        ValueError: For an unknown name, with the nearest ones.
        MissingData: If files are missing; the message names them and says how to get them.
    """
    if is_user_source(name):
        from cv_core.data import user

        user.resolve(name)
        return
    entry = entry_of(name)
    missing = entry.missing()
    if missing:
        raise MissingData(_missing_message(name, entry, missing))


def kind_of(name: str) -> str:
    """Return the name of the class in ``cv_core.data.kinds`` that a data set is loaded as.

    Raises:
        ValueError: For an unknown name.
    """
    if is_user_source(name):
        from cv_core.data import user

        return user.kind_of(name)
    return entry_of(name).kind


def checksum(name: str) -> str:
    """Return a fingerprint of the data, the same wherever the data are the same.

    For files it is made of their declared checksums, which ``load`` compares with the files; for
    data inside a library of the arrays; for the user's own data of their content.

    Raises:
        ValueError: For an unknown name.
        MissingData: If files are missing.
    """
    resolve(name)
    if is_user_source(name):
        from cv_core.data import user

        return user.source_fingerprint(name)
    files = entry_of(name).origin.files
    if not files:
        return _checksum_of_library_data(name)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path} {file.sha256}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def load(name: str) -> Any:
    """Load a data set. The last few are kept in memory: treat them as read-only.

    Args:
        name: One of ``names()``, or the user's own data.

    Returns:
        One of the classes in ``cv_core.data.kinds``.

    Raises:
        ValueError: For an unknown name.
        MissingData: If files are missing.
        CorruptData: If a file is not what it should be.

    Example:
        >>> load("digits").train_x.shape
        torch.Size([1200, 1, 8, 8])
    """
    resolve(name)
    if is_user_source(name):
        from cv_core.data import user

        return _load_user(name, user.stamp(name))
    return _load(name, data_root())


def is_user_source(name: str) -> bool:
    """Tell whether a name stands for the user's own data."""
    scheme, colon, _ = name.partition(":")
    return bool(colon) and scheme in USER_SCHEMES


@lru_cache(maxsize=_KEPT)
def _load(name: str, root: Path) -> Any:  # noqa: ARG001 - another root may hold other files
    entry = entry_of(name)
    module, _, function = entry.reader.partition(":")
    reader = getattr(importlib.import_module(f"cv_core.data.{module}"), function)
    if not entry.origin.files:  # data inside a library
        return reader(entry.origin, **entry.options)
    paths = [verified(file) for file in entry.origin.files]
    return reader(entry.origin, paths, **entry.options)


@lru_cache(maxsize=_KEPT)
def _load_user(name: str, stamp: object) -> Any:  # noqa: ARG001 - changed files are read again
    from cv_core.data import user

    return user.load(name)


@lru_cache
def _checksum_of_library_data(name: str) -> str:
    from cv_core.data.fingerprint import fingerprint

    return fingerprint(load(name))


def _missing_message(name: str, entry: Entry, missing: list[DataFile]) -> str:
    path = locate(missing[0].path)
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    get = f"fetch it with: cvlab data get {name}; or " if entry.where == "download" else ""
    return (
        f"data: {name} is not on this machine: {path}{more} does not exist. Either {get}set the "
        f"environment variable CV_DATA to a folder that holds {missing[0].path} "
        f"(from {entry.origin.url or entry.origin.reference})."
    )


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Entry]:
    """Return the catalogue: ``readers/catalogue.toml`` joined with ``readers/files.tsv``."""
    files = data_files()
    text = _resource("catalogue.toml")
    found: dict[str, Entry] = {}
    for name, facts in tomllib.loads(text).items():
        origin = Origin(
            name=name,
            title=facts["title"],
            reference=facts.get("reference", ""),
            url=facts.get("url", ""),
            licence=facts.get("licence", ""),
            changed=facts.get("changed", ""),
            files=tuple(files[path] for path in facts.get("files", ())),
        )
        options = {key: value for key, value in facts.items() if key not in _RESERVED}
        found[name] = Entry(origin, facts["kind"], facts["reader"], options)
    return found


@lru_cache(maxsize=1)
def data_files() -> dict[str, DataFile]:
    """Return every file of the catalogue by its path below the data root."""
    rows = [line.split("\t") for line in _resource("files.tsv").splitlines()[1:]]
    return {row[0]: DataFile(row[0], int(row[1]), *row[2:]) for row in rows}


def _resource(name: str) -> str:
    folder = importlib.resources.files("cv_core.data.readers")
    return folder.joinpath(name).read_text(encoding="utf-8")
