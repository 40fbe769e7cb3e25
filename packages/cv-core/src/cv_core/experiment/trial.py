"""A trial: what an arm's function is given, and where it leaves curves, pictures and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from cv_core import random
from cv_core.experiment.declaration import Budget

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

Item = TypeVar("Item")


class Settings(dict[str, Any]):
    """A trial's settings, read as attributes: ``trial.settings.epochs``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            known = ", ".join(sorted(self))
            raise AttributeError(f"no setting {name!r}; the experiment declares {known}") from None


class SkipTrial(Exception):  # noqa: N818 - a decision, not an error
    """Raised by an arm that cannot run here; the reason becomes a row of the report."""


@dataclass
class Record:
    """What a trial leaves besides its metrics: curves, pictures and costs."""

    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)


@dataclass
class Trial:
    """One (case, arm, seed) of an experiment.

    Args:
        arm: The arm's name.
        case: The case's name.
        seed: The paired seed, from 0 on.
        budget: ``smoke``, ``default`` or ``full``.
        source: The data set's name, as ``cvlab run --data`` takes it.
        settings: The budget's settings with the case's laid over them.
        device: Where to compute: ``cpu`` or ``cuda``.
        fabric: With several devices, the fabric that joins them, for ``cv_core.engine``.
        record: Where curves, pictures and costs go.
        progress: Told (done, total, what) by ``track``.
    """

    arm: str
    case: str
    seed: int
    budget: Budget
    source: str
    settings: Settings
    device: str = "cpu"
    fabric: Any = None
    record: Record = field(default_factory=Record)
    progress: Callable[[int, int | None, str], None] | None = None

    @cached_property
    def data(self) -> Any:
        """The data set: one of the classes in ``cv_core.data.kinds``. Treat it as read-only."""
        from cv_core.data.sources import load

        return load(self.source)

    def generator(self, *names: object) -> torch.Generator:
        """Return torch's CPU generator for a stream of this seed; the same for every arm."""
        return random.torch_generator(self.seed, *names)

    def rng(self, *names: object) -> np.random.Generator:
        """Return NumPy's generator for a stream of this seed; the same for every arm."""
        return random.numpy_generator(self.seed, *names)

    def seeded(self, *names: object) -> AbstractContextManager[None]:
        """Set torch's global CPU generator inside a ``with`` block: for building networks."""
        return random.seeded(self.seed, *names)

    def skip(self, reason: str) -> NoReturn:
        """Leave this trial out, with a reason that the report shows.

        Raises:
            SkipTrial: Always.
        """
        raise SkipTrial(reason)

    def track(
        self, items: Iterable[Item], what: str = "steps", total: int | None = None
    ) -> Iterator[Item]:
        """Iterate and report progress.

        Args:
            items: What to iterate over.
            what: What is counted, such as ``"epochs"``.
            total: How many there are; taken from ``len(items)`` where it has one.
        """
        if total is None and isinstance(items, Sized):
            total = len(items)
        for done, item in enumerate(items, 1):
            yield item
            if self.progress is not None:
                self.progress(done, total, what)

    def curve(self, name: str, step: float, value: float) -> None:
        """Add a point to a curve, such as ``trial.curve("train loss", epoch, loss)``."""
        self.record.curves.setdefault(name, []).append((float(step), float(value)))

    def picture(self, name: str, image: np.ndarray | torch.Tensor) -> None:
        """Leave a picture for the report.

        Args:
            name: Its caption; the same in every arm, so that pictures stand side by side.
            image: (H, W) or (H, W, 3), float in [0, 1] or uint8. Keep the sides below 512 pixels.
        """
        import numpy as np

        array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
        if array.dtype != np.uint8:
            array = (np.clip(array, 0.0, 1.0) * 255.0).round().astype(np.uint8)
        if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
            raise ValueError(f"picture: image must be (H, W) or (H, W, 3); got {array.shape}.")
        self.record.pictures[name] = array

    def cost(self, **numbers: float) -> None:
        """Leave costs, such as ``trial.cost(steps=1000)``; names as in ``Results.costs``."""
        self.record.costs.update({name: float(value) for name, value in numbers.items()})

    def model_cost(self, model: nn.Module, *inputs: torch.Tensor) -> None:
        """Leave a network's parameters and its multiply-accumulates for one example.

        Args:
            model: The network.
            *inputs: Arguments of one forward call on a batch of one.
        """
        from cv_core.metrics.cost import count_macs, count_parameters

        self.cost(parameters=count_parameters(model), macs=count_macs(model, *inputs))


def merge_settings(base: Mapping[str, Any], over: Mapping[str, Any]) -> Settings:
    """Lay a case's settings over a budget's.

    Raises:
        ValueError: If the case sets what the budget does not declare (most often a typing error).
    """
    unknown = sorted(set(over) - set(base))
    if unknown:
        raise ValueError(f"a case sets {unknown}, which the budget's settings do not declare.")
    return Settings({**base, **over})
