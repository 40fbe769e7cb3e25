"""The training loop and the evaluation, as two plain functions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from cv_core.checks import check_choice, check_integer, check_range
from cv_core.engine.backend import Backend, PlainBackend
from cv_core.engine.early_stopping import EarlyStopping
from cv_core.engine.ema import EMA
from cv_core.engine.evaluation import evaluate_on, modes_kept
from cv_core.engine.history import History
from cv_core.engine.rng import global_stream
from cv_core.engine.run import End, Run, has_state
from cv_core.engine.task import Task
from cv_core.random import derive_seed


@dataclass(frozen=True)
class FitResult:
    """What a training brought.

    Args:
        history: Numbers of every step and epoch.
        steps: Optimiser steps, those before a continuation included.
        epochs: Whole epochs, likewise.
        seconds: Wall time of this call.
        stopped: What ended it.
    """

    history: History
    steps: int
    epochs: int
    seconds: float
    stopped: End


def fit(
    task: Task,
    loader: Iterable[Any],
    optimizer: Optimizer,
    *,
    epochs: int | None = None,
    max_steps: int | None = None,
    scheduler: LRScheduler | None = None,
    scheduler_every: Literal["step", "epoch"] = "step",
    accumulate: int = 1,
    clip_norm: float | None = None,
    ema: EMA | None = None,
    validate: Iterable[Any] | None = None,
    early_stopping: EarlyStopping | None = None,
    history: History | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_every: int | None = None,
    on_epoch: Callable[[Mapping[str, float]], object] | None = None,
    fabric: Any = None,
    seed: int = 0,
) -> FitResult:
    """Train a task.

    The loop is the usual one: gradients of ``step``'s loss, clipping, optimiser, schedule, average.
    Without ``fabric`` it runs where the task's weights are, in their number format, and does what
    a loop written by hand does, bit for bit.

    Args:
        task: What is trained; it comes back with its train/eval flags as they were.
        loader: Batches, iterated once per epoch. In several processes a ``TensorLoader`` (each
            process takes its share of every batch) or a ``DataLoader`` (each process takes batches
            of its own).
        optimizer: Of the task's parameters.
        epochs: How many epochs to train. Exactly one of ``epochs`` and ``max_steps``.
        max_steps: How many optimiser steps to train.
        scheduler: A schedule of torch, stepped by the loop.
        scheduler_every: When the schedule is stepped.
        accumulate: Batches per optimiser step; their gradients are averaged. An epoch's last step
            takes the batches that are left.
        clip_norm: Greatest norm of the joint gradient; ``None`` for no clipping.
        ema: Average of the task's weights, updated after every step; validated in their place.
        validate: Batches evaluated after every epoch; results appear as ``"validation loss"`` etc.
        early_stopping: Selects the epoch whose weights the task has in the end.
        history: Takes the numbers; a new one by default.
        checkpoint: A folder. If it holds a checkpoint of an earlier, interrupted call with the
            same arguments, the training goes on from there and ends with the same weights, bit for
            bit on a CPU. The numbers of epochs and steps are totals.
        checkpoint_every: Steps between checkpoints, for loaders that have a ``state_dict``; by
            default there is one after each epoch.
        on_epoch: Called with every epoch's row, in the first process only.
        fabric: A Fabric object (see ``cv_core.engine.fabric``) for mixed precision, accelerators
            and several processes. Forward pass and loss run under its precision.
        seed: Seed of what the model itself draws, such as dropout. Torch's global generators are
            set to a stream of it during the call and put back afterwards.

    Returns:
        The numbers and what it took.

    Raises:
        ValueError: If an option lies outside its range, options exclude each other, the loader is
            empty, or ``step`` returns no loss.
        FloatingPointError: If the loss becomes NaN or infinite; at the latest 256 steps later, and
            before a checkpoint is written.
        cv_core.engine.checkpoint.CheckpointError: If the folder's checkpoint is damaged or fits
            something else.
    """
    _check_numbers(epochs, max_steps, accumulate, clip_norm, checkpoint_every)
    check_choice("fit", "scheduler_every", scheduler_every, ("step", "epoch"))
    _check_objects(task, optimizer, scheduler)
    _check_loader(loader, accumulate, checkpoint_every)
    backend = _backend(task, fabric)
    if not backend.replicates and (ema or early_stopping or checkpoint):
        raise ValueError(
            "fit: ema, early_stopping and checkpoint need the whole model in every process, which "
            "the Fabric's strategy does not keep. Use strategy 'ddp', or Fabric's own save."
        )
    run = Run(
        task=task,
        call=backend.setup(task, optimizer),
        loader=backend.loader(loader),
        optimizer=optimizer,
        backend=backend,
        epochs=math.inf if epochs is None else epochs,
        max_steps=math.inf if max_steps is None else max_steps,
        scheduler=scheduler,
        scheduler_every=scheduler_every,
        accumulate=accumulate,
        clip_norm=clip_norm,
        ema=ema,
        validate=validate,
        early_stopping=early_stopping,
        history=History() if history is None else history,
        folder=None if checkpoint is None else Path(checkpoint),
        save_every=checkpoint_every,
        on_epoch=on_epoch,
    )
    begin = time.perf_counter()
    with modes_kept(task), global_stream(derive_seed(seed, "fit", backend.rank), backend.device):
        task.train()
        stopped = run.execute()
    return FitResult(run.history, run.step, run.epoch, time.perf_counter() - begin, stopped)


def evaluate(
    task: Task, loader: Iterable[Any], *, fabric: Any = None, seed: int = 0
) -> dict[str, float]:
    """Evaluate a task on all batches, in evaluation mode and without gradients.

    Every sample counts once, whatever the sizes of the batches and the number of processes.

    Args:
        task: What is evaluated; it comes back with its train/eval flags as they were.
        loader: Batches.
        fabric: A Fabric object; the processes share the batches.
        seed: Seed of torch's global generators during the call, should the task draw anything.

    Returns:
        The task's summary of its sums: means, unless it says otherwise.

    Raises:
        ValueError: If the loader is empty or the task returns no count.
    """
    if not isinstance(task, Task):
        raise TypeError(f"evaluate: task must be a Task; got {type(task).__name__}.")
    backend = _backend(task, fabric)
    backend.setup_evaluation(task)
    return evaluate_on(backend, task, loader, seed)


def _backend(task: Task, fabric: Any) -> Backend:
    if fabric is None:
        return PlainBackend(task)
    from cv_core.engine.fabric import FabricBackend

    return FabricBackend(fabric)


def _check_numbers(
    epochs: int | None,
    max_steps: int | None,
    accumulate: int,
    clip_norm: float | None,
    checkpoint_every: int | None,
) -> None:
    if (epochs is None) == (max_steps is None):
        raise ValueError(
            f"fit: exactly one of epochs and max_steps must be given; got {epochs} and {max_steps}."
        )
    for name, value in (
        ("epochs", epochs),
        ("max_steps", max_steps),
        ("accumulate", accumulate),
        ("checkpoint_every", checkpoint_every),
    ):
        if value is not None:
            check_integer("fit", name, value, low=1)
    if clip_norm is not None:
        check_range("fit", "clip_norm", clip_norm, low=0, low_open=True)


def _check_objects(task: Task, optimizer: Optimizer, scheduler: LRScheduler | None) -> None:
    if not isinstance(task, Task):
        raise TypeError(
            f"fit: task must be a Task; got {type(task).__name__}. "
            "SupervisedTask and FunctionTask make one of a model."
        )
    if isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError(
            "fit: scheduler must not need a metric; got ReduceLROnPlateau. Step it in on_epoch."
        )
    own = {id(parameter) for parameter in task.parameters()}
    groups = optimizer.param_groups
    if not any(id(parameter) in own for group in groups for parameter in group["params"]):
        raise ValueError(
            "fit: optimizer must hold parameters of the task; got none of them. Make the "
            "optimizer after the model, from task.parameters()."
        )


def _check_loader(loader: Iterable[Any], accumulate: int, checkpoint_every: int | None) -> None:
    sized = isinstance(loader, Sized)
    if sized and len(loader) == 0:  # type: ignore[arg-type] # mypy does not see through the name
        raise ValueError("fit: loader must hold at least one batch; got none.")
    if accumulate > 1 and not sized:
        raise TypeError("fit: loader must have a length where accumulate is above 1.")
    if checkpoint_every is not None and not (sized and has_state(loader)):
        raise TypeError(
            "fit: loader must have a length and a state_dict where checkpoint_every is given; got "
            f"{type(loader).__name__}. Use a TensorLoader, or leave checkpoint_every out to have "
            "a checkpoint after each epoch."
        )
