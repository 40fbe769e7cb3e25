"""Losses of each pixel by itself: cross entropy and focal loss, in the three modes."""

from __future__ import annotations

from cv_core.checks import check_range
from cv_core.losses.reduction import Reduction, reduce
from cv_core.losses.segmentation import binary_focal_loss
from cv_core.losses.segmentation import focal_loss as exclusive_focal_loss
from jaxtyping import Float
from torch import Tensor

from cv_segmentation.losses.labels import Mode, SegmentationLoss, logits_of, read_labels


def cross_entropy_loss(
    logits: Float[Tensor, "n c ..."],
    target: Tensor,
    mode: Mode,
    *,
    ignore_index: int | None = None,
    from_logits: bool = True,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Cross entropy of softmax (multiclass) or sigmoid (otherwise) with hard labels.

    .. math:: L = -\log p_y

    Args:
        logits: Scores ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        target: Labels as the mode asks for; see ``losses.labels``.
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"`` over the labels that count, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, 0 where no label counts; or for ``"none"`` one value per label: ``(N, ...)`` in
        mode ``"multiclass"``, else ``(N, C, ...)``.

    Raises:
        TypeError: If the scores are not floating, or class indices not integer.
        ValueError: If an option, a label or a shape does not fit.

    Example:
        >>> import torch
        >>> cross_entropy_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2), "binary")
        tensor(0.6931)
    """
    return _focal(
        "cross_entropy_loss",
        logits,
        target,
        mode,
        alpha=None,
        gamma=0.0,
        ignore_index=ignore_index,
        from_logits=from_logits,
        reduction=reduction,
    )


def focal_loss(
    logits: Float[Tensor, "n c ..."],
    target: Tensor,
    mode: Mode,
    *,
    alpha: float | None = None,
    gamma: float = 2.0,
    ignore_index: int | None = None,
    from_logits: bool = True,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Focal loss of Lin et al., ICCV 2017.

    .. math:: L = -\alpha_t (1 - p_t)^\gamma \log p_t

    with :math:`p_t` the probability of the label: of softmax in mode ``"multiclass"``, where other
    libraries sum over the classes one binary focal loss each.

    Args:
        logits: Scores ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        target: Labels as the mode asks for; see ``losses.labels``.
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        alpha: Weight of label 1 against label 0, in [0, 1]; None for none. Not for
            ``"multiclass"``.
        gamma: How strongly easy pixels are weighted down; 0 is cross entropy.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"`` over the labels that count, ``"sum"`` or ``"none"``.

    Returns:
        As ``cross_entropy_loss``.

    Raises:
        TypeError: If the scores are not floating, or class indices not integer.
        ValueError: If an option, a label or a shape does not fit.
    """
    _check_focal("focal_loss", mode, alpha, gamma)
    return _focal(
        "focal_loss",
        logits,
        target,
        mode,
        alpha=alpha,
        gamma=gamma,
        ignore_index=ignore_index,
        from_logits=from_logits,
        reduction=reduction,
    )


class CrossEntropyLoss(SegmentationLoss):
    """Cross entropy in three modes; see ``cross_entropy_loss``.

    Args:
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def forward(self, logits: Float[Tensor, "n c ..."], target: Tensor) -> Float[Tensor, "..."]:
        """Return the loss of scores ``(N, C, ...)`` for the mode's target."""
        return cross_entropy_loss(logits, target, self.mode, **self.options())


class FocalLoss(SegmentationLoss):
    """Focal loss of Lin et al., ICCV 2017, in three modes; see ``focal_loss``.

    Args:
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        alpha: Weight of label 1 against label 0, or None. Not for ``"multiclass"``.
        gamma: How strongly easy pixels are weighted down.
        ignore_index: The label that contributes nothing, or None.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def __init__(
        self,
        mode: Mode,
        *,
        alpha: float | None = None,
        gamma: float = 2.0,
        ignore_index: int | None = None,
        from_logits: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            mode, ignore_index=ignore_index, from_logits=from_logits, reduction=reduction
        )
        _check_focal("FocalLoss", mode, alpha, gamma)
        self.alpha = alpha
        self.gamma = gamma

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{super().extra_repr()}, alpha={self.alpha}, gamma={self.gamma}"

    def forward(self, logits: Float[Tensor, "n c ..."], target: Tensor) -> Float[Tensor, "..."]:
        """Return the loss of scores ``(N, C, ...)`` for the mode's target."""
        return focal_loss(
            logits, target, self.mode, alpha=self.alpha, gamma=self.gamma, **self.options()
        )


def _check_focal(owner: str, mode: Mode, alpha: float | None, gamma: float) -> None:
    check_range(owner, "gamma", gamma, low=0.0)
    if alpha is None:
        return
    check_range(owner, "alpha", alpha, low=0.0, high=1.0)
    if mode == "multiclass":
        raise ValueError(
            f"{owner}: alpha weighs label 1 against label 0, which mode 'multiclass' does not "
            f"have; got {alpha!r}. Leave it None."
        )


def _focal(
    owner: str,
    scores: Tensor,
    target: Tensor,
    mode: Mode,
    *,
    alpha: float | None,
    gamma: float,
    ignore_index: int | None,
    from_logits: bool,
    reduction: Reduction,
) -> Tensor:
    truth, counts = read_labels(owner, scores, target, mode, ignore_index)
    logits = logits_of(owner, scores, mode, from_logits=from_logits)
    if mode == "multiclass":
        # The target has been checked: with None, no label is negative.
        ignored = -1 if ignore_index is None else ignore_index
        return exclusive_focal_loss(
            logits, target.long(), gamma=gamma, reduction=reduction, ignore_index=ignored
        )
    values = binary_focal_loss(
        logits, truth.to(logits.dtype), gamma=gamma, alpha=alpha, reduction="none"
    )
    return reduce(values, counts, reduction)
