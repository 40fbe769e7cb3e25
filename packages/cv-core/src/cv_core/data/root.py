"""The data root: the folder that holds the files of the data sets, and their verification."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path, PurePosixPath

from cv_core.data.origin import DataFile

_BLOCK = 1 << 20
_verified: set[tuple[str, int, int, str]] = set()


class MissingData(FileNotFoundError):  # noqa: N818 - it names what is missing
    """A data set is known, but its files are not on this machine."""


class CorruptData(ValueError):  # noqa: N818 - it names what is corrupt
    """A file is damaged, altered or not in the format it should have."""


def data_root() -> Path:
    """Return the data root: ``CV_DATA`` if set, else a folder in the user's cache."""
    named = os.environ.get("CV_DATA")
    if named:
        return Path(named).expanduser()
    try:
        import platformdirs
    except ModuleNotFoundError:  # it comes with the [lab] extra
        return Path.home() / ".cache" / "cv-core"
    return platformdirs.user_cache_path("cv-core", appauthor=False)


def locate(relative: str) -> Path:
    """Return where a file of the data root should lie, whether or not it is there.

    Args:
        relative: Path below the data root, with forward slashes.

    Raises:
        ValueError: If the path leaves the data root.
    """
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"data root: a path must lie below it; got {relative!r}.")
    return data_root().joinpath(*path.parts)


def find(relative: str) -> Path:
    """Return the path of a file of the data root.

    Args:
        relative: Path below the data root, with forward slashes.

    Raises:
        MissingData: If the file is not there; the message names it and ``CV_DATA``.
    """
    path = locate(relative)
    if path.is_file():
        return path
    raise MissingData(
        f"data file not found: {path}. Set the environment variable CV_DATA to the folder that "
        f"holds {relative}."
    )


def verified(file: DataFile) -> Path:
    """Return the path of a data file after its checksum has been compared, once per process.

    Args:
        file: The file and its checksums.

    Raises:
        MissingData: If the file is not there.
        CorruptData: If its content is not what it should be.
    """
    path = find(file.path)
    state = path.stat()
    key = (str(path), state.st_mtime_ns, state.st_size, file.sha256)
    if key not in _verified:
        check_file(path, file)
        _verified.add(key)
    return path


def check_file(path: Path, file: DataFile) -> None:
    """Compare a file with the checksums that a data file declares.

    A ``.gz`` or ``.zip`` file whose own checksum differs is accepted if it holds the declared
    content, since packing the same bytes again gives another file.

    Raises:
        CorruptData: If neither checksum fits; the message names the file and both checksums.
    """
    found = sha256_of(path)
    if found == file.sha256:
        return
    if file.content_sha256 and _content_sha256(path) == file.content_sha256:
        return
    raise CorruptData(
        f"{path}: the file is damaged or altered: expected sha256 {file.sha256} "
        f"({file.size} bytes), found {found} ({path.stat().st_size} bytes). Fetch it again."
    )


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _content_sha256(path: Path) -> str:
    """Return the sha256 of what a gzip file holds, or of names and contents in an archive."""
    from cv_core.data.archives import read_members

    digest = hashlib.sha256()
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
        else:
            for name, content in sorted(read_members(path).items()):
                digest.update(f"{name} {len(content)}\n".encode() + content)
    except (OSError, EOFError, zlib.error, CorruptData):
        return ""  # which is no checksum
    return digest.hexdigest()
