r"""How well a map in [0, 1] shows the pixels of an object, one float64 value per image.

All take predictions ``(B, H, W)`` in [0, 1], as they are (nothing is stretched to the full range,
which would turn the noise of an image without an object into one), and masks of the same shape. The
mean over a data set is what papers print, but for the F-measure: their "maxF" is the largest mean,
``f_measure_curve(p, g).mean(0).max()``, which cannot exceed the mean of the largest values.

Nothing is ever NaN. On a mask without an object, a prediction without one is right:

- F-measures are 1 where nothing is predicted, else 0, at each threshold, and over the soft map for
  the weighted one. The largest over all thresholds says nothing there: judge such images by the
  area of their false alarms, which is what ``mae`` measures;
- S- and E-measure are, as their authors define them, the share of what is not predicted;
- with an object, an empty prediction has F 0 (threshold 0 still takes all pixels).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor
from torch.nn import functional

from cv_core.checks import (
    check_choice,
    check_floating,
    check_integer,
    check_range,
    check_same_shape,
    check_shape,
)

_DECAY = 5.0  # pixels: at this distance from the object, half of the extra weight is reached


def mae(prediction: Float[Tensor, "b h w"], target: Shaped[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Return the mean absolute error of each map.

    Args:
        prediction: Maps in [0, 1].
        target: Masks of 0 and 1, of any type.

    Returns:
        Errors in [0, 1].

    Raises:
        TypeError: If the prediction is not floating.
        ValueError: If shapes or values do not fit.
    """
    truth = _check("mae", prediction, target)
    return (prediction.double() - truth.double()).abs().mean((1, 2))


def f_measure_curve(
    prediction: Float[Tensor, "b h w"],
    target: Shaped[Tensor, "b h w"],
    *,
    beta2: float = 0.3,
    thresholds: int = 256,
) -> Float[Tensor, "b t"]:
    r"""Return the F-measure of each map at thresholds from 0 to 1.

    Achanta et al., *Frequency-tuned salient region detection*, CVPR 2009:

    .. math:: F = \frac{(1 + \beta^2) P R}{\beta^2 P + R}
              = \frac{(1 + \beta^2) \, TP}{\beta^2 |g| + |p \ge t|}, \qquad t = 0, \dots, 1

    Args:
        prediction: Maps in [0, 1].
        target: Masks of 0 and 1, of any type.
        beta2: Weight of recall against precision, above 0.
        thresholds: How many, evenly spaced, both ends included; 256 are the levels of a picture.

    Returns:
        ``(B, thresholds)``. At the first threshold all pixels are predicted; at the last one those
        of value 1, so that a mask given as prediction is judged as it is.

    Raises:
        TypeError: If the prediction is not floating.
        ValueError: If shapes or values do not fit, or an option is out of range.

    Example:
        >>> truth = torch.tensor([[[1, 1, 0, 0]]])
        >>> f_measure_curve(torch.tensor([[[0.9, 0.4, 0.4, 0.0]]]), truth, thresholds=3)
        tensor([[0.5652, 0.8125, 0.0000]], dtype=torch.float64)
    """
    owner = "f_measure_curve"
    check_range(owner, "beta2", beta2, low=0.0, low_open=True)
    truth = _check(owner, prediction, target)
    hits, predicted = _counts(owner, prediction, truth, thresholds)
    real = truth.double().sum((1, 2)).unsqueeze(1)
    whole = beta2 * real + predicted
    return torch.where(whole == 0.0, 1.0, (1.0 + beta2) * hits / whole)


def max_f_measure(
    prediction: Float[Tensor, "b h w"],
    target: Shaped[Tensor, "b h w"],
    *,
    beta2: float = 0.3,
    thresholds: int = 256,
) -> Float[Tensor, " b"]:
    """Return each map's largest F-measure over all thresholds; see ``f_measure_curve``.

    Args:
        prediction: Maps in [0, 1].
        target: Masks of 0 and 1, of any type.
        beta2: Weight of recall against precision, above 0.
        thresholds: How many, evenly spaced, both ends included.

    Returns:
        Values in [0, 1].
    """
    curve = f_measure_curve(prediction, target, beta2=beta2, thresholds=thresholds)
    return curve.amax(1)


def mean_f_measure(
    prediction: Float[Tensor, "b h w"],
    target: Shaped[Tensor, "b h w"],
    *,
    beta2: float = 0.3,
    thresholds: int = 256,
) -> Float[Tensor, " b"]:
    """Return each map's mean F-measure over all thresholds; see ``f_measure_curve``.

    Threshold 0 counts: a perfect map has a little less than 1.

    Args:
        prediction: Maps in [0, 1].
        target: Masks of 0 and 1, of any type.
        beta2: Weight of recall against precision, above 0.
        thresholds: How many, evenly spaced, both ends included.

    Returns:
        Values in [0, 1].
    """
    return f_measure_curve(prediction, target, beta2=beta2, thresholds=thresholds).mean(1)


def e_measure_curve(
    prediction: Float[Tensor, "b h w"], target: Shaped[Tensor, "b h w"], *, thresholds: int = 256
) -> Float[Tensor, "b t"]:
    r"""Return the enhanced-alignment measure of each map at thresholds from 0 to 1.

    Fan et al., *Enhanced-alignment measure for binary foreground map evaluation*, IJCAI 2018. With
    :math:`\varphi` the binary maps less their means,

    .. math:: E = \frac{1}{HW} \sum_{ij} \frac{(1 + \xi_{ij})^2}{4}, \qquad
        \xi = \frac{2 \varphi_g \varphi_p}{\varphi_g^2 + \varphi_p^2}

    or, where the mask is empty or full, the share of pixels on which the two agree. Only four
    values of :math:`\xi` occur, so that counting pixels is enough.

    The authors' program divides by ``HW - 1``, which makes a perfect map's value exceed 1.

    Args:
        prediction: Maps in [0, 1].
        target: Masks of 0 and 1, of any type.
        thresholds: How many, evenly spaced, both ends included.

    Returns:
        ``(B, thresholds)`` in [0, 1]; the last column judges a binary map as it is.

    Raises:
        TypeError: If the prediction is not floating.
        ValueError: If shapes or values do not fit, or an option is out of range.
    """
    owner = "e_measure_curve"
    truth = _check(owner, prediction, target)
    hits, predicted = _counts(owner, prediction, truth, thresholds)
    real, pixels = truth.double().sum((1, 2)).unsqueeze(1), truth[0].numel()
    g, p = real / pixels, predicted / pixels
    groups = (
        (hits, 1.0 - g, 1.0 - p),
        (predicted - hits, -g, 1.0 - p),
        (real - hits, 1.0 - g, -p),
        (pixels - real - predicted + hits, -g, -p),
    )
    total = torch.zeros_like(p)
    for count, phi_g, phi_p in groups:
        xi = 2.0 * phi_g * phi_p / (phi_g.square() + phi_p.square())
        total += count * (1.0 + xi).square() / 4.0
    constant = torch.where(real == 0, 1.0 - p, p)  # there, xi may be 0 / 0
    return torch.where((real == 0) | (real == pixels), constant, total / pixels)


def e_measure(
    prediction: Float[Tensor, "b h w"], target: Shaped[Tensor, "b h w"], *, thresholds: int = 256
) -> Float[Tensor, " b"]:
    """Return each map's mean enhanced-alignment measure over all thresholds.

    See ``e_measure_curve``, whose largest mean and last column are the other two values in use.

    Args:
        prediction: Maps in [0, 1].
        target: Masks of 0 and 1, of any type.
        thresholds: How many, evenly spaced, both ends included.

    Returns:
        Values in [0, 1].
    """
    return e_measure_curve(prediction, target, thresholds=thresholds).mean(1)


def s_measure(
    prediction: Float[Tensor, "b h w"], target: Shaped[Tensor, "b h w"], *, alpha: float = 0.5
) -> Float[Tensor, " b"]:
    r"""Return the structure measure of each map.

    Fan et al., *Structure-measure: a new way to evaluate foreground maps*, ICCV 2017.

    .. math::
        S &= \max(0, \alpha S_o + (1 - \alpha) S_r) \\
        S_o &= \mu \, O(p | g) + (1 - \mu) \, O(1 - p | 1 - g), \quad
        O(x) = \frac{2 \bar x}{\bar x^2 + 1 + \sigma_x} \\
        S_r &= \sum_{k=1}^{4} w_k \, \mathrm{ssim}(p_k, g_k), \quad
        \mathrm{ssim} = \frac{4 \bar p \bar g \sigma_{pg}}
                             {(\bar p^2 + \bar g^2) (\sigma_p^2 + \sigma_g^2)}

    with :math:`\mu` the mask's share of the image, the four blocks that meet at its centroid, and
    :math:`w_k` their share. Deviations have N - 1 below, as in the authors' program; of a single
    pixel they are 0. On an empty mask, S is one less the mean of the map; on a full one, the mean.
    Two flat blocks have ssim 1, whatever their values, and a flat one and another have 0.

    Args:
        prediction: Maps in [0, 1].
        target: Masks of 0 and 1, of any type.
        alpha: Weight of the object's part, in [0, 1].

    Returns:
        Values in [0, 1].

    Raises:
        TypeError: If the prediction is not floating.
        ValueError: If shapes or values do not fit, or an option is out of range.
    """
    check_range("s_measure", "alpha", alpha, low=0.0, high=1.0)
    truth = _check("s_measure", prediction, target)
    pairs = zip(prediction.double(), truth, strict=True)
    return torch.stack([_structure(p, g, alpha) for p, g in pairs])


def _structure(p: Tensor, g: Tensor, alpha: float) -> Tensor:
    share = g.double().mean()
    if share == 0.0:
        return 1.0 - p.mean()
    if share == 1.0:
        return p.mean()
    of_object = share * _likeness(p[g]) + (1.0 - share) * _likeness(1.0 - p[~g])
    return (alpha * of_object + (1.0 - alpha) * _of_regions(p, g)).clamp(min=0.0)


def _likeness(x: Tensor) -> Tensor:
    mean = x.mean()
    spread = x.std() if len(x) > 1 else torch.zeros_like(mean)
    return 2.0 * mean / (mean.square() + 1.0 + spread)


def _of_regions(p: Tensor, g: Tensor) -> Tensor:
    # The mean position, counted from 1 and rounded half up, is where the first block ends.
    rows, columns = (int(2 * (at + 1).sum() + len(at)) // (2 * len(at)) for at in g.nonzero().T)
    total = torch.zeros_like(p[0, 0])
    for vertical in (slice(None, rows), slice(rows, None)):
        for horizontal in (slice(None, columns), slice(columns, None)):
            block, truth = p[vertical, horizontal], g[vertical, horizontal].double()
            if block.numel():
                total += block.numel() / p.numel() * _similarity(block, truth)
    return total


def _similarity(p: Tensor, g: Tensor) -> Tensor:
    flat = [bool(part.amin() == part.amax()) for part in (p, g)]  # a computed variance is not 0
    if any(flat):
        return torch.full_like(p[0, 0], float(all(flat)))
    mean_p, mean_g = p.mean(), g.mean()
    off_p, off_g = p - mean_p, g - mean_g
    joint, spread = (off_p * off_g).mean(), (off_p.square() + off_g.square()).mean()
    return 4.0 * mean_p * mean_g * joint / ((mean_p.square() + mean_g.square()) * spread)


def weighted_f_measure(
    prediction: Float[Tensor, "b h w"],
    target: Shaped[Tensor, "b h w"],
    *,
    beta2: float = 1.0,
    border: Literal["valid", "zeros"] = "valid",
) -> Float[Tensor, " b"]:
    r"""Return the weighted F-measure of each map, which needs no threshold.

    Margolin, Zelnik-Manor and Tal, *How to evaluate foreground maps?*, CVPR 2014. With the error
    :math:`E = |p - g|`, on the object an error counts no more than the Gaussian mean
    :math:`\tilde E` around it (7 x 7 pixels, deviation 5; beyond the object the error of its
    nearest pixel), and off the object it counts up to twice with the distance d:

    .. math::
        E^w &= \min(E, \tilde E) \text{ on the object}, \qquad
        E^w = E \, (2 - 2^{-d / 5}) \text{ off it} \\
        F &= \frac{(1 + \beta^2) \, TP^w}{\beta^2 |g| + TP^w + FP^w}, \quad
        TP^w = |g| - \sum_g E^w, \quad FP^w = \sum_{1 - g} E^w

    The distances are computed by SciPy on the CPU.

    Args:
        prediction: Maps in [0, 1].
        target: Masks of 0 and 1, of any type.
        beta2: Weight of recall against precision, above 0; 1 in the authors' program.
        border: ``"valid"`` takes the Gaussian mean over the pixels inside the image. ``"zeros"``
            sees no error beyond it, as the authors' program does, and so credits an empty
            prediction with objects at the border: with 0.8 for one pixel in a corner.

    Returns:
        Values in [0, 1].

    Raises:
        TypeError: If the prediction is not floating.
        ValueError: If shapes or values do not fit, or an option is out of range.
    """
    owner = "weighted_f_measure"
    check_range(owner, "beta2", beta2, low=0.0, low_open=True)
    check_choice(owner, "border", border, ("valid", "zeros"))
    truth = _check(owner, prediction, target)
    pairs = zip(prediction.double(), truth, strict=True)
    return torch.stack([_weighted(p, g, beta2, border) for p, g in pairs])


def _weighted(p: Tensor, g: Tensor, beta2: float, border: str) -> Tensor:
    if not bool(g.any()):
        return (p.amax() == 0.0).double()
    from scipy.ndimage import distance_transform_edt

    distance, nearest = distance_transform_edt((~g).cpu().numpy(), return_indices=True)
    rows, columns = torch.from_numpy(nearest).long().to(p.device)
    error = (p - g.double()).abs()
    spread = _gaussian_mean(error[rows, columns], border)
    off = torch.from_numpy(distance).to(p.device)
    weighted = torch.where(g, error.minimum(spread), error * (2.0 - 0.5 ** (off / _DECAY)))
    real, false = g.double().sum(), weighted[~g].sum()
    hits = real - weighted[g].sum()
    return (1.0 + beta2) * hits / (beta2 * real + hits + false)


def _gaussian_mean(error: Tensor, border: str) -> Tensor:
    offsets = torch.arange(-3, 4, dtype=error.dtype, device=error.device)
    line = torch.exp(-0.5 * (offsets / 5.0).square())
    line = line / line.sum()
    # the mask of the image is filtered too: how much of each window lies inside
    planes = torch.stack([error, torch.ones_like(error)]).unsqueeze(1)
    blurred = functional.conv2d(planes, line.view(1, 1, 7, 1), padding=(3, 0))
    blurred = functional.conv2d(blurred, line.view(1, 1, 1, 7), padding=(0, 3))
    sums, inside = blurred.squeeze(1)
    return sums / inside if border == "valid" else sums


def _check(owner: str, prediction: Tensor, target: Tensor) -> Bool[Tensor, "b h w"]:
    check_floating(owner, "prediction", prediction)
    check_shape(owner, "prediction", prediction, "b h w")
    check_same_shape(owner, prediction=prediction, target=target)
    low, high = prediction.detach().aminmax()
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"{owner}: prediction must lie in [0, 1]; got values from {low.item():g} to "
            f"{high.item():g}. For logits, call sigmoid first."
        )
    wrong = (target != 0) & (target != 1)
    if bool(wrong.any()):
        raise ValueError(
            f"{owner}: target must hold 0 and 1; got {target[wrong][0].item():g}. For a mask of "
            "several classes, pass target == k."
        )
    return target.bool()


def _counts(
    owner: str, prediction: Tensor, truth: Tensor, thresholds: int
) -> tuple[Float64[Tensor, "b t"], Float64[Tensor, "b t"]]:
    """Count, at every threshold, the predicted pixels on the object and all predicted ones."""
    check_integer(owner, "thresholds", thresholds, low=2)
    # Divided, not spaced by a step: a level k of a picture, k / 255, then meets its threshold.
    steps = torch.arange(thresholds, dtype=prediction.dtype, device=prediction.device)
    edges = steps / (thresholds - 1)
    values = prediction.detach().double().contiguous()  # torch warns of others
    level = torch.bucketize(values, edges.double(), right=True) - 1
    count = len(prediction)
    level += thresholds * torch.arange(count, device=level.device).view(-1, 1, 1)

    def at_least(levels: Tensor) -> Tensor:
        exactly = torch.bincount(levels.flatten(), minlength=count * thresholds)
        return exactly.view(count, thresholds).flip(1).cumsum(1).flip(1).double()

    return at_least(level[truth]), at_least(level)
