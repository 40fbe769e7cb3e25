"""Gates that weight the channels or the positions of a map: squeeze-excitation, ECA, CBAM.

Each one maps ``(B, C, H, W)`` to the same shape, and its ``gate`` method returns the weights alone.
Parameters carry the names they have in timm, so that weights load both ways. ``ChannelGate``, which
does not look at the map, serves pruning.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cv_core.checks import check_integer, check_odd, check_shape


def _hidden(owner: str, channels: int, reduction: int) -> int:
    check_integer(owner, "channels", channels, low=1)
    check_integer(owner, "reduction", reduction, low=1)
    return max(1, channels // reduction)


class ChannelGate(nn.Module):
    """One weight per channel that is the same for all inputs, to learn or to switch channels off.

    Put it behind a layer by ``cv_core.nn.surgery.insert_after``; behind a batch normalisation it
    folds away by ``cv_core.nn.folding.scale_into_batchnorm``.

    Args:
        channels: Channels of the map. All weights start at 1, so that nothing changes.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_integer("ChannelGate", "channels", channels, low=1)
        self.weight = nn.Parameter(torch.ones(channels))

    def gate(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
        """Return the weight of each channel."""
        check_shape("ChannelGate", "x", x, "b c h w", c=len(self.weight))
        return self.weight.view(1, -1, 1, 1).expand(len(x), -1, 1, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Weight the channels of ``(B, C, H, W)``."""
        return x * self.gate(x)


class SqueezeExcitation(nn.Module):
    r"""Channel gate of Hu, Shen and Sun, *Squeeze-and-Excitation Networks*, CVPR 2018.

    .. math:: y = x \odot \sigma(W_2 \, \mathrm{ReLU}(W_1 \, \overline{x}))

    with the mean over positions of each channel.

    Args:
        channels: Channels of the map.
        reduction: The hidden layer has ``channels // reduction`` units, at least one.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        hidden = _hidden("SqueezeExcitation", channels, reduction)
        self.channels = channels
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def gate(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
        """Return the weight of each channel, in (0, 1)."""
        check_shape("SqueezeExcitation", "x", x, "b c h w", c=self.channels)
        return self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Weight the channels of ``(B, C, H, W)``."""
        return x * self.gate(x)


class EfficientChannelAttention(nn.Module):
    r"""Channel gate of Wang et al., *ECA-Net*, CVPR 2020: a convolution over neighbouring channels.

    Args:
        channels: Channels of the map.
        kernel_size: How many neighbouring channels are seen, an odd number; by default the odd
            number at or above :math:`\lfloor(\log_2 C + 1) / 2\rfloor`, and at least 3.
    """

    def __init__(self, channels: int, *, kernel_size: int | None = None) -> None:
        super().__init__()
        check_integer("EfficientChannelAttention", "channels", channels, low=1)
        if kernel_size is None:
            kernel_size = max(3, int((math.log2(channels) + 1) / 2) | 1)
        check_odd("EfficientChannelAttention", "kernel_size", kernel_size)
        self.channels = channels
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def gate(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
        """Return the weight of each channel, in (0, 1)."""
        check_shape("EfficientChannelAttention", "x", x, "b c h w", c=self.channels)
        means = x.mean((2, 3)).unsqueeze(1)
        return self.conv(means).sigmoid().transpose(1, 2).unsqueeze(3)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Weight the channels of ``(B, C, H, W)``."""
        return x * self.gate(x)


class ChannelAttention(nn.Module):
    r"""CBAM's channel gate: one network for the mean and the maximum of each channel.

    .. math:: y = x \odot \sigma(f(\overline{x}) + f(\max x)), \quad f(u) = W_2 \mathrm{ReLU}(W_1 u)

    Args:
        channels: Channels of the map.
        reduction: The hidden layer has ``channels // reduction`` units, at least one.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        hidden = _hidden("ChannelAttention", channels, reduction)
        self.channels = channels
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def gate(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
        """Return the weight of each channel, in (0, 1)."""
        check_shape("ChannelAttention", "x", x, "b c h w", c=self.channels)
        mean, maximum = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        scores = [self.fc2(self.act(self.fc1(pooled))) for pooled in (mean, maximum)]
        return (scores[0] + scores[1]).sigmoid()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Weight the channels of ``(B, C, H, W)``."""
        return x * self.gate(x)


class SpatialAttention(nn.Module):
    """CBAM's spatial gate: a convolution over the mean and the maximum of the channels.

    Args:
        kernel_size: Size of the convolution, an odd number.
    """

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        check_odd("SpatialAttention", "kernel_size", kernel_size)
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def gate(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """Return the weight of each position, in (0, 1)."""
        check_shape("SpatialAttention", "x", x, "b c h w")
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return self.bn(self.conv(pooled)).sigmoid()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Weight the positions of ``(B, C, H, W)``."""
        return x * self.gate(x)


class CBAM(nn.Module):
    """Convolutional block attention of Woo et al., ECCV 2018: channel gate, then spatial gate.

    Args:
        channels: Channels of the map.
        reduction: Of the channel gate.
        kernel_size: Of the spatial gate.
    """

    def __init__(self, channels: int, *, reduction: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, reduction=reduction)
        self.spatial = SpatialAttention(kernel_size)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Weight the channels, then the positions, of ``(B, C, H, W)``."""
        return self.spatial(self.channel(x))
