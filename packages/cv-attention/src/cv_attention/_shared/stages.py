"""Stages of a foreign network that keep the shape, found without running it.

A stage begins at the input ``X`` of one layer, most often a convolution, and ends at the output
``F`` of the same or of a later one, most often the normalisation behind it. Modules that compare or
multiply ``X`` and ``F`` fit where both have one shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from cv_core.checks import check_choice
from cv_core.nn.surgery import Where, Wrapper, find
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Tap = Literal["conv", "bn", "relu"]
"""Behind which layer ``F`` is read; see ``find_stages``."""


@dataclass(frozen=True)
class Stage:
    """A stretch of a network, by the dotted names of its layers.

    Args:
        first: The layer whose input is ``X``.
        last: The layer whose output is ``F``.
    """

    first: str
    last: str


@dataclass(frozen=True)
class Placement:
    """Which stages of a network were chosen, and which were left out and why.

    Args:
        stages: The chosen stages in the network's order.
        skipped: The reason for every layer that was looked at and left out, by its name.
    """

    stages: tuple[Stage, ...]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        chosen = [f"{stage.first} -> {stage.last}" for stage in self.stages]
        left_out = [f"{name}: skipped, {reason}" for name, reason in self.skipped.items()]
        return "\n".join(chosen + left_out)


def find_stages(owner: str, model: nn.Module, where: Where, tap: Tap) -> Placement:
    """Choose the stages of a network that keep the shape of their input.

    Args:
        owner: The function that asks, for the messages.
        model: Any network; it is neither run nor changed.
        where: ``"auto"`` takes ``conv2`` of every residual block; else the depthwise convolutions;
            else all convolutions larger than one pixel. Otherwise what
            ``cv_core.nn.surgery.find`` takes: patterns or classes of convolutions or whole stages.
        tap: ``"conv"`` ends a stage at the convolution, ``"bn"`` and ``"relu"`` at the
            normalisation behind it, if there is one.

    Raises:
        ValueError: If a pattern selects nothing, or nothing selected keeps its shape.
    """
    check_choice(owner, "tap", tap, get_args(Tap))
    found = _usual_places(model) if where == "auto" else list(find(model, where))
    reasons = {name: why_not_preserving(model.get_submodule(name)) for name in found}
    skipped = {name: reason for name, reason in reasons.items() if reason}
    chosen = [name for name in found if name not in skipped]
    if not chosen:
        looked = [f"{name}: {reason}" for name, reason in skipped.items()] or ["no convolution"]
        more = f" and {len(looked) - 3} more" if len(looked) > 3 else ""
        raise ValueError(
            f"{owner}: where={where!r} must select stages of {type(model).__name__} that keep the "
            f"shape of their input; found {'; '.join(looked[:3])}{more}. Pass patterns of other "
            'layers, such as where="layer*.*.conv2".'
        )
    ends = [name if tap == "conv" else following_norm(model, name) for name in chosen]
    return Placement(tuple(map(Stage, chosen, ends)), skipped)


def _usual_places(model: nn.Module) -> list[str]:
    rules = (residual_convolutions, depthwise_convolutions, spatial_convolutions)
    return next((found for rule in rules if (found := rule(model))), [])


def residual_convolutions(model: nn.Module) -> list[str]:
    """Name ``conv2`` of every residual block: the 3x3 convolution before addition or expansion.

    torchvision's and timm's ResNet, ResNeXt and SE-ResNet and cv-core's CIFAR networks call the
    layers of a block ``conv1``, ``bn1``, ``conv2``, ``bn2``, and ``conv3`` in a bottleneck.
    """
    names = []
    for name, block in model.named_modules():
        parts = {child: unwrapped(part) for child, part in block.named_children()}
        if {"conv1", "bn2"} <= parts.keys() and isinstance(parts.get("conv2"), _ConvNd):
            names.append(f"{name}.conv2".lstrip("."))
    return names


def depthwise_convolutions(model: nn.Module) -> list[str]:
    """Name every convolution with one filter per channel."""
    return [
        name
        for name, conv in _convolutions(model)
        if conv.groups == conv.in_channels and conv.groups > 1
    ]


def spatial_convolutions(model: nn.Module) -> list[str]:
    """Name every convolution whose kernel is larger than one pixel."""
    return [name for name, conv in _convolutions(model) if max(conv.kernel_size) > 1]


def unwrapped(module: nn.Module) -> nn.Module:
    """Return what is inside all wrappers of ``cv_core.nn.surgery``."""
    while isinstance(module, Wrapper):
        module = module.inner
    return module


def _convolutions(model: nn.Module) -> Iterator[tuple[str, _ConvNd]]:
    wrapped = {part.inner for part in model.modules() if isinstance(part, Wrapper)}
    for name, part in model.named_modules():
        layer = unwrapped(part)
        if part not in wrapped and isinstance(layer, _ConvNd):
            yield name, layer


def why_not_preserving(module: nn.Module) -> str:
    """Say why a convolution does not keep the shape of its input; empty if it does.

    Of other modules nothing is known without running them: the answer is empty.
    """
    conv = unwrapped(module)
    if not isinstance(conv, _ConvNd):
        return ""
    if conv.in_channels != conv.out_channels:
        return f"it turns {conv.in_channels} channels into {conv.out_channels}"
    if conv.transposed:
        return "it is a transposed convolution"
    if any(step != 1 for step in conv.stride):
        return f"its stride is {conv.stride}"
    return "" if _pads_to_same_size(conv) else f"its padding {conv.padding!r} changes the size"


def _pads_to_same_size(conv: _ConvNd) -> bool:
    if isinstance(conv.padding, str):
        return conv.padding == "same" or max(conv.kernel_size) == 1
    sides = zip(conv.kernel_size, conv.dilation, conv.padding, strict=True)
    return all(2 * padding == dilation * (kernel - 1) for kernel, dilation, padding in sides)


def following_norm(model: nn.Module, name: str) -> str:
    """Return the name of the batch or instance normalisation defined right behind a convolution.

    Args:
        model: The network.
        name: Dotted name of a layer.

    Returns:
        The norm's dotted name; ``name`` itself if the layer is no convolution, or the next sibling
        is no norm of its width.
    """
    parent, _, own = name.rpartition(".")
    siblings = {
        child: unwrapped(part) for child, part in model.get_submodule(parent).named_children()
    }
    conv, order = siblings[own], list(siblings)
    behind = order[order.index(own) + 1 :][:1]
    if not behind or not isinstance(conv, _ConvNd):
        return name
    norm = siblings[behind[0]]
    if not isinstance(norm, _NormBase) or norm.num_features != conv.out_channels:
        return name
    return f"{parent}.{behind[0]}".lstrip(".")
