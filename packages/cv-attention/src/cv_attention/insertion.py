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
from typing import Any, TypeVar

from cv_core.checks import check_choice
from cv_core.nn.gates import CBAM, EfficientChannelAttention, SqueezeExcitation
from cv_core.nn.surgery import Followed, Where, out_channels, remove, wrap
from torch import nn

from cv_attention._shared.refining import StagePart
from cv_attention.methods.fd_module import add_feature_difference_

Model = TypeVar("Model", bound=nn.Module)

GATES: Mapping[str, Callable[..., nn.Module]] = {
    "cbam": CBAM,
    "eca": EfficientChannelAttention,
    "se": SqueezeExcitation,
}
"""Attention that sees a layer's output alone, built as ``gate(channels, **options)``."""


class Attended(Followed):
    """A layer and the attention applied to its output."""


def insert_attention(
    model: Model, kind: str | Callable[..., nn.Module], where: Where, **options: Any
) -> Model:
    """Return a copy of a network with attention; the network itself stays as it is.

    The original's ``state_dict`` keys stay, so that its checkpoints load: with ``strict=False``
    where the attention has parameters of its own, which appear as ``<layer>.after.*``. Attention
    may be inserted several times; what comes last is applied last.

    Args:
        model: Any network of torchvision, timm, cv-core or your own.
        kind: ``"fd-module"``, ``"se"``, ``"eca"``, ``"cbam"``, or your own class, called as
            ``kind(channels, **options)`` for a module that keeps the shape (B, C, H, W).
        where: Behind which layers: name patterns such as ``"layer*.*.conv2"`` or classes of layers,
            see ``cv_core.nn.surgery.find``. ``"fd-module"`` refines the normalisation behind a
            selected convolution (see ``add_feature_difference``) and also takes ``"auto"``.
        **options: Of the attention, such as ``reduction=8`` or ``beta=0.5``.

    Returns:
        The changed copy.

    Raises:
        ValueError: If ``kind`` is unknown, ``where`` selects nothing, a selected layer does not
            tell its channels, or an option is out of range.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> insert_attention(net, "eca", where="0")(torch.rand(2, 3, 9, 9)).shape
        torch.Size([2, 8, 7, 7])
    """
    return insert_attention_(copy.deepcopy(model), kind, where, **options)


def insert_attention_(
    model: Model, kind: str | Callable[..., nn.Module], where: Where, **options: Any
) -> Model:
    """Put attention into a network in place; else as ``insert_attention``.

    Args:
        model: The network to change.
        kind: ``"fd-module"``, ``"se"``, ``"eca"``, ``"cbam"`` or your own class.
        where: Behind which layers.
        **options: Of the attention.

    Returns:
        The same network.

    Raises:
        ValueError: As ``insert_attention``; the network is unchanged then.
    """
    if kind == "fd-module":
        return add_feature_difference_(model, where, **options)
    if isinstance(kind, str):
        check_choice("insert_attention", "kind", kind, ["fd-module", *GATES])
        kind = GATES[kind]
    gate = kind
    wrap(model, where, lambda layer: Attended(layer, gate(out_channels(layer), **options)))
    return model


def remove_attention(model: Model) -> Model:
    """Return a copy of a network without anything that this package inserted.

    Args:
        model: A network, with or without inserted attention.

    Returns:
        The copy; its layers, ``state_dict`` and answers are those from before the insertion.
    """
    return remove_attention_(copy.deepcopy(model))


def remove_attention_(model: Model) -> Model:
    """Take everything that this package inserted out of a network, in place.

    Args:
        model: A network, with or without inserted attention.

    Returns:
        The same network.
    """
    remove(model, Attended)
    remove(model, StagePart)
    return model
