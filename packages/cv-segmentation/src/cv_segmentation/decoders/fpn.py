"""The feature pyramid with its head for segmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from cv_core.checks import check_integer
from cv_core.nn.blocks import ConvNormAct
from jaxtyping import Float
from torch import Tensor, nn

from cv_segmentation.decoders.features import check_channels, check_features, resized

_GROUPS = 32  # of the group normalisation, where the channels allow it
_FINEST = 2  # halvings of the finest level


class FPNDecoder(nn.Module):
    """Feature pyramid (Lin et al., CVPR 2017) with the head of Kirillov et al., CVPR 2019.

    Maps of the strides 4, 8 ... get as many channels each and are added from the coarsest down;
    each level is convolved and enlarged step by step to the finest one's size, and their sum is the
    output.

    Deviations from the papers: each step resizes to the next finer map instead of by two, so that
    any size will do; there is no 3x3 convolution between pyramid and head, as in
    segmentation-models-pytorch.

    Args:
        encoder_channels: ``encoder.out_channels``; a map without channels is passed over.
        channels: Channels of the pyramid.
        out_channels: Channels of the head; half as many by default.

    Attributes:
        out_channels: Channels of the output.
        stride: Stride of the output: that of the finest level, 4 for most encoders.

    Raises:
        ValueError: If the channels are no encoder's.
    """

    def __init__(
        self, encoder_channels: Sequence[int], channels: int = 256, out_channels: int | None = None
    ) -> None:
        super().__init__()
        self.encoder_channels = check_channels("FPNDecoder", encoder_channels)
        check_integer("FPNDecoder", "channels", channels, low=1)
        self.out_channels = max(1, channels // 2) if out_channels is None else out_channels
        check_integer("FPNDecoder", "out_channels", self.out_channels, low=1)
        depth = len(self.encoder_channels) - 1
        scales = range(min(_FINEST, depth), depth + 1)
        self.scales = tuple(scale for scale in scales if self.encoder_channels[scale])
        self.stride = 2 ** self.scales[0]
        self.laterals = nn.ModuleList(
            nn.Conv2d(self.encoder_channels[scale], channels, 1) for scale in self.scales
        )
        self.heads = nn.ModuleList(
            _Head(channels, self.out_channels, max(1, level)) for level in range(len(self.scales))
        )

    def forward(self, features: Sequence[Tensor]) -> Float[Tensor, "b c h w"]:
        """Decode the maps of an encoder, the image first, to the size of the finest level."""
        check_features("FPNDecoder", features, self.encoder_channels)
        used = [features[scale] for scale in self.scales]
        levels = [lateral(item) for lateral, item in zip(self.laterals, used, strict=True)]
        for level in range(len(levels) - 2, -1, -1):
            above = resized(levels[level + 1], levels[level], mode="nearest")
            levels[level] = levels[level] + above
        parts = [head(levels[: level + 1]) for level, head in enumerate(self.heads)]
        return torch.stack(parts).sum(0)


class _Head(nn.ModuleList):
    """Convolutions of one level, each followed by a step to the size of the next finer one."""

    def __init__(self, in_channels: int, out_channels: int, steps: int) -> None:
        widths = [in_channels, *[out_channels] * steps]
        super().__init__(
            ConvNormAct(before, width, norm=_group_norm) for before, width in pairwise(widths)
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        *finer, x = levels
        for step, convolution in enumerate(self, start=1):
            x = convolution(x)
            if finer:
                x = resized(x, finer[-step])
        return x


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
