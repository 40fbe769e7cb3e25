"""Selection on validation data: keep the best weights, stop when nothing improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from cv_core.checks import check_choice, check_integer, check_range


class EarlyStopping:
    """Keeps the weights of the epoch with the best validation result.

    ``fit`` shows it every epoch's row, stops when ``patience`` epochs in a row brought nothing
    better, and leaves the best weights in the task.

    Args:
        metric: A number of the epoch's row, such as ``"validation loss"``.
        better: Which direction is better.
        patience: How many epochs without improvement end the training; ``None`` for no end.
        least: By how much a result must be better to count, at least 0.

    Raises:
        ValueError: If an option lies outside its range.
    """

    def __init__(
        self,
        metric: str = "validation loss",
        *,
        better: Literal["lower", "higher"] = "lower",
        patience: int | None = None,
        least: float = 0.0,
    ) -> None:
        check_choice("EarlyStopping", "better", better, ("lower", "higher"))
        check_range("EarlyStopping", "least", least, low=0)
        if patience is not None:
            check_integer("EarlyStopping", "patience", patience, low=1)
        self.metric = metric
        self.better = better
        self.patience = patience
        self.least = float(least)
        self.best: float | None = None
        self.best_epoch: int | None = None
        self._waited = 0
        self._weights: dict[str, Any] = {}

    def update(self, epoch: int, row: Mapping[str, float], module: nn.Module) -> None:
        """Look at an epoch's row; keep the module's weights if it is the best so far.

        Args:
            epoch: The epoch's number.
            row: The epoch's numbers.
            module: The module with the weights that the row judges.

        Raises:
            ValueError: If the row lacks the metric.
        """
        if self.metric not in row:
            raise ValueError(
                f"EarlyStopping: metric must be one of {', '.join(map(repr, row))}; "
                f"got {self.metric!r}. Results of a validation need fit(validate=...)."
            )
        value = float(row[self.metric])
        if not self._improves(value):
            self._waited += 1
            return
        self.best, self.best_epoch, self._waited = value, epoch, 0
        self._weights = {
            name: item.detach().clone() if isinstance(item, Tensor) else item
            for name, item in module.state_dict().items()
        }

    def _improves(self, value: float) -> bool:
        if math.isnan(value) or self.best is None:
            return not math.isnan(value)
        gain = self.best - value if self.better == "lower" else value - self.best
        return gain > self.least

    @property
    def exhausted(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self._waited >= self.patience

    def restore(self, module: nn.Module) -> None:
        """Put the best weights, if there are any, into the module."""
        if self._weights:
            module.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the best result, its weights, and how long nothing has improved."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "waited": self._waited,
            "weights": dict(self._weights),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self._waited = state["waited"]
        self._weights = dict(state["weights"])
