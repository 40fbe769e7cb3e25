"""How each kind of layer loses channels: as a list of edits that is made, or taken back, as one.

A layer with two *sides* (convolution, linear) is narrowed at its outputs and its inputs apart; all
others (normalisations, depthwise convolutions, attention) have one side, ``"out"``. Nothing here
needs a trace or a library: ``prune`` and ``load_pruned`` both narrow through this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Side = Literal["out", "in"]


@dataclass(frozen=True)
class Edit:
    """One attribute of a module and the value it is to have."""

    owner: nn.Module
    name: str
    value: Any


def apply(edits: Iterable[Edit]) -> list[Edit]:
    """Make edits in their order; return those that take them back."""
    undo: list[Edit] = []
    for edit in edits:
        undo.insert(0, Edit(edit.owner, edit.name, getattr(edit.owner, edit.name)))
        setattr(edit.owner, edit.name, edit.value)
    return undo


def is_depthwise(layer: nn.Module) -> bool:
    """Tell whether a convolution keeps every channel to itself."""
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels == (
        layer.out_channels
    )


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that can be narrowed, by name; what an attention contains is part of it."""
    inside = {
        id(child)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        for child in module.children()
    }
    named = model.named_modules()
    return {name: m for name, m in named if widths(m) and id(m) not in inside}


_WIDTHS: tuple[tuple[type[nn.Module], dict[Side, str]], ...] = (
    (_ConvNd, {"out": "out_channels", "in": "in_channels"}),
    (nn.Linear, {"out": "out_features", "in": "in_features"}),
    (_NormBase, {"out": "num_features"}),  # batch and instance normalisation
    (nn.GroupNorm, {"out": "num_channels"}),
    (nn.PReLU, {"out": "num_parameters"}),
    (nn.Embedding, {"out": "embedding_dim"}),
    (nn.MultiheadAttention, {"out": "embed_dim"}),
)
"""The attributes that state a layer's channels, by side."""


def _stated(layer: nn.Module) -> dict[Side, str]:
    if is_depthwise(layer):
        return {"out": "out_channels"}
    return next((sides for kind, sides in _WIDTHS if isinstance(layer, kind)), {})


def widths(layer: nn.Module) -> dict[Side, int]:
    """Return a layer's channels by side; nothing for a layer that this module cannot narrow.

    Example:
        >>> widths(nn.Conv2d(3, 8, 1)), widths(nn.BatchNorm2d(8)), widths(nn.ReLU())
        ({'out': 8, 'in': 3}, {'out': 8}, {})
    """
    if isinstance(layer, nn.LayerNorm):
        shape = layer.normalized_shape
        return {"out": shape[0]} if len(shape) == 1 else {}
    one_slope = isinstance(layer, nn.PReLU) and layer.num_parameters == 1
    separate = isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is None
    if one_slope or separate:
        return {}
    return {side: getattr(layer, name) for side, name in _stated(layer).items()}


def blocks(layer: nn.Module) -> int:
    """Return into how many blocks the channels are cut; each has to lose the same offsets."""
    match layer:
        case _ConvNd() if not is_depthwise(layer):
            return layer.groups
        case nn.GroupNorm():
            return layer.num_groups
        case nn.MultiheadAttention():
            return layer.num_heads
    return 1


def narrow(name: str, layer: nn.Module, keep: Mapping[Side, Tensor]) -> list[Edit]:
    """Plan the edits that leave a layer with some of its channels.

    Args:
        name: The layer's name, for messages.
        layer: A layer with ``widths``.
        keep: Indices of the channels that stay, in order, by side; a side left out stays whole.

    Returns:
        Edits that set parameters (with their gradients), buffers and widths.

    Raises:
        ValueError: If a grouped layer would be left with groups that differ.
    """
    for side, index in keep.items():
        _check_balanced(name, index, widths(layer)[side], blocks(layer))
    edits = [
        Edit(layer, attribute, len(keep[side]))
        for side, attribute in _stated(layer).items()
        if side in keep
    ]
    return edits + _tensors(layer, keep)


def _tensors(layer: nn.Module, keep: Mapping[Side, Tensor]) -> list[Edit]:
    out, into = keep.get("out"), keep.get("in")
    match layer:
        case _ConvNd():
            return _convolution(layer, out, into)
        case nn.Linear():
            weight = _tensor(layer, "weight", {0: out, 1: into})
            return weight + _tensor(layer, "bias", {0: out})
        case nn.MultiheadAttention():
            return _attention(layer, keep["out"])
        case nn.Embedding():
            return _tensor(layer, "weight", {1: out})
    names = ("weight", "bias", "running_mean", "running_var")
    edits = [edit for name in names for edit in _tensor(layer, name, {0: out})]
    if isinstance(layer, nn.LayerNorm):
        edits.append(Edit(layer, "normalized_shape", (len(keep["out"]),)))
    return edits


def leading(layer: nn.Module, side: Side, width: int) -> Tensor:
    """Return indices for ``narrow`` that leave a side ``width`` channels wide: the first ones.

    Raises:
        ValueError: If a grouped layer cannot have that width.
    """
    before, count = widths(layer)[side], blocks(layer)
    if not 1 <= width <= before:
        raise ValueError(f"a width of {width} does not lie in [1, {before}]")
    if width % count:
        raise ValueError(f"a width of {width} cannot be divided into {count} groups or heads")
    starts = torch.arange(count)[:, None] * (before // count)
    return (starts + torch.arange(width // count)).reshape(-1)


def narrow_tensor(owner: nn.Module, name: str, cuts: Mapping[int, Tensor]) -> list[Edit]:
    """Plan the edit that cuts a bare parameter or buffer: kept indices by dimension."""
    return _tensor(owner, name, cuts)


def _check_balanced(name: str, index: Tensor, width: int, groups: int) -> None:
    if groups == 1:
        return
    if len(index) % groups == 0:
        offsets = index.view(groups, -1) - torch.arange(groups)[:, None] * (width // groups)
        if bool((offsets == offsets[0]).all()):
            return
    raise ValueError(
        f"prune: layer {name!r} has {groups} groups or heads, and its {width} channels are tied to "
        f"others in a way that would leave these unequal. Name it in ignored."
    )


def _convolution(layer: _ConvNd, out: Tensor | None, into: Tensor | None) -> list[Edit]:
    bias = _tensor(layer, "bias", {0: out})
    if is_depthwise(layer):
        assert out is not None  # noqa: S101  # its only side
        numbers = [Edit(layer, name, len(out)) for name in ("in_channels", "groups")]
        return [*_tensor(layer, "weight", {0: out}), *bias, *numbers]
    # One side of a grouped weight is stored as offsets, the same for every group.
    rows, columns = (into, out) if layer.transposed else (out, into)
    if columns is not None:
        columns = columns[: len(columns) // layer.groups]
    return [*_tensor(layer, "weight", {0: rows, 1: columns}), *bias]


def _attention(layer: nn.MultiheadAttention, keep: Tensor) -> list[Edit]:
    """Narrow the tokens, and with them queries, keys and values: torch ties the two widths."""
    stacked = torch.cat([keep + part * layer.embed_dim for part in range(3)])
    return [
        *_tensor(layer, "in_proj_weight", {0: stacked, 1: keep}),
        *_tensor(layer, "in_proj_bias", {0: stacked}),
        *_tensor(layer, "bias_k", {2: keep}),
        *_tensor(layer, "bias_v", {2: keep}),
        *narrow("out_proj", layer.out_proj, {"out": keep, "in": keep}),
        *(Edit(layer, name, len(keep)) for name in ("kdim", "vdim")),
        Edit(layer, "head_dim", len(keep) // layer.num_heads),
    ]


def _tensor(owner: nn.Module, name: str, cuts: Mapping[int, Tensor | None]) -> list[Edit]:
    old = getattr(owner, name, None)
    present = {dim: index for dim, index in cuts.items() if index is not None}
    if old is None or not present:
        return []
    new = _cut(old.detach(), present)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
        new.grad = None if old.grad is None else _cut(old.grad, present)
    return [Edit(owner, name, new)]


def _cut(tensor: Tensor, cuts: Mapping[int, Tensor]) -> Tensor:
    for dim, index in cuts.items():
        tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor
