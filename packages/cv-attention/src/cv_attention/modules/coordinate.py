"""Coordinate attention: a gate that is a product of one weight per row and one per column."""

from __future__ import annotations

import torch
from cv_core.checks import check_floating, check_integer, check_shape
from jaxtyping import Float
from torch import Tensor, nn


class CoordinateAttention(nn.Module):
    r"""Gate of one weight per row and one per column, of Hou, Zhou and Feng, CVPR 2021.

    *Coordinate Attention for Efficient Mobile Network Design*. With the means :math:`z^h` over each
    row and :math:`z^w` over each column, joined to one sequence of H + W positions,

    .. math::
        [f^h, f^w] = \delta(\mathrm{BN}(F_1 [z^h, z^w])), \quad
        g^h = \sigma(F_h f^h), \; g^w = \sigma(F_w f^w), \quad
        y_{cij} = x_{cij} \, g^h_{ci} \, g^w_{cj}

    and :math:`\delta` the hard swish. Parameters carry the names of the authors' and of timm's
    code, so that weights load both ways. Sigmoids stay below 1: no initialisation makes it the
    identity, and a new one passes about a quarter.

    Args:
        channels: Channels of the map.
        reduction: :math:`F_1` has ``channels // reduction`` outputs; 32 in the paper.
        low: The least number of those outputs; 8 in the authors' code.
        bias: Whether the convolutions have a bias, as in the authors' code; timm's have none.

    Raises:
        ValueError: If a number is below 1.

    Example:
        >>> CoordinateAttention(16)(torch.rand(2, 16, 7, 9)).shape
        torch.Size([2, 16, 7, 9])
    """

    def __init__(
        self, channels: int, *, reduction: int = 32, low: int = 8, bias: bool = True
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("reduction", reduction), ("low", low)):
            check_integer("CoordinateAttention", name, value, low=1)
        hidden = max(low, channels // reduction)
        self.channels = channels
        self.conv1 = nn.Conv2d(channels, hidden, 1, bias=bias)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.act = nn.Hardswish()
        self.conv_h = nn.Conv2d(hidden, channels, 1, bias=bias)
        self.conv_w = nn.Conv2d(hidden, channels, 1, bias=bias)

    def gate(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the weight of each entry, in (0, 1): a product of a row's and a column's."""
        check_floating("CoordinateAttention", "x", x)
        sizes = check_shape("CoordinateAttention", "x", x, "b c h w", c=self.channels)
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).mT
        joined = self.act(self.bn1(self.conv1(torch.cat([rows, columns], dim=2))))
        rows, columns = joined.split((sizes["h"], sizes["w"]), dim=2)
        return self.conv_h(rows).sigmoid() * self.conv_w(columns.mT).sigmoid()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Weight ``(B, C, H, W)``."""
        return x * self.gate(x)
