"""Where a data set comes from: its files, its terms and what was changed. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a data set: where it lies below the data root, and what must be in it.

    Args:
        path: Relative to the data root, with forward slashes.
        size: In bytes.
        sha256: Of the whole file, in hexadecimal digits.
        content_sha256: Of what a ``.gz`` or ``.zip`` file holds, if any packing of it will do;
            else "".
        url: Where the file can be downloaded; "" if nowhere. A fragment (``#folder/``) means that
            the file is a zip of this folder of the archive at the address.
    """

    path: str
    size: int
    sha256: str
    content_sha256: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a data set comes from, on what terms, and what was changed.

    Args:
        name: The name under which it was loaded.
        title: Full name.
        reference: The publication to cite.
        url: Where the data live.
        licence: The terms as stated by the origin; "None stated" means exactly that.
        changed: What differs from the original.
        files: The files that were read; empty for data inside a library.
    """

    name: str
    title: str
    reference: str = ""
    url: str = ""
    licence: str = ""
    changed: str = ""
    files: tuple[DataFile, ...] = ()
