"""Attention over tokens and over maps, and a transformer encoder.

Products over all positions, rows or columns run through torch's fused
``scaled_dot_product_attention``, which never forms the map; a map is computed only where it is
asked for, by the methods ``maps``. Criss-cross attention forms its map, which is small.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cv_core.checks import check_choice, check_integer, check_range, check_shape

Axis = Literal["width", "height"]


def attention_map(
    query: Float[Tensor, "*b n c"],
    key: Float[Tensor, "*b m c"],
    *,
    scale: float | None = None,
    mask: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "*b n m"]:
    r"""Return the weights :math:`\mathrm{softmax}(s Q K^\top)` that the fused product applies.

    Args:
        query: ``(..., N, C)``.
        key: ``(..., M, C)``.
        scale: The factor s; :math:`1 / \sqrt C` by default.
        mask: True where a query may look at a key; broadcast to ``(..., N, M)``.

    Returns:
        ``(..., N, M)``; each row sums to 1.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    logits = factor * query @ key.mT
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return logits.softmax(-1)


def axial_attention(
    query: Float[Tensor, "b c h w"],
    key: Float[Tensor, "b c h w"],
    value: Float[Tensor, "b d h w"],
    *,
    axis: Axis,
    heads: int = 1,
    scale: float | None = None,
) -> Float[Tensor, "b d h w"]:
    r"""Attend within each row (``axis="width"``) or within each column (``"height"``).

    .. math:: y_i = \sum_j \mathrm{softmax}_j(s \, q_i^\top k_j) \, v_j

    with j running over the positions of i's row or column. Sums of several bilinear forms are one
    call: concatenate their queries and their keys over the channels and give ``scale``.

    Args:
        query: ``(B, C, H, W)``.
        key: ``(B, C, H, W)``.
        value: ``(B, D, H, W)``.
        axis: Along which axis positions see each other.
        heads: Into how many groups the channels are split; it divides C and D.
        scale: The factor s; one over the square root of a head's channels by default.

    Returns:
        ``(B, D, H, W)``.

    Raises:
        ValueError: If the shapes do not fit or the heads do not divide the channels.
    """
    check_choice("axial_attention", "axis", axis, get_args(Axis))
    sizes = check_shape("axial_attention", "query", query, "b c h w")
    check_shape("axial_attention", "key", key, "b c h w", **sizes)
    del sizes["c"]
    channels = check_shape("axial_attention", "value", value, "b d h w", **sizes)["d"]
    check_integer("axial_attention", "heads", heads, low=1)
    for name, count in (("query", query.shape[1]), ("value", channels)):
        _check_heads("axial_attention", name, count, heads)

    def rows(x: Tensor) -> Tensor:  # (B * lines, heads, positions, channels of a head)
        split = x.reshape(len(x), heads, -1, *x.shape[2:])
        order = (0, 3, 1, 4, 2) if axis == "width" else (0, 4, 1, 3, 2)
        # the fused kernels take four axes, not five, and channels side by side
        return split.permute(order).flatten(0, 1).contiguous()

    out = scaled_dot_product_attention(rows(query), rows(key), rows(value), scale=scale)
    order = (0, 2, 4, 1, 3) if axis == "width" else (0, 2, 4, 3, 1)
    return out.unflatten(0, (len(query), -1)).permute(order).flatten(1, 2)


def _check_heads(owner: str, name: str, channels: int, heads: int) -> None:
    if channels % heads:
        raise ValueError(
            f"{owner}: heads must divide the channels of {name}; got {heads} heads and "
            f"{channels} channels."
        )


def criss_cross_maps(
    query: Float[Tensor, "b c h w"], key: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, "b h w w"], Float[Tensor, "b h w h"]]:
    """Return the weights that ``criss_cross_attention`` applies: on the row, and on the column.

    Args:
        query: ``(B, C, H, W)``.
        key: ``(B, C, H, W)``.

    Returns:
        ``(B, H, W, W)`` and ``(B, H, W, H)``, which sum to 1 together. A position's weight on
        itself stands in its row; in its column it is 0.

    Raises:
        ValueError: If the shapes differ.
    """
    sizes = check_shape("criss_cross_attention", "query", query, "b c h w")
    check_shape("criss_cross_attention", "key", key, "b c h w", **sizes)
    row = torch.einsum("bchw,bchj->bhwj", query, key)
    column = torch.einsum("bchw,bciw->bhwi", query, key)
    itself = torch.eye(sizes["h"], dtype=torch.bool, device=query.device)[:, None]
    column = column.masked_fill(itself, float("-inf"))
    lengths = (sizes["w"], sizes["h"])
    across, down = torch.cat([row, column], dim=3).softmax(3).split(lengths, dim=3)
    return across, down


def criss_cross_attention(
    query: Float[Tensor, "b c h w"],
    key: Float[Tensor, "b c h w"],
    value: Float[Tensor, "b d h w"],
    *,
    residual: Float[Tensor, "b d h w"] | None = None,
) -> Float[Tensor, "b d h w"]:
    r"""Attend within row and column at once, of Huang et al., *CCNet*, ICCV 2019.

    .. math:: y_u = x_u + \sum_{i \in \mathrm{row}(u) \cup \mathrm{column}(u)}
              \mathrm{softmax}_i(q_u^\top k_i) \, v_i

    over the H + W - 1 positions of the cross, u itself once. The weights take H W (H + W) numbers,
    not :math:`(H W)^2`; twice in turn, every position sees every other.

    Args:
        query: ``(B, C, H, W)``; multiply it for another scale than the published 1.
        key: ``(B, C, H, W)``.
        value: ``(B, D, H, W)``.
        residual: The x above, ``(B, D, H, W)``; nothing is added by default.

    Returns:
        ``(B, D, H, W)``.

    Raises:
        ValueError: If the shapes do not fit.
    """
    sizes = check_shape("criss_cross_attention", "query", query, "b c h w")
    del sizes["c"]
    sizes = check_shape("criss_cross_attention", "value", value, "b d h w", **sizes)
    if residual is not None:
        check_shape("criss_cross_attention", "residual", residual, "b d h w", **sizes)
    across, down = criss_cross_maps(query, key)
    seen = torch.einsum("bhwj,bchj->bchw", across, value)
    if residual is not None:
        seen = residual + seen
    return seen + torch.einsum("bhwi,bciw->bchw", down, value)


class NonLocalBlock(nn.Module):
    r"""Self-attention between all positions of a map, of Wang et al., CVPR 2018.

    .. math:: y = x + W_z \, \mathrm{softmax}(s \, (W_t x)^\top (W_p x)) \, W_g x

    It serves sequences, images and clips alike: all axes after the second are positions.

    Args:
        channels: Channels of the map.
        hidden: Channels of :math:`W_t`, :math:`W_p`, :math:`W_g`; half of ``channels`` by default.
        scale: The factor s: 1 as published; None is one over the square root of ``hidden``.
        zero_init: Start from :math:`W_z = 0`, so that the block starts as the identity.
    """

    def __init__(
        self,
        channels: int,
        hidden: int | None = None,
        *,
        scale: float | None = 1.0,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        check_integer("NonLocalBlock", "channels", channels, low=1)
        hidden = max(1, channels // 2) if hidden is None else hidden
        check_integer("NonLocalBlock", "hidden", hidden, low=1)
        self.channels = channels
        self.scale = scale
        self.t = nn.Conv1d(channels, hidden, 1)
        self.p = nn.Conv1d(channels, hidden, 1)
        self.g = nn.Conv1d(channels, hidden, 1)
        self.z = nn.Conv1d(hidden, channels, 1)
        if zero_init:
            for parameter in self.z.parameters():
                nn.init.zeros_(parameter)

    def _tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        check_shape("NonLocalBlock", "x", x, "b c ...", c=self.channels)
        flat = x.flatten(2)
        query, key, value = (layer(flat).mT for layer in (self.t, self.p, self.g))
        # the fused kernels want a token's channels side by side, or the map is formed after all
        return query.contiguous(), key.contiguous(), value.contiguous()

    def maps(self, x: Float[Tensor, "b c *positions"]) -> Float[Tensor, "b p p"]:
        """Return the weights ``(B, P, P)`` of the P positions, row-major; rows sum to 1."""
        query, key, _ = self._tokens(x)
        return attention_map(query, key, scale=self.scale)

    def forward(self, x: Float[Tensor, "b c *positions"]) -> Float[Tensor, "b c *positions"]:
        """Apply the block to ``(B, C, ...)``."""
        query, key, value = self._tokens(x)
        out = scaled_dot_product_attention(query, key, value, scale=self.scale)
        return x + self.z(out.mT).view_as(x)


class Attention(nn.Module):
    """Multi-head self-attention over tokens.

    Args:
        dim: Channels of a token.
        heads: Into how many groups they are split; it divides ``dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        attn_drop: Probability of dropping a weight while training.
        proj_drop: Probability of dropping an output entry while training.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_integer("Attention", "dim", dim, low=1)
        check_integer("Attention", "heads", heads, low=1)
        _check_heads("Attention", "dim", dim, heads)
        check_range("Attention", "attn_drop", attn_drop, low=0.0, high=1.0, high_open=True)
        self.heads = heads
        self.dim = dim
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        check_shape("Attention", "x", x, "b n c", c=self.dim)
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value

    def maps(
        self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b heads n n"]:
        """Return the weights ``(B, heads, N, N)``, without dropout; rows sum to 1."""
        query, key, _ = self._split(x)
        return attention_map(query, key, mask=mask)

    def forward(
        self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b n c"]:
        """Mix the tokens ``(B, N, C)``.

        Args:
            x: Tokens.
            mask: True where a query (rows) may look at a key (columns); broadcast to
                ``(B, heads, N, N)``. Each query must see at least one key.
        """
        query, key, value = self._split(x)
        dropout = self.attn_drop if self.training else 0.0
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
