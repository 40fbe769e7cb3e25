"""A network that is used but never trained, such as a teacher or a loss's feature extractor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Frozen(nn.Module):
    """A snapshot of a network, in evaluation mode, whose weights and buffers never change.

    Whatever holds it keeps its ``state_dict``, ``parameters()`` and ``train()`` to itself, yet
    ``to`` and ``half`` move the snapshot along. Gradients reach the inputs where those ask for
    them, as a perceptual loss needs; otherwise nothing is recorded.

    Args:
        module: The network; it is copied, so that it may go on being trained.

    Example:
        >>> student = nn.Linear(2, 2)
        >>> student.teacher = Frozen(nn.Linear(2, 2))
        >>> list(student.state_dict())
        ['weight', 'bias']
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"Frozen: module must be a torch module; got {type(module).__name__}.")
        # in a list, out of sight of nn.Module: it is neither saved nor trained with its holder
        self._held = [copy.deepcopy(module).eval().requires_grad_(requires_grad=False)]
        self.training = False

    @property
    def module(self) -> nn.Module:
        """The snapshot."""
        return self._held[0]

    def train(self, mode: bool = True) -> Frozen:  # noqa: FBT001, FBT002 - torch's own signature
        """Stay in evaluation mode, whatever is asked for."""
        del mode
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the snapshot."""
        return self.module(*args, **kwargs)

    def _apply(
        self,
        fn: Callable[[Tensor], Tensor],
        recurse: bool = True,  # noqa: FBT001, FBT002 - torch's own signature
    ) -> Frozen:
        self.module._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call] # the same
        return self

    def extra_repr(self) -> str:
        """Name the network inside."""
        return type(self.module).__name__
