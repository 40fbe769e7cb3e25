"""A task: what is trained, what one step on a batch computes, and what an evaluation adds up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

Outputs = Mapping[str, Any]


class Task(nn.Module):
    """A module that owns what is trained and knows what to compute on a batch.

    Write ``step``; write ``evaluate_step`` too where an evaluation differs from a step, and
    ``summarise`` where a result is not a mean (an intersection over union, say).
    """

    def step(self, batch: Any) -> Outputs:
        """Compute a training step's numbers; ``fit`` does everything else.

        Args:
            batch: What the loader yields.

        Returns:
            ``"loss"``, a scalar with a gradient, and any further scalars to log.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step(batch).")

    def evaluate_step(self, batch: Any) -> Outputs:
        """Compute sums over a batch's samples: numbers or tensors that add up over batches.

        By default the numbers of ``step`` times the batch's size, without gradients.

        Returns:
            The sums, and ``"count"``, the number of samples.
        """
        count = batch_length(batch)
        return {**{name: value * count for name, value in self.step(batch).items()}, "count": count}

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Turn the sums over all batches and processes into results: by default means.

        Args:
            sums: What ``evaluate_step`` returned, added up, in float64 or int64 on the CPU.
        """
        count = float(sums["count"])
        return {name: float(value) / count for name, value in sums.items() if name != "count"}

    def forward(self, batch: Any) -> Outputs:
        """Call ``step`` while training and ``evaluate_step`` otherwise.

        What wraps a module for mixed precision or several processes wraps its ``forward``.
        """
        return self.step(batch) if self.training else self.evaluate_step(batch)


class SupervisedTask(Task):
    """Classification of samples by one label each.

    Args:
        model: Maps inputs (b, ...) to logits (b, classes).
        loss: Maps logits (b, classes) and labels (b,) to their mean loss.

    Example:
        >>> task = SupervisedTask(nn.Linear(3, 2))
        >>> sorted(task.step((torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))))
        ['loss']
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def step(self, batch: tuple[Tensor, Int64[Tensor, " b"]] | list[Tensor]) -> Outputs:
        """Return the batch's mean loss."""
        x, y = batch
        return {"loss": self.loss(self.model(x), y)}

    def evaluate_step(self, batch: tuple[Tensor, Int64[Tensor, " b"]] | list[Tensor]) -> Outputs:
        """Return the batch's summed loss, right answers (``"accuracy"``) and count."""
        x, y = batch
        logits: Float[Tensor, "b c"] = self.model(x)
        right = (logits.argmax(1) == y).sum()
        return {"loss": self.loss(logits, y) * len(y), "accuracy": right, "count": len(y)}


class FunctionTask(Task):
    """A task made of a model and plain functions of (model, batch).

    Args:
        model: What is trained.
        step: Returns a training step's numbers, as ``Task.step``.
        evaluate_step: Returns sums, as ``Task.evaluate_step``; made of ``step`` by default.
    """

    def __init__(
        self,
        model: nn.Module,
        step: Callable[[nn.Module, Any], Outputs],
        evaluate_step: Callable[[nn.Module, Any], Outputs] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._step = step
        self._evaluate_step = evaluate_step

    def step(self, batch: Any) -> Outputs:
        """Call the function ``step``."""
        return self._step(self.model, batch)

    def evaluate_step(self, batch: Any) -> Outputs:
        """Call the function ``evaluate_step``."""
        if self._evaluate_step is None:
            return super().evaluate_step(batch)
        return self._evaluate_step(self.model, batch)


def batch_length(batch: Any) -> int:
    """Return the number of samples of a batch: the length of the first tensor in it.

    Raises:
        TypeError: If the batch holds no tensor.
    """
    if isinstance(batch, Tensor):
        return len(batch)
    if isinstance(batch, Mapping):
        return batch_length(tuple(batch.values()))
    if isinstance(batch, tuple | list):
        for item in batch:
            if isinstance(item, Tensor | Mapping | tuple | list):
                return batch_length(item)
    raise TypeError(
        f"evaluate: batch must hold a tensor so that its samples can be counted; got "
        f"{type(batch).__name__}. Define evaluate_step, which returns the count itself."
    )


def move(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device.

    Args:
        batch: A tensor, or tuples, lists and dictionaries of tensors; anything else stays as is.
        device: Where to.
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: move(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(item, device) for item in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(move(item, device) for item in batch)
    return batch
