"""Keep a narrowed network in one file, and build it again from the class that made the wide one.

One safetensors file holds the tensors, and in its metadata a JSON recipe of the widths: one file
cannot be parted from its recipe, holds no code (no pickle), and any safetensors reader opens it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cv_core.files import write_atomically
from torch import Tensor, nn

from cv_pruning.pruning.narrowing import (
    Edit,
    Side,
    apply,
    layers,
    leading,
    narrow,
    narrow_tensor,
    widths,
)
from cv_pruning.pruning.stated_widths import stated

_KEY, _FORMAT = "cv-pruning", 1


def save_pruned(model: nn.Module, path: str | Path) -> Path:
    """Write a network's tensors and widths to one safetensors file.

    Args:
        model: A network, narrowed by ``prune`` or by hand.
        path: The file; an older one is replaced, whole or not at all.

    Returns:
        The path.

    Raises:
        TypeError: If the state holds something other than tensors.
        OSError: If the file cannot be written.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    stored: set[int] = set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(f"save_pruned: {name!r} is a {type(value).__name__}, not a tensor.")
        pointer = value.untyped_storage().data_ptr()
        # safetensors holds no two tensors over one memory; a tied weight is written twice.
        tensors[name] = value.clone() if pointer in stored else value.contiguous()
        stored.add(pointer)
    recipe = {
        "format": _FORMAT,
        "layers": {name: widths(layer) for name, layer in layers(model).items()},
        "parameters": {name: list(p.shape) for name, p in _bare_parameters(model).items()},
        "stated": {name: getattr(*place) for name, place in stated(model).items()},
    }
    return write_atomically(Path(path), save(tensors, {_KEY: json.dumps(recipe)}))


def load_pruned(model_fn: Callable[[], nn.Module], path: str | Path) -> nn.Module:
    """Build a network, narrow it to the widths in a file, and load the file's tensors.

    Needs neither example inputs nor torch-pruning.

    Args:
        model_fn: Makes the network as it was before pruning; its weights do not matter.
        path: From ``save_pruned``.

    Returns:
        The narrowed network, with the flags and device that ``model_fn`` gave it.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no such file, or if a layer, width, name, shape or type does not fit
            the network. Everything is compared before the network is touched.

    Example:
        >>> load_pruned(lambda: torchvision.models.resnet18(), "resnet18-half.safetensors")
        ... # doctest: +SKIP
    """
    recipe, tensors = _read(Path(path))
    model = model_fn()
    try:
        edits = _edits(model, recipe)
        _check_tensors(model, edits, tensors)
    except ValueError as error:
        raise ValueError(f"load_pruned: {path} does not fit what model_fn makes: {error}") from None
    apply(edits)
    model.load_state_dict(tensors, strict=True)
    return model


def _bare_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that belong to no layer of known widths."""
    known = {id(p) for layer in layers(model).values() for p in layer.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in known}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            recipe = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"load_pruned: {path} was not written by save_pruned: {error}") from error
    parts = isinstance(recipe, dict) and [
        recipe.get(key) for key in ("layers", "parameters", "stated")
    ]
    if not parts or recipe.get("format") != _FORMAT or not all(isinstance(p, dict) for p in parts):
        raise ValueError(f"load_pruned: {path} holds no recipe of format {_FORMAT}.")
    return recipe, tensors


def _edits(model: nn.Module, recipe: dict[str, Any]) -> list[Edit]:
    edits: list[Edit] = []
    known = layers(model)
    _check_names("layer", set(recipe["layers"]), set(known))
    for name, layer in known.items():
        try:
            edits += _layer_edits(name, layer, recipe["layers"][name])
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
    bare = _bare_parameters(model)
    _check_names("parameter", set(recipe["parameters"]), set(bare))
    for name, parameter in bare.items():
        shape = recipe["parameters"][name]
        _check_sizes(f"parameter {name!r}", shape, list(parameter.shape))
        path, _, attribute = name.rpartition(".")
        pairs = enumerate(zip(shape, parameter.shape, strict=True))
        cuts = {dim: torch.arange(n) for dim, (n, m) in pairs if n < m}
        edits += narrow_tensor(model.get_submodule(path), attribute, cuts)
    places = stated(model)
    _check_names("attribute", set(recipe["stated"]), set(places))
    for name, (owner, attribute) in places.items():
        now, wanted = getattr(owner, attribute), recipe["stated"][name]
        many = isinstance(now, tuple)
        _check_sizes(
            f"attribute {name!r}", wanted if many else [wanted], list(now) if many else [now]
        )
        edits.append(Edit(owner, attribute, tuple(wanted) if many else wanted))
    return edits


def _check_sizes(what: str, wanted: object, known: list[int]) -> None:
    """Refuse sizes that are not whole numbers, or larger than those of the network."""
    if isinstance(wanted, list) and len(wanted) == len(known):
        pairs = zip(wanted, known, strict=True)
        if _all_integers(wanted) and all(min(1, m) <= n <= m for n, m in pairs):
            return
    raise ValueError(f"{what}: {wanted} where at most {known} is known")


def _layer_edits(name: str, layer: nn.Module, wanted: object) -> list[Edit]:
    now = widths(layer)
    if not isinstance(wanted, dict) or set(wanted) != set(now):
        raise ValueError(f"widths {wanted!r} where {now} are known")
    if not _all_integers(list(wanted.values())):
        raise ValueError(f"widths {wanted!r} are not whole numbers")
    keep: dict[Side, Tensor] = {
        side: leading(layer, side, wanted[side]) for side in now if wanted[side] != now[side]
    }
    return narrow(name, layer, keep) if keep else []


def _all_integers(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)


def _check_tensors(model: nn.Module, edits: list[Edit], tensors: dict[str, Tensor]) -> None:
    """Compare names, shapes and types with those that the network will have."""
    new = {(id(e.owner), e.name): e.value for e in edits if isinstance(e.value, Tensor)}
    expected = dict(model.state_dict(keep_vars=True))
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name in (*module._parameters, *module._buffers):
            full = f"{prefix}.{name}".lstrip(".")
            if full in expected and (id(module), name) in new:
                expected[full] = new[id(module), name]
    _check_names("tensor", set(tensors), set(expected))
    for name, tensor in expected.items():
        came = tensors[name]
        if came.shape != tensor.shape or came.dtype != tensor.dtype:
            raise ValueError(
                f"tensor {name!r}: {came.dtype} {list(came.shape)} where {tensor.dtype} "
                f"{list(tensor.shape)} is expected"
            )


def _check_names(what: str, came: set[str], known: set[str]) -> None:
    if foreign := sorted(came - known):
        raise ValueError(f"{what} {foreign[0]!r} is not in the network")
    if missing := sorted(known - came):
        raise ValueError(f"{what} {missing[0]!r} is not in the file")
