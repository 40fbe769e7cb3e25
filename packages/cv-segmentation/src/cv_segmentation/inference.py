"""Prediction for whole images: by overlapping windows, and averaged over views of the image.

The model is called in evaluation mode and without gradients; its modules' train/eval flags are put
back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

import torch
from cv_core.checks import (
    check_choice,
    check_floating,
    check_integer,
    check_range,
    check_shape,
)
from cv_core.engine.evaluation import modes_kept
from cv_core.imaging.patches import Region, extract_patches, grid_regions
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_segmentation.losses.labels import Mode, probabilities

Model = Callable[[Tensor], Tensor]

# Far from the centre a Gaussian vanishes: without a floor, rounding errors would be divided.
_FLOOR = 1e-3


def sliding_window(
    model: Model,
    image: Float[Tensor, "b c h w"],
    window: int | tuple[int, int],
    overlap: float = 0.5,
    *,
    sigma: float = 0.125,
    batch_size: int = 4,
) -> Float[Tensor, "b k h w"]:
    r"""Predict windows of an image and blend them by a Gaussian around each window's centre.

    .. math:: y = \frac{\sum_t w_t \, f(x_t)}{\sum_t w_t}, \qquad
        w(q) = \max\left(e^{-|q - c|^2 / (2 (\sigma s)^2)}, 10^{-3}\right)

    with s the side and c the centre of the window. A window larger than the image shrinks to it;
    one that covers the image gives what ``model(image)`` gives. For a model that wants a fixed
    size or a multiple, pass ``Padded(model, multiple)``.

    Args:
        model: Maps windows ``(N, C, h, w)`` to ``(N, K, h, w)``, such as logits, which are blended
            as they come. It gets the windows of one step together.
        image: ``(B, C, H, W)`` of any size.
        window: Side(s) of a window in pixels.
        overlap: Share of a window that the next one covers too, in [0, 1).
        sigma: Width of the Gaussian in units of the window's side, above 0.
        batch_size: Windows per call of the model, for each image of the batch.

    Returns:
        The blended output ``(B, K, H, W)``, on the image's device.

    Raises:
        TypeError: If the image is not floating.
        ValueError: If an option is out of range or the model changes the sides.

    Example:
        >>> x = torch.rand(1, 3, 50, 70)
        >>> torch.allclose(sliding_window(lambda part: 2 * part, x, 32), 2 * x)
        True
    """
    owner = "sliding_window"
    sides = check_shape(owner, "image", image, "b c h w")
    check_floating(owner, "image", image)
    check_range(owner, "overlap", overlap, low=0.0, high=1.0, high_open=True)
    check_range(owner, "sigma", sigma, low=0.0, low_open=True)
    check_integer(owner, "batch_size", batch_size, low=1)
    height, width = window if isinstance(window, tuple) else (window, window)
    for side in (height, width):
        check_integer(owner, "window", side, low=1)
    size = (min(height, sides["h"]), min(width, sides["w"]))
    stride = (_stride(size[0], overlap), _stride(size[1], overlap))
    regions = grid_regions(sides["h"], sides["w"], size, stride)
    with _predicting(model):
        return _blend(model, image, regions, sigma, batch_size)


@dataclass(frozen=True)
class View:
    """A way to look at an image, and back: scaled, then turned, then flipped left to right.

    Args:
        turns: Quarter turns against the clock, 0 to 3.
        flip: Whether left and right change places, after the turns. Up and down are two turns
            and a flip.
        scale: Factor of the sides, above 0; bilinear.
    """

    turns: int = 0
    flip: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_integer("View", "turns", self.turns, low=0, high=3)
        check_range("View", "scale", self.scale, low=0.0, low_open=True)

    def apply(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c _ _"]:
        """Return the image as this view shows it."""
        if self.scale != 1.0:
            size = [max(1, round(side * self.scale)) for side in image.shape[2:]]
            image = _resized(image, size)
        image = torch.rot90(image, self.turns, (2, 3))
        return image.flip(3) if self.flip else image

    def undo(
        self, maps: Float[Tensor, "b k _ _"], size: tuple[int, int]
    ) -> Float[Tensor, "b k h w"]:
        """Return maps of the view as maps of the image, whose height and width are ``size``."""
        maps = maps.flip(3) if self.flip else maps
        maps = torch.rot90(maps, -self.turns, (2, 3))
        return maps if tuple(maps.shape[2:]) == size else _resized(maps, size)


FLIPS = (View(), View(flip=True), View(turns=2, flip=True), View(turns=2))
"""The image, flipped left to right, flipped up to down, and both."""

QUARTER_TURNS = tuple(View(turns=turns, flip=flip) for flip in (False, True) for turns in range(4))
"""All eight symmetries of the square."""


def test_time_augmentation(
    model: Model,
    image: Float[Tensor, "b c h w"],
    transforms: Sequence[View] = FLIPS,  # noqa: PT028 - not a test
    *,
    mode: Mode = "multiclass",  # noqa: PT028
    from_logits: bool = True,  # noqa: PT028
) -> Float[Tensor, "b k h w"]:
    """Average the probabilities that a model gives to several views of an image.

    Args:
        model: Maps images ``(B, C, h, w)`` to scores ``(B, K, h, w)``.
        image: ``(B, C, H, W)``.
        transforms: The views, at least one; ``FLIPS``, ``QUARTER_TURNS`` or any of your own. The
            image itself is one of them only if it is listed.
        mode: ``"multiclass"`` for softmax, ``"binary"`` or ``"multilabel"`` for sigmoid.
        from_logits: Whether the scores are logits, or else probabilities already.

    Returns:
        Probabilities ``(B, K, H, W)``.

    Raises:
        TypeError: If the image is not floating.
        ValueError: If there is no view, or the model changes the sides.

    Example:
        >>> x = torch.rand(1, 3, 6, 8)
        >>> test_time_augmentation(lambda view: view, x).sum(1).allclose(torch.ones(1, 6, 8))
        True
    """
    owner = "test_time_augmentation"
    sides = check_shape(owner, "image", image, "b c h w")
    check_floating(owner, "image", image)
    check_choice(owner, "mode", mode, get_args(Mode))
    if not transforms:
        raise ValueError(f"{owner}: transforms must hold at least one view; got none.")
    with _predicting(model):
        parts = []
        for view in transforms:
            seen = view.apply(image)
            scores = _call(owner, model, seen)
            p = probabilities(owner, scores, mode, from_logits=from_logits)
            parts.append(view.undo(p, (sides["h"], sides["w"])))
        return torch.stack(parts).mean(0)


test_time_augmentation.__test__ = False  # type: ignore[attr-defined]  # pytest: not a test


@contextmanager
def _predicting(model: Model) -> Iterator[None]:
    if not isinstance(model, nn.Module):
        with torch.no_grad():
            yield
        return
    with modes_kept(model), torch.no_grad():
        model.eval()
        yield


def _call(owner: str, model: Model, x: Tensor) -> Tensor:
    out = model(x)
    if not isinstance(out, Tensor):
        raise ValueError(f"{owner}: model must return a tensor; got {type(out).__name__}.")
    check_shape(owner, "the model's output", out, "n k h w", n=len(x), h=x.shape[2], w=x.shape[3])
    return out


def _blend(
    model: Model, image: Tensor, regions: Sequence[Region], sigma: float, batch_size: int
) -> Tensor:
    """Add one batch of windows after the other, so that never more than one is in memory."""
    first = regions[0]
    height, width = image.shape[2:]
    total: Tensor | None = None
    for start in range(0, len(regions), batch_size):
        part = regions[start : start + batch_size]
        out = _call("sliding_window", model, torch.cat(extract_patches(image, part)))
        if total is None:
            if len(regions) == 1:
                return out.to(image.device)
            wide = torch.promote_types(out.dtype, torch.float32)  # sums in half would lose digits
            weight = _gaussian(first, sigma, wide, image.device)
            total = torch.zeros(
                len(image), out.shape[1], height, width, dtype=wide, device=image.device
            )
            share = torch.zeros(height, width, dtype=wide, device=image.device)
        for region, values in zip(part, out.to(image.device).split(len(image)), strict=True):
            inside = (..., slice(region.top, region.bottom), slice(region.left, region.right))
            total[inside] += weight * values
            share[inside] += weight
    assert total is not None  # noqa: S101 - there is a region
    return (total / share).to(out.dtype)


def _gaussian(region: Region, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    tapers = []
    for side in (region.height, region.width):
        places = torch.arange(side, dtype=dtype, device=device) - (side - 1) / 2
        tapers.append(torch.exp(-0.5 * (places / (sigma * side)).square()))
    return torch.outer(*tapers).clamp_min(_FLOOR)


def _stride(side: int, overlap: float) -> int:
    return max(1, int(side * (1.0 - overlap)))


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(maps, size=list(size), mode="bilinear", align_corners=False)
