"""Criteria: how much a channel matters, from the weights that would leave with it.

A criterion maps a group of coupled channels to one score per channel, the lowest leaving first. It
is built from three parts: a score of the channels of one weight (plain functions with one
signature, usable without torch-pruning), a reduction over the coupled layers, and a normalisation.
What is built here works in torch-pruning's pruners, and theirs work in ``prune``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
import torch
from cv_core.checks import check_choice
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from cv_pruning.pruning.groups import Member, members
from cv_pruning.pruning.narrowing import Side, is_depthwise

Reduction = Literal["mean", "sum", "max", "prod", "first"]


class Score(Protocol):
    """Scores the slices of one weight along ``dim``."""

    def __call__(self, weight: Tensor, *, dim: int = 0, grad: Tensor | None = None) -> Tensor:
        """Return one number per slice."""


def l1(
    weight: Float[Tensor, "..."], *, dim: int = 0, grad: Tensor | None = None
) -> Float[Tensor, " channels"]:
    """Score a channel by the sum of its absolute weights (Li et al., ICLR 2017).

    Args:
        weight: A weight of any shape.
        dim: The dimension that counts channels.
        grad: Not used; every score takes it.

    Returns:
        One score per channel.

    Example:
        >>> l1(torch.tensor([[1.0, -2.0], [0.5, 0.5]])).tolist()
        [3.0, 1.0]
    """
    del grad
    return _rows(weight, dim).abs().sum(1)


def l2(
    weight: Float[Tensor, "..."], *, dim: int = 0, grad: Tensor | None = None
) -> Float[Tensor, " channels"]:
    """Score a channel by its energy, the *squared* L2 norm, so that coupled layers add up.

    Example:
        >>> l2(torch.tensor([[1.0, -2.0], [0.5, 0.5]])).tolist()
        [5.0, 0.5]
    """
    del grad
    return _rows(weight, dim).square().sum(1)


def taylor(
    weight: Float[Tensor, "..."], *, dim: int = 0, grad: Tensor | None = None
) -> Float[Tensor, " channels"]:
    """Score a channel by ``sum |w dL/dw|``, first order (Molchanov et al., CVPR 2019).

    Raises:
        ValueError: If there is no gradient.

    Example:
        >>> taylor(torch.tensor([[1.0, -2.0]]), grad=torch.tensor([[3.0, 1.0]])).tolist()
        [5.0]
    """
    if grad is None:
        raise ValueError("taylor: grad is missing; call loss.backward() on some data first.")
    return (_rows(weight, dim) * _rows(grad, dim)).abs().sum(1)


def fpgm(
    weight: Float[Tensor, "..."], *, dim: int = 0, grad: Tensor | None = None
) -> Float[Tensor, " channels"]:
    """Score a channel by the sum of its distances to all others (FPGM, He et al., CVPR 2019).

    The filter nearest to the geometric median is the one that the others replace best.

    Example:
        >>> fpgm(torch.tensor([[0.0], [1.0], [3.0]])).tolist()
        [4.0, 3.0, 5.0]
    """
    del grad
    rows = _rows(weight, dim)
    exact = "donot_use_mm_for_euclid_dist"  # the matrix product loses close distances
    return torch.cdist(rows, rows, compute_mode=exact).sum(1)


def _rows(weight: Tensor, dim: int) -> Tensor:
    return weight.detach().movedim(dim, 0).flatten(1) if weight.ndim > 1 else weight[:, None]


def lamp(scores: Float[Tensor, " channels"]) -> Float[Tensor, " channels"]:
    """Divide each score by the sum of those not below it (LAMP, Lee et al., ICLR 2021).

    Makes the layers of a network comparable: the best channel of each gets 1.

    Example:
        >>> lamp(torch.tensor([1.0, 3.0])).tolist()
        [0.25, 1.0]
    """
    ordered, position = torch.sort(scores, stable=True)
    remaining = ordered.flip(0).cumsum(0).flip(0)
    return torch.zeros_like(scores).scatter(0, position, _divide(ordered, remaining))


def _mean(scores: Tensor) -> Tensor:
    return _divide(scores, scores.mean())


def _max(scores: Tensor) -> Tensor:
    return _divide(scores, scores.amax())


def _none(scores: Tensor) -> Tensor:
    return scores


def _divide(scores: Tensor, by: Tensor) -> Tensor:
    """Divide; weights that are all zero have the score zero."""
    return torch.where(by == 0, 0.0, scores / torch.where(by == 0, 1.0, by))


NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": _mean,
    "max": _max,
    "none": _none,
    "lamp": lamp,
}
WEIGHTED: tuple[type[nn.Module], ...] = (_ConvNd, nn.Linear, _BatchNorm, nn.LayerNorm)
"""Layers that take part in a score, as in torch-pruning."""
FILTERS: tuple[type[nn.Module], ...] = (_ConvNd, nn.Linear)


class Importance:
    """A criterion: scores of the coupled layers' weights, reduced and normalised.

    ``I(c) = normalise(reduce_layers score(weights that leave with channel c))``: output filters of
    the layers that make the channel, input weights of those that read it, normalisation scales.

    Args:
        score: Scores the channels of one weight: ``l1``, ``l2``, ``taylor``, ``fpgm`` or yours.
        layers: Kinds of layers that take part; by default convolutions, linear layers,
            BatchNorm and LayerNorm.
        reduction: Over coupled layers: ``"mean"``, ``"sum"``, ``"max"``, ``"prod"``, or
            ``"first"`` for the layer at the group's root alone.
        normalizer: Of a group's scores, which makes groups comparable for ``scope="global"``:
            ``"mean"`` or ``"max"`` to divide by, ``"lamp"``, or ``"none"``.

    Called with a group (ours or torch-pruning's) it returns one score per channel, or ``None`` if
    no layer of the group takes part.

    Deviations from torch-pruning: FPGM compares the filters themselves, as in the paper, not their
    squares, and all filters of a layer; an input channel of a grouped convolution is scored by
    the weights that read it, not by those at its offset in every group; depthwise filters count.
    All-zero weights score zero instead of NaN.

    Example:
        >>> Importance(l1, reduction="first")
        Importance(l1, reduction='first', normalizer='mean')
    """

    def __init__(
        self,
        score: Score = l2,
        *,
        layers: tuple[type[nn.Module], ...] = WEIGHTED,
        reduction: Reduction = "mean",
        normalizer: str = "mean",
    ) -> None:
        check_choice("Importance", "reduction", reduction, ("mean", "sum", "max", "prod", "first"))
        check_choice("Importance", "normalizer", normalizer, NORMALIZERS)
        self.score, self.layers = score, layers
        self.reduction, self.normalizer = reduction, normalizer

    def __repr__(self) -> str:
        name = getattr(self.score, "__name__", repr(self.score))
        return f"Importance({name}, reduction={self.reduction!r}, normalizer={self.normalizer!r})"

    def takes(self, member: Member) -> bool:
        """Tell whether a member of a group takes part in the score."""
        return isinstance(member.layer, self.layers) and (
            getattr(member.layer, "weight", None) is not None
        )

    @torch.no_grad()
    def __call__(
        self, group: Any, cache: dict[tuple[int, Side], Tensor] | None = None
    ) -> Tensor | None:
        """Score a group's channels.

        Args:
            group: Ours or torch-pruning's.
            cache: Scores of whole layers, shared by groups that touch the same layer.
        """
        everyone = members(group)
        taking = [member for member in everyone if self.takes(member)]
        if self.reduction == "first":
            taking = taking[:1]
        if not taking:
            return None
        cache = {} if cache is None else cache
        channels = len(np.unique(everyone[0].root))
        parts = [(self._of_layer(member, cache), member) for member in taking]
        total = self._reduce(parts, channels)
        return NORMALIZERS[self.normalizer](total)

    def _of_layer(self, member: Member, cache: dict[tuple[int, Side], Tensor]) -> Tensor:
        key = (id(member.layer), member.side)
        if key not in cache:
            weight = member.layer.weight
            grad = (
                None if weight.grad is None else _channels(member.layer, member.side, weight.grad)
            )
            cache[key] = self.score(_channels(member.layer, member.side, weight), dim=0, grad=grad)
        return cache[key]

    def _reduce(self, parts: list[tuple[Tensor, Member]], channels: int) -> Tensor:
        first = parts[0][0]
        start = {"max": -torch.inf, "prod": 1.0}.get(self.reduction, 0.0)
        total = first.new_full((channels,), start)
        for scores, member in parts:
            root = torch.from_numpy(member.root).to(first.device)
            picked = scores[torch.from_numpy(member.index).to(scores.device)].to(total)
            if self.reduction in ("max", "prod"):
                kind = "amax" if self.reduction == "max" else "prod"
                total.scatter_reduce_(0, root, picked, kind)
            else:
                total.index_add_(0, root, picked)
        return total / len(parts) if self.reduction == "mean" else total


def _channels(layer: nn.Module, side: Side, weight: Tensor) -> Tensor:
    """Return a weight, or its gradient, as a matrix with one row per channel of a side."""
    weight = weight.detach()
    if weight.ndim == 1:
        return weight[:, None]
    if not isinstance(layer, _ConvNd) or is_depthwise(layer):
        return weight.flatten(1) if side == "out" else weight.t()
    if (side == "out") != layer.transposed:
        return weight.flatten(1)
    by_group = weight.unflatten(0, (layer.groups, -1)).flatten(3)
    return by_group.transpose(1, 2).flatten(0, 1).flatten(1)


class RandomImportance:
    """Scores drawn uniformly from an explicit generator: the control of every criterion.

    Args:
        generator: Where the numbers come from; each group takes the next ones.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self, group: Any) -> Tensor:
        """Return a random score per channel of the group."""
        channels = len(np.unique(members(group)[0].root))
        return torch.rand(channels, generator=self.generator, device=self.generator.device)


CRITERIA: dict[str, Callable[[], Importance]] = {
    "l1": lambda: Importance(l1),
    "l2": lambda: Importance(l2),
    "bn_scale": lambda: Importance(l1, layers=(_BatchNorm,)),
    "taylor": lambda: Importance(taylor),
    "fpgm": lambda: Importance(fpgm, layers=FILTERS),
    "lamp": lambda: Importance(l2, normalizer="lamp"),
}
"""Criteria by name; a random one is ``RandomImportance(generator)``."""
