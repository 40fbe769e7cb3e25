"""A shallow branch that keeps detail and sees the whole image, and its fusion with the encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from cv_core.checks import check_floating, check_integer, check_shape
from cv_core.nn.gates import SqueezeExcitation
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_segmentation.video.attention import CrissCrossContext

Block = Callable[[int], nn.Module]
"""Makes a module (B, C, H, W) -> same shape for a number of channels."""


def separable(
    in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True
) -> nn.Sequential:
    """Make a 3x3 convolution that is separable by depth: each channel's own, then 1x1 over all."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=bias),
    )


class SpatialContextBranch(nn.Module):
    """Strided convolutions of the image, then attention between distant places.

    Args:
        channels: Channels of its output.
        in_channels: Channels of the image.
        steps: Number of convolutions, each with stride 2; 3 in the paper.
        attention: Makes the attention for a number of channels: two rounds of criss-cross by
            default; ``cv_core.nn.attention.NonLocalBlock`` or your own; ``lambda _: nn.Identity()``
            for none.

    Raises:
        ValueError: If a number is below 1.

    Example:
        >>> SpatialContextBranch(16)(torch.rand(2, 3, 30, 53)).shape
        torch.Size([2, 16, 4, 7])
    """

    def __init__(
        self,
        channels: int,
        in_channels: int = 3,
        *,
        steps: int = 3,
        attention: Block = CrissCrossContext,
    ) -> None:
        super().__init__()
        given = {"channels": channels, "in_channels": in_channels, "steps": steps}
        for name, value in given.items():
            check_integer("SpatialContextBranch", name, value, low=1)
        self.in_channels = in_channels
        self.convolutions = nn.Sequential()
        for step in range(steps):
            source = channels if step else in_channels
            self.convolutions.append(separable(source, channels, stride=2, bias=False))
            self.convolutions.extend([nn.BatchNorm2d(channels), nn.ReLU()])
        self.attention = attention(channels)

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Return ``(B, channels, ceil(H / 2^steps), ceil(W / 2^steps))``."""
        check_floating("SpatialContextBranch", "image", image)
        check_shape("SpatialContextBranch", "image", image, "b c h w", c=self.in_channels)
        return self.attention(self.convolutions(image))


class ContextFusion(nn.Module):
    r"""Joins the context with a feature of the backbone and weighs the channels.

    .. math:: u = \mathrm{ReLU}(\mathrm{BN}(W * [s, f])), \qquad
              y = u + u \odot \sigma(W_2 \, \mathrm{ReLU}(W_1 \overline u))

    Args:
        context_channels: Channels of s.
        feature_channels: Channels of f.
        channels: Channels of the result.
        reduction: The gate's hidden layer has ``channels // reduction`` units, at least one.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(
        self,
        context_channels: int,
        feature_channels: int,
        channels: int,
        *,
        reduction: int = 4,
    ) -> None:
        super().__init__()
        for name, value in (
            ("context_channels", context_channels), ("feature_channels", feature_channels),
            ("channels", channels),
        ):  # fmt: skip
            check_integer("ContextFusion", name, value, low=1)
        self.context_channels = context_channels
        self.feature_channels = feature_channels
        self.mix = nn.Sequential(
            separable(context_channels + feature_channels, channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.gate = SqueezeExcitation(channels, reduction=reduction)

    def forward(
        self, context: Float[Tensor, "b s h w"], feature: Float[Tensor, "b f h2 w2"]
    ) -> Float[Tensor, "b c h2 w2"]:
        """Join ``(B, S, H, W)``, resized if need be, with ``(B, F, H', W')``."""
        sizes = check_shape("ContextFusion", "context", context, "b s h w", s=self.context_channels)
        check_shape(
            "ContextFusion", "feature", feature, "b f h w", b=sizes["b"], f=self.feature_channels
        )
        u = self.mix(torch.cat([resize(context, feature), feature], dim=1))
        return u + self.gate(u)


def resize(x: Float[Tensor, "b c h w"], like: Tensor) -> Float[Tensor, "b c h2 w2"]:
    """Interpolate a map to the height and width of another; the same map if they agree."""
    size = like.shape[-2:]
    if x.shape[-2:] == size:
        return x
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
