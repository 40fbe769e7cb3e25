"""Training with lightning-fabric: accelerators, mixed precision, several processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from cv_core.checks import check_choice, check_integer
from cv_core.engine.loader import TensorLoader
from cv_core.engine.task import Outputs, Task
from cv_core.optional import require

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed"]
Strategy = Literal["auto", "ddp", "fsdp"]


def make_fabric(
    device: Device = "auto",
    *,
    precision: Precision = "32-true",
    devices: int = 1,
    strategy: Strategy = "auto",
) -> Any:
    """Make a ``lightning_fabric.Fabric`` for ``fit`` and ``evaluate``.

    Any other Fabric object serves as well. With several processes, hand a function to ``launch``.

    Args:
        device: Kind of device; ``"auto"`` is CUDA where there is one.
        precision: Number format of weights and computation.
        devices: Processes, one per device, at least 1.
        strategy: How processes work together: ``"ddp"`` (every one holds the model) or ``"fsdp"``
            (each holds a part; CUDA only). ``"auto"`` is DDP for several processes.

    Returns:
        The Fabric object.

    Raises:
        ImportError: If lightning-fabric is missing.
        ValueError: If an option is unknown or does not fit this machine or the other options.
    """
    owner = "make_fabric"
    check_choice(owner, "device", device, get_args(Device))
    check_choice(owner, "precision", precision, get_args(Precision))
    check_choice(owner, "strategy", strategy, get_args(Strategy))
    check_integer(owner, "devices", devices, low=1)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and torch.cuda.device_count() < devices:
        raise ValueError(
            f"{owner}: devices must be at most the CUDA devices here, {torch.cuda.device_count()}; "
            f"got {devices}. Use device='cpu' to run without."
        )
    if strategy == "fsdp" and device == "cpu":
        raise ValueError(f"{owner}: strategy 'fsdp' needs device 'cuda'; got 'cpu'. Use 'ddp'.")
    if device == "cpu" and precision == "16-mixed":
        raise ValueError(f"{owner}: precision '16-mixed' needs device 'cuda'. Use 'bf16-mixed'.")
    if strategy == "auto" and devices > 1:
        strategy = "ddp"
    lightning = _lightning("lightning_fabric")
    return lightning.Fabric(
        accelerator=device,
        precision=precision,
        devices=devices,
        strategy=_spawning(strategy),
    )


def _spawning(strategy: str) -> str:
    # Left to itself Fabric starts the whole command again for every further process, which a
    # library must not do; under torchrun or SLURM the processes are there already.
    started = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ
    return "ddp_spawn" if strategy == "ddp" and not started else strategy


def launch(fabric: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in every process of a Fabric.

    Args:
        fabric: The Fabric object.
        function: Called as ``function(fabric, *arguments)``. With several processes it must be a
            module's function and its arguments must pickle.
        *arguments: The function's further arguments.

    Returns:
        What the function returned in the first process.
    """
    before = dict(os.environ)  # Fabric leaves the address of its processes there
    try:
        return fabric.launch(function, *arguments)
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


class _Sealed:
    """A batch that Fabric does not look into.

    With mixed precision Fabric rounds all that enters a module to 16 bits, which is right for
    images (autocast rounds them anyway) and ruins targets such as boxes in pixels.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch


class _Boundary(nn.Module):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, sealed: _Sealed) -> Outputs:
        return self.task(sealed.batch)


class FabricBackend:
    """The loop's backend on a Fabric object.

    Args:
        fabric: The Fabric object; with several processes, inside ``launch``.

    Raises:
        TypeError: If it is none.
    """

    def __init__(self, fabric: Any) -> None:
        lightning = sys.modules.get("lightning_fabric")  # loaded, if this is an object of its
        if lightning is None or not isinstance(fabric, lightning.Fabric):
            raise TypeError(
                f"fabric must be a lightning_fabric.Fabric or None; got {type(fabric).__name__}."
            )
        self._fabric = fabric
        self.device: torch.device = fabric.device
        self.rank: int = fabric.global_rank
        self.processes: int = fabric.world_size
        strategies = _lightning("lightning_fabric.strategies")
        sharding = (
            strategies.FSDPStrategy,
            strategies.ModelParallelStrategy,
            strategies.DeepSpeedStrategy,
        )
        self.replicates = not isinstance(fabric.strategy, sharding)
        self._precision = fabric.strategy.precision
        self._mixed = str(self._precision.precision).endswith("-mixed")

    def setup(self, task: Task, optimizer: Optimizer) -> Callable[[Any], Outputs]:
        """Move and wrap the task and the optimiser."""
        self._task = task
        self._module, self._optimizer = self._fabric.setup(_Boundary(task), optimizer)
        return self._call

    def setup_evaluation(self, task: Task) -> None:
        """Move the task; wrap it only where processes hold parts of it."""
        self._task = task
        if self.replicates:
            self._fabric.to_device(self._precision.convert_module(task))
        else:
            self._module = self._fabric.setup_module(_Boundary(task))

    def loader(self, loader: Iterable[Any]) -> Iterable[Any]:
        """Return this process's share of the training batches.

        Raises:
            TypeError: If a loader's batches cannot be shared among several processes.
        """
        if self.processes == 1:
            return loader
        if isinstance(loader, TensorLoader):
            return loader.shard(self.rank, self.processes)
        if isinstance(loader, DataLoader):
            return self._fabric.setup_dataloaders(loader, move_to_device=False)
        raise TypeError(
            "fit: loader must be a TensorLoader or a DataLoader to be shared among processes; "
            f"got {type(loader).__name__}."
        )

    def _move(self, batch: Any) -> Any:
        """Put a batch on the device, in the weights' number format."""
        batch = self._fabric.to_device(batch)
        return batch if self._mixed else self._precision.convert_input(batch)

    def _call(self, batch: Any) -> Outputs:
        return self._module(_Sealed(self._move(batch)))

    def backward(self, loss: Tensor) -> None:
        """Let Fabric scale the loss, if need be, and compute the gradients."""
        self._fabric.backward(loss)

    def without_sync(self) -> AbstractContextManager[Any]:
        """Leave out the exchange of gradients between processes."""
        return self._fabric.no_backward_sync(self._module)

    def clip(self, max_norm: float) -> None:
        """Clip the norm of the (unscaled) joint gradient."""
        self._fabric.clip_gradients(
            self._module, self._optimizer, max_norm=max_norm, error_if_nonfinite=False
        )

    def step(self) -> None:
        """Let the optimiser step."""
        self._optimizer.step()

    def evaluate(self, batches: Iterable[Any]) -> Iterable[Outputs]:
        """Share whole batches among the processes, so that each sample counts once.

        DDP's wrapper is left aside: it waits for the other processes at every batch, and they need
        not have equally many. Where processes hold parts of the model, all see all batches.
        """
        if not self.replicates:
            for batch in batches:
                outputs = self._call(batch)
                if self.rank == 0:  # every process sees every sample: one's sums count
                    yield outputs
            return
        if self.processes > 1:
            for buffer in self._task.buffers():  # as DDP does before a training step
                torch.distributed.broadcast(buffer, src=0)
        for index, batch in enumerate(batches):
            if index % self.processes == self.rank:
                with self._precision.forward_context():
                    outputs = self._task(self._move(batch))
                yield self._precision.convert_output(outputs)

    def gather(self, value: Any) -> list[Any]:
        """Collect a plain value or CPU tensors of every process, in order."""
        if self.processes == 1:
            return [value]
        values: list[Any] = [None] * self.processes
        torch.distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for the other processes."""
        self._fabric.barrier()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loss scale, if there is one."""
        return dict(self._precision.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of the loss scale."""
        self._precision.load_state_dict(dict(state))


def _lightning(module: str) -> Any:
    return require(module, package="cv-core", extra="lab", purpose="Training with Fabric")
