"""Losses of the masks of several objects in one frame."""

from __future__ import annotations

import torch
from cv_core.checks import check_floating, check_range, check_same_shape, check_shape
from cv_core.losses.reduction import Reduction, check_reduction, reduce, reduce_all
from cv_core.losses.segmentation import binary_soft_iou_loss
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_segmentation.losses.labels import logits_of, probabilities, read_labels


def self_iou_loss(
    logits: Float[Tensor, "b n h w"],
    *,
    normalize: bool = False,
    from_logits: bool = True,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Overlap of the objects of one frame with each other, which has no truth to follow.

    .. math:: L = \sum_{i \ne j} \frac{\sum M_i M_j}{\sum (M_i + M_j - M_i M_j)}

    over ordered pairs, so that each pair counts twice. It is 0 for masks that do not meet and for a
    single object, and N (N - 1) for N equal binary masks; two empty masks do not overlap. Where
    objects may truly overlap, in layers, it pulls against the truth.

    Args:
        logits: Scores of N objects ``(B, N, H, W)``.
        normalize: Divide by N (N - 1), so that the loss lies in [0, 1] for any number of objects.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: Over frames: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or ``(B,)`` for ``reduction="none"``.

    Raises:
        TypeError: If the scores are not floating.
        ValueError: If an option or a shape does not fit.

    Example:
        >>> masks = torch.ones(1, 3, 4, 4)
        >>> self_iou_loss(masks, from_logits=False)
        tensor(6.)
    """
    check_reduction("self_iou_loss", reduction)
    check_floating("self_iou_loss", "logits", logits)
    count = check_shape("self_iou_loss", "logits", logits, "b n h w")["n"]
    masks = probabilities("self_iou_loss", logits, "multilabel", from_logits=from_logits).flatten(2)
    sizes = masks.sum(2)
    with torch.autocast(masks.device.type, enabled=False):  # a product of halves would overflow
        both = masks @ masks.mT
    either = sizes[:, :, None] + sizes[:, None] - both
    itself = torch.eye(count, dtype=torch.bool, device=masks.device)
    none = (either == 0) | itself
    overlap = (both / either.masked_fill(none, 1.0)).masked_fill(none, 0.0).sum((1, 2))
    return reduce_all(overlap / max(1, count * (count - 1)) if normalize else overlap, reduction)


def balanced_bce_loss(
    logits: Float[Tensor, "n c ..."],
    target: Tensor,
    *,
    ignore_index: int | None = None,
    from_logits: bool = True,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Cross entropy in which a mask's foreground and background weigh alike.

    .. math:: L = -(1 - r) \, y \log M - r \, (1 - y) \log (1 - M)

    with r the share of foreground in the mask y. An empty mask has r = 0 and contributes nothing,
    whatever is predicted for it; so does a full one.

    Args:
        logits: Scores of each mask ``(N, C, H, W)``.
        target: Masks of 0 and 1 of the same shape, of any type.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"`` over the labels that count, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or the shape of ``logits`` for ``reduction="none"``.

    Raises:
        TypeError: If the scores are not floating.
        ValueError: If an option, a label or a shape does not fit.

    Example:
        >>> half = torch.tensor([[[[1.0, 0.0]]]])
        >>> balanced_bce_loss(torch.zeros(1, 1, 1, 2), half)  # half of log 2
        tensor(0.3466)
    """
    owner = "balanced_bce_loss"
    check_reduction(owner, reduction)
    truth, counts = read_labels(owner, logits, target, "multilabel", ignore_index)
    z = logits_of(owner, logits, "multilabel", from_logits=from_logits)
    y, places = truth.to(z.dtype), counts.flatten(2).sum(2).clamp(min=1)
    share = (y.flatten(2).sum(2) / places).view(*y.shape[:2], *[1] * (y.ndim - 2))
    missed, false = functional.softplus(-z), functional.softplus(z)
    return reduce((1.0 - share) * y * missed + share * (1.0 - y) * false, counts, reduction)


class VideoObjectLoss(nn.Module):
    r"""The three terms of the paper's loss, Eq. 10, averaged over frames.

    .. math:: L = \alpha L_{IoU} + \beta L_{BBCE} + \gamma L_{self}

    The first two are means over objects too; the third is a sum over pairs, as printed, which grows
    with their number.

    The soft IoU has 1 above and below, so that an object that is absent or hidden is taught to be
    empty: the other two terms do not teach that.

    Args:
        iou: Weight of the soft IoU.
        bce: Weight of ``balanced_bce_loss``.
        overlap: Weight of ``self_iou_loss``.

    Raises:
        ValueError: If a weight is negative or all are 0.

    Example:
        >>> logits, masks = torch.zeros(2, 5, 3, 8, 8), torch.zeros(2, 5, 3, 8, 8)
        >>> VideoObjectLoss()(logits, masks).shape
        torch.Size([])
    """

    def __init__(self, iou: float = 1.0, bce: float = 2.0, overlap: float = 0.2) -> None:
        super().__init__()
        for name, weight in (("iou", iou), ("bce", bce), ("overlap", overlap)):
            check_range("VideoObjectLoss", name, weight, low=0.0)
        if iou == bce == overlap == 0.0:
            raise ValueError("VideoObjectLoss: at least one weight must be above 0.")
        self.iou = iou
        self.bce = bce
        self.overlap = overlap

    def extra_repr(self) -> str:
        """Show the weights."""
        return f"iou={self.iou:g}, bce={self.bce:g}, overlap={self.overlap:g}"

    def forward(
        self, logits: Float[Tensor, "b t n h w"], target: Float[Tensor, "b t n h w"]
    ) -> Float[Tensor, ""]:
        """Return the loss of clips of N objects.

        Args:
            logits: Scores ``(B, T, N, H, W)``.
            target: Masks of 0 and 1 of the same shape.
        """
        check_floating("VideoObjectLoss", "logits", logits)
        check_floating("VideoObjectLoss", "target", target)
        check_shape("VideoObjectLoss", "logits", logits, "b t n h w")
        check_same_shape("VideoObjectLoss", logits=logits, target=target)
        frames, masks = logits.flatten(0, 1), target.flatten(0, 1)
        total = logits.new_zeros(())
        if self.iou:
            total = total + self.iou * binary_soft_iou_loss(
                frames.flatten(0, 1), masks.flatten(0, 1)
            )
        if self.bce:
            total = total + self.bce * balanced_bce_loss(frames, masks)
        if self.overlap:
            total = total + self.overlap * self_iou_loss(frames)
        return total
