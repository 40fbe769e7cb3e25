"""Batches of tensors that are already in memory, without the cost of a ``DataLoader``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from cv_core.checks import check_integer
from cv_core.random import derive_seed

Transform = Callable[[tuple[Tensor, ...], torch.Generator], Any]
"""Changes a batch, drawing only from the generator it is given."""

# Rows are gathered for many batches at once, up to this size, and handed out as views: one gather
# per batch costs more than a small batch's whole forward pass. Larger blocks leave the cache.
_BLOCK_BYTES = 2**21


class TensorLoader:
    """Iterates over tensors in batches; every epoch's order is a function of (seed, epoch).

    It can be stopped and continued inside an epoch: ``state_dict`` says where it stands, and the
    first iteration after ``load_state_dict`` goes on from there. Every other iteration begins the
    next epoch. A batch is the caller's own memory; changing it in place leaves the data as it is.

    Args:
        *tensors: Data with one row per sample, such as images (n, c, h, w) and labels (n,).
        batch_size: Samples per batch, at least 1.
        shuffle: Whether every epoch has an order of its own.
        seed: Seed of order and transform, or a generator from which one is drawn here.
        drop_last: Whether a last batch of fewer samples is left out.
        device: Where the data are kept and batches appear; by default where the tensors are.
        transform: Changes a batch, such as an augmentation. It is called with the batch and a
            generator on the data's device whose state is a function of (seed, epoch, batch).

    Raises:
        TypeError: If something other than tensors comes.
        ValueError: If the tensors are empty or differ in length, or if no batch would come out.

    Example:
        >>> loader = TensorLoader(torch.arange(5), batch_size=2)
        >>> [batch[0].tolist() for batch in loader]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int,
        shuffle: bool = False,
        seed: int | torch.Generator = 0,
        drop_last: bool = False,
        device: torch.device | str | None = None,
        transform: Transform | None = None,
    ) -> None:
        _check_tensors(tensors)
        check_integer("TensorLoader", "batch_size", batch_size, low=1)
        if drop_last and len(tensors[0]) < batch_size:
            raise ValueError(
                f"TensorLoader: batch_size must be at most the number of samples, "
                f"{len(tensors[0])}, with drop_last; got {batch_size}. No batch would come out."
            )
        if isinstance(seed, torch.Generator):
            seed = int(torch.randint(2**62, (), generator=seed, device=seed.device))
        self.tensors = tuple(
            t.detach() if device is None else t.detach().to(device) for t in tensors
        )
        self.batch_size = int(batch_size)
        self.shuffle = shuffle
        self.seed = int(seed)
        self.drop_last = drop_last
        self.transform = transform
        self._rank, self._processes = 0, 1
        self._epoch, self._batch = 0, 0  # epochs begun, batches handed out in the last of them
        self._continues = False

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        full, rest = divmod(len(self.tensors[0]), self.batch_size)
        return full + int(not self.drop_last and rest >= self._processes)

    def __iter__(self) -> Iterator[Any]:
        """Begin the next epoch, or go on inside one if a state has just been loaded."""
        if not (self._continues and 0 < self._batch < len(self)):
            self._epoch, self._batch = self._epoch + 1, 0
        self._continues = False
        return self._batches(self._epoch, self._batch)

    def shard(self, rank: int, processes: int) -> TensorLoader:
        """Return a loader of one process's share of every batch; the shares join to the batch.

        ``batch_size`` stays the size of the joined batch, so that the number of processes does not
        change what is learnt. Of a last, smaller batch the samples that cannot be shared evenly
        (fewer than ``processes``) are left out.

        Args:
            rank: The process, from 0 on.
            processes: How many there are; must divide ``batch_size``.

        Raises:
            ValueError: If the batch cannot be shared evenly.
        """
        check_integer("TensorLoader.shard", "processes", processes, low=1)
        check_integer("TensorLoader.shard", "rank", rank, low=0, high=processes - 1)
        if self.batch_size % processes:
            raise ValueError(
                f"TensorLoader.shard: processes must divide batch_size={self.batch_size}; "
                f"got {processes}."
            )
        share = copy.copy(self)
        share._rank, share._processes = rank, processes
        if len(share) == 0:
            raise ValueError(
                f"TensorLoader.shard: {len(self.tensors[0])} samples are too few for {processes} "
                "processes."
            )
        return share

    def state_dict(self) -> dict[str, int]:
        """Return where the loader stands: plain numbers."""
        return {
            "seed": self.seed,
            "samples": len(self.tensors[0]),
            "batch_size": self.batch_size,
            "epoch": self._epoch,
            "batch": self._batch,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a state in the next iteration.

        Args:
            state: What ``state_dict`` returned, of a loader of the same data, size and seed.

        Raises:
            ValueError: If the state is of a loader with other samples, batches or seed.
        """
        mine = self.state_dict()
        for name in ("seed", "samples", "batch_size"):
            if state.get(name) != mine[name]:
                raise ValueError(
                    f"TensorLoader.load_state_dict: state must be of a loader with "
                    f"{name}={mine[name]}; got {state.get(name)!r}."
                )
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])
        self._continues = True

    def _batches(self, epoch: int, start: int) -> Iterator[Any]:
        order = self._order(epoch)
        generator = torch.Generator(device=self.tensors[0].device)
        size = self.batch_size // self._processes
        row = sum(t[0].numel() * t.element_size() for t in self.tensors)
        group = max(1, _BLOCK_BYTES // max(1, row * size))
        for first in range(start, len(self), group):
            rows = slice(first * size, min(first + group, len(self)) * size)
            blocks = [
                t[rows].clone() if order is None else t.index_select(0, order[rows])
                for t in self.tensors
            ]
            # unsafe: the views do not share a version counter, so that changing one batch in place
            # does not invalidate another's graph
            views = [torch.unsafe_split(block, size) for block in blocks]
            for number, batch in enumerate(zip(*views, strict=True), first + 1):
                self._batch = number
                if self.transform is None:
                    yield batch
                else:
                    names = ("transform", epoch, number, self._rank)
                    generator.manual_seed(derive_seed(self.seed, *names))
                    yield self.transform(batch, generator)

    def _order(self, epoch: int) -> Tensor | None:
        samples, size = len(self.tensors[0]), self.batch_size
        if not self.shuffle and self._processes == 1:
            return None
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            order = torch.randperm(samples, generator=generator)
        else:
            order = torch.arange(samples)
        if self._processes > 1:
            full = samples // size * size
            shares = order[:full].view(-1, self._processes, size // self._processes)
            rest = order[full:]
            part = len(rest) // self._processes
            mine = rest[self._rank * part : (self._rank + 1) * part]
            order = torch.cat([shares[:, self._rank].flatten(), mine])
        return order.to(self.tensors[0].device)


def _check_tensors(tensors: tuple[Tensor, ...]) -> None:
    if not tensors:
        raise ValueError("TensorLoader: tensors must hold at least one tensor; got none.")
    for index, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"TensorLoader: tensors[{index}] must be a tensor; got {type(tensor).__name__}. "
                "Convert arrays with torch.as_tensor."
            )
        if tensor.ndim == 0:
            raise ValueError(f"TensorLoader: tensors[{index}] must have rows; got a scalar.")
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(f"TensorLoader: tensors must have the same length; got {lengths}.")
    if lengths[0] == 0:
        raise ValueError("TensorLoader: tensors must hold at least one sample; got none.")
    devices = {str(tensor.device) for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"TensorLoader: tensors must be on one device; got {sorted(devices)}.")
