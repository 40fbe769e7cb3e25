"""Cells found by architecture search: which operation joins which nodes.

A cell has two inputs, nodes 0 and 1, the outputs of the two cells before it, and further nodes,
each the sum of two edges. A genotype lists the edges of a normal cell, which keeps the size, and of
a reduction cell, which halves it: edges ``2j`` and ``2j + 1`` end in node ``j + 2``.
"""

from __future__ import annotations

from dataclasses import dataclass

from cv_core.checks import check_choice, check_integer

OPERATION_NAMES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The operations of the DARTS search space; ``cv_core.models.cell_operations`` makes them."""

Edges = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Genotype:
    """The edges of a normal and of a reduction cell, each as (operation, node it starts from).

    Args:
        normal: Edges of a normal cell, two for every node in order.
        reduce: Edges of a reduction cell, likewise.

    Raises:
        ValueError: If an operation is unknown, a node lacks an edge, or an edge does not start
            before the node that it ends in.

    Example:
        >>> chain = (("skip_connect", 0), ("sep_conv_3x3", 1), ("max_pool_3x3", 2), ("none", 0))
        >>> Genotype(normal=chain, reduce=chain).normal[2]
        ('max_pool_3x3', 2)
    """

    normal: Edges
    reduce: Edges

    def __post_init__(self) -> None:
        for kind, edges in (("normal", self.normal), ("reduce", self.reduce)):
            if not edges or len(edges) % 2:
                raise ValueError(
                    f"Genotype: {kind} must have two edges for every node; got {len(edges)} edges."
                )
            for number, (operation, source) in enumerate(edges):
                name = f"{kind}[{number}]"
                check_choice("Genotype", name, operation, OPERATION_NAMES)
                check_integer("Genotype", name, source, low=0, high=1 + number // 2)


DARTS_V1 = Genotype(
    normal=(
        ("sep_conv_3x3", 1), ("sep_conv_3x3", 0),
        ("skip_connect", 0), ("sep_conv_3x3", 1),
        ("skip_connect", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0), ("skip_connect", 2),
    ),
    reduce=(
        ("max_pool_3x3", 0), ("max_pool_3x3", 1),
        ("skip_connect", 2), ("max_pool_3x3", 0),
        ("max_pool_3x3", 0), ("skip_connect", 2),
        ("skip_connect", 2), ("avg_pool_3x3", 0),
    ),
)  # fmt: skip
"""First-order cell of Liu, Simonyan, Yang: *DARTS*, ICLR 2019."""

DARTS_V2 = Genotype(
    normal=(
        ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1), ("skip_connect", 0),
        ("skip_connect", 0), ("dil_conv_3x3", 2),
    ),
    reduce=(
        ("max_pool_3x3", 0), ("max_pool_3x3", 1),
        ("skip_connect", 2), ("max_pool_3x3", 1),
        ("max_pool_3x3", 0), ("skip_connect", 2),
        ("skip_connect", 2), ("max_pool_3x3", 1),
    ),
)  # fmt: skip
"""Second-order cell of Liu, Simonyan, Yang: *DARTS*, ICLR 2019."""

P_DARTS = Genotype(
    normal=(
        ("skip_connect", 0), ("dil_conv_3x3", 1),
        ("skip_connect", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1), ("sep_conv_3x3", 3),
        ("sep_conv_3x3", 0), ("dil_conv_5x5", 4),
    ),
    reduce=(
        ("avg_pool_3x3", 0), ("sep_conv_5x5", 1),
        ("sep_conv_3x3", 0), ("dil_conv_5x5", 2),
        ("max_pool_3x3", 0), ("dil_conv_3x3", 1),
        ("dil_conv_3x3", 1), ("dil_conv_5x5", 3),
    ),
)  # fmt: skip
"""CIFAR-10 cell of Chen, Xie, Wu, Tian: *Progressive DARTS*, ICCV 2019."""

PC_DARTS = Genotype(
    normal=(
        ("sep_conv_3x3", 1), ("skip_connect", 0),
        ("sep_conv_3x3", 0), ("dil_conv_3x3", 1),
        ("sep_conv_5x5", 0), ("sep_conv_3x3", 1),
        ("avg_pool_3x3", 0), ("dil_conv_3x3", 1),
    ),
    reduce=(
        ("sep_conv_5x5", 1), ("max_pool_3x3", 0),
        ("sep_conv_5x5", 1), ("sep_conv_5x5", 2),
        ("sep_conv_3x3", 0), ("sep_conv_3x3", 3),
        ("sep_conv_3x3", 1), ("sep_conv_3x3", 2),
    ),
)  # fmt: skip
"""CIFAR-10 cell of Xu et al.: *PC-DARTS*, ICLR 2020."""

PC_DARTS_IMAGENET = Genotype(
    normal=(
        ("skip_connect", 1), ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 0), ("skip_connect", 1),
        ("sep_conv_3x3", 1), ("sep_conv_3x3", 3),
        ("sep_conv_3x3", 1), ("dil_conv_5x5", 4),
    ),
    reduce=(
        ("sep_conv_3x3", 0), ("skip_connect", 1),
        ("dil_conv_5x5", 2), ("max_pool_3x3", 1),
        ("sep_conv_3x3", 2), ("sep_conv_3x3", 1),
        ("sep_conv_5x5", 0), ("sep_conv_3x3", 3),
    ),
)  # fmt: skip
"""ImageNet cell of Xu et al.: *PC-DARTS*, ICLR 2020."""
