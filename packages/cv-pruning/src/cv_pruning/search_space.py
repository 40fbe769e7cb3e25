"""Networks with several candidate operations in some of their places, for architecture search."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from cv_core.checks import check_choice, check_floating, check_integer, check_shape
from cv_core.models.cell_operations import ZeroEdge
from cv_core.nn.blocks import ConvNormAct
from cv_core.nn.surgery import Where, replace, wrap
from jaxtyping import Float
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

Actions = Sequence[int]
"""An architecture: one index of a candidate for each place."""


def checked_actions(owner: str, actions: Actions, choices: Sequence[int]) -> np.ndarray:
    """Return an architecture as an array, or refuse it.

    Args:
        owner: The class or function that takes it.
        actions: One index for each place.
        choices: How many candidates each place has.

    Raises:
        ValueError: If there are too few or too many, or one does not exist.
    """
    chosen = np.asarray(actions)
    if chosen.shape != (len(choices),) or chosen.dtype.kind not in "iu":
        raise ValueError(
            f"{owner}: actions must hold one whole number for each of {len(choices)} places; "
            f"got {actions!r}."
        )
    if ((chosen < 0) | (chosen >= np.array(choices))).any():
        raise ValueError(f"{owner}: actions must lie below {tuple(choices)}; got {tuple(actions)}.")
    return chosen


class MixedOp(nn.Module):
    """Several candidate operations in one place, of which one runs: the active one.

    Args:
        candidates: Operations that map a tensor to tensors of one shape.
        active: Index of the first active one; the attribute may be changed at any time.

    Raises:
        ValueError: If there is no candidate or ``active`` is none of them.

    Example:
        >>> import torch
        >>> op = MixedOp([nn.Identity(), nn.Tanh()], active=1)
        >>> op(torch.zeros(1, 2)).tolist()
        [[0.0, 0.0]]
    """

    def __init__(self, candidates: Iterable[nn.Module], active: int = 0) -> None:
        super().__init__()
        self.candidates = nn.ModuleList(candidates)
        if not len(self.candidates):
            raise ValueError("MixedOp: candidates must hold at least one operation; got none.")
        self.active = active

    @property
    def active(self) -> int:
        """Index of the candidate that runs."""
        return self._active

    @active.setter
    def active(self, index: int) -> None:
        check_integer("MixedOp", "active", index, low=0, high=len(self.candidates) - 1)
        self._active = int(index)

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.candidates)

    def extra_repr(self) -> str:
        """Show which candidate is active."""
        return f"active={self.active}"

    def forward(self, x: Float[Tensor, "b *map"]) -> Float[Tensor, "b *out"]:
        """Apply the active candidate to ``(B, ...)``."""
        check_shape("MixedOp", "x", x, "b ...")
        check_floating("MixedOp", "x", x)
        return self.candidates[self._active](x)


_CANDIDATES: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda _: ZeroEdge(),
    "skip": lambda _: nn.Identity(),
    "conv1": lambda channels: ConvNormAct(channels, channels, kernel_size=1),
    "conv3": lambda channels: ConvNormAct(channels, channels, kernel_size=3),
    "conv5": lambda channels: ConvNormAct(channels, channels, kernel_size=5),
    "dil3_r2": lambda channels: ConvNormAct(channels, channels, dilation=2),
    "dil3_r3": lambda channels: ConvNormAct(channels, channels, dilation=3),
    "sep3": lambda channels: nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        ConvNormAct(channels, channels, kernel_size=1),
    ),
}

CANDIDATE_NAMES = tuple(_CANDIDATES)


def candidate(name: str, channels: int) -> nn.Module:
    """Make a candidate operation for feature maps, after the list of Auto-FPN.

    Args:
        name: ``none``, ``skip``, ``conv1``, ``conv3``, ``conv5``, ``dil3_r2``, ``dil3_r3`` (3x3,
            dilated by 2 or 3) or ``sep3`` (depthwise separable); each with normalisation and ReLU.
        channels: Channels of input and output.

    Returns:
        A module that keeps the shape ``(B, C, H, W)``.

    Raises:
        ValueError: If there is no such candidate.
    """
    check_choice("candidate", "name", name, CANDIDATE_NAMES)
    check_integer("candidate", "channels", channels, low=1)
    return _CANDIDATES[name](channels)


def attach_choices(
    model: nn.Module, where: Where, candidates: Callable[[nn.Module], Iterable[nn.Module]]
) -> dict[str, MixedOp]:
    """Put candidates into the places of a network's modules, in place.

    Args:
        model: Any network; it is changed.
        where: Which modules: name patterns or classes, see ``cv_core.nn.surgery.find``.
        candidates: Takes the module that sits in a place and returns the candidates for it, the
            module itself among them if it is to be one.

    Returns:
        The mixed operations by name, in the network's order.

    Raises:
        ValueError: If ``where`` selects nothing.
    """
    wrap(model, where, lambda module: MixedOp(candidates(module)))
    return mixed_ops(model)


def mixed_ops(model: nn.Module) -> dict[str, MixedOp]:
    """Return the mixed operations of a network by name, in its order; each is one agent.

    Args:
        model: Any network.

    Raises:
        ValueError: If it has none.
    """
    found = {name: part for name, part in model.named_modules() if isinstance(part, MixedOp)}
    if not found:
        raise ValueError(
            f"mixed_ops: model must hold a MixedOp; got {type(model).__name__}. "
            "Call attach_choices first."
        )
    return found


def set_architecture_(model: nn.Module, actions: Actions) -> None:
    """Make one candidate of every mixed operation the active one, in place.

    Args:
        model: A network with mixed operations.
        actions: One index for each, in the order of ``mixed_ops``.

    Raises:
        ValueError: If an index does not exist.
    """
    ops = list(mixed_ops(model).values())
    chosen = checked_actions("set_architecture_", actions, [len(op) for op in ops])
    for op, index in zip(ops, chosen.tolist(), strict=True):
        op.active = index


def derive(model: Model, actions: Actions) -> Model:
    """Return a copy of a network with one operation in every place and no choice left.

    Weights are copied too. To train from scratch, derive from a network with fresh weights.

    Args:
        model: A network with mixed operations; it stays as it is.
        actions: One index for each, in the order of ``mixed_ops``.

    Returns:
        The network, which needs nothing of this module.

    Raises:
        ValueError: If an index does not exist.
    """
    ops = mixed_ops(model)
    chosen = checked_actions("derive", actions, [len(op) for op in ops.values()])
    derived = copy.deepcopy(model)
    for name, index in sorted(zip(ops, chosen.tolist(), strict=True), reverse=True):
        replace(derived, name, mixed_ops(derived)[name].candidates[index])  # inner ones first
    return derived
