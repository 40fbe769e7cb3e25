r"""EOG-Pruning: a factor for every edge of the network, trained with the weights, ranked globally.

Feng, Xu, Li, Sun, Wang: *Edge-Wise One-Level Global Pruning on NAS Generated Networks*, PRCV 2021,
LNCS 13022, pp. 3-15.

A searched network repeats one cell many times, so that many of its edges are redundant. Each
operation edge :math:`i \to j` of every copy gets a factor of its own,

.. math:: \alpha^* = \mathrm{clip}(\alpha, 0, 1), \qquad
          x^{(j)} = \sum_{i<j} \alpha^{*(i,j)} f^{(i,j)}(x^{(i)})            \quad (1, 2)

with :math:`\alpha = 1 - p` at the start for a pruning rate :math:`p`; skip connections have none.
Factors and weights are trained together on the same batches of the training set, each with a rate
of its own, without any penalty on the factors:

.. math:: w \leftarrow w - \xi_w \nabla_w L(w, \alpha), \qquad
          \alpha \leftarrow \alpha - \xi_\alpha \nabla_\alpha L(w, \alpha)    \quad (3\text{-}6)

Then the smallest share :math:`p` of all factors of the network is removed, once, and what is left
is fine-tuned. Copies of one cell may end up different.

Deviations from the paper, and why:

- It prints that :math:`[p(NL - s)]` edges are left of :math:`2NL` with :math:`s` skips; its tables
  show the :math:`\lfloor (1 - p)(2NL - s) \rfloor` that are left here.
- A clipped factor has no gradient outside [0, 1], in torch not even at 0 and 1, and would stay
  there for ever. ``project_edge_factors_`` puts factors back after each step, which leaves Eq. 1 as
  it is, and the clip's gradient is 1 everywhere, so that an edge at 0 or 1 can come back.
- It does not say what becomes of the factors after pruning. Here they are constants during
  fine-tuning (``trainable=True`` keeps them learnable), and ``fold_edge_factors_`` moves them into
  the batch normalisations.

Example:
    >>> from cv_core.models.cells import CellNetwork
    >>> from cv_core.models.genotypes import DARTS_V2
    >>> model = CellNetwork(DARTS_V2, num_cells=8, channels=4, num_classes=10)
    >>> gates = attach_edge_factors(model, non_skip_edges(model), init=0.5)
    >>> groups = edge_param_groups(model, lr_w=0.01, lr_alpha=0.025, weight_decay=3e-4)
    >>> optimizer = torch.optim.SGD(groups, momentum=0.9)
    >>> # train: optimizer.step(); project_edge_factors_(model)
    >>> report = global_edge_prune_(model, rate=0.5)
    >>> len(gates), len(report.removed), len(report.kept)
    (46, 23, 23)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from cv_core.checks import check_floating, check_range, check_shape
from cv_core.models.cell_operations import ZeroEdge
from cv_core.models.cells import Cell, CellNetwork
from cv_core.nn.folding import scale_into_batchnorm
from cv_core.nn.surgery import Wrapper, replace, wrap
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float
from torch import Tensor, nn

Select = Callable[[str, nn.Module], bool]


class GatedEdge(Wrapper):
    """An operation times its factor, ``clip(alpha, 0, 1) * op(x)`` (Eq. 2).

    The operation's parameters keep their names in the ``state_dict``; ``alpha`` is added.
    ``cv_core.nn.surgery.remove(model, GatedEdge)`` takes all gates off again.

    Args:
        op: Maps a tensor to a tensor.
        init: Initial value of the factor, in [0, 1]; ``1 - rate`` in the paper.

    Raises:
        ValueError: If ``init`` lies outside [0, 1].

    Example:
        >>> GatedEdge(nn.Identity(), init=0.5)(torch.ones(1, 2)).tolist()
        [[0.5, 0.5]]
    """

    def __init__(self, op: nn.Module, init: float) -> None:
        super().__init__(op)
        check_range("GatedEdge", "init", init, low=0.0, high=1.0)
        self.alpha = nn.Parameter(torch.tensor(float(init)))

    def forward(self, x: Float[Tensor, "b *map"]) -> Float[Tensor, "b *out"]:
        """Apply the operation to ``(B, ...)`` and weight what comes out."""
        check_shape("GatedEdge", "x", x, "b ...")
        check_floating("GatedEdge", "x", x)
        with torch.no_grad():
            excess = self.alpha.clamp(0.0, 1.0) - self.alpha
        return (self.alpha + excess) * self.inner(x)


class ScaledEdge(Wrapper):
    """An operation times a constant: what folding leaves where no normalisation can take it up.

    Args:
        op: Maps a tensor to a tensor.
        scale: The constant, one number.
    """

    scale: Tensor

    def __init__(self, op: nn.Module, scale: Tensor | float) -> None:
        super().__init__(op)
        self.register_buffer("scale", torch.as_tensor(scale).detach().clone())

    def forward(self, x: Float[Tensor, "b *map"]) -> Float[Tensor, "b *out"]:
        """Apply the operation to ``(B, ...)`` and scale what comes out."""
        return self.scale * self.inner(x)


@dataclass(frozen=True)
class EdgePruneReport:
    """What pruning did.

    Args:
        kept: Names of the gated edges that are left, in the network's order.
        removed: Names of the removed ones, smallest factor first.
        threshold: The largest removed factor; NaN if none was removed.
        alphas: Factors of all edges before pruning, by name.
    """

    kept: tuple[str, ...]
    removed: tuple[str, ...]
    threshold: float
    alphas: Mapping[str, float]


def non_skip_edges(model: nn.Module) -> Select:
    """Return a choice for ``attach_edge_factors``: all edges of cell networks but skips and zeros.

    The genotype decides, not the type of the module: the skip of a reduction cell has convolutions.

    Args:
        model: A ``CellNetwork``, or a network that holds one.

    Raises:
        ValueError: If there is no ``CellNetwork`` in it.
    """
    carriers = [(name, m) for name, m in model.named_modules() if isinstance(m, CellNetwork)]
    if not carriers:
        raise ValueError(
            f"non_skip_edges: model must hold a CellNetwork; got {type(model).__name__}. For other "
            "networks write the choice yourself: (name, module) -> bool."
        )
    chosen = {
        f"{carrier}.{place}" if carrier else place
        for carrier, network in carriers
        for place, edge in network.edges().items()
        if edge.operation not in ("skip_connect", "none")
    }
    return lambda name, _module: name in chosen


def attach_edge_factors(model: nn.Module, select: Select, init: float) -> dict[str, GatedEdge]:
    """Give every chosen module a factor, in place.

    Args:
        model: Any network whose chosen modules map a tensor to a tensor.
        select: Called with the name and the module of every place; see ``non_skip_edges``. It must
            not choose what has to stay, above all skip connections.
        init: Initial value of the factors, in [0, 1]; ``1 - rate`` in the paper.

    Returns:
        The gated edges by name, in the network's order.

    Raises:
        ValueError: If nothing is chosen, a chosen module lies inside another one, sits in two
            places or is gated already, or ``init`` is out of range.
    """
    owner = "attach_edge_factors"
    check_range(owner, "init", init, low=0.0, high=1.0)
    places = model.named_modules(remove_duplicate=False)
    chosen = {name: module for name, module in places if name and select(name, module)}
    if not chosen:
        raise ValueError(f"{owner}: select chose none of {type(model).__name__}'s modules.")
    for name, module in chosen.items():
        inside = [outer for outer in chosen if name.startswith(f"{outer}.")]
        if inside or isinstance(module, GatedEdge):
            raise ValueError(f"{owner}: {name} is inside a chosen or gated edge, {inside or name}.")
    if len(set(chosen.values())) < len(chosen):
        raise ValueError(f"{owner}: select chose a module that sits in two places; it must not.")
    made = wrap(model, list(chosen), lambda module: GatedEdge(module, init))
    return {name: gate for name, gate in made.items() if isinstance(gate, GatedEdge)}


def edge_factors(model: nn.Module) -> dict[str, GatedEdge]:
    """Return the gated edges of a network by name, in its order.

    Args:
        model: A network after ``attach_edge_factors``.

    Raises:
        ValueError: If it has none.
    """
    gates = {name: part for name, part in model.named_modules() if isinstance(part, GatedEdge)}
    if not gates:
        raise ValueError(
            f"edge_factors: model has no gated edge; got {type(model).__name__}. "
            "Call attach_edge_factors first."
        )
    return gates


def edge_param_groups(
    model: nn.Module,
    lr_w: float,
    lr_alpha: float,
    weight_decay: float = 0.0,
    *,
    weight_decay_alpha: float | None = None,
) -> list[dict[str, Any]]:
    """Return the two parameter groups of the joint training, weights and factors, for SGD.

    Args:
        model: A network after ``attach_edge_factors``.
        lr_w: Rate of the weights; 0.01 in the paper.
        lr_alpha: Rate of the factors; 0.025 in the paper.
        weight_decay: Of the weights; 3e-4 (CIFAR) or 3e-5 (ImageNet) in the paper.
        weight_decay_alpha: Of the factors; by default that of the weights, as in the paper.

    Raises:
        ValueError: If there are no factors or a number is negative.
    """
    decay = weight_decay if weight_decay_alpha is None else weight_decay_alpha
    numbers = {"lr_w": lr_w, "lr_alpha": lr_alpha, "weight_decay": weight_decay}
    for name, value in {**numbers, "weight_decay_alpha": decay}.items():
        check_range("edge_param_groups", name, value, low=0.0)
    alphas = [gate.alpha for gate in edge_factors(model).values()]
    own = {id(alpha) for alpha in alphas}
    weights = [parameter for parameter in model.parameters() if id(parameter) not in own]
    return [
        {"params": weights, "lr": lr_w, "weight_decay": weight_decay},
        {"params": alphas, "lr": lr_alpha, "weight_decay": decay},
    ]


@torch.no_grad()
def project_edge_factors_(model: nn.Module) -> None:
    """Put all factors back into [0, 1], in place; call it after every step.

    Args:
        model: A network after ``attach_edge_factors``.
    """
    for gate in edge_factors(model).values():
        gate.alpha.clamp_(0.0, 1.0)


def smallest_edges(scores: Mapping[str, float], rate: float) -> tuple[str, ...]:
    r"""Return the names of the :math:`\lceil p n \rceil` smallest of n scores, smallest first.

    Among equal scores, as all factors are before training and many at 0 and 1 after it, the
    earlier in the mapping goes first.

    Args:
        scores: Any score by name.
        rate: Share to remove, in [0, 1).

    Raises:
        ValueError: If the rate is out of range or a score is NaN.

    Example:
        >>> smallest_edges({"a": 0.5, "b": 0.1, "c": 0.5}, rate=0.5)
        ('b', 'a')
    """
    check_range("smallest_edges", "rate", rate, low=0.0, high=1.0, high_open=True)
    for name, score in scores.items():
        check_range("smallest_edges", name, score)
    count = math.ceil(rate * len(scores) - 1e-9)  # 0.07 * 100 is above 7 in floating point
    return tuple(sorted(scores, key=lambda name: scores[name])[:count])


def global_edge_prune_(
    model: nn.Module, rate: float, *, trainable: bool = False
) -> EdgePruneReport:
    r"""Remove the :math:`\lceil p n \rceil` edges with the smallest factors of the whole network.

    Make the optimiser of the fine-tuning afterwards: parameters have gone.

    Args:
        model: A network after ``attach_edge_factors``; it is changed.
        rate: Share p of the n gated edges to remove, in [0, 1).
        trainable: Whether the factors that are left stay learnable; by default they are constants.

    Returns:
        What was kept and removed, and the factors.

    Raises:
        ValueError: If there are no factors, one is NaN, or the rate is out of range.
    """
    alphas = {name: float(gate.alpha.detach()) for name, gate in edge_factors(model).items()}
    removed = smallest_edges(alphas, rate)
    remove_edges_(model, removed, trainable=trainable)
    gone = set(removed)
    return EdgePruneReport(
        kept=tuple(name for name in alphas if name not in gone),
        removed=removed,
        threshold=alphas[removed[-1]] if removed else math.nan,
        alphas=alphas,
    )


def remove_edges_(model: nn.Module, names: Iterable[str], *, trainable: bool = False) -> None:
    """Replace gated edges by ``cv_core.models.cell_operations.ZeroEdge``, in place.

    The operations are gone: neither computed nor stored. A node that loses both edges is zero.

    Args:
        model: A network after ``attach_edge_factors``; it is changed.
        names: Which edges, however they were chosen.
        trainable: Whether the factors that are left stay learnable.

    Raises:
        ValueError: If a name is no gated edge, or an operation changes the size in a way that
            a ``ZeroEdge`` cannot.
    """
    gates, chosen = edge_factors(model), list(dict.fromkeys(names))
    if unknown := [name for name in chosen if name not in gates]:
        raise ValueError(f"remove_edges_: names must be gated edges; got {', '.join(unknown[:3])}.")
    zeros = {name: ZeroEdge.like(gates[name].inner) for name in chosen}
    for name, zero in zeros.items():
        zero.training = gates[name].training
        replace(model, name, zero)
    for name in gates.keys() - zeros.keys():
        gates[name].alpha.requires_grad_(trainable)


def fold_edge_factors_(model: nn.Module) -> None:
    """Move all factors into the operations, in place, without changing what the network computes.

    A factor multiplies scale and shift of the batch normalisation that ends the operation; where
    none does, as behind a pool, it becomes a constant, ``ScaledEdge``.

    Args:
        model: A network after ``attach_edge_factors``; it is changed.
    """
    wrap(model, list(edge_factors(model)), _folded)


def _folded(gate: nn.Module) -> nn.Module:
    factor = gate.get_parameter("alpha").detach().clamp(0.0, 1.0)
    op = gate.get_submodule("inner")
    if isinstance(op, _BATCH_NORMS):
        return scale_into_batchnorm(op, factor)
    place, last = "", op
    while isinstance(last, nn.Sequential) and len(last):
        *_, (name, last) = last.named_children()
        place = f"{place}.{name}" if place else name
    if not isinstance(last, _BATCH_NORMS):
        return ScaledEdge(op, factor)
    replace(op, place, scale_into_batchnorm(last, factor))
    return op


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def drop_unused_inputs_(model: nn.Module) -> list[str]:
    """Remove the preprocessing of cell inputs that no edge reads any more, in place.

    The paper keeps them. What the network computes stays the same, bit for bit.

    Args:
        model: A ``CellNetwork`` after pruning, or a network that holds one; it is changed.

    Returns:
        The names of the removed modules.
    """
    cells = [(name, part) for name, part in model.named_modules() if isinstance(part, Cell)]
    removed = []
    for name, cell in cells:
        read = {
            source
            for source, edge in zip(cell.sources, cell.edges, strict=True)
            if not isinstance(edge, ZeroEdge)
        }
        for source in {0, 1} - read:
            place = f"preprocess{source}"
            preprocess = cell.get_submodule(place)
            if not isinstance(preprocess, ZeroEdge):
                replace(cell, place, ZeroEdge.like(preprocess).train(preprocess.training))
                removed.append(f"{name}.{place}" if name else place)
    return removed


def _examples() -> list[Example]:
    def inputs(generator: torch.Generator) -> tuple[Tensor]:
        return (torch.randn(2, 3, 5, 6, generator=generator),)

    def build() -> GatedEdge:
        return GatedEdge(nn.Sequential(nn.Tanh(), nn.Conv2d(3, 4, 3, padding=1)), init=0.5)

    return [Example(build=build, inputs=inputs, output_shapes=((2, 4, 5, 6),))]


CARD = Card(
    slug="eog-pruning",
    title="Global pruning of the edges of searched networks by trained factors",
    reference=Reference(
        title="Edge-Wise One-Level Global Pruning on NAS Generated Networks",
        authors="Feng, Xu, Li, Sun, Wang",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="3-15",
    ),
    kind="module",
    objects=(
        "cv_pruning.methods.eog_pruning.EdgePruneReport",
        "cv_pruning.methods.eog_pruning.GatedEdge",
        "cv_pruning.methods.eog_pruning.ScaledEdge",
        "cv_pruning.methods.eog_pruning.attach_edge_factors",
        "cv_pruning.methods.eog_pruning.drop_unused_inputs_",
        "cv_pruning.methods.eog_pruning.edge_factors",
        "cv_pruning.methods.eog_pruning.edge_param_groups",
        "cv_pruning.methods.eog_pruning.fold_edge_factors_",
        "cv_pruning.methods.eog_pruning.global_edge_prune_",
        "cv_pruning.methods.eog_pruning.non_skip_edges",
        "cv_pruning.methods.eog_pruning.project_edge_factors_",
        "cv_pruning.methods.eog_pruning.remove_edges_",
        "cv_pruning.methods.eog_pruning.smallest_edges",
    ),
    examples=_examples,
    properties=("batch-independent", "deterministic", "twice-differentiable"),
)
