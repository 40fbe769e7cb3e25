"""A training under way: what ``fit`` does between its checks and its result."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cv_core.engine.backend import Backend
from cv_core.engine.checkpoint import CheckpointError, exists, load, save
from cv_core.engine.early_stopping import EarlyStopping
from cv_core.engine.ema import EMA
from cv_core.engine.evaluation import evaluate_on
from cv_core.engine.history import History
from cv_core.engine.rng import RandomState
from cv_core.engine.task import Outputs, Task

# Steps whose numbers wait until they are looked at together.
_WAITING = 256

End = Literal["epochs", "max_steps", "early_stopping"]


@dataclass(kw_only=True)
class Run:
    """A training under way: its parts, and how far it is."""

    task: Task
    call: Callable[[Any], Outputs]
    loader: Iterable[Any]
    optimizer: Optimizer
    backend: Backend
    epochs: float
    max_steps: float
    scheduler: LRScheduler | None
    scheduler_every: str
    accumulate: int
    clip_norm: float | None
    ema: EMA | None
    validate: Iterable[Any] | None
    early_stopping: EarlyStopping | None
    history: History
    folder: Path | None
    save_every: int | None
    on_epoch: Callable[[Mapping[str, float]], object] | None
    step: int = 0
    epoch: int = 0  # whole epochs
    batch: int = 0  # batches of the running epoch that are done
    length: float = math.inf  # batches per epoch, where the loader says so
    checked: bool = False
    waiting: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))

    def execute(self) -> End:
        """Train until an end is reached; the task then has its final weights."""
        if isinstance(self.loader, Sized):
            self.length = len(self.loader)
        saved = False
        if self.folder is not None and exists(self.folder):
            self._resume(self.folder)
            saved = True
        while (end := self._end()) is None:
            saved = self._train_epoch() and self._close_epoch()
        self._read_waiting()
        if not saved:
            self._save()
        if self.batch:  # the row of an unfinished epoch: a continuation would not have it
            self._add_row(self.epoch + 1)
        if self.early_stopping is not None:
            self.early_stopping.restore(self.task)
        return end

    def _end(self) -> End | None:
        if self.early_stopping is not None and self.early_stopping.exhausted:
            return "early_stopping"
        if self.epoch >= self.epochs:
            return "epochs"
        return "max_steps" if self.step >= self.max_steps else None

    def _train_epoch(self) -> bool:
        """Train to the end of the epoch or the last step; return whether the epoch is whole."""
        # Reading a number makes the CPU wait for an accelerator; on the CPU it is the cheapest way.
        read = Tensor.item if self.backend.device.type == "cpu" else Tensor.detach
        waiting, losses = self.waiting, self.waiting["loss"]
        batches = iter(self.loader)
        for batch in batches:
            size = max(1, min(self.accumulate, self.length - self.batch))
            outputs = self._train_step(batch, batches, size)
            for name, value in outputs.items():
                waiting[name].append(read(value) if isinstance(value, Tensor) else value)
            self.step += 1
            self.batch += int(size)
            if len(losses) == _WAITING:
                self._read_waiting()
            if self.step >= self.max_steps:
                return self.batch >= self.length
            if self.save_every is not None and self.batch < self.length and self._save_due():
                self._save()  # a whole epoch is first closed, then saved
        if self.batch == 0:
            raise ValueError(
                f"fit: loader must yield at least one batch; got none in epoch {self.epoch + 1}. "
                "It must be something that can be iterated again, not an iterator."
            )
        return True

    def _train_step(self, batch: Any, batches: Iterator[Any], size: float) -> Outputs:
        self.optimizer.zero_grad()
        if size == 1:
            outputs = self.call(batch)
            if not self.checked:
                self._check(outputs)
            self.backend.backward(outputs["loss"])
        else:
            outputs = self._accumulated(batch, batches, int(size))
        if self.clip_norm is not None:
            self.backend.clip(self.clip_norm)
        self.backend.step()
        if self.scheduler is not None and self.scheduler_every == "step":
            self.scheduler.step()
        if self.ema is not None:
            self.ema.update()
        return outputs

    def _accumulated(self, first: Any, batches: Iterator[Any], size: int) -> Outputs:
        """Add up the gradients of some batches' mean loss; return the means of their numbers."""
        means: dict[str, Any] = {}
        for index, batch in enumerate(islice(chain((first,), batches), size)):
            with nullcontext() if index == size - 1 else self.backend.without_sync():
                outputs = self.call(batch)
                if not self.checked:
                    self._check(outputs)
                self.backend.backward(outputs["loss"] / size)
            for name, value in outputs.items():
                part = (value.detach() if isinstance(value, Tensor) else value) / size
                means[name] = means[name] + part if name in means else part
        return means

    def _check(self, outputs: object) -> None:
        _check_outputs(self.task, outputs)
        self.checked = True

    def _read_waiting(self) -> None:
        """Move the waiting numbers into the history, averaged over processes."""
        own = {name: _numbers(values) for name, values in self.waiting.items()}
        for values in self.waiting.values():
            values.clear()
        parts = self.backend.gather(own)
        means = {name: _mean_lists([part[name] for part in parts]) for name in own}
        self.history.add_steps(means)
        losses = means.get("loss", [])
        for index, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"fit: the loss became {loss} at step {self.step - len(losses) + index + 1}. "
                    "Lower the learning rate, set clip_norm, or look for bad values in the data."
                )

    def _close_epoch(self) -> bool:
        """Finish a whole epoch; return whether a checkpoint has been written."""
        self._read_waiting()
        self.epoch, self.batch = self.epoch + 1, 0
        row = self._add_row(self.epoch)
        if self.scheduler is not None and self.scheduler_every == "epoch":
            self.scheduler.step()
        due = self.save_every is None or self._save_due()
        if due:
            self._save()
        if self.on_epoch is not None and self.backend.rank == 0:
            self.on_epoch(row)
        return due

    def _save_due(self) -> bool:
        return self.save_every is not None and self.step % self.save_every == 0

    def _add_row(self, epoch: int) -> dict[str, float]:
        rate = float(self.optimizer.param_groups[0]["lr"])
        row = {"epoch": epoch, "step": self.step, "learning rate": rate, **self.history.means()}
        with nullcontext() if self.ema is None else self.ema.swapped():
            if self.validate is not None:
                results = evaluate_on(self.backend, self.task, self.validate)
                row.update({f"validation {name}": value for name, value in results.items()})
            if self.early_stopping is not None:
                self.early_stopping.update(epoch, row, self.task)
        self.history.close_epoch(row)
        return row

    def _save(self) -> None:
        if self.folder is None or (self.batch and not has_state(self.loader)):
            return  # inside an epoch, a loader without a state could not go on
        self._read_waiting()
        random = self.backend.gather(RandomState(self.backend.device).state_dict())
        if self.backend.rank == 0:
            progress = {"step": self.step, "epoch": self.epoch, "batch": self.batch}
            extra = {"fit": progress, "random": random, "precision": self.backend.state_dict()}
            save(self.folder, model=self.task, step=self.step, extra=extra, **self._parts())
        self.backend.barrier()

    def _resume(self, folder: Path) -> None:
        extra = load(folder, model=self.task, **self._parts()).extra
        if "fit" not in extra:
            raise CheckpointError(f"fit: the checkpoint in {folder} was not written by fit.")
        self.step, self.epoch, self.batch = (extra["fit"][n] for n in ("step", "epoch", "batch"))
        self.backend.load_state_dict(extra["precision"])
        if len(extra["random"]) == self.backend.processes:
            state = extra["random"][self.backend.rank]
            RandomState(self.backend.device).load_state_dict(state)

    def _parts(self) -> dict[str, Any]:
        generator = getattr(self.loader, "generator", None)
        return {
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "ema": self.ema,
            "early_stopping": self.early_stopping,
            "history": self.history,
            "loader": self.loader if has_state(self.loader) else None,
            "generator": None if generator is None else _GeneratorState(generator),
        }


class _GeneratorState:
    """The state of a DataLoader's own generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])


def has_state(loader: object) -> bool:
    """Return whether a loader can be continued inside an epoch."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _check_outputs(task: Task, outputs: object) -> None:
    owner = f"{type(task).__name__}.step"
    if not isinstance(outputs, Mapping):
        raise TypeError(
            f"{owner}: the result must be a dictionary with 'loss'; got {type(outputs).__name__}."
        )
    if "loss" not in outputs:
        listed = ", ".join(map(repr, outputs)) or "nothing"
        raise ValueError(f"{owner}: the result must hold 'loss'; got {listed}.")
    loss = outputs["loss"]
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"{owner}: 'loss' must be a scalar tensor with a gradient; got {found}, "
            f"requires_grad={getattr(loss, 'requires_grad', False)}."
        )
    for name, value in outputs.items():
        if getattr(value, "ndim", 0) != 0:
            raise ValueError(f"{owner}: {name!r} must be a scalar; got shape {tuple(value.shape)}.")


def _mean_lists(lists: list[list[float]]) -> list[float]:
    if len(lists) == 1:
        return lists[0]
    return [math.fsum(each) / len(each) for each in zip(*lists, strict=True)]


def _numbers(values: list[Any]) -> list[float]:
    if values and all(isinstance(value, Tensor) for value in values):
        return torch.stack(values).tolist()  # one transfer for all
    return [float(value) for value in values]
