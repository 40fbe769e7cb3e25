"""Lovasz losses: the intersection over union, extended so that it can be descended."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from cv_core.losses.reduction import Reduction, check_reduction, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cv_segmentation.losses.labels import (
    Mode,
    SegmentationLoss,
    logits_of,
    probabilities,
    read_labels,
)


def lovasz_loss(
    logits: Float[Tensor, "n c ..."],
    target: Tensor,
    mode: Mode,
    *,
    per_image: bool = False,
    ignore_index: int | None = None,
    from_logits: bool = True,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Lovasz-softmax and Lovasz hinge of Berman, Rannen Triki and Blaschko, CVPR 2018.

    .. math:: L_c = \sum_i e_{\pi_i} \left(\Delta(\{\pi_1 .. \pi_i\}) -
        \Delta(\{\pi_1 .. \pi_{i-1}\})\right)

    with :math:`e` the errors of a class, :math:`\pi` their descending order and :math:`\Delta(M)`
    the loss of IoU, one minus it, if exactly the pixels of M are wrong. The errors are
    :math:`|y - p|` of softmax in mode ``"multiclass"`` and the hinge :math:`\max(0, 1 \mp z)` of
    the logits in the others. All classes are sorted in one call.

    Classes without a true pixel contribute nothing (``classes="present"`` of the authors' code),
    in the modes of hinge as well.

    Deviations from the paper: the differences of :math:`\Delta` are written out, 1 / union for a
    true pixel and intersection / (union (union - 1)) for another, where Algorithm 1 subtracts
    neighbours that agree in all but their last digits.

    Args:
        logits: Scores ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        target: Labels as the mode asks for; see ``losses.labels``.
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        per_image: Whether every image has an intersection over union of its own, or the batch.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities (for the hinge, they are
            turned into logits).
        reduction: ``"mean"`` over the classes that are present, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, 0 where no class is present; or for ``"none"`` one value per class ``(C,)``, with
        ``per_image`` per image and class ``(N, C)``, 0 for absent ones.

    Raises:
        TypeError: If the scores are not floating, or class indices not integer.
        ValueError: If an option, a label or a shape does not fit.

    Example:
        >>> lovasz_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2), "binary")
        tensor(1.)
    """
    owner = "lovasz_loss"
    check_reduction(owner, reduction)
    truth, counts = read_labels(owner, logits, target, mode, ignore_index)
    if mode == "multiclass":
        p = probabilities(owner, logits, mode, from_logits=from_logits)
        errors = torch.where(truth, 1.0 - p, p)
    else:
        z = logits_of(owner, logits, mode, from_logits=from_logits)
        errors = (1.0 + torch.where(truth, -z, z)).relu()
    rows, real, valid = (_rows(item, per_image=per_image) for item in (errors, truth, counts))
    present = real.any(1)
    chosen = present.nonzero()[:, 0]  # the sort is what costs: spare it the absent classes
    kept = rows[chosen]
    weights = _jaccard_slopes(kept.detach(), real[chosen], valid[chosen])
    values = rows.new_zeros(len(rows)).index_copy(0, chosen, (kept * weights).sum(1))
    shape = logits.shape[:2] if per_image else logits.shape[1:2]
    return reduce(values.view(shape), present.view(shape), reduction)


class LovaszLoss(SegmentationLoss):
    """Lovasz-softmax and Lovasz hinge of Berman et al., CVPR 2018; see ``lovasz_loss``.

    Args:
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        per_image: Whether every image has an intersection over union of its own, or the batch.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def __init__(
        self,
        mode: Mode,
        *,
        per_image: bool = False,
        ignore_index: int | None = None,
        from_logits: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            mode, ignore_index=ignore_index, from_logits=from_logits, reduction=reduction
        )
        self.per_image = per_image

    def options(self) -> dict[str, Any]:
        """Return the options as the function takes them."""
        return {**super().options(), "per_image": self.per_image}

    def forward(self, logits: Float[Tensor, "n c ..."], target: Tensor) -> Float[Tensor, "..."]:
        """Return the loss of scores ``(N, C, ...)`` for the mode's target."""
        return lovasz_loss(logits, target, self.mode, **self.options())


def _rows(values: Tensor, *, per_image: bool) -> Tensor:
    """Return one row per class, or per image and class."""
    if per_image:
        return values.flatten(2).flatten(0, 1)
    return values.transpose(0, 1).flatten(1)


def _jaccard_slopes(
    errors: Float[Tensor, "r m"], truth: Bool[Tensor, "r m"], counts: Bool[Tensor, "r m"]
) -> Float[Tensor, "r m"]:
    """Return the gradient of the Lovasz extension by the errors; every row has a true pixel."""
    # What does not count is sorted behind all else, where it changes no other's slope.
    order = _descending(errors.masked_fill(~counts, -1.0))
    real = truth.gather(1, order)
    seen = real.cumsum(1, dtype=torch.int32)
    positives = seen[:, -1:]
    ranks = torch.arange(1, errors.shape[1] + 1, dtype=torch.int32, device=errors.device)
    # Counts are whole up to here: float32 would lose pixels beyond 2^24.
    union = (ranks - seen).add_(positives).to(errors.dtype)
    both = (positives - seen).to(errors.dtype)
    slopes = torch.where(real, 1.0 / union, both / (union * (union - 1.0).clamp_min(1.0)))
    return torch.empty_like(errors).scatter_(1, order, slopes).masked_fill_(~counts, 0.0)


def _descending(errors: Float[Tensor, "r m"]) -> Int[Tensor, "r m"]:
    if errors.device.type != "cpu" or torch.compiler.is_compiling():
        return errors.argsort(dim=1, descending=True)
    # On a CPU, NumPy sorts several times faster than torch.
    return torch.from_numpy(np.argsort(-errors.numpy(), axis=1))
