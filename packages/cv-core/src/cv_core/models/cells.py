"""Networks of searched cells: DARTS, P-DARTS, PC-DARTS and what is made of their genotypes.

Liu, Simonyan, Yang: *DARTS: Differentiable Architecture Search*, ICLR 2019. A network is a stem, a
stack of cells that share one of two genotypes, and a linear classifier on the mean over positions.
Every operation sits at a place of its own, ``cells.<i>.edges.<k>``, for surgery and hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cv_core.checks import check_choice, check_integer, check_range, check_shape
from cv_core.models.cell_operations import (
    FactorizedReduce,
    ZeroEdge,
    cell_operation,
    drop_path,
    relu_conv_norm,
)
from cv_core.models.genotypes import Edges, Genotype

Stem = Literal["cifar", "imagenet"]


@dataclass(frozen=True)
class CellEdge:
    """One edge of a network.

    Args:
        cell: Number of the cell.
        operation: Name of the operation, as in the genotype.
        source: Node that it starts from; 0 and 1 are the cell's inputs.
        node: Node that it ends in.
        stride: 2 where an edge of a reduction cell starts from an input, else 1.
    """

    cell: int
    operation: str
    source: int
    node: int
    stride: int


class Cell(nn.Module):
    """Joins the outputs of the two cells before it; its nodes' sums, concatenated, are its output.

    Args:
        edges: Operation and source of every edge, two for every node in order.
        in_channels: Channels of the two inputs, the older one first.
        channels: Channels of every node.
        reduction: Whether the sides are halved.
        after_reduction: Whether the older input is twice as large as the other.
    """

    def __init__(
        self,
        edges: Edges,
        in_channels: tuple[int, int],
        channels: int,
        *,
        reduction: bool = False,
        after_reduction: bool = False,
    ) -> None:
        super().__init__()
        older, newer = in_channels
        self.preprocess0: nn.Module = (
            FactorizedReduce(older, channels)
            if after_reduction
            else relu_conv_norm(older, channels)
        )
        self.preprocess1: nn.Module = relu_conv_norm(newer, channels)
        self.operations = tuple(name for name, _ in edges)
        self.sources = tuple(source for _, source in edges)
        self.strides = tuple(2 if reduction and source < 2 else 1 for source in self.sources)
        self.edges = nn.ModuleList(
            cell_operation(name, channels, stride)
            for name, stride in zip(self.operations, self.strides, strict=True)
        )
        self.out_channels = channels * (len(edges) // 2)

    def forward(
        self, older: Float[Tensor, "b c h w"], newer: Float[Tensor, "b c2 h2 w2"], drop: float = 0.0
    ) -> Float[Tensor, "b c3 h3 w3"]:
        """Compute the cell.

        Args:
            older: Output of the cell before the last one, ``(B, C, H, W)``.
            newer: Output of the last cell.
            drop: Rate of drop-path on every edge but identities; used in training mode only.
        """
        nodes = [self.preprocess0(older), self.preprocess1(newer)]
        for first in range(0, len(self.edges), 2):
            pair = (first, first + 1)
            # zeros are left out of a sum; where nothing else is left, they are the sum
            live = [k for k in pair if not isinstance(self.edges[k], ZeroEdge)] or [first]
            terms = [self._edge(k, nodes[self.sources[k]], drop) for k in live]
            nodes.append(terms[0] if len(terms) == 1 else terms[0] + terms[1])
        return torch.cat(nodes[2:], dim=1)

    def _edge(self, k: int, x: Tensor, drop: float) -> Tensor:
        out: Tensor = self.edges[k](x)
        identity = self.operations[k] == "skip_connect" and self.strides[k] == 1
        return drop_path(out, drop) if self.training and drop > 0 and not identity else out


class AuxiliaryHead(nn.Module):
    """A second classifier in the middle of the network, which helps the training of the first half.

    Args:
        in_channels: Channels of the map.
        num_classes: Number of outputs.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Conv2d(in_channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
        )
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Map ``(B, C, H, W)`` to logits."""
        return self.fc(self.layers(x).flatten(1))


class CellNetwork(nn.Module):
    """A network of searched cells.

    With 20 cells and 36 channels ``DARTS_V2`` has 3 349 342 parameters, as published.

    Args:
        genotype: The edges of its cells, such as ``cv_core.models.genotypes.DARTS_V2``.
        num_cells: Number of cells, at least 1.
        channels: Channels of a node in the first cells; doubled by every reduction cell.
        num_classes: Number of outputs.
        in_channels: Channels of the image.
        stem: ``"cifar"`` keeps the image's size, ``"imagenet"`` divides it by eight.
        reductions: Which cells halve the sides, counted from 0; by default those at one and at two
            thirds of the depth. One, in the middle, suits images of 8x8 pixels.
        auxiliary: Whether to add the auxiliary head behind the cell at two thirds of the depth, for
            ``logits_and_auxiliary``.
        drop: Rate of drop-path in training, in [0, 1); the attribute may be changed at any time, as
            by the usual schedule, linear in the epoch.

    Deviations from the paper:
        - The auxiliary head pools to 2x2 adaptively, so that any size of image will do; the public
          one pools 8x8 maps by overlapping windows of 5x5. Its ImageNet head lacks the second batch
          normalisation, by mistake as its authors say; ours has it.
        - Images need not be divisible by four: odd sides are rounded up.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> from cv_core.models.genotypes import DARTS_V2
        >>> CellNetwork(DARTS_V2, 3, 4, 10, in_channels=1)(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        genotype: Genotype,
        num_cells: int = 20,
        channels: int = 36,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        stem: Stem = "cifar",
        reductions: Sequence[int] | None = None,
        auxiliary: bool = False,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        owner = "CellNetwork"
        check_integer(owner, "num_cells", num_cells, low=1)
        check_integer(owner, "channels", channels, low=1)
        check_integer(owner, "num_classes", num_classes, low=1)
        check_integer(owner, "in_channels", in_channels, low=1)
        check_choice(owner, "stem", stem, get_args(Stem))
        check_range(owner, "drop", drop, low=0.0, high=1.0, high_open=True)
        if reductions is None:
            reductions = (num_cells // 3, 2 * num_cells // 3) if num_cells > 2 else ()
        for place in reductions:
            check_integer(owner, "reductions", place, low=0, high=num_cells - 1)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.drop = drop
        self.stem = _Stem(stem, in_channels, channels)
        cells: list[Cell] = []
        before, halved = self.stem.out_channels, stem == "imagenet"
        for number in range(num_cells):
            reduction = number in reductions
            channels *= 2 if reduction else 1
            cell = Cell(
                genotype.reduce if reduction else genotype.normal,
                before,
                channels,
                reduction=reduction,
                after_reduction=halved,
            )
            cells.append(cell)
            before, halved = (before[1], cell.out_channels), reduction
        self.cells = nn.ModuleList(cells)
        self._edges = {
            f"cells.{number}.edges.{k}": CellEdge(number, operation, source, 2 + k // 2, stride)
            for number, cell in enumerate(cells)
            for k, (operation, source, stride) in enumerate(
                zip(cell.operations, cell.sources, cell.strides, strict=True)
            )
        }
        self._auxiliary_after = 2 * num_cells // 3
        self.auxiliary = None
        if auxiliary:
            width = cells[self._auxiliary_after].out_channels
            self.auxiliary = AuxiliaryHead(width, num_classes)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before[1], num_classes)

    def edges(self) -> dict[str, CellEdge]:
        """Return all edges by the name of their place, ``cells.<i>.edges.<k>``, in order."""
        return dict(self._edges)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Map images to logits.

        Args:
            x: Images ``(B, in_channels, H, W)`` of any size.

        Returns:
            Logits ``(B, num_classes)``.

        Raises:
            ValueError: If the shape does not fit.
        """
        return self._classify(self._maps(x)[0])

    def logits_and_auxiliary(
        self, x: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Map images to the logits of the last and of the auxiliary classifier, for training.

        Args:
            x: Images ``(B, in_channels, H, W)`` of any size.

        Returns:
            Two logits ``(B, num_classes)``; the auxiliary loss usually has weight 0.4.

        Raises:
            ValueError: If the network has no auxiliary head or the shape does not fit.
        """
        if self.auxiliary is None:
            raise ValueError(
                "CellNetwork: there is no auxiliary head; build the network with auxiliary=True."
            )
        last, middle = self._maps(x)
        return self._classify(last), self.auxiliary(middle)

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of the last cell and of the one that the auxiliary head is for."""
        check_shape("CellNetwork", "x", x, "b c h w", c=self.in_channels)
        older, newer = self.stem(x)
        middle = newer
        for number, cell in enumerate(self.cells):
            older, newer = newer, cell(older, newer, self.drop)
            if number == self._auxiliary_after:
                middle = newer
        return newer, middle

    def _classify(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(x).flatten(1))


class _Stem(nn.Module):
    """Makes of an image the two inputs of the first cell."""

    def __init__(self, kind: Stem, in_channels: int, channels: int) -> None:
        super().__init__()
        self.layers0 = nn.Sequential()
        self.layers1 = nn.Sequential()
        if kind == "cifar":
            self.layers0 = nn.Sequential(*_conv_norm(in_channels, 3 * channels, stride=1))
            self.out_channels = (3 * channels, 3 * channels)
            return
        check_integer("CellNetwork", "channels", channels, low=2)
        self.layers0 = nn.Sequential(
            *_conv_norm(in_channels, channels // 2, stride=2),
            nn.ReLU(),
            *_conv_norm(channels // 2, channels, stride=2),
        )
        self.layers1 = nn.Sequential(nn.ReLU(), *_conv_norm(channels, channels, stride=2))
        self.out_channels = (channels, channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        older = self.layers0(x)
        return older, self.layers1(older)


def _conv_norm(in_channels: int, out_channels: int, *, stride: int) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(out_channels)
