"""The user's own data, named ``SCHEME:PATH`` wherever a data set's name is taken.

- ``folder:PATH``: one sub-folder of pictures per class; split 80 / 20, stratified, by seed 0,
  unless the folder holds ``train`` and ``test`` (or ``val``) with the classes below them. All
  pictures must have one size, or ``folder:PATH?size=64`` resizes them. A folder without
  sub-folders is a set of pictures without classes, each as it is. A folder with ``images`` and
  ``masks``, or with these two in each of ``train`` and ``test``, is a segmentation; see
  ``cv_core.data.readers.mask_folders`` for what masks may look like and for its options,
  ``folder:PATH?classes=road,crack&ignore=255``.
- ``npz:PATH``: arrays; see ``cv_core.data.readers.arrays``.
- ``coco:JSON``: boxes in COCO's format; the pictures lie beside the file, or in the folder that
  ``coco:JSON?images=FOLDER`` names.
- ``voc:PATH``: a folder in Pascal VOC's layout (``Annotations``, ``JPEGImages``, ``ImageSets``).

Pictures are decoded by Pillow; arrays are loaded without pickles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import parse_qsl

from cv_core.checks import check_choice
from cv_core.data.origin import Origin
from cv_core.data.root import MissingData, sha256_of

OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"folder": ("size", "classes", "ignore"), "npz": (), "coco": ("images",), "voc": ()}
)
"""The options that each scheme takes after a question mark."""

_IS_FOLDER = {"folder": True, "npz": False, "coco": False, "voc": True}
_KINDS = {"coco": "Detection", "voc": "Detection"}


@dataclass(frozen=True, slots=True)
class UserSource:
    """A parsed name.

    Args:
        name: As given.
        scheme: ``folder``, ``npz``, ``coco`` or ``voc``.
        path: The folder or file.
        options: The options after the question mark.
    """

    name: str
    scheme: str
    path: Path
    options: Mapping[str, str]

    @property
    def origin(self) -> Origin:
        """An origin that says no more than where the data lie."""
        return Origin(self.name, self.path.name, url=str(self.path), licence="The user's own data")


def parse(name: str) -> UserSource:
    """Take a name apart.

    Raises:
        ValueError: For an unknown scheme or option, or an empty path.

    Example:
        >>> parse("folder:photos?size=64").options
        {'size': '64'}
    """
    scheme, _, rest = name.partition(":")
    check_choice("data", "the word before the colon", scheme, OPTIONS)
    place, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option not in OPTIONS[scheme]:
            allowed = ", ".join(OPTIONS[scheme]) or "no option"
            raise ValueError(f"data: {scheme}: takes {allowed}; got {option!r}.")
    if not place:
        raise ValueError(f"data: {name!r} needs a path after the colon.")
    return UserSource(name, scheme, Path(place).expanduser(), options)


def resolve(name: str) -> None:
    """Refuse a name that is wrong or whose folder or file does not exist.

    Raises:
        ValueError: If the name is wrong.
        MissingData: If there is no such folder or file.
    """
    source = parse(name)
    folder = _IS_FOLDER[source.scheme]
    if not (source.path.is_dir() if folder else source.path.is_file()):
        what = "folder" if folder else "file"
        raise MissingData(f"data: {name}: there is no {what} {source.path}.")


def kind_of(name: str) -> str:
    """Return the class in ``cv_core.data.kinds`` that the data are loaded as.

    Raises:
        ValueError: If the name or the content is wrong.
        MissingData: If there is no such folder or file.
    """
    source = parse(name)
    if source.scheme in _KINDS:
        return _KINDS[source.scheme]
    if source.scheme == "folder":
        from cv_core.data.readers.folders import holds_classes
        from cv_core.data.readers.mask_folders import holds_masks

        resolve(name)
        if holds_masks(source.path):
            return "Segmentation"
        return "ImageClassification" if holds_classes(source.path) else "ImageSet"
    from cv_core.data.sources import load as cached

    return type(cached(name)).__name__


def load(name: str) -> Any:
    """Load the user's own data.

    Raises:
        ValueError: If the name is wrong or the content cannot be used.
        MissingData: If there is no such folder or file.
        CorruptData: If a file is damaged; the message names it.
    """
    resolve(name)
    source = parse(name)
    if source.scheme == "folder":
        return _load_folder(source)
    if source.scheme == "npz":
        from cv_core.data.readers.arrays import read_npz

        return read_npz(source.path, source.origin)
    from cv_core.data.readers import boxes

    if source.scheme == "coco":
        return boxes.read_coco(source.path, source.origin, images=_images(source))
    return boxes.read_voc(source.path, source.origin)


def _load_folder(source: UserSource) -> Any:
    from cv_core.data.readers import folders, mask_folders

    size, classes, ignore = _size(source), _classes(source), _ignore(source)
    masks = mask_folders.holds_masks(source.path)
    if not masks and (classes or "ignore" in source.options):
        raise ValueError(f"data: {source.name}: classes and ignore are for images with masks.")
    if size is not None and (masks or not folders.holds_classes(source.path)):
        raise ValueError(f"data: {source.name}: size is for pictures in one sub-folder per class.")
    if masks:
        return mask_folders.read_mask_folder(
            source.path, source.origin, classes=classes, ignore=ignore
        )
    if folders.holds_classes(source.path):
        return folders.read_folder(source.path, source.origin, size=size)
    return folders.read_pictures(source.path, source.origin)


def source_fingerprint(name: str) -> str:
    """Return a sha256 over the names and contents of all files of the data.

    Raises:
        ValueError: If the name is wrong.
        MissingData: If there is no such folder or file.
    """
    resolve(name)
    return _fingerprint(name, stamp(name))


def stamp(name: str) -> tuple[tuple[str, int, int], ...]:
    """Return path, size and time of every file: cheap, and different after a change."""
    found = []
    for path in files(name):
        state = path.stat()
        found.append((str(path), state.st_size, state.st_mtime_ns))
    return tuple(found)


def files(name: str) -> list[Path]:
    """Return the files that belong to the data, sorted; hidden ones are left out.

    Raises:
        CorruptData: If two pictures of a folder with masks have one name.
    """
    source = parse(name)
    if source.scheme == "npz":
        return [source.path]
    if source.scheme == "folder":
        from cv_core.data.readers.mask_folders import holds_masks, mask_folder_files

        if holds_masks(source.path):
            return sorted(mask_folder_files(source.path))
    found = _below(source.path) if source.scheme != "coco" else _below(_images(source))
    return sorted({*found, source.path} if source.scheme == "coco" else found)


def _below(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part[0] == "." for part in path.relative_to(folder).parts)
    ]


@lru_cache(maxsize=8)
def _fingerprint(name: str, stamped: tuple[tuple[str, int, int], ...]) -> str:
    folder = parse(name).path
    digest = hashlib.sha256()
    for text, _, _ in stamped:
        path = Path(text)
        inside = path.is_relative_to(folder) and path != folder
        shown = path.relative_to(folder).as_posix() if inside else path.name
        digest.update(f"{shown} {sha256_of(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _size(source: UserSource) -> int | None:
    text = source.options.get("size")
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"data: {source.name}: size must be a whole number above 0; got {text!r}.")
    return int(text)


def _classes(source: UserSource) -> tuple[str, ...]:
    text = source.options.get("classes")
    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(
            f"data: {source.name}: classes must be names with commas between, none empty, none "
            f"twice; got {text!r}."
        )
    return names


def _ignore(source: UserSource) -> int | Literal["auto", "none"]:
    text = source.options.get("ignore", "auto")
    if text == "auto":
        return "auto"
    if text == "none":
        return "none"
    if not text.isdecimal():
        raise ValueError(
            f"data: {source.name}: ignore must be a label, none or auto; got {text!r}."
        )
    return int(text)


def _images(source: UserSource) -> Path:
    named = source.options.get("images")
    return source.path.parent if named is None else Path(named).expanduser()
