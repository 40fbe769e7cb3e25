"""An exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cv_core.checks import check_range


class EMA:
    r"""Average of a module's weights over the steps of a training.

    .. math:: \bar w_t = d \, \bar w_{t-1} + (1 - d) \, w_t, \qquad \bar w_0 = w_0

    Parameters are averaged, buffers (running statistics, counters) are copied.

    Args:
        module: The module; the average begins at its present weights.
        decay: The decay :math:`d`, in [0, 1).

    Raises:
        ValueError: If ``decay`` lies outside its range.
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        check_range("EMA", "decay", decay, low=0, high=1, high_open=True)
        self.module = module
        self.decay = float(decay)
        self.average = {name: tensor.detach().clone() for name, tensor in self._current().items()}
        # torch leaves this factory untyped
        self._mix = get_ema_multi_avg_fn(self.decay)

    def _current(self) -> dict[str, Tensor]:
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    @torch.no_grad()
    def update(self) -> None:
        """Mix in the module's present weights; call it after every optimiser step."""
        current = self._current()
        self._follow(current)
        names = [name for name, _ in self.module.named_parameters()]
        if names:
            self._mix([self.average[n] for n in names], [current[n].detach() for n in names], None)
        for name, buffer in self.module.named_buffers():
            self.average[name].copy_(buffer)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the averaged weights into the module for a ``with`` block, then its own back."""
        own = {name: tensor.detach().clone() for name, tensor in self._current().items()}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(own)

    def copy_to_module(self) -> None:
        """Put the averaged weights into the module for good."""
        self._write(self.average)

    def state_dict(self) -> dict[str, Any]:
        """Return decay and averaged weights."""
        return {"decay": self.decay, "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the average of a state.

        Raises:
            ValueError: If the state has another decay or other tensors.
        """
        if state["decay"] != self.decay:
            raise ValueError(
                f"EMA.load_state_dict: state must have decay={self.decay}; got {state['decay']}."
            )
        mine = {name: tensor.shape for name, tensor in self.average.items()}
        other = {name: tensor.shape for name, tensor in state["average"].items()}
        if mine != other:
            differing = sorted(n for n in mine.keys() | other.keys() if mine.get(n) != other.get(n))
            raise ValueError(
                f"EMA.load_state_dict: state must hold the module's tensors; {differing} differ."
            )
        for name, tensor in state["average"].items():
            self.average[name].copy_(tensor)

    def _follow(self, current: Mapping[str, Tensor]) -> None:
        """Move the average to where the module's tensors are now."""
        for name, tensor in current.items():
            if self.average[name].device != tensor.device:
                self.average[name] = self.average[name].to(tensor.device)

    @torch.no_grad()
    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self._current().items():
            tensor.copy_(tensors[name])
