"""What ``prune`` refuses, before anything changes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from cv_core.checks import check_choice, check_integer, check_range
from cv_core.nn.surgery import find
from torch import Tensor, nn

from cv_pruning.pruning.importance import CRITERIA
from cv_pruning.pruning.narrowing import layers, widths

Ignored = str | type[nn.Module] | nn.Module


def check_options(
    criterion: object, ratio: float | Mapping[str, float], scope: str, round_to: int | None
) -> None:
    """Refuse options that mean nothing."""
    if isinstance(criterion, str):
        check_choice("prune", "criterion", criterion, CRITERIA)
    elif not callable(criterion):
        raise TypeError(f"prune: criterion must be a name or a callable; got {criterion!r}.")
    check_choice("prune", "scope", scope, ("local", "global"))
    if round_to is not None:
        check_integer("prune", "round_to", round_to, low=1)
    if isinstance(ratio, Mapping):
        if scope == "global":
            raise ValueError("prune: ratio must be one number with scope='global'.")
        if not ratio:
            raise ValueError("prune: ratio names no layer; give a pattern and a number.")
    ratios = ratio if isinstance(ratio, Mapping) else {"": ratio}
    for pattern, value in ratios.items():
        name = f"ratio[{pattern!r}]" if pattern else "ratio"
        check_range("prune", name, value, low=0.0, high=1.0, low_open=True, high_open=True)


def check_inputs(example_inputs: Any) -> tuple[Any, ...]:
    """Return the arguments of the forward call; one tensor is one argument."""
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    if not isinstance(inputs, (tuple, list)) or not inputs:
        raise TypeError(
            "prune: example_inputs must be a tensor or a tuple of the forward call's arguments; "
            f"got {type(example_inputs).__name__}."
        )
    return tuple(inputs)


def check_parameters(model: nn.Module) -> None:
    """Refuse tied, lazy and parametrised weights, and a network without any."""
    owners: dict[int, str] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            full = f"{prefix}.{name}".lstrip(".")
            if nn.parameter.is_lazy(parameter):
                raise ValueError(f"prune: {full!r} is lazy; run model once on data first.")
            if id(parameter) in owners:
                raise ValueError(
                    f"prune: {owners[id(parameter)]!r} and {full!r} are one tied parameter; untie "
                    "them (give each its own copy) or prune the network by hand."
                )
            owners[id(parameter)] = full
        if widths(module) and hasattr(module, "weight") and "weight" not in module._parameters:
            raise ValueError(
                f"prune: layer {prefix!r} is parametrised; make its weight a plain parameter first "
                "(torch.nn.utils.parametrize.remove_parametrizations, or export the mask)."
            )
    if not owners:
        raise ValueError("prune: model has no parameters.")


def ignored_layers(model: nn.Module, ignored: Ignored | Sequence[Ignored]) -> set[nn.Module]:
    """Return the modules that keep their outputs, with all they contain.

    Raises:
        ValueError: If a pattern selects nothing, or a module is not in the model.
    """
    if isinstance(ignored, (str, type, nn.Module)):
        ignored = (ignored,)
    known = set(model.modules())
    found: set[nn.Module] = set()
    for choice in ignored:
        if isinstance(choice, nn.Module):
            if choice not in known:
                kind = type(choice).__name__
                raise ValueError(f"prune: ignored names a {kind} that is not in model.")
            found.update(choice.modules())
        else:
            for module in find(model, choice).values():
                found.update(module.modules())
    return found


def check_traced(model: nn.Module, graph: Any, ignored: set[nn.Module]) -> None:
    """Refuse a network with layers that the traced call did not reach."""
    missed = [
        name
        for name, module in layers(model).items()
        if next(module.parameters(), None) is not None
        and not (module in graph.module2node or module in ignored)
    ]
    if missed:
        raise ValueError(
            f"prune: the traced call never reached {_few(missed)} (control flow, weights used "
            "without their layer, or outputs detached). Choose example_inputs that reach them, or "
            "name them in ignored if nothing that is pruned feeds them."
        )


def check_scores(name: str, scores: object, channels: int) -> Tensor:
    """Refuse what a criterion returns if it is not one finite number per channel."""
    if not isinstance(scores, Tensor) or scores.shape != (channels,):
        what = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"prune: criterion must return a tensor of shape ({channels},) for the group of layer "
            f"{name!r}; got {what}."
        )
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(f"prune: criterion gives NaN or infinity in the group of layer {name!r}.")
    return scores.detach().float().cpu()


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, itertools.islice(names, 3)))
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def describe(names: Sequence[str]) -> str:
    """Return names for a message, the first few in full."""
    return _few(names)
