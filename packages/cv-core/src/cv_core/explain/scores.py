"""Which number of a network's output is explained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cv_core.checks import check_floating, check_indices, check_shape

Target = int | np.integer[Any] | Tensor | Callable[[Tensor], Tensor] | None
"""A class, one class per image ``(B,)``, a function of the outputs that returns ``(B,)`` scores, or
None for the class with the highest logit."""


def check_images(owner: str, inputs: Tensor) -> None:
    """Refuse what is not a batch of images of a floating type.

    Args:
        owner: Who asks, for the messages.
        inputs: Should be ``(B, C, H, W)``.

    Raises:
        TypeError: If the images are not a floating-point tensor.
        ValueError: If the shape does not fit.
    """
    check_shape(owner, "inputs", inputs, "b c h w")
    check_floating(owner, "inputs", inputs)


def resolve_target(outputs: Tensor, target: Target, owner: str) -> Tensor | Callable[..., Tensor]:
    """Turn a target into one class per image, unless it is a function.

    Args:
        outputs: The network's logits ``(B, K)`` for the images to explain.
        target: See ``Target``.
        owner: Who asks, for the messages.

    Returns:
        Classes ``(B,)``, or the function.

    Raises:
        TypeError: If the target is of another type.
        ValueError: If the outputs are not ``(B, K)`` or a class is out of range.
    """
    if callable(target) and not isinstance(target, Tensor):
        return target
    sizes = check_shape(owner, "the model's output", outputs, "b k")
    if target is None:
        return outputs.detach().argmax(1)
    if isinstance(target, np.integer):
        target = int(target)
    if isinstance(target, bool) or not isinstance(target, (int, Tensor)):
        raise TypeError(
            f"{owner}: target must be a class, a tensor of classes, a function or None; "
            f"got {target!r}."
        )
    classes = torch.as_tensor(target, device=outputs.device)
    check_indices(owner, "target", classes, high=sizes["k"], ignore=None)
    if classes.ndim:
        check_shape(owner, "target", classes, "b", b=sizes["b"])
    return classes.expand(sizes["b"])


def decide(
    model: nn.Module, inputs: Tensor, target: Target, owner: str, batch_size: int | None = None
) -> Tensor | Callable[..., Tensor]:
    """Resolve a target on the images as they are, before anything is done to them.

    Args:
        model: A classifier, used in the mode it is in.
        inputs: Images ``(B, C, H, W)``.
        target: See ``Target``.
        owner: Who asks, for the messages.
        batch_size: How many images go through the network at once; all by default.

    Returns:
        What ``resolve_target`` returns.
    """
    return resolve_target(outputs_of(model, inputs, batch_size), target, owner)


def outputs_of(model: nn.Module, inputs: Tensor, batch_size: int | None = None) -> Tensor:
    """Return a network's outputs without gradients, so many images at a time.

    Args:
        model: A classifier, used in the mode it is in.
        inputs: Images ``(B, C, H, W)``.
        batch_size: How many images go through the network at once; all by default.
    """
    with torch.no_grad():
        if batch_size is None or len(inputs) <= batch_size:
            outputs: Tensor = model(inputs)
            return outputs
        return torch.cat([model(part) for part in inputs.split(batch_size)])


def chunks(total: int, size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the numbers below ``total`` in order, at most ``size`` at a time."""
    for first in range(0, total, size):
        yield torch.arange(first, min(first + size, total), device=device)


def recordable(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may keep: one made in inference mode is copied.

    Call it outside inference mode; a copy made inside is an inference tensor again.
    """
    return tensor.clone() if tensor.is_inference() else tensor


def score(outputs: Tensor, target: Tensor | Callable[..., Tensor], owner: str) -> Tensor:
    """Return the explained number of each image ``(B,)``.

    Args:
        outputs: The network's output, for as many images as there are classes.
        target: What ``resolve_target`` returned.
        owner: Who asks, for the messages.
    """
    if isinstance(target, Tensor):
        return outputs.gather(1, recordable(target).unsqueeze(1)).squeeze(1)
    values = target(outputs)
    check_shape(owner, "what target returns", values, "b", b=len(outputs))
    return values
