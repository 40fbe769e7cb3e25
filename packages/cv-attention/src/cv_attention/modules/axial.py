"""Axial attention: self-attention among the positions of each row or column, two steps in turn."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from cv_core.checks import check_choice, check_floating, check_integer, check_shape
from cv_core.nn.attention import Axis, attention_map, axial_attention
from jaxtyping import Float
from torch import Tensor, nn

from cv_attention.modules.position import (
    LearnedPosition,
    Maps,
    QueryKeyValue,
    SinusoidalPosition,
)

Position = Literal["none", "learned", "sinusoidal", "ipe"]


class AxialAttention(nn.Module):
    r"""Self-attention along one axis after the other of Ho et al., 2019, beside a shortcut.

    .. math:: y = x + W_o \, A_\mathrm{width}(A_\mathrm{height}(x))

    where A is multi-head attention among the positions of one column or row, its queries, keys and
    values three 1x1 convolutions of its input. Two steps connect any two positions. Columns come
    first, as in Wang et al., *Axial-DeepLab*, ECCV 2020; nothing here tells positions apart (see
    ``AxialAttention2d`` for that).

    Args:
        channels: Channels of the map.
        heads: Into how many groups the ``hidden`` channels are split; 8 in Axial-DeepLab.
        hidden: Channels of queries, keys and values; ``channels`` by default.
        zero_init: Start from :math:`W_o = 0`, so that it starts as the identity.

    Raises:
        ValueError: If a number is below 1 or the heads do not divide ``hidden``.

    Example:
        >>> AxialAttention(16)(torch.rand(2, 16, 7, 9)).shape
        torch.Size([2, 16, 7, 9])
    """

    def __init__(
        self, channels: int, *, heads: int = 8, hidden: int | None = None, zero_init: bool = False
    ) -> None:
        super().__init__()
        hidden = channels if hidden is None else hidden
        for name, value in (("channels", channels), ("heads", heads), ("hidden", hidden)):
            check_integer("AxialAttention", name, value, low=1)
        if hidden % heads:
            raise ValueError(
                f"AxialAttention: heads must divide hidden={hidden}; got heads={heads}."
            )
        self.channels = channels
        self.heads = heads
        self.zero_init = zero_init
        self.height = nn.Conv2d(channels, 3 * hidden, 1, bias=False)
        self.width = nn.Conv2d(hidden, 3 * hidden, 1, bias=False)
        self.proj = nn.Conv2d(hidden, channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from torch's global generator."""
        for layer in (self.height, self.width, self.proj):
            layer.reset_parameters()
        if self.zero_init:
            for parameter in self.proj.parameters():
                nn.init.zeros_(parameter)

    def extra_repr(self) -> str:
        """Show the heads."""
        return f"heads={self.heads}"

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Mix the positions of ``(B, C, H, W)``."""
        check_floating("AxialAttention", "x", x)
        check_shape("AxialAttention", "x", x, "b c h w", c=self.channels)
        seen = axial_attention(*self.height(x).chunk(3, dim=1), axis="height", heads=self.heads)
        seen = axial_attention(*self.width(seen).chunk(3, dim=1), axis="width", heads=self.heads)
        return x + self.proj(seen)


class AxialAttention2d(nn.Module):
    """Two steps of axial attention with one of four sources of position, for fair comparison.

    Each step is Eq. 7 of the IPE transformer, see ``cv_attention.methods.ipe_transformer``. There
    ``"ipe"`` is the paper's; the others put a learned table, fixed sines or nothing in the place of
    Q_e, K_e and V_e. No shortcut, norm or projection: see ``AxialTransformerBlock`` there.

    Args:
        in_channels: Channels of the input.
        qk_channels: Channels C of queries and of keys; half of ``in_channels`` by default.
        v_channels: Channels of the values and of the output; ``in_channels`` by default.
        heads: Into how many groups both are split; 1 in the paper.
        position: ``"none"``, ``"learned"``, ``"sinusoidal"`` or ``"ipe"``.
        size: Height and width of the learned table; for ``"learned"`` only.
        scale: Whether to divide the logits by the root of a head's C; the paper does not.
        bias: Whether the convolutions of the input have a bias; the equations have none.
        order: The axes of the two steps; rows, then columns, in the paper.

    Raises:
        ValueError: If a number is below 1, the heads do not divide the channels, a choice is
            unknown, or ``size`` is missing or not needed.
    """

    def __init__(
        self,
        in_channels: int,
        qk_channels: int | None = None,
        v_channels: int | None = None,
        heads: int = 1,
        *,
        position: Position = "ipe",
        size: tuple[int, int] | None = None,
        scale: bool = False,
        bias: bool = False,
        order: tuple[Axis, Axis] = ("width", "height"),
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_integer(owner, "in_channels", in_channels, low=1)
        qk = max(1, in_channels // 2) if qk_channels is None else qk_channels
        v = in_channels if v_channels is None else v_channels
        for name, value in (("qk_channels", qk), ("v_channels", v), ("heads", heads)):
            check_integer(owner, name, value, low=1)
        for name, value in (("qk_channels", qk), ("v_channels", v)):
            if value % heads:
                raise ValueError(f"{owner}: heads must divide {name}={value}; got heads={heads}.")
        check_choice(owner, "position", position, get_args(Position))
        for axis in order:
            check_choice(owner, "order", axis, get_args(Axis))
        self.in_channels = in_channels
        self.out_channels = v
        self.heads = heads
        self.order = order
        self.factor = (qk // heads) ** -0.5 if scale else 1.0
        self.steps = nn.ModuleList(
            QueryKeyValue(channels, qk, v, bias=bias) for channels in (in_channels, v)
        )
        self.position = self._make_position(position, size, qk, v, bias=bias)

    def _make_position(
        self, position: Position, size: tuple[int, int] | None, qk: int, v: int, *, bias: bool
    ) -> nn.Module | None:
        owner = type(self).__name__
        if (position == "learned") != (size is not None):
            raise ValueError(
                f"{owner}: size, the height and width of the table, belongs to "
                f'position="learned"; got size={size} and position={position!r}.'
            )
        if size is not None:
            for name, value in zip(("size[0]", "size[1]"), size, strict=True):
                check_integer(owner, name, value, low=1)
            return LearnedPosition(size, qk, v)
        if position == "sinusoidal":
            return SinusoidalPosition(self.in_channels, qk, v)
        return QueryKeyValue(self.in_channels, qk, v, bias=bias) if position == "ipe" else None

    def extra_repr(self) -> str:
        """Show heads, order and scale."""
        return f"heads={self.heads}, order={self.order}, factor={self.factor:g}"

    def _operands(self, number: int, z: Tensor, embedded: Maps | None) -> Maps:
        """Return the left and right sides of the logits, and the values, of a step."""
        query, key, value = self.steps[number](z)
        if embedded is None:
            return key, query, value  # the paper's rows belong to K
        query_e, key_e, value_e = embedded
        left = self._joined(key, query)
        right = self._joined(query + key_e, query_e.expand_as(query))
        return left, right, value + value_e

    def _joined(self, one: Tensor, other: Tensor) -> Tensor:
        """Join the channels of each head."""
        parts = [part.unflatten(1, (self.heads, -1)) for part in (one, other)]
        return torch.cat(parts, dim=2).flatten(1, 2)

    def _start(self, x: Tensor) -> Maps | None:
        owner = type(self).__name__
        check_floating(owner, "x", x)
        check_shape(owner, "x", x, "b c h w", c=self.in_channels)
        return None if self.position is None else self.position(x)

    def _attend(self, operands: Maps, axis: Axis) -> Tensor:
        return axial_attention(*operands, axis=axis, heads=self.heads, scale=self.factor)

    def maps(
        self, x: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b heads n l l"], Float[Tensor, "b heads m k k"]]:
        """Return the weights of both steps.

        Of a step along the width they are ``(B, heads, H, W, W)``, along the height
        ``(B, heads, W, H, H)``; each row sums to 1.
        """
        embedded, z, found = self._start(x), x, []
        for number, axis in enumerate(self.order):
            operands = self._operands(number, z, embedded)
            left, right = (self._lines(side, axis) for side in operands[:2])
            found.append(attention_map(left, right, scale=self.factor))
            z = self._attend(operands, axis)
        first, second = found
        return first, second

    def _lines(self, x: Tensor, axis: Axis) -> Tensor:
        """Sort (B, C, H, W) into (B, heads, lines, positions, channels)."""
        split = x.unflatten(1, (self.heads, -1))
        return split.permute((0, 1, 3, 4, 2) if axis == "width" else (0, 1, 4, 3, 2))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b v h w"]:
        """Turn ``(B, in_channels, H, W)`` into ``(B, v_channels, H, W)``."""
        embedded, z = self._start(x), x
        for number, axis in enumerate(self.order):
            z = self._attend(self._operands(number, z, embedded), axis)
        return z
