"""Scores of video object segmentation: J, F, and their recall and decay over a clip.

They follow Perazzi et al., *A Benchmark Dataset and Evaluation Methodology for Video Object
Segmentation*, CVPR 2016. J and F are numbers per object and frame. A clip's score is their mean
over time; the benchmark leaves out the first frame, whose mask is given, and the last one, and
averages over objects, not over clips. Masks are boolean: where objects exclude each other, make
them so before (``exclusive_masks``).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from cv_core.checks import check_floating, check_range, check_same_shape, check_shape


def exclusive_masks(
    probabilities: Float[Tensor, "*b n h w"], *, threshold: float = 0.5
) -> Bool[Tensor, "*b n h w"]:
    """Give each pixel to its most probable object, or to none.

    Args:
        probabilities: Of N objects that were predicted one by one, ``(..., N, H, W)``.
        threshold: The background's probability, in [0, 1]: below it no object gets the pixel.

    Returns:
        Masks that do not overlap; the first of several equal objects wins.

    Raises:
        TypeError: If the probabilities are not floating.
        ValueError: If they have fewer than three axes, or the threshold is out of range.

    Example:
        >>> exclusive_masks(torch.tensor([[[0.9, 0.2]], [[0.7, 0.4]]])).int().tolist()
        [[[1, 0]], [[0, 0]]]
    """
    check_floating("exclusive_masks", "probabilities", probabilities)
    check_shape("exclusive_masks", "probabilities", probabilities, "... n h w")
    check_range("exclusive_masks", "threshold", threshold, low=0.0, high=1.0)
    best, first = probabilities.max(-3, keepdim=True)
    numbers = torch.arange(probabilities.shape[-3], device=first.device)
    return (first == numbers[:, None, None]) & (best > threshold)


def jaccard(
    prediction: Bool[Tensor, "*b h w"], target: Bool[Tensor, "*b h w"]
) -> Float[Tensor, "*b"]:
    """Return the region similarity J, intersection over union; 1 where both masks are empty.

    Args:
        prediction: Masks ``(..., H, W)``.
        target: Masks of the same shape.

    Returns:
        Scores ``(...)`` in [0, 1], float64.

    Raises:
        TypeError: If a mask is not boolean.
        ValueError: If the shapes differ.
    """
    _check("jaccard", prediction, target)
    both = (prediction & target).sum((-2, -1))
    either = (prediction | target).sum((-2, -1))
    return torch.where(either == 0, 1.0, both.double() / either.clamp(min=1))


def mask_boundary(masks: Bool[Tensor, "*b h w"]) -> Bool[Tensor, "*b h w"]:
    """Mark the pixels that differ from their neighbour to the right, below, or both.

    A boundary is one pixel wide and lies half a pixel up and left of the true outline, the same for
    every mask. The image's border is none.

    Args:
        masks: ``(..., H, W)``.
    """
    right, below, beyond = (masks.clone() for _ in range(3))
    right[..., :-1] = masks[..., 1:]
    below[..., :-1, :] = masks[..., 1:, :]
    beyond[..., :-1, :-1] = masks[..., 1:, 1:]
    # in the last row and column a diagonal neighbour is the one that exists
    beyond[..., -1, :-1] = masks[..., -1, 1:]
    beyond[..., :-1, -1] = masks[..., 1:, -1]
    return (masks ^ right) | (masks ^ below) | (masks ^ beyond)


def boundary_f(
    prediction: Bool[Tensor, "*b h w"],
    target: Bool[Tensor, "*b h w"],
    *,
    tolerance: float = 0.008,
) -> Float[Tensor, "*b"]:
    r"""Return the contour accuracy F of each pair of masks.

    .. math:: F = \frac{2 P R}{P + R}

    P is the share of the prediction's boundary within a distance of the target's, R the reverse.
    It is 1 where neither mask has a boundary and 0 where one of the two has none.

    Args:
        prediction: Masks ``(..., H, W)``.
        target: Masks of the same shape.
        tolerance: The distance as a share of the image's diagonal, rounded up to whole pixels, in
            [0, 1); 0.008 in DAVIS.

    Returns:
        Scores ``(...)`` in [0, 1], float64.

    Raises:
        TypeError: If a mask is not boolean.
        ValueError: If the shapes differ, or the tolerance is out of range.
    """
    _check("boundary_f", prediction, target)
    check_range("boundary_f", "tolerance", tolerance, low=0.0, high=1.0, high_open=True)
    radius = math.ceil(tolerance * math.hypot(*target.shape[-2:]))
    said, real = mask_boundary(prediction), mask_boundary(target)
    precision = _share(said, _dilate(real, radius))
    recall = _share(real, _dilate(said, radius))
    none = ~(said.any(-1).any(-1) | real.any(-1).any(-1))
    harmonic = 2.0 * precision * recall / (precision + recall).clamp(min=1e-300)
    return torch.where(none, 1.0, harmonic)


def recall(scores: Float[Tensor, "*b t"], *, threshold: float = 0.5) -> Float[Tensor, "*b"]:
    """Return the share of frames whose score exceeds a threshold.

    Args:
        scores: J or F, ``(..., T)`` with time last.
        threshold: 0.5 in DAVIS.

    Raises:
        TypeError: If the scores are not floating.
        ValueError: If there is no frame.
    """
    check_floating("recall", "scores", scores)
    check_shape("recall", "scores", scores, "... t")
    return (scores > threshold).double().mean(-1)


def decay(scores: Float[Tensor, "*b t"]) -> Float[Tensor, "*b"]:
    """Return what is lost over time: the mean of the first quarter less that of the last.

    Neighbouring quarters share the frame between them, as in DAVIS.

    Args:
        scores: J or F, ``(..., T)`` with time last.

    Raises:
        TypeError: If the scores are not floating.
        ValueError: If there is no frame.

    Example:
        >>> decay(torch.tensor([1.0, 1.0, 0.5, 0.25, 0.25]))  # two frames less two frames
        tensor(0.7500)
    """
    check_floating("decay", "scores", scores)
    last = check_shape("decay", "scores", scores, "... t")["t"] - 1
    # half up, not to even: the benchmark adds a little before it rounds
    quarter, third = (math.floor(last * share + 0.5) for share in (0.25, 0.75))
    return scores[..., : quarter + 1].mean(-1) - scores[..., third:].mean(-1)


def _share(part: Tensor, near: Tensor) -> Tensor:
    """Return the share of a boundary that lies near the other; 0 if there is none."""
    return (part & near).sum((-2, -1)).double() / part.sum((-2, -1)).clamp(min=1)


def _dilate(masks: Tensor, radius: int) -> Tensor:
    """Mark what lies within a disk's radius of a mask."""
    if radius == 0:
        return masks
    offsets = torch.arange(-radius, radius + 1, device=masks.device)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).float()
    flat = masks.float().reshape(-1, 1, *masks.shape[-2:])
    return (functional.conv2d(flat, disk[None, None], padding=radius) > 0.5).view_as(masks)


def _check(owner: str, prediction: Tensor, target: Tensor) -> None:
    for name, mask in (("prediction", prediction), ("target", target)):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(
                f"{owner}: {name} must be a boolean tensor, such as mask > 0.5; got {came}."
            )
    check_same_shape(owner, prediction=prediction, target=target)
    check_shape(owner, "prediction", prediction, "... h w")
