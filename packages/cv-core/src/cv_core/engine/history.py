"""The numbers of a training run: one value per step, one row per epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch


class History:
    """Numbers of every optimiser step and of every epoch.

    Attributes:
        steps: For each name (``"loss"`` and what the task logs besides) a value per step.
        epochs: A row per epoch: its number, the steps done, the learning rate, the means over the
            epoch's steps and, if there is a validation, its results.
    """

    def __init__(self) -> None:
        self.steps: dict[str, list[float]] = {}
        self.epochs: list[dict[str, float]] = []
        self._begin: dict[str, int] = {}  # where the running epoch begins in each list of steps

    def add_steps(self, values: Mapping[str, Sequence[float]]) -> None:
        """Append the values of some steps.

        Args:
            values: For each name the new values, oldest first.
        """
        for name, numbers in values.items():
            self.steps.setdefault(name, []).extend(numbers)

    def means(self) -> dict[str, float]:
        """Return each name's mean over the steps of the running epoch."""
        running = {name: values[self._begin.get(name, 0) :] for name, values in self.steps.items()}
        return {name: math.fsum(run) / len(run) for name, run in running.items() if run}

    def close_epoch(self, row: Mapping[str, float]) -> None:
        """Append an epoch's row; the next steps belong to the next epoch."""
        self.epochs.append(dict(row))
        self._begin = {name: len(values) for name, values in self.steps.items()}

    def column(self, name: str) -> list[float]:
        """Return one number of every epoch that has it."""
        return [row[name] for row in self.epochs if name in row]

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and plain types."""
        return {
            "steps": {
                name: torch.tensor(values, dtype=torch.float64)
                for name, values in self.steps.items()
            },
            "epochs": [dict(row) for row in self.epochs],
            "begin": dict(self._begin),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned; what was here is forgotten."""
        self.steps = {name: values.tolist() for name, values in state["steps"].items()}
        self.epochs = [dict(row) for row in state["epochs"]]
        self._begin = dict(state["begin"])
