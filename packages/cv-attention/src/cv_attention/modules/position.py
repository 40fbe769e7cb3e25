"""Where axial attention takes its queries, keys and values of position from.

Each source is called with the attention's input ``(B, C, H, W)`` and returns three maps for H x W
positions: of queries, keys and values. A table or waves have a batch of one.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Maps = tuple[Tensor, Tensor, Tensor]


class QueryKeyValue(nn.Module):
    """One 1x1 convolution to queries, keys and values; ``conv.weight`` holds them in this order.

    Args:
        in_channels: Channels of the input.
        qk_channels: Channels C of queries and of keys.
        v_channels: Channels of the values.
        bias: Whether the convolution has a bias.
    """

    def __init__(
        self, in_channels: int, qk_channels: int, v_channels: int, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.sizes = (qk_channels, qk_channels, v_channels)
        self.conv = nn.Conv2d(in_channels, sum(self.sizes), 1, bias=bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Maps:
        """Return queries, keys and values of ``(B, C, H, W)``."""
        query, key, value = self.conv(x).split(self.sizes, dim=1)
        return query, key, value


class LearnedPosition(nn.Module):
    """A table of queries, keys and values for every position, resized to other sizes.

    Args:
        size: Height and width of the table: those of the training images' maps.
        qk_channels: Channels C of queries and of keys.
        v_channels: Channels of the values.
    """

    def __init__(self, size: tuple[int, int], qk_channels: int, v_channels: int) -> None:
        super().__init__()
        self.sizes = (qk_channels, qk_channels, v_channels)
        self.table = nn.Parameter(torch.empty(1, sum(self.sizes), *size))
        nn.init.trunc_normal_(self.table, std=0.02)  # as vision transformers begin

    def forward(self, x: Float[Tensor, "b c h w"]) -> Maps:
        """Return the tables for the size of ``(B, C, H, W)``, each with a batch of one."""
        size = x.shape[2:]  # to its own size, the table comes out as it is
        table = functional.interpolate(self.table, size, mode="bilinear", align_corners=False)
        query, key, value = table.split(self.sizes, dim=1)
        return query, key, value


class SinusoidalPosition(nn.Module):
    """Queries, keys and values by a 1x1 convolution of fixed sines of row and column.

    Half of the waves tell the row, half the column, with wavelengths from 2 pi to 10,000 times
    that, as in Vaswani et al., 2017; there are as many as the input has channels, rounded up to a
    multiple of four.

    Args:
        in_channels: Channels of the input.
        qk_channels: Channels C of queries and of keys.
        v_channels: Channels of the values.
    """

    frequencies: Tensor

    def __init__(self, in_channels: int, qk_channels: int, v_channels: int) -> None:
        super().__init__()
        count = -(-in_channels // 4)
        exponents = torch.arange(count) / count
        self.register_buffer("frequencies", 10_000.0**-exponents, persistent=False)
        self.maps = QueryKeyValue(4 * count, qk_channels, v_channels)

    def waves(self, height: int, width: int) -> Float[Tensor, "1 c h w"]:
        """Return the fixed encoding of every position."""

        def along(length: int) -> Tensor:
            places = torch.arange(length, dtype=torch.float32, device=self.frequencies.device)
            angles = self.frequencies[:, None] * places
            return torch.cat([angles.sin(), angles.cos()]).to(self.frequencies.dtype)

        rows = along(height)[:, :, None].expand(-1, -1, width)
        columns = along(width)[:, None].expand(-1, height, -1)
        return torch.cat([rows, columns])[None]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Maps:
        """Return the maps for the size of ``(B, C, H, W)``, each with a batch of one."""
        return self.maps(self.waves(x.shape[2], x.shape[3]))
