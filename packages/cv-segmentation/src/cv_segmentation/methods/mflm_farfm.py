r"""Multi-scale features and attention fused with feedback, to find small defects of low contrast.

Liu, Huang, Li, Guo, Gao: *Fabric Defect Detection via Multi-scale Feature Fusion-Based Saliency*,
PRCV 2021, LNCS 13022, pp. 240-251.

The maps of a backbone at four scales each pass a multi-scale feature learning module (MFLM): 1x1
convolutions, and beside them three branches with factorised and whole kernels of 3, 5 and 7. The
feature and attention refinement fusion module (FARFM) then merges them from the coarsest down. Each
merge multiplies a finer map :math:`f_l` with a coarser one :math:`f_h`, brought to its size,

.. math::
    m = G(G(f_l)) \odot G(G(f_h)), \qquad f_l' = f_l + G(m), \quad f_h' = f_h + G(m)    && (1, 2)

with G a 3x3 convolution, normalisation and ReLU, each with weights of its own, and weighs the
channels of both outputs,

.. math::
    f \leftarrow f \odot \sigma(\mathrm{BN}(W \, \overline{f}))                         && (3, 4)

with the mean over positions. The merged map is fed back: added to the map of every scale, which are
merged once more. Five maps (the merged one and those of four scales) each give logits. Training
adds the loss ``WeightedBCEIoULoss`` of all five (Eq. 5 to 8), a prediction is their mean.

Deviations from the paper:
    - The decoder is told there by a text and a figure. Here, both outputs of each merge are used:
      :math:`f_l'` takes the place of the finer map, :math:`f_h'` goes on to the next merge, and the
      last :math:`f_h'` is the merged map. (Were the finer maps' outputs dropped, no loss would
      reach the weights of Eq. 1.) Each pass has weights of its own.
    - Eq. 1 and 2 write one G for all places; they also let no convolution follow the sum, where the
      text speaks of one that restores the width. It is there, as another G.
    - "Two successive n x n convolutions" are taken literally; ``dilated=True`` has 3x3 kernels of
      the same extent instead.
    - The sum of the five maps is their mean here, so that a probability is one.

Example:
    >>> from cv_segmentation.encoders import ConvEncoder
    >>> from cv_segmentation.losses.weighted_bce_iou import WeightedBCEIoULoss
    >>> model = SaliencyNet(ConvEncoder((8, 16, 24, 32)), channels=8)
    >>> images, masks = torch.rand(2, 3, 50, 70), torch.ones(2, 50, 70)
    >>> criterion = WeightedBCEIoULoss(window=7)
    >>> sum(criterion(logits, masks) for logits in model(images)).backward()
    >>> model.eval()(images).shape
    torch.Size([2, 1, 50, 70])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from cv_core.checks import check_floating, check_integer, check_odd, check_shape
from cv_core.nn.blocks import ConvNormAct
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_segmentation.decoders.features import resized
from cv_segmentation.encoders import ConvEncoder, build_encoder

Neck = Callable[[int, int], nn.Module]
"""Makes what brings one scale's map to the decoder's width, from channels in and out."""

Decoder = Callable[[int, int], nn.Module]
"""Makes a decoder from a width and a number of scales: from maps, the finest first, to logits."""


class MultiScaleFeatureLearning(nn.Module):
    """Kernels of several sizes side by side (MFLM): ``ReLU(Conv([branches]) + shortcut)``.

    Args:
        in_channels: Channels of the map.
        out_channels: Channels of each branch and of the output.
        kernels: A branch has 1x1, 1xn, nx1 and two nxn convolutions for each n, odd; another
            branch has a 1x1 convolution alone.
        dilated: Whether the nxn convolutions are 3x3 ones, dilated to the extent n.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> MultiScaleFeatureLearning(256, 16)(torch.rand(2, 256, 9, 7)).shape
        torch.Size([2, 16, 9, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 64,
        *,
        kernels: Sequence[int] = (3, 5, 7),
        dilated: bool = False,
    ) -> None:
        super().__init__()
        owner = "MultiScaleFeatureLearning"
        check_integer(owner, "in_channels", in_channels, low=1)
        check_integer(owner, "out_channels", out_channels, low=1)
        for kernel in kernels:
            check_odd(owner, "kernels", kernel, low=3)
        self.in_channels = in_channels
        point = partial(ConvNormAct, in_channels, out_channels, kernel_size=1)
        self.branches = nn.ModuleList([point()])
        for kernel in kernels:
            size, dilation = (3, kernel // 2) if dilated else (kernel, 1)
            whole = partial(
                ConvNormAct, out_channels, out_channels, kernel_size=size, dilation=dilation
            )
            across, down = (1, kernel), (kernel, 1)
            factors = (_factor(out_channels, across), _factor(out_channels, down))
            self.branches.append(nn.Sequential(point(), *factors, whole(), whole()))
        joined = len(self.branches) * out_channels
        self.join = ConvNormAct(joined, out_channels, activation=None)
        self.shortcut = point(activation=None)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        check_floating("MultiScaleFeatureLearning", "x", x)
        check_shape("MultiScaleFeatureLearning", "x", x, "b c h w", c=self.in_channels)
        joined = self.join(torch.cat([branch(x) for branch in self.branches], dim=1))
        return (joined + self.shortcut(x)).relu()


def _factor(channels: int, kernel: tuple[int, int]) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(channels, channels, kernel, padding=padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


class FeatureFusion(nn.Module):
    """Merge of a finer and a coarser map by multiplication (FFM, Eq. 1 and 2).

    Args:
        channels: Channels of both maps.

    Example:
        >>> low, high = FeatureFusion(8)(torch.rand(2, 8, 9, 7), torch.rand(2, 8, 5, 4))
        >>> low.shape == high.shape == (2, 8, 9, 7)
        True
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_integer("FeatureFusion", "channels", channels, low=1)
        self.channels = channels
        block = partial(ConvNormAct, channels, channels)
        self.of_low = nn.Sequential(block(), block())
        self.of_high = nn.Sequential(block(), block())
        self.to_low, self.to_high = block(), block()
        self.restore_low, self.restore_high = block(), block()

    def fuse(
        self, low: Float[Tensor, "b c h w"], high: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Return Eq. 1 and 2 of maps of one size, without the convolutions that follow."""
        common = self.of_low(low) * self.of_high(high)
        return low + self.to_low(common), high + self.to_high(common)

    def forward(
        self, low: Float[Tensor, "b c h w"], high: Float[Tensor, "b c h2 w2"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Merge ``low`` with ``high``, which is brought to its size.

        Args:
            low: The finer map ``(B, C, H, W)``.
            high: The coarser map ``(B, C, h, w)``.

        Returns:
            Both maps, refined, ``(B, C, H, W)`` each.
        """
        for name, item in (("low", low), ("high", high)):
            check_floating("FeatureFusion", name, item)
        sizes = check_shape("FeatureFusion", "low", low, "b c h w", c=self.channels)
        check_shape("FeatureFusion", "high", high, "b c h w", b=sizes["b"], c=self.channels)
        low, high = self.fuse(low, resized(high, low))
        return self.restore_low(low), self.restore_high(high)


class AttentionRefinement(nn.Module):
    """Weights of the channels from their means (ARM, Eq. 3 and 4): one layer, normalised.

    While it trains it needs more than one image, for its batch normalisation sees one value each.

    Args:
        channels: Channels of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_integer("AttentionRefinement", "channels", channels, low=1)
        self.channels = channels
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def gate(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
        """Return the weight of each channel, in (0, 1)."""
        check_floating("AttentionRefinement", "x", x)
        check_shape("AttentionRefinement", "x", x, "b c h w", c=self.channels)
        if self.norm.training and len(x) == 1:
            raise ValueError(
                "AttentionRefinement: x must hold at least two images in training, because the "
                "means over positions are normalised over the batch; got one. Train on larger "
                "batches, or call eval() on its norm."
            )
        return self.norm(self.conv(x.mean((2, 3), keepdim=True))).sigmoid()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Weight the channels of ``(B, C, H, W)``."""
        return x * self.gate(x)


class FARFMDecoder(nn.Module):
    """Merges maps from the coarsest down, feeds the result back and merges again (FARFM).

    Args:
        channels: Channels of all maps.
        levels: Number of maps, at least 2.
        feedback: How often the merged map is fed back; each time adds a pass with new weights.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> maps = [torch.rand(2, 8, 16, 12), torch.rand(2, 8, 8, 6), torch.rand(2, 8, 4, 3)]
        >>> [tuple(item.shape[1:]) for item in FARFMDecoder(8, levels=3)(maps)]
        [(1, 16, 12), (1, 16, 12), (1, 8, 6), (1, 4, 3)]
    """

    def __init__(self, channels: int, levels: int = 4, *, feedback: int = 1) -> None:
        super().__init__()
        check_integer("FARFMDecoder", "levels", levels, low=2)
        check_integer("FARFMDecoder", "feedback", feedback, low=0)
        self.channels, self.levels = channels, levels
        self.passes = nn.ModuleList(_Pass(channels, levels - 1) for _ in range(feedback + 1))
        self.heads = nn.ModuleList(nn.Conv2d(channels, 1, 3, padding=1) for _ in range(levels + 1))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Decode maps ``(B, channels, H_i, W_i)``, the finest first.

        Returns:
            Logits: of the merged map ``(B, 1, H_1, W_1)``, and of each scale ``(B, 1, H_i, W_i)``.
        """
        if len(maps) != self.levels:
            raise ValueError(f"FARFMDecoder: maps must be {self.levels} maps; got {len(maps)}.")
        for number, item in enumerate(maps):
            check_shape("FARFMDecoder", f"maps[{number}]", item, "b c h w", c=self.channels)
        merged, sides = self.passes[0](list(maps))
        for again in list(self.passes)[1:]:
            merged, sides = again([side + resized(merged, side) for side in sides])
        return [head(item) for head, item in zip(self.heads, [merged, *sides], strict=True)]


class _Pass(nn.Module):
    """One chain of merges, from the coarsest map down."""

    def __init__(self, channels: int, merges: int) -> None:
        super().__init__()
        self.fusions = nn.ModuleList(FeatureFusion(channels) for _ in range(merges))
        self.gates_low = nn.ModuleList(AttentionRefinement(channels) for _ in range(merges))
        self.gates_high = nn.ModuleList(AttentionRefinement(channels) for _ in range(merges))

    def forward(self, sides: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the merged map and the refined maps, the finest first."""
        high, refined = sides[-1], [sides[-1]]
        steps = zip(self.fusions, self.gates_low, self.gates_high, sides[-2::-1], strict=True)
        for fusion, gate_low, gate_high, side in steps:
            low, high = fusion(side, high)
            high = gate_high(high)
            refined.insert(0, gate_low(low))
        return high, refined


class SaliencyNet(nn.Module):
    """An encoder, MFLM at its coarsest scales and FARFM: five maps of logits for one class.

    Args:
        encoder: Name for ``build_encoder``, or a module that follows its protocol.
        channels: Channels of the decoder.
        levels: How many of the encoder's scales are used, the coarsest ones: of a ResNet's five
            halvings, 4 leave out the first.
        weights: Name of pretrained weights of a named encoder.
        neck: Makes the module of each scale from its channels and ``channels``.
        decoder: Makes the decoder from ``channels`` and ``levels``.

    Raises:
        ImportError: If the library that has the named encoder is not installed.
        ValueError: If an option is out of range or the encoder has fewer scales.
    """

    def __init__(
        self,
        encoder: str | nn.Module = "resnet50",
        channels: int = 64,
        *,
        levels: int = 4,
        weights: str | None = None,
        neck: Neck = MultiScaleFeatureLearning,
        decoder: Decoder = FARFMDecoder,
    ) -> None:
        super().__init__()
        check_integer("SaliencyNet", "channels", channels, low=1)
        check_integer("SaliencyNet", "levels", levels, low=2)
        if isinstance(encoder, str):
            encoder = build_encoder(encoder, weights=weights)
        elif weights is not None:
            raise ValueError(
                "SaliencyNet: weights must be None for an encoder that is a module; it has its own."
            )
        widths: Any = encoder.out_channels
        if len(widths) <= levels or not all(widths[-levels:]):
            raise ValueError(
                f"SaliencyNet: encoder must have maps at {levels} scales beside the image; got "
                f"channels {tuple(widths)}."
            )
        self.in_channels, self.levels = int(widths[0]), levels
        self.encoder = encoder
        self.necks = nn.ModuleList(neck(width, channels) for width in widths[-levels:])
        self.decoder = decoder(channels, levels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Tensor] | Float[Tensor, "b 1 h w"]:
        """Judge every pixel of images ``(B, C, H, W)`` of any size.

        Returns:
            In training, the logits of all maps, the merged one first, ``(B, 1, H, W)`` each. In
            evaluation, the probability ``(B, 1, H, W)``: the sigmoid of their mean.
        """
        check_floating("SaliencyNet", "x", x)
        check_shape("SaliencyNet", "x", x, "b c h w", c=self.in_channels)
        scales = self.encoder(x)[-self.levels :]
        maps = [neck(item) for neck, item in zip(self.necks, scales, strict=True)]
        logits = [
            functional.interpolate(item, x.shape[2:], mode="bilinear", align_corners=False)
            for item in self.decoder(maps)
        ]
        return logits if self.training else torch.stack(logits).mean(0).sigmoid()


def _examples() -> list[Example]:
    # Three images: over two, the gates' batch normalisation only tells which one is larger.
    def image(generator: torch.Generator) -> tuple[Tensor]:
        return (torch.rand(3, 2, 17, 22, generator=generator),)

    def feature(generator: torch.Generator) -> tuple[Tensor]:
        return (torch.randn(3, 4, 9, 7, generator=generator),)

    def pair(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return (*feature(generator), torch.randn(3, 4, 5, 4, generator=generator))

    def network() -> SaliencyNet:
        return SaliencyNet(ConvEncoder((4, 6, 8), 2), 4, levels=3)

    same, five = ((3, 4, 9, 7),), ((3, 1, 17, 22),) * 4
    learning = partial(MultiScaleFeatureLearning, 4, 6)
    dilated = partial(learning, kernels=(3, 7), dilated=True)
    return [
        Example(build=learning, inputs=feature, output_shapes=((3, 6, 9, 7),)),
        Example(build=dilated, inputs=feature, output_shapes=((3, 6, 9, 7),)),
        Example(build=partial(FeatureFusion, 4), inputs=pair, output_shapes=same * 2),
        Example(build=partial(AttentionRefinement, 4), inputs=feature, output_shapes=same),
        Example(build=network, inputs=image, output_shapes=five),
    ]


_LOSS = "cv_segmentation.losses.weighted_bce_iou"

CARD = Card(
    slug="mflm-farfm",
    title="Saliency of small defects by multi-scale features and fusion with feedback",
    reference=Reference(
        title="Fabric Defect Detection via Multi-scale Feature Fusion-Based Saliency",
        authors="Liu, Huang, Li, Guo, Gao",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="240-251",
    ),
    kind="module",
    objects=(
        "cv_segmentation.methods.mflm_farfm.AttentionRefinement",
        "cv_segmentation.methods.mflm_farfm.FARFMDecoder",
        "cv_segmentation.methods.mflm_farfm.FeatureFusion",
        "cv_segmentation.methods.mflm_farfm.MultiScaleFeatureLearning",
        "cv_segmentation.methods.mflm_farfm.SaliencyNet",
        f"{_LOSS}.WeightedBCEIoULoss",
        f"{_LOSS}.pixel_importance",
        f"{_LOSS}.weighted_bce_iou_loss",
        f"{_LOSS}.weighted_bce_iou_terms",
    ),
    examples=_examples,
    properties=("batch-independent",),
)
