"""Refining the output of a stage by its input, in a network that knows nothing of it.

The wrappers keep every key of the ``state_dict``, and ``copy.deepcopy`` and ``pickle`` take them
along. A stage of two layers hands its input from the first to the last within one call, so use
``DistributedDataParallel``; ``DataParallel`` runs several calls at once on one object.
"""

from __future__ import annotations

from typing import Any

from cv_core.nn.surgery import Wrapper, wrap
from torch import Tensor, nn

from cv_attention._shared.stages import Stage


class StagePart(Wrapper):
    """Any wrapper of this module: ``cv_core.nn.surgery.remove(model, StagePart)`` undoes it all."""


class _Memory:
    """The input of a stage, from the call of its first layer to the call of its last."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._x: Tensor | None = None

    def keep(self, x: Tensor) -> None:
        self._x = x

    def take(self) -> Tensor:
        x, self._x = self._x, None  # hold no activation longer than needed
        if x is None:
            raise RuntimeError(f"{self.stage.last} was called without {self.stage.first} before.")
        return x

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_x": None}


class _Whole(StagePart):
    """A stage of one layer."""

    def __init__(self, inner: nn.Module, stage: Stage, refine: nn.Module) -> None:
        super().__init__(inner)
        self.stage = stage
        self.refine = refine

    def forward(self, x: Tensor) -> Tensor:
        return _refine(self.stage, self.refine, x, self.inner(x))


class _First(StagePart):
    """The first layer of a stage of several."""

    def __init__(self, inner: nn.Module, memory: _Memory) -> None:
        super().__init__(inner)
        self.memory = memory

    def forward(self, x: Tensor) -> Tensor:
        self.memory.keep(x)
        return self.inner(x)


class _Last(StagePart):
    """The last layer of a stage of several."""

    def __init__(self, inner: nn.Module, memory: _Memory, refine: nn.Module) -> None:
        super().__init__(inner)
        self.memory = memory
        self.refine = refine

    def forward(self, hidden: Tensor) -> Tensor:
        return _refine(self.memory.stage, self.refine, self.memory.take(), self.inner(hidden))


def _refine(stage: Stage, refine: nn.Module, x: Tensor, f: Tensor) -> Tensor:
    try:
        return refine(x, f)
    except ValueError as error:  # a whole stage may turn out to change the shape
        error.add_note(f"This happened in the stage {stage.first} -> {stage.last}.")
        raise


def refine_stage_(model: nn.Module, stage: Stage, refine: nn.Module) -> None:
    """Replace a stage's output ``f`` by ``refine(x, f)``, in place.

    Args:
        model: The network to change.
        stage: Where: its input is ``x``.
        refine: Called as ``refine(x, f)``; what it returns takes the place of ``f``.
    """
    if stage.first == stage.last:
        wrap(model, stage.last, lambda inner: _Whole(inner, stage, refine))
        return
    memory = _Memory(stage)
    wrap(model, stage.first, lambda inner: _First(inner, memory))
    wrap(model, stage.last, lambda inner: _Last(inner, memory, refine))


def refined(model: nn.Module) -> dict[str, nn.Module]:
    """Return what refines a stage, by the name of the stage's last layer."""
    return {
        name: part.refine
        for name, part in model.named_modules()
        if isinstance(part, (_Whole, _Last))
    }
