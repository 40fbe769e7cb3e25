"""Our view of torch-pruning's dependency graph: which channels have to go together.

The graph is torch-pruning's: it traces the network by autograd and knows how ``cat``, ``split`` and
``flatten`` renumber channels. Walking it is ours: torch-pruning refreshes every renumbering and
maps channels one by one, in Python, for each group and again for each removal; here the graph is
walked once, with arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from cv_core.engine.evaluation import modes_kept
from cv_core.optional import require
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from cv_pruning.pruning.narrowing import Side, blocks, widths

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Member:
    """A side of a layer, or a bare parameter, whose channels belong to a group.

    Args:
        layer: The layer, bare parameter, or torch-pruning's stand-in for an operation.
        side: Whether its outputs or its inputs are meant.
        index: Channels of the layer.
        root: For each of them, the group's channel that it goes with.
        dependency: torch-pruning's edge that led here.
    """

    layer: Any
    side: Side
    index: Index
    root: Index
    dependency: Any

    @property
    def is_output(self) -> bool:
        """Whether this stands for what the network returns."""
        return type(self.layer).__name__ == "_OutputOp"

    @property
    def holds_channels(self) -> bool:
        """Whether this is a layer or parameter, not an operation such as an addition."""
        return not _is_operation(self.layer)


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels of several layers that can only be removed together.

    Args:
        members: Who takes part, the layer at the root first.
        channels: Number of the group's channels.
    """

    members: tuple[Member, ...]
    channels: int

    @property
    def blocks(self) -> int:
        """Into how many blocks (conv groups, norm groups, heads) the channels are cut."""
        layers = [m.layer for m in self.members if isinstance(m.layer, nn.Module)]
        return int(np.lcm.reduce([1, *(blocks(layer) for layer in layers)]))

    def for_torch_pruning(self) -> Any:
        """Return the group as torch-pruning's criteria want it."""
        group = _library(".dependency").Group()
        for number, member in enumerate(self.members):
            group.add_dep(member.dependency, member.index.tolist())
            group[number].root_idxs = member.root.tolist()
        return group


def members(group: Any) -> tuple[Member, ...]:
    """Return the members of a group, ours or torch-pruning's."""
    if isinstance(group, ChannelGroup):
        return group.members
    return tuple(
        Member(
            item.dep.target.module,
            _side(item.dep.handler),
            np.asarray(item.idxs, dtype=np.int64),
            np.asarray(item.root_idxs, dtype=np.int64),
            item.dep,
        )
        for item in group.items
        if None not in item.root_idxs  # torch-pruning cannot say which root they go with
    )


def trace(model: nn.Module, inputs: Sequence[Any]) -> Any:
    """Trace a network; its flags, gradients, hooks and generators are as before afterwards.

    Args:
        model: The network. Frozen parameters are traced like the others.
        inputs: Arguments of its forward call, which has been seen to work.

    Returns:
        torch-pruning's ``DependencyGraph``. Every output of the network ends in a node of its own,
        so that a group that reaches the output can be told.

    Raises:
        ImportError: If torch-pruning is missing.
        ValueError: If nothing the network returns depends on its parameters.
    """
    pruning = _library()
    with _traceable(model):
        graph = pruning.DependencyGraph()
        return graph.build_dependency(
            model,
            example_inputs=tuple(inputs),
            forward_fn=lambda network, arguments: network(*arguments),
            output_transform=_marked_outputs,
            verbose=False,
        )


def _library(part: str = "") -> Any:
    return require(
        f"torch_pruning{part}",
        package="cv-pruning",
        extra="structural",
        purpose="removing channels",
    )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dictionaries, in order."""
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _marked_outputs(outputs: Any) -> list[Tensor]:
    found = [tensor * 1.0 for tensor in tensors_in(outputs) if tensor.grad_fn is not None]
    if not found:
        raise ValueError("prune: nothing that model returns depends on its parameters.")
    return found


@contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    hooks = [(module, set(module._forward_hooks)) for module in model.modules()]
    devices = list({p.device for p in model.parameters() if p.device.type == "cuda"})
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)  # noqa: FBT003  # torch's own signature
        with modes_kept(model), torch.random.fork_rng(devices=devices), torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)  # noqa: FBT003
        for module, before in hooks:
            for key in set(module._forward_hooks) - before:
                del module._forward_hooks[key]


def channel_groups(graph: Any, roots: tuple[type[nn.Module], ...]) -> list[ChannelGroup]:
    """Return all groups of a traced network, one per set of outputs that go together.

    Args:
        graph: From ``trace``.
        roots: Layers whose outputs start a group.
    """
    found: list[ChannelGroup] = []
    seen: set[int] = set()
    for layer in graph.module2node:
        if not isinstance(layer, roots) or id(layer) in seen or not widths(layer):
            continue
        group = _group(graph, layer)
        seen.update(id(m.layer) for m in group.members if m.side == "out")
        found.append(group)
    return found


def _group(graph: Any, layer: nn.Module) -> ChannelGroup:
    channels = widths(layer)["out"]
    node, whole = graph.module2node[layer], np.arange(channels, dtype=np.int64)
    cut = graph.get_pruner_of_module(layer).prune_out_channels
    first = _library(".dependency").Dependency(cut, cut, source=node, target=node)
    start = Member(layer, "out", whole, whole, first)
    merged: dict[tuple[int, Side], list[Member]] = {}
    queue, seen = [start], {_key(start)}
    _merge(merged, start)
    while queue:
        member = queue.pop()
        for edge in member.dependency.target.dependencies:
            if edge.trigger != member.dependency.handler:
                continue
            index, root = _renumber(edge.index_mapping, member.index, member.root)
            after = Member(edge.target.module, _side(edge.handler), index, root, edge)
            if len(index) and _key(after) not in seen:
                seen.add(_key(after))
                queue.append(after)
                _merge(merged, after)
    return ChannelGroup(tuple(_joined(parts) for parts in merged.values()), channels)


def _key(member: Member) -> tuple[int, Side, bytes, bytes]:
    return id(member.layer), member.side, member.index.tobytes(), member.root.tobytes()


def _merge(merged: dict[tuple[int, Side], list[Member]], member: Member) -> None:
    merged.setdefault((id(member.layer), member.side), []).append(member)


def _joined(parts: list[Member]) -> Member:
    first = parts[0]
    if len(parts) == 1:
        return first
    pairs = np.concatenate([np.stack([part.index, part.root]) for part in parts], axis=1)
    _, position = np.unique(pairs, axis=1, return_index=True)
    index, root = pairs[:, np.sort(position)]
    return Member(first.layer, first.side, index, root, first.dependency)


def _side(handler: Any) -> Side:
    return "out" if handler.__name__ == "prune_out_channels" else "in"


def _is_operation(layer: Any) -> bool:
    return type(layer).__module__ == "torch_pruning.ops"


def _renumber(mappings: Sequence[Any], index: Index, root: Index) -> tuple[Index, Index]:
    for mapping in mappings:
        if mapping is not None:
            rule = _RULES.get(type(mapping).__name__, _one_by_one)
            index, root = rule(mapping, index, root)
    return index, root


def _shift_up(mapping: Any, index: Index, root: Index) -> tuple[Index, Index]:
    return index + mapping.offset[0], root


def _pick(mapping: Any, index: Index, root: Index) -> tuple[Index, Index]:
    inside = (index >= mapping.offset[0]) & (index < mapping.offset[1])
    return index[inside] - mapping.offset[0], root[inside]


def _concat(mapping: Any, index: Index, root: Index) -> tuple[Index, Index]:
    return (_pick if mapping.reverse else _shift_up)(mapping, index, root)


def _split(mapping: Any, index: Index, root: Index) -> tuple[Index, Index]:
    return (_shift_up if mapping.reverse else _pick)(mapping, index, root)


def _flatten(mapping: Any, index: Index, root: Index) -> tuple[Index, Index]:
    stride = mapping._stride
    if mapping.reverse:
        pairs = np.unique(np.stack([index // stride, root]), axis=1)
        return pairs[0], pairs[1]
    spread = index[:, None] * stride + np.arange(stride)
    return spread.reshape(-1), np.repeat(root, stride)


def _one_by_one(mapping: Any, index: Index, root: Index) -> tuple[Index, Index]:
    """Let torch-pruning map channel by channel, for the rare kinds."""
    pair = _library("._helpers")._HybridIndex
    pairs = [pair(idx=int(i), root_idx=int(r)) for i, r in zip(index, root, strict=True)]
    mapped = [one for one in mapping(pairs) if one.root_idx is not None]
    found = np.array([[p.idx, p.root_idx] for p in mapped], dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


_RULES: dict[str, Callable[[Any, Index, Index], tuple[Index, Index]]] = {
    "_ConcatIndexMapping": _concat,
    "_SplitIndexMapping": _split,
    "_FlattenIndexMapping": _flatten,
}


def blind_spot(group: ChannelGroup) -> str:
    """Return why a group cannot be narrowed safely; an empty text if it can."""
    for member in group.members:
        if member.is_output:
            return "reaches the network's output"
        if type(member.layer).__name__ == "_ConcatOp" and _has_untraced_input(member):
            return "is concatenated with something that the trace does not see"
        if not member.holds_channels or isinstance(member.layer, nn.Parameter):
            continue
        if isinstance(member.layer, nn.PReLU) and member.layer.num_parameters == 1:
            continue  # one slope for all channels: nothing to remove
        if member.side not in widths(member.layer) or _is_odd(member.layer):
            return f"goes through {type(member.layer).__name__}, which cannot be narrowed"
    return ""


def _has_untraced_input(member: Member) -> bool:
    step = member.dependency.target.grad_fn
    return any(source is None for source, _ in step.next_functions)


def _is_odd(layer: nn.Module) -> TypeGuard[_ConvNd]:
    """Tell a convolution that torch-pruning takes for depthwise, and that is not."""
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.out_channels != (
        layer.in_channels
    )
