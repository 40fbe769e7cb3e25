"""How well speckle is removed where no clean image is known: ENL, EPD-ROA and UM.

None of them is enough: ENL is best for a constant, EPD-ROA for the noisy image itself, and neither
EPD-ROA nor UM's second part sees a wrong brightness. Read them together, beside the ratio of the
means of the filtered and the noisy image, which should be one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
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


def enl(images: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    r"""Return the equivalent number of looks of each image, :math:`\mu^2 / \sigma^2`.

    It means something in areas of constant reflectance only: cut one out first. For intensities
    with speckle of L looks it is about L; the more speckle a filter removes, the higher it is.

    Args:
        images: Intensities of a flat area.

    Returns:
        One value per image; infinite for a constant one, zero included.
    """
    check_floating("enl", "images", images)
    check_shape("enl", "images", images, "b c h w")
    flat = images.flatten(1)
    # rounding must not make a constant image vary
    constant = (flat == flat[:, :1]).all(1)
    looks = flat.mean(1).square() / flat.var(1, correction=0)
    return looks.masked_fill(constant, torch.inf)


def epd_roa(
    denoised: Float[Tensor, "b c h w"],
    noisy: Float[Tensor, "b c h w"],
    *,
    direction: Literal["h", "v"] = "h",
    floor: float = 1e-3,
) -> Float[Tensor, " b"]:
    r"""Return the edge-preservation degree based on the ratio of averages, Feng et al., 2011.

    .. math:: \sum_i |D_i / D_{i+1}| \,\Big/\, \sum_i |O_i / O_{i+1}|

    over pairs of neighbours, D filtered and O noisy. It is 1 if nothing was filtered and does not
    change if an image is multiplied by a constant. A constant image gives one over the mean ratio
    of the noisy neighbours, which for speckle of L looks is L / (L - 1): with many looks it hardly
    tells one filter from another, with one look that mean does not exist.

    Args:
        denoised: Filtered intensities.
        noisy: The intensities that were filtered.
        direction: Whether neighbours lie side by side (``"h"``) or one above the other (``"v"``).
        floor: Smaller absolute values, as shares of the image's mean one, are raised to it: a
            single black pixel would outweigh all others.

    Returns:
        One value per image.
    """
    check_choice("epd_roa", "direction", direction, ("h", "v"))
    check_range("epd_roa", "floor", floor, low=0.0)
    _check_pair("epd_roa", denoised, noisy)
    axis = 3 if direction == "h" else 2
    if denoised.shape[axis] < 2:
        raise ValueError(
            f"epd_roa: denoised must have two neighbours along direction={direction!r}; got "
            f"{tuple(denoised.shape)}."
        )
    return _neighbour_ratios(denoised, axis, floor) / _neighbour_ratios(noisy, axis, floor)


def _neighbour_ratios(images: Tensor, axis: int, floor: float) -> Tensor:
    size = images.abs()
    size = size.clamp_min(floor * size.mean((1, 2, 3), keepdim=True))
    count = size.shape[axis] - 1
    return (size.narrow(axis, 0, count) / size.narrow(axis, 1, count)).sum((1, 2, 3))


class Unassisted(NamedTuple):
    """What ``um`` finds of each image, (B,) each; all are better lower, and 0 for an ideal filter.

    Args:
        total: The sum of the other two.
        residual: How far mean and looks of the ratio image are off in flat areas, in percent.
        structure: How much more alike neighbours of the ratio image are than by chance, in percent.
    """

    total: Tensor
    residual: Tensor
    structure: Tensor


def um(
    denoised: Float[Tensor, "b 1 h w"],
    noisy: Float[Tensor, "b 1 h w"],
    looks: float,
    *,
    window: int = 16,
    tolerance: float = 0.2,
    levels: int = 8,
) -> Unassisted:
    r"""Judge a filter by what it took away, after Gomez, Ospina and Frery, Remote Sensing 9, 2017.

    The ratio image :math:`r = y / \hat x` of an ideal filter is the speckle: of mean one, with as
    many looks as the noisy image has, and without structure. Hence (in percent)

    .. math::
        M = \frac{1}{n} \sum_i \frac12 \Bigl( \frac{|E_y^i - E_r^i|}{E_y^i} + |1 - \mu_r^i| \Bigr)
            + \frac{|h - \bar h|}{h}

    over n flat windows with equivalent numbers of looks E and means :math:`\mu`; and with the
    homogeneity :math:`h = \sum_{kl} p_{kl} / (1 + (k - l)^2)` of the co-occurrence matrix of r and
    its mean :math:`\bar h` over shuffled r.

    Choices that the authors leave open, or that are made otherwise here: windows are flat where
    the noisy image has at least ``1 - tolerance`` times the given looks (the flattest one if there
    is none); they are averaged, not summed, so that the size of the image does not count; the mean
    over all shuffles is known in closed form and not drawn; the grey levels are equally frequent.

    Args:
        denoised: The filtered intensities; values below a thousandth of the mean count as that.
        noisy: Intensities, one channel.
        looks: Number of looks of the noisy image, above 0.
        window: Side of the windows, which tile the image from its first pixel on.
        tolerance: How much less looks a flat window may have, in [0, 1).
        levels: Grey levels of the co-occurrence matrix, at least 2.

    Returns:
        Three numbers per image; infinite if nothing was filtered.

    Raises:
        ValueError: If the image is smaller than the window, or an option lies outside its range.
    """
    _check_pair("um", denoised, noisy)
    sizes = check_shape("um", "noisy", noisy, "b 1 h w")
    check_range("um", "looks", looks, low=0.0, low_open=True)
    check_integer("um", "window", window, low=2, high=min(sizes["h"], sizes["w"]))
    check_range("um", "tolerance", tolerance, low=0.0, high=1.0, high_open=True)
    check_integer("um", "levels", levels, low=2)
    floor = 1e-3 * denoised.mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(noisy.dtype).tiny)
    ratio = noisy / torch.maximum(denoised, floor)
    looks_floor = (1.0 - tolerance) * looks
    pairs = zip(noisy, ratio, strict=True)
    residual = 100 * torch.stack([_residual(y, r, window, looks_floor) for y, r in pairs])
    structure = 100 * torch.stack([_structure(r[0], levels) for r in ratio])
    return Unassisted(residual + structure, residual, structure)


def _residual(noisy: Tensor, ratio: Tensor, window: int, looks_floor: float) -> Tensor:
    tiles, tiles_of_ratio = _tiles(noisy, window), _tiles(ratio, window)
    looks, looks_of_ratio = enl(tiles), enl(tiles_of_ratio)
    flat = looks.isfinite() & (looks >= looks_floor)
    if not bool(flat.any()):
        flat = torch.arange(len(looks), device=looks.device) == looks.argmax()
    off = (looks - looks_of_ratio).abs() / looks + (1.0 - tiles_of_ratio.mean((1, 2, 3))).abs()
    return 0.5 * off[flat].mean()


def _tiles(image: Tensor, window: int) -> Tensor:
    columns = functional.unfold(image[None], window, stride=window)
    return columns[0].T.reshape(-1, 1, window, window)


def _structure(ratio: Tensor, levels: int) -> Tensor:
    # a sample is enough for the edges, and torch's quantile takes no more than 2**24 values
    sample = ratio.flatten()[:: max(1, ratio.numel() // 2**22)]
    inner = torch.linspace(0, 1, levels + 1, dtype=ratio.dtype, device=ratio.device)[1:-1]
    level = torch.bucketize(ratio, sample.quantile(inner))
    index = torch.arange(levels, device=ratio.device, dtype=torch.float64)
    likeness = 1.0 / (1.0 + (index[:, None] - index).square())
    found = (likeness * _co_occurrence(level, levels)).sum()
    # the chance that two different pixels, drawn without replacement, have levels k and l
    counts = torch.bincount(level.flatten(), minlength=levels).double()
    pixels = counts.sum()
    drawn = (torch.outer(counts, counts) - counts.diag()) / (pixels * (pixels - 1))
    return ((found - (likeness * drawn).sum()).abs() / found).to(ratio.dtype)


def _co_occurrence(level: Int64[Tensor, "h w"], levels: int) -> Float[Tensor, "k k"]:
    """Return how often levels are neighbours, side by side or one above the other; sums to one."""
    across = levels * level[:, :-1] + level[:, 1:]
    down = levels * level[:-1] + level[1:]
    pairs = torch.cat([across.flatten(), down.flatten()])
    return torch.bincount(pairs, minlength=levels**2).view(levels, levels).double() / len(pairs)


def _check_pair(owner: str, denoised: Tensor, noisy: Tensor) -> None:
    check_floating(owner, "denoised", denoised)
    check_floating(owner, "noisy", noisy)
    check_shape(owner, "denoised", denoised, "b c h w")
    check_same_shape(owner, denoised=denoised, noisy=noisy)
