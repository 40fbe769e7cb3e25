"""Adding up an evaluation over batches and processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cv_core.engine.backend import Backend
from cv_core.engine.rng import global_stream
from cv_core.engine.task import Task
from cv_core.random import derive_seed


def evaluate_on(
    backend: Backend, task: Task, loader: Iterable[Any], seed: int = 0
) -> dict[str, float]:
    """Evaluate a task that the backend has been set up for; see ``cv_core.engine.loop.evaluate``.

    Args:
        backend: What it runs on.
        task: What is evaluated.
        loader: Batches.
        seed: Seed of torch's global generators during the call.

    Raises:
        ValueError: If the loader is empty or the task returns no count.
    """
    sums: dict[str, Tensor] = {}
    stream = global_stream(derive_seed(seed, "evaluate", backend.rank), backend.device)
    with modes_kept(task), stream, torch.no_grad():
        task.eval()
        for outputs in backend.evaluate(loader):
            for name, value in outputs.items():
                wide = _wide(value)
                sums[name] = sums[name] + wide if name in sums else wide
        totals: dict[str, Tensor] = {}
        for part in backend.gather({name: value.cpu() for name, value in sums.items()}):
            for name, value in part.items():
                totals[name] = totals[name] + value if name in totals else value
        if not totals:
            raise ValueError("evaluate: loader must yield at least one batch; got none.")
        if "count" not in totals:
            raise ValueError(
                f"evaluate: {type(task).__name__}.evaluate_step must return 'count', the number of "
                f"samples; got {', '.join(map(repr, totals))}."
            )
        return task.summarise(totals)


def _wide(value: Any) -> Tensor:
    """Return a number or tensor as float64 or int64, so that long sums stay exact."""
    tensor = torch.as_tensor(value).detach()
    if tensor.device.type == "mps":  # has no float64
        tensor = tensor.cpu()
    return tensor.double() if tensor.is_floating_point() else tensor.long()


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Put every submodule's train/eval flag back after a ``with`` block."""
    modes = [(each, each.training) for each in module.modules()]
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training
