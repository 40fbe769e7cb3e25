"""Downloading data sets into the data root, with their checksums.

``plan`` lists what would be fetched, with size, licence and checksum; ``get`` fetches it. Only
files of a stable origin have an address; the others the user puts into the data root. Where the
origin cannot be reached, ``CV_DATA_MIRROR`` may name the start of a mirror's addresses: a file of
``https://host/place`` is then fetched from ``MIRROR/host/place``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from cv_core.data.archives import read_members
from cv_core.data.origin import DataFile
from cv_core.data.root import CorruptData, check_file, data_root, locate
from cv_core.data.sources import entry_of
from cv_core.optional import require


@dataclass(frozen=True, slots=True)
class Download:
    """A file that ``get`` would fetch.

    Args:
        file: Address, place below the data root, size and checksum.
        target: Where it will lie.
        licence: The terms of the data set.
        present: Whether it is there already.
    """

    file: DataFile
    target: Path
    licence: str
    present: bool


def plan(name: str) -> list[Download]:
    """List the files of a data set before anything is fetched.

    Args:
        name: A data set of the catalogue.

    Raises:
        ValueError: For an unknown name.
    """
    origin = entry_of(name).origin
    found = []
    for file in origin.files:
        target = locate(file.path)
        found.append(Download(file, target, origin.licence, target.is_file()))
    return found


def get(name: str, *, path: Path | str | None = None) -> list[Path]:
    """Put the files of a data set into the data root and compare their checksums.

    A file that is there already is checked and kept. A file that fails the check is not put into
    the data root.

    Args:
        name: A data set of the catalogue.
        path: A folder of this machine to copy from instead of the network; it holds the files at
            their paths below the data root, or side by side.

    Returns:
        The files, in the order of the catalogue.

    Raises:
        ValueError: For an unknown name, or one that has no address and is not given by ``path``.
        CorruptData: If a file is not what it should be.
        OSError: If it cannot be fetched or written.
    """
    steps = plan(name)
    source = None if path is None else Path(path)
    unknown = [step.file.path for step in steps if not step.present and not step.file.url]
    if source is None and unknown:
        raise ValueError(
            f"download: {name} has no stable address for {', '.join(unknown)}; put the files into "
            f"{data_root()}, or give path= a folder that holds them."
        )
    for step in steps:
        if step.present:
            check_file(step.target, step.file)
        else:
            _fetch(step, source)
    return [step.target for step in steps]


def _fetch(step: Download, source: Path | None) -> None:
    """Fetch one file beside its place, check it, and move it there in one step."""
    step.target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=step.target.parent, prefix=".fetch-") as folder:
        arrived = Path(folder) / step.target.name
        if source is None:
            _retrieve(step.file.url.partition("#")[0], arrived)
            _repack(arrived, step.file.url.partition("#")[2])
        else:
            shutil.copyfile(_local(source, step.file), arrived)
        try:
            check_file(arrived, step.file)
        except CorruptData as error:
            came_from = step.file.url if source is None else str(source)
            raise CorruptData(f"download from {came_from}: {error}") from error
        os.replace(arrived, step.target)


def _retrieve(url: str, target: Path) -> None:
    pooch = require("pooch", package="cv-core", extra="lab", purpose="downloading data")
    log = pooch.get_logger()
    level = log.level
    log.setLevel("ERROR")  # it announces every file, which is the command line's business
    try:
        pooch.retrieve(
            _address(url),
            known_hash=None,  # checked afterwards, where another packing may pass
            fname=target.name,
            path=target.parent,
        )
    finally:
        log.setLevel(level)


def _repack(arrived: Path, folder: str) -> None:
    """Replace the archive of a repository by a zip of one of its folders, if one is named."""
    if not folder:
        return
    members = {}
    for name, content in read_members(arrived).items():
        inside = name.partition("/")[2]  # such an archive has one folder at the top
        if inside.startswith(folder):
            members[inside] = content
    with zipfile.ZipFile(arrived, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name), members[name])


def _address(url: str) -> str:
    """Return the address, at a mirror if ``CV_DATA_MIRROR`` names the start of one."""
    mirror = os.environ.get("CV_DATA_MIRROR", "")
    if not mirror:
        return url
    return f"{mirror.rstrip('/')}/{url.partition('://')[2]}"


def _local(source: Path, file: DataFile) -> Path:
    for candidate in (source / file.path, source / Path(file.path).name):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"download: {source} holds neither {file.path} nor its last part.")
