"""The seam between the loop and what it runs on: plain torch here, Fabric in ``fabric``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cv_core.engine.task import Outputs, Task, move


@runtime_checkable  # the tests check types
class Backend(Protocol):
    """What the loop needs of the machine.

    Attributes:
        device: Where this process computes.
        rank: Number of this process, from 0 on.
        processes: How many processes there are.
        replicates: Whether every process holds the whole model.
    """

    device: torch.device
    rank: int
    processes: int
    replicates: bool

    def setup(self, task: Task, optimizer: Optimizer) -> Callable[[Any], Outputs]:
        """Prepare task and optimiser in place; return what to call on batches."""

    def setup_evaluation(self, task: Task) -> None:
        """Prepare a task that is not trained here."""

    def loader(self, loader: Iterable[Any]) -> Iterable[Any]:
        """Return this process's share of the training batches."""

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to the parameters'."""

    def without_sync(self) -> AbstractContextManager[Any]:
        """Leave out the exchange of gradients between processes."""

    def clip(self, max_norm: float) -> None:
        """Scale the gradients down to a joint norm."""

    def step(self) -> None:
        """Let the optimiser step."""

    def evaluate(self, batches: Iterable[Any]) -> Iterable[Outputs]:
        """Yield the results of this process's share of the evaluation batches."""

    def gather(self, value: Any) -> list[Any]:
        """Collect a plain value or CPU tensors of every process, in order."""

    def barrier(self) -> None:
        """Wait for the other processes."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the precision (a loss scale), if any."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""


class PlainBackend:
    """One process, the device where the task is, the precision its weights have."""

    rank = 0
    processes = 1
    replicates = True

    def __init__(self, task: nn.Module) -> None:
        tensors = [*task.parameters(), *task.buffers()]
        self.device = tensors[0].device if tensors else torch.device("cpu")

    def setup(self, task: Task, optimizer: Optimizer) -> Callable[[Any], Outputs]:
        """Keep both as they are."""
        self._task, self._optimizer = task, optimizer
        return task.step if self.device.type == "cpu" else self._call

    def setup_evaluation(self, task: Task) -> None:
        """Keep the task as it is."""
        self._task = task

    def loader(self, loader: Iterable[Any]) -> Iterable[Any]:
        """Return the loader itself."""
        return loader

    def _call(self, batch: Any) -> Outputs:
        return self._task.step(move(batch, self.device))

    def backward(self, loss: Tensor) -> None:
        """Call ``loss.backward()``."""
        loss.backward()

    def without_sync(self) -> AbstractContextManager[Any]:
        """Do nothing."""
        return nullcontext()

    def clip(self, max_norm: float) -> None:
        """Clip the norm of the optimiser's parameters' joint gradient."""
        groups = self._optimizer.param_groups
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], max_norm)

    def step(self) -> None:
        """Let the optimiser step."""
        self._optimizer.step()

    def evaluate(self, batches: Iterable[Any]) -> Iterable[Outputs]:
        """Evaluate every batch."""
        for batch in batches:
            yield self._task.evaluate_step(move(batch, self.device))

    def gather(self, value: Any) -> list[Any]:
        """Return the one process's value."""
        return [value]

    def barrier(self) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: there is no loss scale."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""
