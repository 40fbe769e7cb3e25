"""Criss-cross attention: each position sees its row and its column, twice in turn everything."""

from __future__ import annotations

from cv_core.checks import check_floating, check_integer, check_shape
from cv_core.nn.attention import criss_cross_attention, criss_cross_maps
from jaxtyping import Float
from torch import Tensor, nn


class CrissCrossAttention(nn.Module):
    r"""Attention to row and column of Huang et al., *CCNet: Criss-Cross Attention*, ICCV 2019.

    .. math:: y_u = x_u + \sum_{i \in \mathrm{row}(u) \cup \mathrm{column}(u)}
              \mathrm{softmax}_i(q_u^\top k_i) \, v_i

    over the H + W - 1 positions of the cross, u itself once, with 1x1 convolutions q, k and v.
    Applied twice with the same weights, every position has seen every other. The weights take
    H W (H + W) numbers, not :math:`(H W)^2`.

    Args:
        channels: Channels of the map, and of v.
        reduction: q and k have ``channels // reduction`` channels, at least one; 8 in the paper.
        recurrence: How often it is applied; 2 in the paper.
        zero_init: Start from v = 0, so that it starts as the identity; the authors' code does so
            by a factor in front of the sum, which the paper does not have.

    Raises:
        ValueError: If a number is below 1.

    Example:
        >>> import torch
        >>> CrissCrossAttention(16)(torch.rand(2, 16, 7, 9)).shape
        torch.Size([2, 16, 7, 9])
    """

    def __init__(
        self, channels: int, *, reduction: int = 8, recurrence: int = 2, zero_init: bool = False
    ) -> None:
        super().__init__()
        given = {"channels": channels, "reduction": reduction, "recurrence": recurrence}
        for name, value in given.items():
            check_integer("CrissCrossAttention", name, value, low=1)
        hidden = max(1, channels // reduction)
        self.channels = channels
        self.recurrence = recurrence
        self.zero_init = zero_init
        self.query = nn.Conv2d(channels, hidden, 1)
        self.key = nn.Conv2d(channels, hidden, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        if zero_init:
            _zero(self.value)

    def reset_parameters(self) -> None:
        """Draw new weights from torch's global generator."""
        for layer in (self.query, self.key, self.value):
            layer.reset_parameters()
        if self.zero_init:
            _zero(self.value)

    def extra_repr(self) -> str:
        """Show how often it is applied."""
        return f"recurrence={self.recurrence}"

    def maps(
        self, x: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b h w w"], Float[Tensor, "b h w h"]]:
        """Return the first pass's weights of each position: on its row, and on its column.

        The two sum to 1 together. A position's weight on itself stands in its row; in its column
        it is 0.
        """
        check_floating("CrissCrossAttention", "x", x)
        check_shape("CrissCrossAttention", "x", x, "b c h w", c=self.channels)
        return criss_cross_maps(self.query(x), self.key(x))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Apply the attention ``recurrence`` times to ``(B, C, H, W)``."""
        check_floating("CrissCrossAttention", "x", x)
        check_shape("CrissCrossAttention", "x", x, "b c h w", c=self.channels)
        for _ in range(self.recurrence):
            x = criss_cross_attention(self.query(x), self.key(x), self.value(x), residual=x)
        return x


def _zero(layer: nn.Conv2d) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
