"""The decoder of U-Net for any encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from cv_core.checks import check_integer
from cv_core.models.unet import Block, double_conv
from jaxtyping import Float
from torch import Tensor, nn

from cv_segmentation.decoders.features import check_channels, check_features, resized


class UNetDecoder(nn.Module):
    """The decoder of U-Net (Ronneberger et al., MICCAI 2015) for any encoder and any size.

    From the coarsest map up: resize to the next finer map, join it, two convolutions. The last step
    reaches the image's size and joins nothing, as in segmentation-models-pytorch. (A U-Net whole,
    with a first stage at full size, is ``cv_core.models.unet.UNet``.)

    Deviations from the paper: padded convolutions with batch normalisation, and bilinear instead of
    learned up-sampling.

    Args:
        encoder_channels: ``encoder.out_channels``; a map without channels is passed over.
        widths: Channels after each step, the finest first: one fewer than maps. By default those of
            the map that is joined, and half as many as before where there is none.
        block: Makes the convolutions of a step from its channels of input and output.

    Attributes:
        out_channels: Channels of the output.
        stride: Stride of the output: 1.

    Raises:
        ValueError: If the channels are no encoder's or the widths are not as many.

    Example:
        >>> from cv_segmentation.encoders import ConvEncoder
        >>> encoder = ConvEncoder((4, 8))
        >>> UNetDecoder(encoder.out_channels)(encoder(torch.zeros(1, 3, 9, 7))).shape
        torch.Size([1, 2, 9, 7])
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        widths: Sequence[int] | None = None,
        *,
        block: Block = double_conv,
    ) -> None:
        super().__init__()
        self.encoder_channels = check_channels("UNetDecoder", encoder_channels)
        skips = (0, *self.encoder_channels[1:-1])
        coarsest = self.encoder_channels[-1]
        chosen = _default(skips, coarsest) if widths is None else list(widths)
        if len(chosen) != len(skips):
            raise ValueError(
                f"UNetDecoder: widths must have {len(skips)} entries, one per halving of the "
                f"encoder; got {len(chosen)}."
            )
        for width in chosen:
            check_integer("UNetDecoder", "widths", width, low=1)
        self.out_channels, self.stride = chosen[0], 1
        below = [*chosen[1:], coarsest]
        self.stages = nn.ModuleList(
            block(skip + coarse, width)
            for skip, coarse, width in zip(skips, below, chosen, strict=True)
        )

    def forward(self, features: Sequence[Tensor]) -> Float[Tensor, "b c h w"]:
        """Decode the maps of an encoder, the image first, to the image's size."""
        check_features("UNetDecoder", features, self.encoder_channels)
        x = features[-1]
        for scale in range(len(self.stages) - 1, -1, -1):
            x = resized(x, features[scale])
            if scale:
                x = torch.cat([x, features[scale]], dim=1)
            x = self.stages[scale](x)
        return x


def _default(skips: Sequence[int], coarsest: int) -> list[int]:
    widths, below = [], coarsest
    for skip in reversed(skips):
        below = skip or max(1, below // 2)
        widths.append(below)
    return widths[::-1]
