"""What a run was made with: versions, machine, commit, and a fingerprint of the code."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import re
import subprocess
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from cv_core.experiment.results import Environment

_EXTRAS = ("torchvision", "lightning-fabric", "torchmetrics")  # that a trial may compute with
_SOURCES = {".py", ".toml", ".tsv"}  # code, and the catalogue of data with its checksums
_NOT_IN_TRIALS = (
    "report",
    "cli",
    "testing",
)  # parts of cv-core that cannot change a trial's numbers


@lru_cache(maxsize=32)  # reading metadata takes long beside hashing a trial
def versions(package: str) -> dict[str, str]:
    """Return the installed versions that matter to a run of a package's experiment.

    They are those of the package, of cv-core, and of all that these two always require.
    """
    names = [package, "cv-core"]
    for requirement in [*(requires(package) or ()), *(requires("cv-core") or ())]:
        if "extra ==" not in requirement:
            names += re.findall(r"^[\w.-]+", requirement)
    found = {}
    for name in dict.fromkeys([*names, *_EXTRAS]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def environment(package: str, device: str) -> Environment:
    """Describe this machine and installation, without naming the machine.

    Args:
        package: Distribution of the experiment.
        device: ``cpu`` or ``cuda``.
    """
    import torch

    commit, dirty = git_state(package)
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cores=os.cpu_count() or 1,
        torch=torch.__version__,
        device_name=device_name(device),
        versions=versions(package),
        commit=commit,
        dirty=dirty,
    )


def device_name(device: str) -> str:
    """Return the accelerator's name for ``cuda``, the processor's type for ``cpu``."""
    if device == "cpu":
        return platform.machine()
    import torch

    return torch.cuda.get_device_name()


def git_state(package: str) -> tuple[str | None, bool]:
    """Return the commit of the checkout that a package is imported from, and whether it is changed.

    Returns:
        ``(None, False)`` for a package installed from a wheel.
    """
    folder = _source_folder(package)

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603 - fixed arguments
                ["git", "-C", str(folder), *arguments],  # noqa: S607
                capture_output=True,
                text=True,
                check=False,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None, False
    return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "."))


@lru_cache(maxsize=32)
def code_fingerprint(package: str) -> str:
    """Hash the files that can change a trial's numbers: the package's and cv-core's.

    The catalogue of data is among them, so that data sets which an arm loads by itself count too.
    """
    digest = hashlib.sha256()
    for distribution in sorted({package, "cv-core"}):
        folder = _source_folder(distribution)
        for path in sorted(item for item in folder.rglob("*") if item.suffix in _SOURCES):
            relative = path.relative_to(folder)
            if (
                distribution == "cv-core"
                and relative.parts[0].removesuffix(".py") in _NOT_IN_TRIALS
            ):
                continue
            digest.update(f"{distribution}/{relative.as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def arm_fingerprint(run: Callable[..., object], package: str) -> str:
    """Hash the source of an arm that is defined outside the hashed packages, as in a notebook.

    Returns:
        Empty for an arm of the packages, and where no source can be found.
    """
    function = inspect.unwrap(getattr(run, "func", run))  # of functools.partial
    if function.__module__.partition(".")[0] in (package.replace("-", "_"), "cv_core"):
        return ""
    for part in (inspect.getmodule(function), function):  # a notebook is no file
        try:
            return hashlib.sha256(inspect.getsource(part).encode()).hexdigest()  # type: ignore[arg-type]  # None is a TypeError, caught
        except (OSError, TypeError):
            continue
    return ""


def _source_folder(package: str) -> Path:
    module: Any = import_module(package.replace("-", "_"))
    return Path(next(iter(module.__path__)))
