"""The nearest decision boundary of a model made linear at a point, for DeepFool and FAB."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cv_adversarial.attacks.balls import Norm, column, lengths
from cv_adversarial.attacks.base import Goal, Oracle

_DUAL: Mapping[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}


def rivals(logits: Tensor, goal: Goal, count: int | None) -> Tensor:
    """Return the classes whose boundaries are looked at, ``(B, C)``, the likeliest first.

    Args:
        logits: Of the clean images.
        goal: Its target, where there is one, is the only rival.
        count: How many at the most; all for ``None``.
    """
    if goal.target is not None:
        return goal.target[:, None]
    most = logits.shape[1] - 1
    others = logits.scatter(1, goal.labels[:, None], float("-inf"))
    return others.topk(most if count is None else min(count, most), dim=1).indices


def nearest_boundary(
    oracle: Oracle, z: Tensor, goal: Goal, classes: Tensor, norm: Norm
) -> tuple[Tensor, Tensor]:
    r"""Return the boundary of the linearised model that is the nearest one in a norm.

    A rival's gap is :math:`g_k = z_k - z_y` in logits, its boundary's distance
    :math:`|g_k| / \|\nabla g_k\|_*` in the dual norm. Of a target it is the gap to whichever other
    class is likeliest at the point: past the label's boundary a third class may be in the way.

    Args:
        oracle: The model.
        z: The points, ``(B, ...)``.
        goal: Its labels are the classes ``y``.
        classes: The rivals, ``(B, C)``; one backward pass for each column.
        norm: In which distances are measured.

    Returns:
        The gaps ``(B,)`` and their gradients ``(B, ...)``.
    """
    z = z.detach().requires_grad_()
    logits = oracle.logits(z)
    if goal.target is None:
        own = logits.gather(1, goal.labels[:, None]).squeeze(1)
    else:
        own = logits.scatter(1, goal.target[:, None], float("-inf")).amax(1)
    best = torch.full((len(z),), float("inf"), dtype=torch.float64, device=z.device)
    gap, slope = torch.zeros_like(own).detach(), torch.zeros_like(z)
    rivals_left = classes.shape[1]
    for rival in classes.T:
        rivals_left -= 1
        values = logits.gather(1, rival[:, None]).squeeze(1) - own
        gradient = oracle.differentiate(values, z, again=rivals_left > 0)
        values = values.detach()
        reach = lengths(_DUAL[norm], gradient).clamp(min=torch.finfo(z.dtype).tiny)
        nearer = values.abs() / reach < best
        best = torch.where(nearer, values.abs() / reach, best)
        gap = torch.where(nearer, values, gap)
        slope = torch.where(column(nearer, z), gradient, slope)
    return gap, slope
