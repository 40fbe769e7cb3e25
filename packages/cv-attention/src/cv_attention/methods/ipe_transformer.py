"""IPE transformer: axial attention whose positional maps are computed from its input.

Li, Li, Wang, Wang, Gong, Zhang, Lu: *IPE Transformer for Depth Completion with Input-Aware
Positional Embeddings*, PRCV 2021, LNCS 13022, pp. 263-275.

A learned table of positions ties a transformer to one size. Here three 1x1 convolutions of the
block's input X stand for it, so that no parameter depends on H or W. With

    Q, K, V = W_Q Z, W_K Z, W_V Z            of the step's input Z (X at first)       (Eq. 5)
    Q_e, K_e, V_e = W_Qe X, W_Ke X, W_Ve X   once, for both steps                     (Eq. 6)

a step lets the positions i and j of one row, or of one column, see each other:

    out_i = sum_j softmax_j(k_i . k^e_j + q_i . q^e_j + k_i . q_j) (v_j + v^e_j)      (Eq. 7, 8)

A step along the rows, then one along the columns, connect all positions.

What the paper does not say, and the tests prove:
    - The logits are ``[k_i, q_i] . [q_j + k^e_j, q^e_j]``: one product of 2C channels, which one
      call of the fused kernel computes.
    - In the first step everything is linear in X, so the logits are x_i' M x_j with
      M = W_K'(W_Q + W_Ke) + W_Q' W_Qe of rank 2C at most (the three terms suggest 3C). Plain axial
      attention whose queries and keys have 2C channels computes the same with exactly as many
      parameters over the block: it is the control of the experiment.
    - The "positional" maps hold no position. The block commutes with any permutation of rows or of
      columns; position enters by the zero padding of the convolutions around it. In the second
      step the maps are a path from the block's input past the first step.

Deviations from the paper:
    - It does not scale the logits; ``scale=True`` divides them by the root of a head's C, which is
      advisable for training from scratch. Nor has it heads, which are offered.
    - It gives no C, norm, FFN or shortcut: C is half of the input's channels, so that V has as many
      as the input; normalisation comes in front of each branch and behind it, and the last one
      starts at zero, so that a new block is the identity; the FFN is 1x1, ReLU, 1x1.

Example:
    >>> import torch
    >>> block = IPETransformerBlock(16)
    >>> [block(torch.rand(2, 16, *size)).shape[2:] for size in ((8, 8), (4, 11))]
    [torch.Size([8, 8]), torch.Size([4, 11])]
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, get_args

import torch
from cv_core.checks import check_choice, check_floating, check_range, check_shape
from cv_core.losses.reduction import Reduction, check_reduction
from cv_core.models.unet import UNet
from cv_core.nn.attention import Axis
from cv_core.nn.surgery import out_channels, wrap
from cv_core.registry import Card, Example, Reference
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cv_attention.depth import check_depth, mean_absolute, root_mean_square
from cv_attention.modules.attended import Attended
from cv_attention.modules.axial import AxialAttention2d

NormName = Literal["batch", "layer", "none"]


class IPEAxialAttention2d(AxialAttention2d):
    """Axial attention with positional maps computed from its input: the paper's Eq. 5 to 8.

    Args:
        in_channels: Channels of the input.
        qk_channels: Channels C of queries and of keys; half of ``in_channels`` by default.
        v_channels: Channels of the values and of the output; ``in_channels`` by default.
        heads: Into how many groups both are split; 1 in the paper.
        scale: Whether to divide the logits by the root of a head's C; the paper does not.
        bias: Whether the convolutions have a bias.
        order: The axes of the two steps.

    Raises:
        ValueError: If a number is below 1, the heads do not divide the channels, or an axis is
            unknown.
    """

    def __init__(
        self,
        in_channels: int,
        qk_channels: int | None = None,
        v_channels: int | None = None,
        heads: int = 1,
        *,
        scale: bool = False,
        bias: bool = False,
        order: tuple[Axis, Axis] = ("width", "height"),
    ) -> None:
        super().__init__(
            in_channels, qk_channels, v_channels, heads, scale=scale, bias=bias, order=order
        )


class AxialTransformerBlock(nn.Module):
    """Attention, then a perceptron, each between normalisations and beside a shortcut (Eq. 4).

    Args:
        attention: What mixes positions, such as ``AxialAttention2d(16, position="none")``.
        ffn_ratio: Width of the perceptron in multiples of the channels, above 0.
        norm: ``"batch"``, ``"layer"`` (over channels and positions of an image) or ``"none"``.
        zero_init: Whether the last layer of both branches starts at zero, so that the block starts
            as the identity.

    Raises:
        ValueError: If ``ffn_ratio`` is not above 0 or ``norm`` is unknown.
    """

    def __init__(
        self,
        attention: AxialAttention2d,
        ffn_ratio: float = 2.0,
        norm: NormName = "batch",
        *,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_range(owner, "ffn_ratio", ffn_ratio, low=0.0, low_open=True)
        check_choice(owner, "norm", norm, get_args(NormName))
        channels, bias = attention.in_channels, norm == "none"
        hidden = max(1, round(ffn_ratio * channels))
        make = _NORMS[norm]
        self.in_channels = channels
        self.norm = make(channels)
        self.attention = attention
        self.proj = nn.Sequential(
            nn.Conv2d(attention.out_channels, channels, 1, bias=bias), make(channels)
        )
        self.ffn = nn.Sequential(
            make(channels),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1, bias=bias),
            make(channels),
        )
        if zero_init:
            for branch in (self.proj, self.ffn):
                last = next(layer for layer in reversed(branch) if list(layer.parameters()))
                for parameter in last.parameters():
                    nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Apply the block to ``(B, C, H, W)`` of any height and width."""
        owner = type(self).__name__
        check_floating(owner, "x", x)
        check_shape(owner, "x", x, "b c h w", c=self.in_channels)
        y = x + self.proj(self.attention(self.norm(x)))
        return y + self.ffn(y)


class IPETransformerBlock(AxialTransformerBlock):
    """The paper's block, for the bottleneck of an encoder-decoder or behind any layer.

    Args:
        in_channels: Channels of the map.
        ffn_ratio: Width of the perceptron in multiples of the channels, above 0.
        norm: ``"batch"``, ``"layer"`` (over channels and positions of an image) or ``"none"``.
        heads: Heads of the attention; 1 in the paper.
        scale: Whether to divide the logits by the root of a head's C; the paper does not.
        zero_init: Whether the block starts as the identity.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        ffn_ratio: float = 2.0,
        norm: NormName = "batch",
        *,
        heads: int = 1,
        scale: bool = False,
        zero_init: bool = True,
    ) -> None:
        attention = IPEAxialAttention2d(in_channels, heads=heads, scale=scale)
        super().__init__(attention, ffn_ratio, norm, zero_init=zero_init)


def insert_bottleneck(unet: UNet, block: nn.Module) -> UNet:
    """Return a copy of a U-Net with a block behind its coarsest scale; the U-Net stays as it is.

    ``remove_attention`` takes it out again. In other networks, ``insert_attention(model,
    "ipe-transformer", where=...)`` puts the paper's block behind any layer.

    Args:
        unet: Of ``cv_core.models.unet``.
        block: Keeps the shape (B, C, H, W) of the coarsest scale; it is not copied.

    Returns:
        The changed copy.

    Raises:
        ValueError: If the block tells another number of ``in_channels`` than the scale has.

    Example:
        >>> unet = insert_bottleneck(UNet(4, 1, widths=(4, 8)), IPETransformerBlock(8))
        >>> unet(torch.rand(2, 4, 12, 20)).shape
        torch.Size([2, 1, 12, 20])
    """
    changed = copy.deepcopy(unet)
    channels = out_channels(changed.encoder.stages[-1])
    takes = getattr(block, "in_channels", channels)
    if takes != channels:
        raise ValueError(
            f"insert_bottleneck: block must take the {channels} channels of the coarsest scale; "
            f"it takes {takes}."
        )
    place = f"encoder.stages.{len(changed.encoder.stages) - 1}"
    wrap(changed, place, lambda stage: Attended(stage, block))
    return changed


def masked_rmse_mae_loss(
    pred: Float[Tensor, "b *size"],
    gt: Float[Tensor, "b *size"],
    valid: Bool[Tensor, "b *size"],
    *,
    rmse_weight: float = 1.0,
    mae_weight: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Weighted sum of RMSE and MAE where the depth is known (Eq. 9), of each image.

    The paper once calls MAE a mean *square* error; its numbers are absolute errors. An image
    without a known depth costs nothing and does not count in the mean.

    Args:
        pred: Predicted depth, ``(B, 1, H, W)`` or ``(B, H, W)``.
        gt: True depth; any value where it is not known.
        valid: True where it is known.
        rmse_weight: Weight of RMSE, at least 0; 1 in the paper.
        mae_weight: Weight of MAE, at least 0; 1 in the paper.
        reduction: ``"mean"`` over the images, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or ``(B,)`` for ``reduction="none"``.

    Raises:
        TypeError: If a map is not floating or ``valid`` not boolean.
        ValueError: If shapes differ, the batch is empty or an option is out of range.
    """
    owner = "masked_rmse_mae_loss"
    check_depth(owner, pred, gt, valid)
    check_range(owner, "rmse_weight", rmse_weight, low=0.0)
    check_range(owner, "mae_weight", mae_weight, low=0.0)
    check_reduction(owner, reduction)
    losses = rmse_weight * root_mean_square(pred, gt, valid)
    losses = losses + mae_weight * mean_absolute(pred, gt, valid)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / valid.flatten(1).any(1).sum().clamp_min(1)


def _no_norm(channels: int) -> nn.Module:  # noqa: ARG001 - called as the others
    return nn.Identity()


def _layer_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


_NORMS: dict[NormName, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "layer": _layer_norm,
    "none": _no_norm,
}


def _examples() -> list[Example]:
    def block() -> nn.Module:
        return IPETransformerBlock(6, zero_init=False)

    def attention() -> nn.Module:
        return IPEAxialAttention2d(6, 4, 8, heads=2, scale=True)

    def inputs(generator: torch.Generator) -> tuple[Tensor]:
        return (torch.randn(3, 6, 4, 5, generator=generator),)

    return [
        Example(build=block, inputs=inputs, output_shapes=((3, 6, 4, 5),)),
        Example(build=attention, inputs=inputs, output_shapes=((3, 8, 4, 5),)),
    ]


CARD = Card(
    slug="ipe-transformer",
    title="Axial attention whose positional maps are computed from its input",
    reference=Reference(
        title="IPE Transformer for Depth Completion with Input-Aware Positional Embeddings",
        authors="Li, Li, Wang, Wang, Gong, Zhang, Lu",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="263-275",
    ),
    kind="module",
    objects=(
        "cv_attention.methods.ipe_transformer.IPETransformerBlock",
        "cv_attention.methods.ipe_transformer.IPEAxialAttention2d",
        "cv_attention.modules.axial.AxialAttention2d",
        "cv_attention.methods.ipe_transformer.AxialTransformerBlock",
        "cv_attention.methods.ipe_transformer.insert_bottleneck",
        "cv_attention.methods.ipe_transformer.masked_rmse_mae_loss",
        "cv_attention.depth.rmse",
        "cv_attention.depth.mae",
        "cv_attention.depth.irmse",
        "cv_attention.depth.imae",
    ),
    examples=_examples,
    properties=("batch-independent", "deterministic"),
)
