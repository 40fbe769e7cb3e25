"""Checkpoints: weights as safetensors, all other state as tensors and plain types.

A checkpoint is a folder with three files: ``weights-<hash>.safetensors``, ``state-<hash>.pt`` and
``checkpoint.json``, which names the other two and their SHA-256. The two are written first, under
names that no earlier checkpoint uses, then the manifest replaces the old one in one step. Whenever
the process is killed, the folder holds the old checkpoint or the new one. One process writes a
folder at a time; others may read it meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

FORMAT = "cv-core checkpoint 1"
MANIFEST = "checkpoint.json"

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)


@runtime_checkable  # the tests check types
class Stateful(Protocol):
    """Anything with a state: an optimiser, a scheduler, a loader, an average of weights."""

    def state_dict(self) -> Any:
        """Return the state as tensors and plain types."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Take over a state."""


class CheckpointError(ValueError):
    """A file that is no checkpoint, or a damaged one, or one of something else."""


@dataclass(frozen=True)
class Loaded:
    """What ``load`` returns besides what it restored.

    Args:
        step: The step given to ``save``.
        extra: The further values given to ``save``.
    """

    step: int
    extra: dict[str, Any]


def exists(folder: Path | str) -> bool:
    """Return whether a folder holds a checkpoint."""
    return (Path(folder) / MANIFEST).is_file()


def save(
    folder: Path | str,
    *,
    model: nn.Module,
    step: int = 0,
    extra: Mapping[str, Any] | None = None,
    **parts: Stateful | None,
) -> None:
    """Write a checkpoint; an older one in the folder stays valid until the new one is whole.

    Args:
        folder: The checkpoint's folder; made if needed.
        model: The module whose weights are kept.
        step: How far the training is.
        extra: Further values: tensors and plain types in dictionaries, lists and tuples.
        **parts: What else has a state (``optimizer=``, ``scheduler=``, ``ema=``, ``loader=``,
            ``history=``, ``random=RandomState()``); ``None`` is left out.

    Raises:
        TypeError: If a state holds something other than tensors and plain types.
        OSError: If the folder cannot be written; the older checkpoint is then untouched.
    """
    from safetensors.torch import save_file

    tensors, aliases, rest = _split(model.state_dict())
    state = {
        "step": int(step),
        "extra": dict(extra or {}),
        "model": rest,
        "parts": {name: part.state_dict() for name, part in parts.items() if part is not None},
    }
    _check_plain("state", state)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "aliases": json.dumps(aliases)}
    files = dict(
        (
            _write(
                folder,
                lambda digest: f"weights-{digest[:16]}.safetensors",
                lambda path: save_file(tensors, path, metadata=metadata),
            ),
            _write(
                folder,
                lambda digest: f"state-{digest[:16]}.pt",
                lambda path: torch.save(state, path),
            ),
        )
    )
    _sync_folder(folder)  # the files must last before the manifest names them
    manifest = json.dumps({"format": FORMAT, "step": int(step), "files": files}, indent=1)
    _write(folder, lambda _: MANIFEST, lambda path: path.write_text(manifest))
    _sync_folder(folder)
    _clean(folder, keep=files)


def load(folder: Path | str, *, model: nn.Module, **parts: Stateful | None) -> Loaded:
    """Verify a checkpoint, then restore a model and what else is asked for.

    Nothing is restored unless the files are whole and the model's tensors fit.

    Args:
        folder: The checkpoint's folder.
        model: Takes the weights, on the device where it is.
        **parts: As for ``save``. Parts that the checkpoint holds besides are ignored.

    Returns:
        The step and the further values.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        CheckpointError: If a file is missing, damaged, of another kind, or does not fit the model;
            the message names it.
    """
    folder = Path(folder)
    path, weights, state = _read(folder)
    wanted = {name: part for name, part in parts.items() if part is not None}
    missing = sorted(wanted.keys() - state["parts"].keys())
    if missing:
        held = ", ".join(sorted(state["parts"])) or "none"
        raise CheckpointError(
            f"checkpoint.load: {folder} must hold the state of {', '.join(missing)}; it has {held}."
        )
    tensors = {**weights, **state["model"]}
    _check_fits(path, tensors, model.state_dict())
    model.load_state_dict(tensors)
    for name, part in wanted.items():
        part.load_state_dict(state["parts"][name])
    return Loaded(state["step"], state["extra"])


def read_weights(folder: Path | str) -> dict[str, Tensor]:
    """Return a checkpoint's weights by name, on the CPU.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        CheckpointError: If a file is missing, damaged or of another kind.
    """
    return _read(Path(folder))[1]


def _split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]:
    """Separate tensors, names of tensors met before, and what is no tensor."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    rest: dict[str, Any] = {}
    seen: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            rest[name] = value
            continue
        tensor = value.detach()
        storage = tensor.untyped_storage()
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        # safetensors takes no two tensors in one storage, and none with gaps
        alone = storage.nbytes() == tensor.numel() * tensor.element_size()
        if not (alone and tensor.is_contiguous()) or storage.data_ptr() in storages:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        storages.add(storage.data_ptr())
        tensors[name] = tensor
    return tensors, aliases, rest


def _check_plain(where: str, value: Any) -> None:
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return
    if type(value) in (dict, OrderedDict, Counter):
        for name, item in value.items():
            _check_plain(f"{where}[{name!r}]", item)
            _check_plain(f"a key of {where}", name)
    elif type(value) in (list, tuple, set):
        for index, item in enumerate(value):
            _check_plain(f"{where}[{index}]", item)
    else:
        raise TypeError(
            f"checkpoint.save: {where} must hold tensors and plain types only; got "
            f"{type(value).__module__}.{type(value).__qualname__}. Convert it, for example with "
            "float(), str() or torch.as_tensor()."
        )


def _write(
    folder: Path, name: Callable[[str], str], writer: Callable[[Path], object]
) -> tuple[str, str]:
    """Write a file beside its place and move it there whole; return name and SHA-256."""
    handle, path = tempfile.mkstemp(dir=folder, prefix=".checkpoint-", suffix=".tmp")
    os.close(handle)
    temporary = Path(path)
    try:
        writer(temporary)
        with temporary.open("r+b") as stream:
            os.fsync(stream.fileno())
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        temporary.chmod(0o644)
        temporary.replace(folder / name(digest))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return name(digest), digest


def _sync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _clean(folder: Path, keep: Collection[str]) -> None:
    """Remove older versions and what killed processes left."""
    for pattern in ("weights-*.safetensors", "state-*.pt", ".checkpoint-*.tmp"):
        for path in folder.glob(pattern):
            if path.name not in keep:
                with contextlib.suppress(OSError):  # someone reads it: the next save removes it
                    path.unlink()


def _read(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """Return the weights' path, the weights and the state, all from one whole checkpoint."""
    while True:
        content = _manifest(folder)
        try:
            return _read_files(folder, *_parse(folder / MANIFEST, content))
        except FileNotFoundError as error:
            if _manifest(folder) == content:
                raise CheckpointError(f"checkpoint.load: a file is missing: {error}.") from None
            # else a writer has put a new checkpoint in place meanwhile: read that


def _manifest(folder: Path) -> bytes:
    try:
        return (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        message = f"checkpoint.load: {folder} holds no checkpoint ({MANIFEST})."
        raise FileNotFoundError(message) from None


def _parse(path: Path, content: bytes) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return name and hash of the weights' and the state's file."""
    try:
        manifest = json.loads(content)
        form = manifest["format"]
        files = {Path(name).name: digest for name, digest in manifest["files"].items()}
        (weights,) = [item for item in files.items() if item[0].startswith("weights-")]
        (state,) = [item for item in files.items() if item[0].startswith("state-")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint.load: {path} is no checkpoint's manifest.") from error
    if form != FORMAT:
        raise CheckpointError(f"checkpoint.load: {path} must have format {FORMAT!r}; got {form!r}.")
    return weights, state


def _read_files(
    folder: Path, weights: tuple[str, str], state: tuple[str, str]
) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    from safetensors import safe_open

    for name, digest in (weights, state):
        with (folder / name).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != digest:
            raise CheckpointError(
                f"checkpoint.load: {folder / name} is damaged: its SHA-256 is not the one in "
                f"{MANIFEST}."
            )
    path = folder / weights[0]
    with safe_open(path, framework="pt") as tensors:
        read = {name: tensors.get_tensor(name) for name in list(tensors.keys())}
        aliases = json.loads((tensors.metadata() or {}).get("aliases", "{}"))
    read.update({name: read[source] for name, source in aliases.items()})
    return path, read, torch.load(folder / state[0], map_location="cpu", weights_only=True)


def _check_fits(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is unknown to the model" for name in found if name not in wanted]
    for name, tensor in found.items():
        if isinstance(tensor, Tensor) and name in wanted and tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, the model's is {tuple(wanted[name].shape)}"
            problems.append(f"{name} has shape {shapes}")
    if problems:
        listed = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        raise CheckpointError(f"checkpoint.load: {path} does not fit the model: {listed}.")
