"""Atrous spatial pyramid pooling and the decoder of DeepLabv3+."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from cv_core.checks import check_integer, check_range, check_shape
from cv_core.nn.blocks import ConvNormAct
from jaxtyping import Float
from torch import Tensor, nn

from cv_segmentation.decoders.features import check_channels, check_features, resized

_SKIP = 2  # halvings of the map that is joined


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling of DeepLabv3 (Chen et al., 2017, arXiv 1706.05587).

    A 1x1 convolution, a 3x3 convolution per dilation and the mean over the image, side by side; a
    1x1 convolution joins them.

    Deviation from the paper: the branch of the mean has a bias instead of batch normalisation,
    which would need more than one image per batch in training.

    Args:
        in_channels: Channels of the map.
        channels: Channels of each branch and of the output.
        rates: Dilations, in pixels of the map.
        dropout: Share of values that are dropped after the join, in [0, 1).

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 256,
        rates: Sequence[int] = (12, 24, 36),
        *,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_integer("ASPP", "in_channels", in_channels, low=1)
        check_integer("ASPP", "channels", channels, low=1)
        for rate in rates:
            check_integer("ASPP", "rates", rate, low=1)
        check_range("ASPP", "dropout", dropout, low=0.0, high=1.0, high_open=True)
        self.in_channels = in_channels
        self.branches = nn.ModuleList(
            [
                ConvNormAct(in_channels, channels, kernel_size=1),
                *(ConvNormAct(in_channels, channels, dilation=rate) for rate in rates),
            ]
        )
        self.mean = ConvNormAct(in_channels, channels, kernel_size=1, norm=None)
        self.join = ConvNormAct((len(rates) + 2) * channels, channels, kernel_size=1)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        """Map ``(B, in_channels, H, W)`` to ``(B, channels, H, W)``."""
        check_shape("ASPP", "x", x, "b c h w", c=self.in_channels)
        mean = self.mean(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        parts = [*(branch(x) for branch in self.branches), mean]
        return self.drop(self.join(torch.cat(parts, dim=1)))


class DeepLabV3PlusDecoder(nn.Module):
    """The decoder of DeepLabv3+ (Chen et al., ECCV 2018): pooling at many rates, one skip.

    The coarsest map goes through ``ASPP``, is resized to the map of stride 4 and joined with it,
    reduced to few channels; two 3x3 convolutions follow.

    The rates are the paper's for a coarsest map of stride 8; divide them for coarser ones, or they
    reach beyond the map.

    Args:
        encoder_channels: ``encoder.out_channels``.
        channels: Channels of the pooling and of the output.
        rates: Dilations of the pooling, in pixels of the coarsest map.
        skip_channels: Channels to which the finer map is reduced.
        dropout: Share of values that are dropped after the pooling, in [0, 1).

    Attributes:
        out_channels: Channels of the output.
        stride: Stride of the output: 4, or that of the finest map with channels beyond.

    Raises:
        ValueError: If the channels are no encoder's or an option is out of range.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        channels: int = 256,
        rates: Sequence[int] = (12, 24, 36),
        *,
        skip_channels: int = 48,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder_channels = check_channels("DeepLabV3PlusDecoder", encoder_channels)
        check_integer("DeepLabV3PlusDecoder", "skip_channels", skip_channels, low=1)
        depth = len(self.encoder_channels) - 1
        scales = range(min(_SKIP, depth), depth + 1)
        self.scale = next(scale for scale in scales if self.encoder_channels[scale])
        self.out_channels, self.stride = channels, 2**self.scale
        self.aspp = ASPP(self.encoder_channels[-1], channels, rates, dropout=dropout)
        self.reduce = ConvNormAct(self.encoder_channels[self.scale], skip_channels, kernel_size=1)
        self.refine = nn.Sequential(
            ConvNormAct(channels + skip_channels, channels), ConvNormAct(channels, channels)
        )

    def forward(self, features: Sequence[Tensor]) -> Float[Tensor, "b c h w"]:
        """Decode the maps of an encoder, the image first, to the size of the joined map."""
        check_features("DeepLabV3PlusDecoder", features, self.encoder_channels)
        skip = self.reduce(features[self.scale])
        x = resized(self.aspp(features[-1]), skip)
        return self.refine(torch.cat([x, skip], dim=1))
