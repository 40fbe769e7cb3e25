r"""What attacks raise: one number per image from logits and goal, the larger the nearer the goal.

For an untargeted goal it is a function of the label's logit, for a targeted one of the target's.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - the field's name for it
from jaxtyping import Float
from torch import Tensor

from cv_adversarial.attacks.base import Goal

_TINY = 1e-12


def cross_entropy(logits: Float[Tensor, "b k"], goal: Goal) -> Float[Tensor, " b"]:
    """Cross entropy of the label, or minus that of the target."""
    if goal.target is None:
        return F.cross_entropy(logits, goal.labels, reduction="none")
    return -F.cross_entropy(logits, goal.target, reduction="none")


def margin(logits: Float[Tensor, "b k"], goal: Goal) -> Float[Tensor, " b"]:
    """How far the goal's class leads: the best wrong one, or the target, over the best other."""
    named = goal.labels if goal.target is None else goal.target
    lead = _pick(logits, named) - _without(logits, named).amax(1)
    return -lead if goal.target is None else lead


def dlr(logits: Float[Tensor, "b k"], goal: Goal) -> Float[Tensor, " b"]:
    r"""Difference of logits ratio (Croce and Hein, ICML 2020, Eqs. 6 and 7).

    .. math:: \frac{\max_{i \ne y} z_i - z_y}{z_{\pi_1} - z_{\pi_3}},
              \qquad \frac{z_t - z_y}{z_{\pi_1} - (z_{\pi_3} + z_{\pi_4}) / 2}

    for the goals ``y`` and ``t``, with the logits sorted by :math:`\pi`. It does not change when
    logits are shifted or scaled.

    Raises:
        ValueError: If there are fewer than three classes, or four with a target.
    """
    needed = 3 if goal.target is None else 4
    if logits.shape[1] < needed:
        raise ValueError(
            f"dlr: logits must have at least {needed} classes for this goal; got "
            f"{logits.shape[1]}. Use the cross entropy instead."
        )
    top = logits.topk(needed, dim=1).values
    if goal.target is None:
        return margin(logits, goal) / (top[:, 0] - top[:, 2] + _TINY)
    gap = _pick(logits, goal.target) - _pick(logits, goal.labels)
    return gap / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + _TINY)


def _pick(logits: Tensor, index: Tensor) -> Tensor:
    return logits.gather(1, index[:, None]).squeeze(1)


def _without(logits: Tensor, index: Tensor) -> Tensor:
    return logits.scatter(1, index[:, None], float("-inf"))
