"""What all segmentation losses share: the three modes, what counts, and the scores' two forms.

- ``"binary"``: scores ``(N, 1, ...)``, target ``(N, ...)`` or ``(N, 1, ...)`` of 0 and 1;
- ``"multiclass"``: scores ``(N, C, ...)``, target ``(N, ...)`` of class indices;
- ``"multilabel"``: scores and target ``(N, C, ...)``, the latter of 0 and 1.

The dots stand for ``H, W`` or ``D, H, W``. A label equal to ``ignore_index`` contributes nothing.
Scores in half precision are widened to float32 before anything is summed: a mask of 256 x 256
pixels already leaves the range of float16. The losses are float32 then.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from cv_core.checks import check_choice, check_floating, check_indices, check_shape
from cv_core.losses.reduction import Reduction, check_reduction
from jaxtyping import Bool, Float
from torch import Tensor, nn

Mode = Literal["binary", "multiclass", "multilabel"]


class SegmentationLoss(nn.Module):
    """The options that all losses of this package have.

    Args:
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        ignore_index: The label that contributes nothing; None if every label counts.
        from_logits: Whether the scores are logits, or else probabilities.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def __init__(
        self,
        mode: Mode,
        *,
        ignore_index: int | None = None,
        from_logits: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_choice(owner, "mode", mode, get_args(Mode))
        check_reduction(owner, reduction)
        self.mode: Mode = mode
        self.ignore_index = ignore_index
        self.from_logits = from_logits
        self.reduction: Reduction = reduction

    def options(self) -> dict[str, Any]:
        """Return the shared options as the functions take them."""
        return {
            "ignore_index": self.ignore_index,
            "from_logits": self.from_logits,
            "reduction": self.reduction,
        }

    def extra_repr(self) -> str:
        """Show the options."""
        return ", ".join([repr(self.mode), *(f"{k}={v!r}" for k, v in self.options().items())])


def read_labels(
    owner: str,
    scores: Float[Tensor, "n c ..."],
    target: Tensor,
    mode: Mode,
    ignore_index: int | None,
) -> tuple[Bool[Tensor, "n c ..."], Bool[Tensor, "n c ..."]]:
    """Check scores and target, and tell what is true of every class and what counts.

    Args:
        owner: The loss that asks, for the messages.
        scores: Logits or probabilities ``(N, C, ...)``.
        target: As the mode asks for; see the module's docstring.
        mode: One of the three.
        ignore_index: The label that does not count, or None.

    Returns:
        Which class is present where ``(N, C, ...)``, nowhere where the label does not count; and
        which labels count, of the same shape.

    Raises:
        TypeError: If the scores are not floating, or class indices not integer.
        ValueError: If shapes or labels do not fit the mode.

    Example:
        >>> labels = torch.tensor([[2, 0, 255]])
        >>> truth, counts = read_labels("Example", torch.zeros(1, 3, 3), labels, "multiclass", 255)
        >>> truth[0].int().tolist(), counts[0, 0].tolist()
        ([[0, 1, 0], [0, 0, 0], [1, 0, 0]], [True, True, False])
    """
    check_choice(owner, "mode", mode, get_args(Mode))
    check_floating(owner, "logits", scores)
    classes = check_shape(owner, "logits", scores, "n c ...")["c"]
    if scores.numel() == 0:
        raise ValueError(f"{owner}: logits are empty: shape {tuple(scores.shape)}.")
    if mode == "multiclass":
        return _indices(owner, scores, target, classes, ignore_index)
    if mode == "binary" and classes != 1:
        raise ValueError(
            f"{owner}: logits must have one channel in mode 'binary'; got {classes}. Exclusive "
            "classes are mode 'multiclass', others 'multilabel'."
        )
    if mode == "binary" and target.ndim == scores.ndim - 1:
        target = target.unsqueeze(1)
    _check_target_shape(owner, target, tuple(scores.shape))
    # In uint8, 156 equals -100: compare as int64.
    labels = target if target.is_floating_point() else target.long()
    counts = torch.ones_like(labels, dtype=torch.bool)
    if ignore_index is not None:
        counts = labels != ignore_index
    if not torch.compiler.is_compiling():  # reading values back would break the graph
        wrong = counts & (labels != 0) & (labels != 1)
        if bool(wrong.any()):
            raise ValueError(
                f"{owner}: target must hold 0 and 1 in mode {mode!r}; got "
                f"{labels[wrong][0].item():g}."
            )
    return (labels == 1) & counts, counts


def probabilities(
    owner: str, scores: Float[Tensor, "n c ..."], mode: Mode, *, from_logits: bool
) -> Float[Tensor, "n c ..."]:
    """Return the probabilities that the scores stand for, in float32 or float64.

    Raises:
        ValueError: If the scores should be probabilities but leave [0, 1].
    """
    wide = _widened(scores)
    if from_logits:
        return wide.softmax(1) if mode == "multiclass" else wide.sigmoid()
    _check_unit(owner, wide)
    return wide


def logits_of(
    owner: str, scores: Float[Tensor, "n c ..."], mode: Mode, *, from_logits: bool
) -> Float[Tensor, "n c ..."]:
    """Return logits that stand for the scores, in float32 or float64, finite for 0 and 1.

    Raises:
        ValueError: If the scores should be probabilities but leave [0, 1].
    """
    wide = _widened(scores)
    if from_logits:
        return wide
    _check_unit(owner, wide)
    limits = torch.finfo(wide.dtype)
    return wide.clamp(min=limits.tiny).log() if mode == "multiclass" else wide.logit(limits.eps)


def _indices(
    owner: str, scores: Tensor, target: Tensor, classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    if classes == 1:
        raise ValueError(
            f"{owner}: logits must have at least two channels in mode 'multiclass'; got one. For "
            "one channel use mode 'binary'."
        )
    _check_target_shape(owner, target, (scores.shape[0], *scores.shape[2:]))
    if not torch.compiler.is_compiling():
        check_indices(owner, "target", target, high=classes, ignore=ignore_index)
    labels = target.long().unsqueeze(1)
    counts = torch.ones_like(labels, dtype=torch.bool)
    if ignore_index is not None:
        counts = labels != ignore_index
    numbers = torch.arange(classes, device=labels.device)
    truth = (labels == numbers.view(-1, *[1] * (labels.ndim - 2))) & counts
    return truth, counts.expand_as(truth)


def _check_target_shape(owner: str, target: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(target.shape) != wanted:
        raise ValueError(
            f"{owner}: target must have shape {wanted} for these logits and this mode; got "
            f"{tuple(target.shape)}."
        )


def _check_unit(owner: str, scores: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    low, high = scores.detach().aminmax()
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"{owner}: probabilities must lie in [0, 1]; got values from {low.item():g} to "
            f"{high.item():g}. For logits use from_logits=True."
        )


def _widened(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
