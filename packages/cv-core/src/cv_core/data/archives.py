"""Reading zip and tar archives without trusting their members' names, kinds or sizes."""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from cv_core.data.root import CorruptData

MEMBER_LIMIT = 1 << 30
"""Largest member that is read by default, in bytes after decompression."""

TOTAL_LIMIT = 8 << 30
"""Most that is read from one archive by default, in bytes after decompression."""


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size: int
    open: Callable[[], Any]  # a context manager of a stream of bytes


def read_members(
    archive: Path,
    *,
    suffixes: tuple[str, ...] = (),
    member_limit: int = MEMBER_LIMIT,
    total_limit: int = TOTAL_LIMIT,
) -> dict[str, bytes]:
    """Read the regular files of an archive into memory.

    Args:
        archive: A ``.zip`` or a (compressed) ``.tar`` file.
        suffixes: Endings of the names that are wanted; all by default.
        member_limit: Largest member in bytes.
        total_limit: Most bytes in all.

    Returns:
        The content by member name, in the archive's order.

    Raises:
        CorruptData: If the archive is damaged, or a member has an unsafe name or kind or is too
            large.
    """
    found: dict[str, bytes] = {}
    with _Opened(archive) as opened:
        for member in opened.safe_members(member_limit, total_limit):
            if not suffixes or member.name.endswith(suffixes):
                found[member.name] = _content(archive, member)
    return found


def safe_extract(
    archive: Path,
    target: Path,
    *,
    member_limit: int = MEMBER_LIMIT,
    total_limit: int = TOTAL_LIMIT,
) -> list[Path]:
    """Unpack the regular files of an archive below a folder; nothing if any member is refused.

    Args:
        archive: A ``.zip`` or a (compressed) ``.tar`` file.
        target: The folder; made if needed.
        member_limit: Largest member in bytes.
        total_limit: Most bytes in all.

    Returns:
        The files written.

    Raises:
        CorruptData: If the archive is damaged, or a member has an unsafe name or kind or is too
            large.
    """
    written: list[Path] = []
    with _Opened(archive) as opened:
        for member in list(opened.safe_members(member_limit, total_limit)):
            path = target.joinpath(*PurePosixPath(member.name).parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.resolve().is_relative_to(target.resolve()):  # a link that was there before
                raise CorruptData(f"{archive}: member {member.name!r} would leave {target}.")
            path.write_bytes(_content(archive, member))
            written.append(path)
    return written


class _Opened:
    """An archive of either format, as an iterator over checked members."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive

    def __enter__(self) -> _Opened:
        self._zip: zipfile.ZipFile | None = None
        self._tar: tarfile.TarFile | None = None
        try:
            if zipfile.is_zipfile(self.archive):
                self._zip = zipfile.ZipFile(self.archive)
            else:
                self._tar = tarfile.open(self.archive)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
            reason = str(error).partition("\n")[0]
            raise CorruptData(f"{self.archive}: not a readable zip or tar: {reason}") from error
        return self

    def __exit__(self, *_: object) -> None:
        for opened in (self._zip, self._tar):
            if opened is not None:
                opened.close()

    def safe_members(self, member_limit: int, total_limit: int) -> Iterator[_Member]:
        total = 0
        for member in self._members():
            _check_name(self.archive, member.name)
            total += member.size
            if member.size > member_limit or total > total_limit:
                raise CorruptData(
                    f"{self.archive}: member {member.name!r} of {member.size} bytes exceeds the "
                    f"limit of {member_limit} bytes per member or {total_limit} in all."
                )
            yield member

    def _members(self) -> Iterator[_Member]:
        if self._zip is not None:
            yield from self._zip_members(self._zip)
        elif self._tar is not None:
            yield from self._tar_members(self._tar)

    def _zip_members(self, opened: zipfile.ZipFile) -> Iterator[_Member]:
        for info in opened.infolist():
            mode = info.external_attr >> 16
            if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0):
                raise CorruptData(f"{self.archive}: member {info.filename!r} is a link or device.")
            if info.is_dir():
                _check_name(self.archive, info.filename)
                continue
            yield _Member(info.filename, info.file_size, partial(opened.open, info))

    def _tar_members(self, opened: tarfile.TarFile) -> Iterator[_Member]:
        for info in opened:
            if not (info.isreg() or info.isdir()):
                raise CorruptData(f"{self.archive}: member {info.name!r} is a link or device.")
            if info.isdir():
                _check_name(self.archive, info.name)
                continue
            yield _Member(info.name, info.size, partial(self._open_in_tar, opened, info))

    def _open_in_tar(self, opened: tarfile.TarFile, info: tarfile.TarInfo) -> Any:
        stream = opened.extractfile(info)
        if stream is None:  # cannot happen to a regular file
            raise CorruptData(f"{self.archive}: member {info.name!r} cannot be read.")
        return stream


def _check_name(archive: Path, name: str) -> None:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    absolute = posix.is_absolute() or bool(windows.drive) or bool(windows.root)
    if absolute or ".." in posix.parts or ".." in windows.parts or "\0" in name or not posix.parts:
        raise CorruptData(f"{archive}: member {name!r} would leave the folder.")


def _content(archive: Path, member: _Member) -> bytes:
    """Read one member; never more than the size that it declares."""
    try:
        with member.open() as stream:
            content: bytes = stream.read(member.size + 1)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, RuntimeError) as error:
        raise CorruptData(f"{archive}: member {member.name!r} is damaged: {error}") from error
    if len(content) != member.size:
        raise CorruptData(
            f"{archive}: member {member.name!r} holds {len(content)} bytes instead of "
            f"{member.size}."
        )
    return content
