"""From class activation maps to label maps: thresholds, their mean IoU, and the dense CRF."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from cv_core.checks import check_floating, check_range, check_shape
from cv_core.metrics.segmentation import ConfusionMeter
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.nn import functional

from cv_segmentation.crf import dense_crf

CRF = Callable[[Tensor, Tensor], Tensor]
"""Maps logits and images to probabilities, as ``dense_crf`` does."""

_NEVER = -100.0  # the logit of a class that an image does not show


def seed_labels(
    cam: Float[Tensor, "n c h w"], threshold: float, size: tuple[int, int] | None = None
) -> Int64[Tensor, "n h2 w2"]:
    """Label every pixel by the class whose map is highest there, or as background.

    The maps are enlarged bilinearly, and each is divided by its maximum. Maps of classes that an
    image does not show must be 0: multiply them by the image's labels.

    Args:
        cam: Maps ``(N, C, h, w)``, not negative.
        threshold: A pixel is background unless a map exceeds this, in [0, 1).
        size: Height and width of the result; the maps' own by default.

    Returns:
        Class plus one, or 0 for the background.

    Raises:
        TypeError: If the maps are not floating.
        ValueError: If a shape does not fit or the threshold is out of range.

    Example:
        >>> seed_labels(torch.tensor([[[[0.2, 1.0, 4.0]], [[0.0, 0.9, 0.3]]]]), 0.3)
        tensor([[[0, 2, 1]]])
    """
    owner = "seed_labels"
    check_range(owner, "threshold", threshold, low=0.0, high=1.0, high_open=True)
    highest, classes = normalised_cam(cam, size).max(1)
    return torch.where(highest > threshold, classes + 1, 0)


def seed_miou(
    cam: Float[Tensor, "n c h w"],
    masks: Int[Tensor, "n h2 w2"],
    thresholds: Sequence[float],
    *,
    ignore_index: int | None = 255,
) -> Float[Tensor, " t"]:
    """Mean IoU of the seeds at each threshold, background included.

    The confusion is summed over all images first; a class that occurs neither in masks nor in seeds
    is left out. Choose the threshold on images that are not judged.

    Args:
        cam: Maps ``(N, C, h, w)``; see ``seed_labels``.
        masks: Class plus one of every pixel, 0 for the background.
        thresholds: In [0, 1).
        ignore_index: Pixels of this label do not count.

    Returns:
        One number in [0, 1] for each threshold.

    Raises:
        TypeError: If the maps are not floating or the masks not integer.
        ValueError: If a shape does not fit or a threshold is out of range.

    Example:
        >>> cam = torch.tensor([[[[0.2, 1.0, 4.0]]]])
        >>> seed_miou(cam, torch.tensor([[[0, 0, 1]]]), [0.1, 0.3])
        tensor([0.5000, 1.0000])
    """
    owner = "seed_miou"
    sizes = check_shape(owner, "masks", masks, "n h w")
    check_shape(owner, "cam", cam, "n c h w", n=sizes["n"])
    for threshold in thresholds:
        check_range(owner, "thresholds", threshold, low=0.0, high=1.0, high_open=True)
    highest, classes = normalised_cam(cam, (sizes["h"], sizes["w"])).max(1)
    scores = []
    for threshold in thresholds:
        meter = ConfusionMeter(cam.shape[1] + 1, ignore_index=ignore_index)
        meter.update(torch.where(highest > threshold, classes + 1, 0), masks)
        scores.append(meter.compute().iou)
    return torch.tensor(scores)


def refine_seeds(
    cam: Float[Tensor, "n c h w"],
    images: Float[Tensor, "n ch h2 w2"],
    threshold: float,
    *,
    confidence: float = 0.7,
    crf: CRF = dense_crf,
) -> Int64[Tensor, "n h2 w2"]:
    """Let a dense CRF move the borders of seeds to those of the image.

    A pixel's own seed has the given probability; what is left is shared by the background and the
    other classes that the image shows.

    Args:
        cam: Maps ``(N, C, h, w)``; see ``seed_labels``. A class whose map is 0 is not shown.
        images: ``(N, 1 or 3, H, W)`` in [0, 1].
        threshold: Of the seeds, in [0, 1).
        confidence: In (0, 1).
        crf: Maps logits and images to probabilities: ``dense_crf`` or one with options bound.

    Returns:
        Class plus one of every pixel, or 0 for the background.

    Raises:
        TypeError: If maps or images are not floating.
        ValueError: If a shape does not fit or an option is out of range.

    Example:
        >>> refine_seeds(torch.rand(1, 2, 4, 4), torch.rand(1, 3, 8, 8), 0.3).shape
        torch.Size([1, 8, 8])
    """
    owner = "refine_seeds"
    check_range(owner, "confidence", confidence, low=0.0, high=1.0, low_open=True, high_open=True)
    sizes = check_shape(owner, "images", images, "n ch h w")
    check_shape(owner, "cam", cam, "n c h w", n=sizes["n"])
    seeds = seed_labels(cam, threshold, (sizes["h"], sizes["w"]))
    shown = functional.pad(cam.amax((2, 3)) > 0, (1, 0), value=True)
    others = (shown.sum(1) - 1).clamp_min(1)
    rest = (math.log1p(-confidence) - others.to(images).log())[:, None]
    logits = torch.where(shown, rest, _NEVER)[:, :, None, None]
    chosen = functional.one_hot(seeds, shown.shape[1]).movedim(3, 1).bool()
    logits = torch.where(chosen, math.log(confidence), logits)
    return crf(logits, images).argmax(1)


def normalised_cam(
    cam: Float[Tensor, "n c h w"], size: tuple[int, int] | None = None
) -> Float[Tensor, "n c h2 w2"]:
    """Enlarge maps bilinearly and divide each by its maximum; a map of zeros stays one.

    Args:
        cam: Maps ``(N, C, h, w)``, not negative.
        size: Height and width of the result; the maps' own by default.
    """
    check_floating("normalised_cam", "cam", cam)
    check_shape("normalised_cam", "cam", cam, "n c h w")
    if size is not None:
        cam = functional.interpolate(cam, size=size, mode="bilinear", align_corners=False)
    top = cam.amax((2, 3), keepdim=True)
    return cam / torch.where(top > 0, top, 1.0)
