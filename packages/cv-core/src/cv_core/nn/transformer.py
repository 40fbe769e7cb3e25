"""A pre-norm transformer encoder over tokens."""

from __future__ import annotations

from typing import cast

from jaxtyping import Bool, Float
from torch import Tensor, nn

from cv_core.checks import check_integer, check_range
from cv_core.nn.attention import Attention


class Mlp(nn.Module):
    """Two linear layers with a GELU between, applied to each token.

    Args:
        dim: Channels of a token.
        hidden: Width between the layers.
        drop: Probability of dropping an entry while training, after each layer.
    """

    def __init__(self, dim: int, hidden: int, *, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Apply the layers to ``(B, N, C)``."""
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


class TransformerBlock(nn.Module):
    """Attention, then a perceptron, each behind a layer normalisation and beside a shortcut.

    Parameters carry the names of a timm vision transformer's blocks, and the normalisations have
    its ``eps``, so that weights load both ways.

    Args:
        dim: Channels of a token.
        heads: Heads of the attention.
        mlp_ratio: Width of the perceptron in multiples of ``dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        drop: Probability of dropping entries of the outputs while training.
        attn_drop: Probability of dropping weights of the attention while training.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_range("TransformerBlock", "mlp_ratio", mlp_ratio, low=0.0, low_open=True)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=drop)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, max(1, int(dim * mlp_ratio)), drop=drop)

    def forward(
        self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b n c"]:
        """Apply the block to ``(B, N, C)``; ``mask`` as in ``Attention``."""
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))

    def maps(
        self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b heads n n"]:
        """Return the attention weights ``(B, heads, N, N)`` for these tokens."""
        return self.attn.maps(self.norm1(x), mask)


class TransformerEncoder(nn.Module):
    """A stack of pre-norm transformer blocks with a layer normalisation at the end.

    It has no code of positions: without one, or a mask, permuting the tokens permutes the output.

    Args:
        dim: Channels of a token.
        depth: Number of blocks; 0 leaves the last normalisation.
        heads: Heads of the attention; they divide ``dim``.
        mlp_ratio: Width of the perceptrons in multiples of ``dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        drop: Probability of dropping entries of the outputs while training.
        attn_drop: Probability of dropping weights of the attention while training.

    Example:
        >>> import torch
        >>> TransformerEncoder(8, depth=2, heads=2)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_integer("TransformerEncoder", "depth", depth, low=0)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim,
                heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop=drop,
                attn_drop=attn_drop,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(
        self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b n c"]:
        """Encode tokens.

        Args:
            x: Tokens ``(B, N, C)``.
            mask: True where a query (rows) may look at a key (columns); broadcast to
                ``(B, heads, N, N)``. For padded tokens ``(B, N)`` give ``valid[:, None, None]``.

        Returns:
            Tokens ``(B, N, C)``.
        """
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)

    def maps(
        self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "..."] | None = None
    ) -> list[Float[Tensor, "b heads n n"]]:
        """Return each block's attention weights ``(B, heads, N, N)`` for these tokens."""
        maps: list[Tensor] = []
        for block in cast("list[TransformerBlock]", self.blocks):  # a ModuleList forgets the class
            maps.append(block.maps(x, mask))
            x = block(x, mask)
        return maps
