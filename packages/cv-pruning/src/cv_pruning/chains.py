"""Find the chains of a network: layers whose neurons nothing but other layers reads.

A chain is a layer (``Conv2d`` or ``Linear``) whose output reaches one or several other layers, and
nothing else, through operations that treat all channels alike: activations, pooling, dropout,
flattening, and one batch normalisation directly behind the layer. Chains are found by running the
network once and noting every torch function that it calls, so that it does not matter how its
``forward`` is written. In a residual block the inner layers are chains (``conv1`` to ``conv2``, in
a bottleneck ``conv2`` to ``conv3`` too); the residual stream is none, since its channels are added
to others. Grouped, transposed and shared layers are in no chain either.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from cv_core.engine.evaluation import modes_kept
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Layer = nn.Conv2d | nn.Linear

_ALIKE = frozenset((
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "selu_", "celu",
    "celu_", "gelu", "silu", "mish", "sigmoid", "sigmoid_", "tanh", "tanh_", "hardswish",
    "hardsigmoid", "hardtanh", "hardtanh_", "softplus", "softsign", "logsigmoid", "log_sigmoid",
    "dropout", "dropout2d", "alpha_dropout", "feature_alpha_dropout", "clone", "contiguous",
    "detach",
))  # fmt: skip
"""Functions of one tensor that do the same to every entry, in evaluation mode."""

_POOLS = frozenset((
    "max_pool2d", "avg_pool2d", "lp_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d",
))  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """A layer and everything that reads its output, by the modules' dotted names.

    Args:
        layer: The layer whose neurons can be merged.
        norm: The batch normalisation directly behind it; empty if there is none.
        readers: The layers that read what comes out.
    """

    layer: str
    norm: str
    readers: tuple[str, ...]


def find_chains(model: nn.Module, example_inputs: Any) -> tuple[list[Chain], dict[str, str]]:
    """Find the layers of a network whose neurons can be merged.

    Args:
        model: Any network; it is run once in evaluation mode, and its flags are put back.
        example_inputs: A tensor or a tuple of the arguments of one call.

    Returns:
        The chains in the order in which they run, and for every other ``Conv2d`` and ``Linear``
        the reason why it is in none, by its name.

    Raises:
        TypeError: If the network returns something else, whose tensors cannot be seen.
    """
    trace = _Trace(model)
    with modes_kept(model), torch.no_grad():
        model.eval()
        with trace:
            outputs = model(*arguments(example_inputs))
    leaves = tree_leaves(outputs)
    if unknown := [leaf for leaf in leaves if not isinstance(leaf, Tensor | float | None)]:
        raise TypeError(
            "find_chains: model must return tensors, or lists, tuples and dictionaries of them; "
            f"got {type(unknown[0]).__name__}."
        )
    results = {trace.number(leaf) for leaf in leaves if isinstance(leaf, Tensor)}
    graph = _Graph(model, trace, results)
    chains: list[Chain] = []
    refused = {
        name: "it is not called by itself"
        for name, part in model.named_modules()
        if isinstance(part, Layer)
    }
    for call in trace.calls:
        if call.module in refused:
            del refused[call.module]
            try:
                chains.append(graph.chain(call))
            except _NoChainError as reason:
                refused[call.module] = str(reason)
    chained = {chain.layer for chain in chains}
    return chains, {name: why for name, why in refused.items() if name not in chained}


def arguments(example_inputs: Any) -> tuple[Any, ...]:
    """Return the arguments of a call: a tuple as it is, anything else as the only one."""
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


def layer_of(model: nn.Module, name: str) -> Layer:
    """Return the layer of a chain by its name.

    Raises:
        TypeError: If there is another module.
    """
    layer = model.get_submodule(name)
    if not isinstance(layer, Layer):
        raise TypeError(f"layer_of: {name} must be a Conv2d or Linear; got {type(layer).__name__}.")
    return layer


class _Call(NamedTuple):
    """One call of a torch function: its name, what it read and made, and the module it is of."""

    name: str
    read: tuple[int, ...]
    made: int
    shapes: tuple[torch.Size, torch.Size]
    last_argument: object
    module: str


class _Trace(TorchFunctionMode):
    """Notes every torch function that makes a tensor; values are numbered in the order seen.

    A function that works in place makes a new value, under whose number its tensor goes on.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[Tensor] = []  # so that no id is given away twice
        self._owners: dict[int, str] = {}
        for name, part in model.named_modules():
            key = part.weight if isinstance(part, Layer) else None
            # not a subclass that does more, such as an activation: it would be lost in folding
            if isinstance(part, _BatchNorm) and type(part).forward is _BatchNorm.forward:
                key = part.running_mean
            if isinstance(key, Tensor):
                self._owners[id(key)] = name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        read = tuple(self.number(tensor) for tensor in tensors)
        shape = tensors[0].shape if tensors else torch.Size()
        made = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        name = getattr(func, "__name__", str(func)) if len(outputs) == 1 else f"{func} of several"
        keyed = name in ("conv2d", "linear", "batch_norm") and len(tensors) > 1
        module = self._owners.get(id(tensors[1]), "") if keyed else ""
        for output in outputs:
            number = self.number(output, anew=True)
            last = tree_leaves(args)[-1] if args else None
            self.calls.append(_Call(name, read, number, (shape, output.shape), last, module))
        return made

    def number(self, tensor: Tensor, *, anew: bool = False) -> int:
        """Return the number of the value that a tensor holds now."""
        if anew or id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self._alive)
            self._alive.append(tensor)
        return self._numbers[id(tensor)]


class _NoChainError(Exception):
    """Why a layer is in no chain."""


class _Graph:
    """Follows values from the layer that makes them to the layers that read them."""

    def __init__(self, model: nn.Module, trace: _Trace, results: Collection[int]) -> None:
        self.model = model
        self.results = results
        self.readers: dict[int, list[_Call]] = defaultdict(list)
        for call in trace.calls:
            for value in set(call.read):
                self.readers[value].append(call)

    def chain(self, call: _Call) -> Chain:
        """Return the chain that begins with the call of a layer."""
        self._check(call)
        norm, start = self._norm(call)
        found: list[str] = []
        values = [(start, call.name == "linear")]
        while values:
            value, is_flat = values.pop()
            if value in self.results:
                raise _NoChainError("the network puts it out")
            for reader in self.readers[value]:
                if self._reads(reader, value, is_flat=is_flat):
                    found.append(reader.module)
                else:
                    values.append((reader.made, self._passed(reader, is_flat=is_flat)))
        if not found:
            raise _NoChainError("no layer reads it")
        return Chain(call.module, norm, tuple(found))

    def _check(self, call: _Call) -> None:
        """Refuse a layer whose weights cannot be told apart by channel, or are used elsewhere."""
        layer = layer_of(self.model, call.module)
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            raise _NoChainError(f"{call.module} is a grouped convolution")
        if len(self.readers[call.read[1]]) > 1:
            raise _NoChainError(f"the weight of {call.module} is used more than once")
        if isinstance(layer, nn.Conv2d) and len(call.shapes[1]) != 4:
            raise _NoChainError(f"{call.module} runs without a batch axis")

    def _norm(self, call: _Call) -> tuple[str, int]:
        """Return the normalisation directly behind a layer, if any, and the value to follow."""
        readers = self.readers[call.made]
        if call.made not in self.results and [each.name for each in readers] == ["batch_norm"]:
            norm = readers[0]
            # it normalises axis 1, which is that of a linear layer only if there is no other
            fits = call.name == "conv2d" or len(call.shapes[1]) == 2
            if norm.module and fits and len(self.readers[norm.read[1]]) == 1:
                return norm.module, norm.made
        return "", call.made

    def _reads(self, call: _Call, value: int, *, is_flat: bool) -> bool:
        """Tell whether a call is a layer that reads a value as its input; refuse misfits."""
        if not call.module or call.name == "batch_norm":
            return False
        if call.read.count(value) != 1 or call.read[0] != value:
            raise _NoChainError(f"{call.module} uses it as a weight")
        if is_flat != (call.name == "linear"):
            raise _NoChainError(f"{call.module} reads another axis than that of its channels")
        self._check(call)
        return True

    def _passed(self, call: _Call, *, is_flat: bool) -> bool:
        """Tell whether what a call makes is flat; refuse one that does not treat channels alike."""
        if len(call.read) == 1:
            before, after = call.shapes
            if call.name in _ALIKE or (call.name in _POOLS and not is_flat):
                return is_flat
            whole = call.name == "flatten" or call.last_argument == -1
            if call.name in ("flatten", "view", "reshape") and whole:
                if before == after:
                    return is_flat
                if not is_flat and len(after) == 2 and after[0] == before[0]:
                    return True
        raise _NoChainError(f"its output enters {call.name}")
