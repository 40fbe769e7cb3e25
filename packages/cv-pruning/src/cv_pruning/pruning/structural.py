"""``prune``: remove the channels that matter least, for real, from any network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from cv_core.metrics.cost import count_macs, count_parameters, state_bytes
from cv_core.nn.surgery import find
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from cv_pruning.pruning import refusals
from cv_pruning.pruning.groups import (
    ChannelGroup,
    Member,
    blind_spot,
    channel_groups,
    tensors_in,
    trace,
)
from cv_pruning.pruning.importance import CRITERIA, Importance, RandomImportance
from cv_pruning.pruning.narrowing import Edit, Side, apply, narrow, narrow_tensor, widths
from cv_pruning.pruning.report import Change, PruningReport
from cv_pruning.pruning.selection import Candidate, select
from cv_pruning.pruning.stated_widths import restating

Criterion = str | Callable[[Any], Tensor | None]
ROOTS: tuple[type[nn.Module], ...] = (_ConvNd, nn.Linear)


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    criterion: Criterion = "l2",
    ratio: float | Mapping[str, float] = 0.5,
    scope: Literal["local", "global"] = "local",
    round_to: int | None = None,
    ignored: refusals.Ignored | Sequence[refusals.Ignored] = (),
) -> PruningReport:
    """Remove channels from a network in place, with all that is coupled to them.

    Channels that are added, concatenated or normalised together leave together; torch-pruning's
    dependency graph (Fang et al., CVPR 2023) says which those are. What the network returns keeps
    its shape: outputs are never pruned. Removing a share ``p`` of the channels removes about
    ``1 - (1 - p)^2`` of the parameters; the report shows both.

    Args:
        model: Any traceable network. It keeps its modules, hooks and train/eval flags; narrowed
            layers get new, smaller parameters, with their gradients cut alike. An optimiser made
            before still holds the old ones: make a new one afterwards.
        example_inputs: A tensor, or a tuple of the forward call's arguments. The network is run on
            them three times, in evaluation mode.
        criterion: ``"l1"``, ``"l2"``, ``"bn_scale"``, ``"taylor"`` (after ``loss.backward()``),
            ``"fpgm"``, ``"lamp"``; or a callable ``group -> (channels,)`` scores, such as
            ``Importance(...)``, ``RandomImportance(generator)`` or one of torch-pruning's.
        ratio: Share of the channels to remove, in (0, 1); or shares by glob pattern over layer
            names, the first that matches, where all other layers stay whole.
        scope: Whether each group loses its ``ratio``, or all compete for one budget.
        round_to: Make the number of channels a multiple of this.
        ignored: Layers that keep their outputs (their inputs shrink if what feeds them does):
            glob patterns, classes, or modules; what a module contains is ignored with it.

    Returns:
        Widths, kept channels, parameters, multiply-accumulates and bytes before and after.

    ``floor((1 - ratio) n)`` of ``n`` channels stay, rounded down to a multiple of ``round_to``, at
    least one; in a tie the lower index stays. Grouped convolutions, group norms and attention
    heads lose the same offsets in each group or head: the number per group is rounded.

    Raises:
        ImportError: If torch-pruning is missing.
        TypeError: If an argument is of the wrong kind.
        ValueError: If an option is out of range; if the network does not run on the example;
            if weights are tied or parametrised; if the trace misses a layer; if nothing is left to
            prune or the criterion has nothing to act on. All before anything changes. If the
            narrowed network does not run, every edit is taken back: the parameters are then the
            very same objects as before.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
        >>> report = prune(model, torch.zeros(1, 3, 8, 8), ratio=0.5)
        >>> model[0].out_channels, model[2].in_channels, model[2].out_channels
        (4, 4, 2)
        >>> report.parameters.before, report.parameters.after
        (370, 186)
    """
    refusals.check_options(criterion, ratio, scope, round_to)
    inputs = refusals.check_inputs(example_inputs)
    refusals.check_parameters(model)
    kept_whole = refusals.ignored_layers(model, ignored)
    ratios = _ratios(model, ratio)
    try:
        before = _cost(model, inputs)
    except Exception as error:
        raise ValueError(f"prune: model does not run on example_inputs: {error}") from error
    graph = trace(model, inputs)
    refusals.check_traced(model, graph, kept_whole)
    names = _names(model)

    plan = _Plan(names)
    groups = plan.admit(channel_groups(graph, ROOTS), kept_whole, ratios)
    scored = _score(groups, criterion, plan)
    kept = select([c for _, c in scored], together=scope == "global", round_to=round_to)
    for (group, _), index in zip(scored, kept, strict=True):
        plan.remove(group, index)

    layers = plan.layers(graph)
    sizes = {layer: widths(layer) for layer in layers if isinstance(layer, nn.Module)}
    edits = plan.edits(model, layers)
    after = _operate(model, inputs, edits, before)
    return plan.report(sizes, layers, groups, before, after)


@dataclass(frozen=True)
class _Cost:
    parameters: int
    macs: int
    bytes: int
    shapes: list[tuple[int, ...]]


def _cost(model: nn.Module, inputs: Sequence[Any]) -> _Cost:
    """Run the network once and account for it."""
    shapes: list[tuple[int, ...]] = []

    def note(_module: nn.Module, _inputs: object, outputs: object) -> None:
        shapes.extend(tuple(tensor.shape) for tensor in tensors_in(outputs))

    handle = model.register_forward_hook(note)
    try:
        macs = count_macs(model, *inputs)
    finally:
        handle.remove()
    return _Cost(count_parameters(model), macs, state_bytes(model), shapes)


def _operate(model: nn.Module, inputs: Sequence[Any], edits: list[Edit], before: _Cost) -> _Cost:
    """Make the edits and run the network; take them back if that fails."""
    undo = apply(edits)
    try:
        with restating(model, edits, undo):
            after = _cost(model, inputs)
        if after.shapes != before.shapes:
            raise ValueError(f"its outputs became {after.shapes} instead of {before.shapes}")
    except BaseException as error:
        apply(undo)
        if not isinstance(error, Exception):
            raise
        raise ValueError(
            "prune: the narrowed network fails, and model is as before. A width may be written "
            f"in its code: name the layers around it in ignored. {error}"
        ) from error
    return after


def _names(model: nn.Module) -> dict[int, str]:
    named: Iterable[tuple[str, Any]] = [*model.named_parameters(), *model.named_modules()]
    return {id(item): name for name, item in named}


def _ratios(model: nn.Module, ratio: float | Mapping[str, float]) -> Callable[[Any], float | None]:
    """Return the function from a layer to its ratio."""
    if not isinstance(ratio, Mapping):
        return lambda _layer: float(ratio)
    table: dict[int, float] = {}
    for pattern, value in ratio.items():
        for module in find(model, pattern).values():
            for layer in module.modules():
                table.setdefault(id(layer), float(value))
    return lambda layer: table.get(id(layer))


def _score(
    groups: list[tuple[ChannelGroup, float]], criterion: Criterion, plan: _Plan
) -> list[tuple[ChannelGroup, Candidate]]:
    judge = CRITERIA[criterion]() if isinstance(criterion, str) else criterion
    cache: dict[tuple[int, Side], Tensor] = {}
    scored = []
    for group, ratio in groups:
        name = plan.name(group)
        try:
            if isinstance(judge, Importance):
                scores = judge(group, cache)
            else:
                ours = isinstance(judge, RandomImportance)
                scores = judge(group if ours else group.for_torch_pruning())
        except ValueError as error:
            raise ValueError(f"prune: criterion at the group of layer {name!r}: {error}") from error
        if scores is None:
            plan.untouched[name] = "has nothing that the criterion acts on"
            continue
        scores = refusals.check_scores(name, scores, group.channels)
        if group.channels % group.blocks:
            plan.untouched[name] = f"cannot be divided into {group.blocks} equal blocks"
            continue
        scored.append((group, Candidate(scores, group.blocks, ratio)))
    if not scored:
        layers = refusals.describe([plan.name(group) for group, _ in groups])
        raise ValueError(f"prune: criterion {criterion!r} has nothing to act on in {layers}.")
    return scored


@dataclass
class _Plan:
    """Which channels leave each layer, gathered over the groups before anything is cut."""

    names: dict[int, str]
    gone: dict[tuple[int, Side], list[Tensor]] = field(default_factory=dict)
    dims: dict[int, int] = field(default_factory=dict)  # of bare parameters
    untouched: dict[str, str] = field(default_factory=dict)
    remaining: int = 0

    def name(self, group: ChannelGroup) -> str:
        return self.names[id(group.members[0].layer)]

    def admit(
        self,
        groups: list[ChannelGroup],
        kept_whole: set[nn.Module],
        ratios: Callable[[Any], float | None],
    ) -> list[tuple[ChannelGroup, float]]:
        """Return the groups that may be narrowed, each with its ratio."""
        admitted = []
        for group in groups:
            outputs = [m.layer for m in group.members if m.side == "out" and m.holds_channels]
            if any(isinstance(x, nn.Module) and x in kept_whole for x in outputs):
                self.untouched[self.name(group)] = "is ignored, or coupled to what is"
                continue
            if reason := blind_spot(group):
                self.untouched[self.name(group)] = reason
                continue
            ratio = next((r for x in outputs if (r := ratios(x)) is not None), None)
            if ratio is None:
                self.untouched[self.name(group)] = "is matched by no pattern of ratio"
                continue
            admitted.append((group, ratio))
        if not admitted:
            raise ValueError(f"prune: no layer is left to prune; {self._reasons()}")
        return admitted

    def _reasons(self) -> str:
        listed = [f"{name!r} {reason}" for name, reason in self.untouched.items()]
        return "; ".join(listed[:3]) or "model has no convolution or linear layer that was traced"

    def remove(self, group: ChannelGroup, kept: Tensor) -> None:
        """Note what leaves the members when only some of a group's channels stay."""
        leaving = torch.ones(group.channels, dtype=torch.bool)
        leaving[kept] = False
        self.remaining += len(kept)
        for member in group.members:
            if member.holds_channels and not _is_flat(member):
                index = torch.from_numpy(member.index)[leaving[torch.from_numpy(member.root)]]
                if len(index):
                    self.gone.setdefault((id(member.layer), member.side), []).append(index)

    def layers(self, graph: Any) -> dict[Any, dict[Side, Tensor]]:
        """Return, per layer and bare parameter, the channels that stay at each narrowed side."""
        found: dict[Any, dict[Side, Tensor]] = {}
        for layer, node in graph.module2node.items():
            for side in ("out", "in"):
                if parts := self.gone.get((id(layer), side)):
                    if isinstance(layer, nn.Module):
                        width = widths(layer)[side]
                    else:
                        self.dims[id(layer)] = node.pruning_dim
                        width = layer.shape[node.pruning_dim]
                    stay = torch.ones(width, dtype=torch.bool)
                    stay[torch.cat(parts)] = False
                    found.setdefault(layer, {})[side] = stay.nonzero().flatten()
        return found

    def edits(self, model: nn.Module, layers: dict[Any, dict[Side, Tensor]]) -> list[Edit]:
        """Plan one edit per tensor."""
        edits: list[Edit] = []
        for layer, keep in layers.items():
            name = self.names[id(layer)]
            if isinstance(layer, nn.Module):
                edits += narrow(name, layer, keep)
                continue
            path, _, attribute = name.rpartition(".")
            cut = {self.dims[id(layer)]: keep["out"]}
            edits += narrow_tensor(model.get_submodule(path), attribute, cut)
        return edits

    def report(
        self,
        sizes: dict[Any, dict[Side, int]],
        layers: dict[Any, dict[Side, Tensor]],
        groups: list[tuple[ChannelGroup, float]],
        before: _Cost,
        after: _Cost,
    ) -> PruningReport:
        modules = {layer: keep for layer, keep in layers.items() if isinstance(layer, nn.Module)}
        total = sum(group.channels for group, _ in groups)
        unscored = total - sum(g.channels for g, _ in groups if self.name(g) not in self.untouched)
        return PruningReport(
            widths={
                self.names[id(layer)]: {
                    side: Change(sizes[layer][side], len(index)) for side, index in keep.items()
                }
                for layer, keep in modules.items()
            },
            kept={
                self.names[id(layer)]: tuple(keep["out"].tolist())
                for layer, keep in modules.items()
                if "out" in keep
            },
            channels=Change(total, self.remaining + unscored),
            parameters=Change(before.parameters, after.parameters),
            macs=Change(before.macs, after.macs),
            bytes=Change(before.bytes, after.bytes),
            untouched=self.untouched,
        )


def _is_flat(member: Member) -> bool:
    """Tell a layer with one number for all channels, such as a PReLU with a single slope."""
    return isinstance(member.layer, nn.Module) and not widths(member.layer)
