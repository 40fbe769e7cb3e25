"""What the decoders share: checks of an encoder's maps, and resizing."""

from __future__ import annotations

from collections.abc import Sequence

from cv_core.checks import check_integer
from torch import Tensor
from torch.nn import functional


def check_channels(owner: str, encoder_channels: Sequence[int]) -> tuple[int, ...]:
    """Refuse channels that no encoder has; return them as a tuple.

    Raises:
        ValueError: If there is no map beside the image, or the coarsest has no channels.
    """
    if len(encoder_channels) < 2:
        raise ValueError(
            f"{owner}: encoder_channels must name the image's channels and those of at least one "
            f"map; got {tuple(encoder_channels)}."
        )
    for channels in encoder_channels:
        check_integer(owner, "encoder_channels", channels, low=0)
    check_integer(owner, "the last of encoder_channels", encoder_channels[-1], low=1)
    return tuple(int(channels) for channels in encoder_channels)


def check_features(owner: str, features: Sequence[Tensor], channels: Sequence[int]) -> None:
    """Refuse maps that are not those that the decoder was made for.

    Raises:
        ValueError: If their number, axes or channels differ.
    """
    if len(features) != len(channels):
        raise ValueError(
            f"{owner}: features must be {len(channels)} maps, the image first; got {len(features)}."
        )
    for number, (item, wanted) in enumerate(zip(features, channels, strict=True)):
        if item.ndim != 4 or item.shape[1] != wanted:
            raise ValueError(
                f"{owner}: features[{number}] must have shape (b, {wanted}, h, w); got "
                f"{tuple(item.shape)}."
            )


def resized(x: Tensor, like: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Return maps at the size of other maps."""
    if x.shape[2:] == like.shape[2:]:
        return x
    corners = None if mode == "nearest" else False
    return functional.interpolate(x, size=like.shape[2:], mode=mode, align_corners=corners)
