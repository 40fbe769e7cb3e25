"""An encoder-decoder with skip connections and exchangeable parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_core.checks import check_integer, check_shape
from cv_core.nn.blocks import ConvNormAct

Block = Callable[[int, int], nn.Module]
"""Makes a block of one scale from its channels of input and output; it keeps the size."""


def double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return the block of Ronneberger et al. with normalisation: two 3x3 convolutions."""
    return nn.Sequential(
        ConvNormAct(in_channels, out_channels), ConvNormAct(out_channels, out_channels)
    )


class UNetEncoder(nn.Module):
    """Blocks with a halving of the sides between: ``stages.0`` ... and ``downs.0`` ...

    Args:
        in_channels: Channels of the image.
        widths: Channels of each scale, the finest first.
        block: Makes the block of a scale.
        down: Makes the halving from the channels.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        *,
        block: Block = double_conv,
        down: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_integer("UNetEncoder", "in_channels", in_channels, low=1)
        if not widths:
            raise ValueError("UNetEncoder: widths must name at least one scale; got none.")
        before = [in_channels, *widths[:-1]]
        self.in_channels = in_channels
        self.stages = nn.ModuleList(block(*pair) for pair in zip(before, widths, strict=True))
        self.downs = nn.ModuleList(
            nn.MaxPool2d(2) if down is None else down(width) for width in widths[:-1]
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """Return one map per scale, the finest first, for sides that the halvings divide."""
        check_shape("UNetEncoder", "x", x, "b c h w", c=self.in_channels)
        maps = [self.stages[0](x)]
        for down, stage in zip(self.downs, self.stages[1:], strict=True):
            maps.append(stage(down(maps[-1])))
        return maps


class UNetDecoder(nn.Module):
    """From the coarsest map up, joining each finer one: of any encoder, at any sizes.

    Args:
        in_channels: Channels of the maps, the finest first, as a timm model tells by
            ``feature_info.channels()``.
        widths: Channels after each join, the finest first: one fewer than maps; by default those
            of the finer maps.
        block: Makes the block after each join.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        widths: Sequence[int] | None = None,
        *,
        block: Block = double_conv,
    ) -> None:
        super().__init__()
        if not in_channels:
            raise ValueError("UNetDecoder: in_channels must name at least one map; got none.")
        chosen = list(in_channels[:-1]) if widths is None else list(widths)
        if len(chosen) != len(in_channels) - 1:
            raise ValueError(
                f"UNetDecoder: widths must have {len(in_channels) - 1} entries, one fewer than "
                f"in_channels; got {len(chosen)}."
            )
        self.in_channels = tuple(in_channels)
        below = [*chosen[1:], in_channels[-1]]
        self.out_channels = chosen[0] if chosen else in_channels[0]
        self.stages = nn.ModuleList(
            block(skip + coarse, width)
            for skip, coarse, width in zip(in_channels, below, chosen, strict=False)
        )

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "b c h w"]:
        """Decode maps ``(B, C_i, H_i, W_i)``, the finest first, to the size of the finest.

        Raises:
            ValueError: If number or channels of the maps are not the promised ones.
        """
        if len(maps) != len(self.in_channels):
            raise ValueError(
                f"UNetDecoder: maps must be {len(self.in_channels)} feature maps; got {len(maps)}."
            )
        for number, (feature, channels) in enumerate(zip(maps, self.in_channels, strict=True)):
            check_shape("UNetDecoder", f"maps[{number}]", feature, "b c h w", c=channels)
        x = maps[-1]
        for stage, skip in zip(reversed(self.stages), reversed(maps[:-1]), strict=True):
            x = functional.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = stage(torch.cat([skip, x], dim=1))
        return x


class UNet(nn.Module):
    """U-Net after Ronneberger et al., MICCAI 2015, for images of any size.

    The parts are ``encoder`` (``stages.N`` is the bottleneck), ``decoder`` and ``head``. Sides that
    the halvings do not divide are padded by repeating the border, and the output is cropped.

    Deviations from the paper: padded convolutions with batch normalisation, and bilinear instead of
    learned up-sampling, as is usual today.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the output, such as the number of classes.
        widths: Channels of each scale, the finest first.
        block: Makes the block of a scale from its channels of input and output.
        down: Makes the halving between scales from the channels; maximum pooling by default.

    Example:
        >>> UNet(1, 3, widths=(4, 8))(torch.zeros(1, 1, 9, 7)).shape
        torch.Size([1, 3, 9, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int] = (16, 32, 64, 128),
        block: Block = double_conv,
        down: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_integer("UNet", "out_channels", out_channels, low=1)
        self.multiple = 2 ** (len(widths) - 1)
        self.encoder = UNetEncoder(in_channels, widths, block=block, down=down)
        self.decoder = UNetDecoder(widths, block=block)
        self.head = nn.Conv2d(self.decoder.out_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Map images ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        check_shape("UNet", "x", x, "b c h w", c=self.encoder.in_channels)
        height, width = x.shape[2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        if bottom or right:
            x = functional.pad(x, (0, right, 0, bottom), mode="replicate")
        return self.head(self.decoder(self.encoder(x)))[:, :, :height, :width]
