"""What a candidate operation costs, and what a search keeps in memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from cv_core.metrics.cost import count_macs, count_parameters
from torch import Tensor, nn


@dataclass(frozen=True)
class Resources:
    """What an operation costs for one input.

    Args:
        parameters: Number of scalars.
        macs: Multiply-accumulates.
        memory_access: Scalars read and written: inputs, outputs and parameters of all layers.
    """

    parameters: int
    macs: int
    memory_access: int


def resource_cost(op: nn.Module, input_shape: Sequence[int]) -> Resources:
    """Count what an operation costs, without computing it.

    Args:
        op: Maps one tensor to one tensor.
        input_shape: Shape of the input, such as ``(1, C, H, W)``.

    Returns:
        Parameters, multiply-accumulates and memory accesses. What functions do between the layers
        counts as far as it multiplies matrices or convolves.

    Example:
        >>> resource_cost(nn.Conv2d(2, 3, 1, bias=False), (1, 2, 4, 4))
        Resources(parameters=6, macs=96, memory_access=86)
    """
    probe = copy.deepcopy(op).to("meta").eval()
    dtype = next((p.dtype for p in probe.parameters()), torch.get_default_dtype())
    x = torch.empty(*input_shape, device="meta", dtype=dtype)
    touched = 0

    def count(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal touched
        touched += given[0].numel() + out.numel() + sum(p.numel() for p in layer.parameters())

    for layer in probe.modules():
        if not isinstance(layer, nn.Identity) and not list(layer.children()):
            layer.register_forward_hook(count)
    return Resources(count_parameters(probe), count_macs(probe, x), touched)


class ActivationMemory:
    """Count the bytes that autograd saves for the backward pass inside a ``with`` block.

    After a forward pass they are what training holds at its peak besides weights and gradients.

    Args:
        ignore: A network whose parameters and buffers are not counted.

    Attributes:
        bytes: Bytes of all saved tensors, one saved twice counted twice.
        distinct_bytes: Bytes of the storages behind them, each counted once.

    Example:
        >>> layer = nn.Tanh()
        >>> with ActivationMemory() as memory:
        ...     out = layer(torch.zeros(2, 3, requires_grad=True))
        >>> memory.bytes
        24
    """

    def __init__(self, *, ignore: nn.Module | None = None) -> None:
        known = [] if ignore is None else [*ignore.parameters(), *ignore.buffers()]
        self._ignored = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.bytes = 0
        self._storages: dict[int, int] = {}

    @property
    def distinct_bytes(self) -> int:
        """Bytes of the storages of all saved tensors, each counted once."""
        return sum(self._storages.values())

    def __enter__(self) -> ActivationMemory:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._ignored:
            self.bytes += tensor.numel() * tensor.element_size()
            self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor
