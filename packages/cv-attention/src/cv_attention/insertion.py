"""Putting attention into any network by name, and taking it out again.

Example:
    >>> import torchvision
    >>> plain = torchvision.models.resnet18()
    >>> model = insert_attention(plain, "fd-module", where="layer*.*.conv2")
    >>> model = insert_attention(model, "se", where="layer*.*.bn2", reduction=8)
    >>> repr(remove_attention(model)) == repr(plain)
    True
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from cv_core.checks import check_choice
from cv_core.nn.attention import NonLocalBlock
from cv_core.nn.gates import CBAM, EfficientChannelAttention, SqueezeExcitation
from cv_core.nn.surgery import Where, out_channels, remove, wrap
from torch import nn

from cv_attention._shared.refining import StagePart
from cv_attention.methods.fd_module import add_feature_difference_
from cv_attention.methods.ipe_transformer import IPETransformerBlock
from cv_attention.modules.attended import Attended
from cv_attention.modules.axial import AxialAttention
from cv_attention.modules.coordinate import CoordinateAttention
from cv_attention.modules.criss_cross import CrissCrossAttention

Model = TypeVar("Model", bound=nn.Module)


class Known(NamedTuple):
    """Attention that sees a layer's output alone, built as ``build(channels, **options)``."""

    build: Callable[..., nn.Module]
    summary: str


KNOWN: Mapping[str, Known] = {
    "axial": Known(AxialAttention, "Self-attention within columns, then rows (Ho et al., 2019)"),
    "cbam": Known(CBAM, "Channel gate, then spatial gate (Woo et al., ECCV 2018)"),
    "coordinate": Known(
        CoordinateAttention, "Gate of one weight per row and per column (Hou et al., CVPR 2021)"
    ),
    "criss-cross": Known(
        CrissCrossAttention, "Attention to row and column, twice (Huang et al., ICCV 2019)"
    ),
    "eca": Known(
        EfficientChannelAttention,
        "Channel gate from neighbouring channels (Wang et al., CVPR 2020)",
    ),
    "ipe-transformer": Known(
        IPETransformerBlock, "Axial attention with maps of its input (Li et al., PRCV 2021)"
    ),
    "non-local": Known(
        partial(NonLocalBlock, zero_init=True),  # as published: it starts as the identity
        "Self-attention between all positions (Wang et al., CVPR 2018)",
    ),
    "se": Known(SqueezeExcitation, "Channel gate from the means (Hu et al., CVPR 2018)"),
}
_FD_MODULE = "fd-module"


def list_attention() -> dict[str, str]:
    """Return what ``insert_attention`` knows by name, in one line each.

    Example:
        >>> print(*list_attention(), sep=", ")
        axial, cbam, coordinate, criss-cross, eca, fd-module, ipe-transformer, non-local, se
    """
    lines = {name: known.summary for name, known in KNOWN.items()}
    lines[_FD_MODULE] = "Mask of what a convolution changes (Xu et al., PRCV 2021)"
    return dict(sorted(lines.items()))


def insert_attention(
    model: Model, kind: str | Callable[..., nn.Module], where: Where, **options: Any
) -> Model:
    """Return a copy of a network with attention; the network itself stays as it is.

    The original's ``state_dict`` keys stay, so that its checkpoints load: with ``strict=False``
    where the attention has parameters of its own, which appear as ``<layer>.after.*``. Attention
    may be inserted several times; what comes last is applied last.

    Args:
        model: Any network of torchvision, timm, cv-core or your own.
        kind: A name of ``list_attention()``, or your own class, called as
            ``kind(channels, **options)`` for a module that keeps the shape (B, C, H, W).
        where: Behind which layers: name patterns such as ``"layer*.*.conv2"`` or classes of layers,
            see ``cv_core.nn.surgery.find``. ``"fd-module"`` refines the normalisation behind a
            selected convolution (see ``add_feature_difference``) and also takes ``"auto"``.
        **options: Of the attention, such as ``reduction=8`` or ``beta=0.5``.

    Returns:
        The changed copy.

    Raises:
        TypeError: If the network is compiled or scripted (compile it afterwards), or ``kind`` is
            neither a name nor a class.
        ValueError: If ``kind`` is unknown, ``where`` selects nothing, a selected layer does not
            tell its channels, or an option is out of range.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> insert_attention(net, "eca", where="0")(torch.rand(2, 3, 9, 9)).shape
        torch.Size([2, 8, 7, 7])
    """
    _check_open("insert_attention", model)
    return insert_attention_(copy.deepcopy(model), kind, where, **options)


def insert_attention_(
    model: Model, kind: str | Callable[..., nn.Module], where: Where, **options: Any
) -> Model:
    """Put attention into a network in place; else as ``insert_attention``.

    Args:
        model: The network to change.
        kind: A name of ``list_attention()``, or your own class.
        where: Behind which layers.
        **options: Of the attention.

    Returns:
        The same network.

    Raises:
        TypeError: As ``insert_attention``.
        ValueError: As ``insert_attention``; the network is unchanged then.
    """
    _check_open("insert_attention", model)
    if kind == _FD_MODULE:
        return add_feature_difference_(model, where, **options)
    if isinstance(kind, str):
        check_choice("insert_attention", "kind", kind, list_attention())
        kind = KNOWN[kind].build
    if not callable(kind):
        raise TypeError(
            "insert_attention: kind must be a name of list_attention() or a class of modules; "
            f"got {kind!r}."
        )
    build = kind
    wrap(model, where, lambda layer: Attended(layer, build(out_channels(layer), **options)))
    return model


def remove_attention(model: Model) -> Model:
    """Return a copy of a network without anything that this package inserted.

    Args:
        model: A network, with or without inserted attention.

    Returns:
        The copy; its layers, ``state_dict`` and answers are those from before the insertion.

    Raises:
        TypeError: If the network is compiled or scripted.
    """
    _check_open("remove_attention", model)
    return remove_attention_(copy.deepcopy(model))


def remove_attention_(model: Model) -> Model:
    """Take everything that this package inserted out of a network, in place.

    Args:
        model: A network, with or without inserted attention.

    Returns:
        The same network.

    Raises:
        TypeError: If the network is compiled or scripted.
    """
    _check_open("remove_attention", model)
    remove(model, Attended)
    remove(model, StagePart)
    return model


def _check_open(owner: str, model: nn.Module) -> None:
    """Refuse a network whose layers can no longer be exchanged, or have other names."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"{owner}: model must not be scripted or traced; got {type(model).__name__}. Change "
            "the network it was made from, then script that."
        )
    if "_orig_mod" in model._modules:  # how torch.compile stores what it compiles
        raise TypeError(
            f"{owner}: model must not be compiled; got what torch.compile returned. Change the "
            "network itself, then compile that."
        )
