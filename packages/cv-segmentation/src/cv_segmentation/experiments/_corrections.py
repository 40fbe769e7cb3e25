"""What the residual correction is compared with: other networks C, other sums, one wide network."""

from __future__ import annotations

from typing import Literal

import torch
from cv_core.metrics.cost import count_parameters
from jaxtyping import Float
from torch import Tensor, nn

from cv_segmentation.decoders.unet import UNetDecoder
from cv_segmentation.encoders import ConvEncoder
from cv_segmentation.methods.residual_correction import Correct, corrected_logits, small_unet_pair
from cv_segmentation.model import SegmentationModel

Sees = Literal["both", "image", "segmentation"]


def direct(seg_logits: Tensor, target: Tensor) -> Tensor:  # noqa: ARG001 - one signature
    """Return C's output as the answer: no residual."""
    return target


class HalfBlind(nn.Module):
    """A correction network of the same build that sees only one of its two inputs.

    Args:
        net: The network.
        sees: What it sees; the other input is constant.
    """

    def __init__(self, net: nn.Module, sees: Sees) -> None:
        super().__init__()
        self.net = net
        self.sees = sees

    def forward(
        self, image: Float[Tensor, "b c h w"], seg_logits: Float[Tensor, "b k h w"]
    ) -> Float[Tensor, "b k h w"]:
        """Return the residual."""
        if self.sees == "image":
            seg_logits = torch.zeros_like(seg_logits)
        elif self.sees == "segmentation":
            image = torch.full_like(image, 0.5)
        residual: Tensor = self.net(image, seg_logits)
        return residual


class Concatenation(nn.Module):
    """A correction network whose encoder takes image and probabilities as one input."""

    def __init__(self, classes: int, base: int) -> None:
        super().__init__()
        widths = [base, 2 * base, 4 * base, 8 * base]
        encoder = ConvEncoder(widths, 3 + classes)
        decoder = UNetDecoder(encoder.out_channels, [base, *widths[:-1]])
        self.net = SegmentationModel(encoder, decoder, classes)
        for parameter in self.net.head.parameters():
            nn.init.zeros_(parameter)  # as the method's own

    def forward(
        self, image: Float[Tensor, "b c h w"], seg_logits: Float[Tensor, "b k h w"]
    ) -> Float[Tensor, "b k h w"]:
        """Return the residual."""
        residual: Tensor = self.net(torch.cat([image, seg_logits.softmax(1)], dim=1))
        return residual


def attention(classes: int, base: int, *, sees: Sees = "both") -> nn.Module:
    """Build the method's C, or one that sees a part."""
    cor = small_unet_pair(classes, base)[1]
    return cor if sees == "both" else HalfBlind(cor, sees)


class Corrected(nn.Module):
    """S and C as one network."""

    def __init__(self, seg: nn.Module, cor: nn.Module, correct: Correct) -> None:
        super().__init__()
        self.seg, self.cor, self.correct = seg, cor, correct

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Return the corrected logits."""
        return corrected_logits(self.seg, self.cor, x, correct=self.correct)


def matched_base(classes: int, base: int) -> int:
    """Return the base width at which S has about as many parameters as S and C of another."""
    with torch.device("meta"):  # neither memory nor draws
        target = sum(count_parameters(net) for net in small_unet_pair(classes, base))
        sizes = {
            wide: count_parameters(small_unet_pair(classes, wide)[0])
            for wide in range(base, 2 * base + 1)
        }
    return min(sizes, key=lambda wide: abs(sizes[wide] - target))
