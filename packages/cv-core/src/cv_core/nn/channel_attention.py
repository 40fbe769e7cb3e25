"""Channel attention: each channel is scaled by a gate that sees all channels' means."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from cv_core.checks import check_floating, check_integer, check_shape


class ChannelAttention(nn.Module):
    r"""Squeeze and excitation with 1x1 convolutions, Hu et al., CVPR 2018, as RCAN restores images.

    .. math:: y = x \odot \sigma(W_2 \, \mathrm{ReLU}(W_1 \, \mathrm{mean}_{hw}(x) + b_1) + b_2)

    Because the mean is taken over the whole map, a network with it is no longer equivariant to
    translation, and its answer for a crop is not the crop of its answer.

    Args:
        channels: Channels C of the map.
        reduction: :math:`W_1` maps to C // reduction channels, but at least one.

    Example:
        >>> ChannelAttention(64)
        ChannelAttention(
          (squeeze): Conv2d(64, 8, kernel_size=(1, 1), stride=(1, 1))
          (excite): Conv2d(8, 64, kernel_size=(1, 1), stride=(1, 1))
        )
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        check_integer("ChannelAttention", "channels", channels, low=1)
        check_integer("ChannelAttention", "reduction", reduction, low=1)
        hidden = max(1, channels // reduction)
        self.channels = channels
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def gate(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
        """Return the factor of each channel, in (0, 1)."""
        check_floating("ChannelAttention", "x", x)
        check_shape("ChannelAttention", "x", x, "b c h w", c=self.channels)
        return self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Scale the channels of ``(B, C, H, W)``."""
        return x * self.gate(x)
