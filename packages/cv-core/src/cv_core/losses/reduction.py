"""What all classification losses share: the label's log-probability and the reduction."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cv_core.checks import (
    check_choice,
    check_floating,
    check_indices,
    check_same_shape,
    check_shape,
)

Reduction = Literal["mean", "sum", "none"]
_REDUCTIONS = get_args(Reduction)


def check_reduction(owner: str, reduction: str) -> None:
    """Refuse a reduction other than ``mean``, ``sum`` and ``none``.

    Raises:
        ValueError: With the names that are allowed.
    """
    check_choice(owner, "reduction", reduction, _REDUCTIONS)


def target_log_probabilities(
    logits: Float[Tensor, "b k *rest"],
    target: Int[Tensor, "b *rest"],
    ignore_index: int,
    owner: str,
) -> tuple[Float[Tensor, "b *rest"], Bool[Tensor, "b *rest"]]:
    """Return the log-probability of each label, ``log softmax(logits)[target]``, safely.

    Args:
        logits: Scores ``(B, K, ...)``.
        target: Class indices ``(B, ...)`` in ``[0, K)``, or ``ignore_index``.
        ignore_index: The label that does not count.
        owner: The loss that asks, for the messages.

    Returns:
        The log-probabilities ``(B, ...)``, which are 0 where the label does not count, and which
        labels count ``(B, ...)``.

    Raises:
        TypeError: If ``logits`` is not floating or ``target`` not integer.
        ValueError: If the shapes do not fit, the batch is empty, or an index is out of range.

    Example:
        >>> log_p, valid = target_log_probabilities(
        ...     torch.zeros(2, 4), torch.tensor([3, -100]), ignore_index=-100, owner="Example"
        ... )
        >>> log_p.exp(), valid
        (tensor([0.2500, 1.0000]), tensor([ True, False]))
    """
    check_floating(owner, "logits", logits)
    classes = check_shape(owner, "logits", logits, "b k ...")["k"]
    wanted = (logits.shape[0], *logits.shape[2:])
    if tuple(target.shape) != wanted:
        raise ValueError(
            f"{owner}: target must have shape {wanted} for logits of shape {tuple(logits.shape)}; "
            f"got {tuple(target.shape)}."
        )
    if target.numel() == 0:
        raise ValueError(f"{owner}: target is empty: shape {wanted}.")
    if not torch.compiler.is_compiling():  # reading values back would break the graph
        check_indices(owner, "target", target, high=classes, ignore=ignore_index)
    valid = target != ignore_index
    index = torch.where(valid, target, 0).long().unsqueeze(1)
    log_p = torch.log_softmax(logits, dim=1).gather(1, index).squeeze(1)
    return torch.where(valid, log_p, 0.0), valid


def check_pair(owner: str, *, unit: str | None = None, **tensors: Tensor) -> None:
    """Refuse tensors to be compared unless all are floating, of one shape and not empty.

    Args:
        owner: The loss that asks, for the messages.
        unit: The name of a tensor whose values must lie in [0, 1].
        **tensors: The tensors by name.

    Raises:
        TypeError: If one is not floating: differences of unsigned integers wrap around.
        ValueError: If the shapes differ, the tensors are empty, or a value is out of range.
    """
    check_same_shape(owner, **tensors)
    for name, tensor in tensors.items():
        check_floating(owner, name, tensor)
        if tensor.numel() == 0:
            raise ValueError(f"{owner}: {name} is empty: shape {tuple(tensor.shape)}.")
    if unit is not None and not torch.compiler.is_compiling():  # reading back breaks the graph
        low, high = tensors[unit].detach().aminmax()
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(
                f"{owner}: {unit} must lie in [0, 1]; got values from {low.item():g} to "
                f"{high.item():g}."
            )


def reduce_all(values: Float[Tensor, "*any"], reduction: Reduction) -> Float[Tensor, "..."]:
    """Reduce values that all count: ``"mean"``, ``"sum"`` or ``"none"``."""
    check_reduction("reduce_all", reduction)
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()


def reduce(
    values: Float[Tensor, "*any"], valid: Bool[Tensor, "*any"], reduction: Reduction
) -> Float[Tensor, "..."]:
    """Reduce one value per label over the labels that count.

    Args:
        values: One value per label, of any shape.
        valid: Which of them count, of the same shape.
        reduction: ``"mean"`` over the labels that count, ``"sum"``, or ``"none"``, which puts zero
            where a label does not count.

    Returns:
        A scalar, or the shape of ``values``. If no label counts, mean and sum are 0 (and still have
        a gradient, of zero), where ``torch.nn.functional.cross_entropy`` returns NaN.

    Raises:
        ValueError: If the reduction has another name.
    """
    check_reduction("reduce", reduction)
    kept = torch.where(valid, values, 0.0)
    if reduction == "none":
        return kept
    total = kept.sum()
    return total if reduction == "sum" else total / valid.sum().clamp(min=1)
