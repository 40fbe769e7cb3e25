"""The network of the experiment on styles, with the normalisations that its arms compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from cv_core.nn.blocks import ConvNormAct
from torch import Tensor, nn

from cv_segmentation.decoders.deeplab import DeepLabV3PlusDecoder
from cv_segmentation.decoders.unet import UNetDecoder
from cv_segmentation.encoders import ConvEncoder
from cv_segmentation.experiments._camvid import IGNORED
from cv_segmentation.experiments._styles import Domains
from cv_segmentation.model import SegmentationModel

STAGES = (0, 1)  # of the encoder: where features are normalised, whitened and erased

Norm = Literal["batch", "instance", "half"]


def network(domains: Domains, widths: Sequence[int], norm: Norm) -> SegmentationModel:
    """Build a small DeepLabV3+ of residual stages with an arm's normalisations.

    ``instance`` puts one, without parameters, behind the sum of the first stages' blocks, as
    RobustNet does; ``half`` replaces half of the block's first normalisation, as IBN-a does.

    Args:
        domains: What it is for.
        widths: Channels of the encoder's stages.
        norm: The normalisations.
    """
    images = domains.train[0]
    encoder = ConvEncoder(widths)
    model = SegmentationModel(
        encoder,
        make_decoder(encoder.out_channels, thin=domains.thin),
        domains.classes,
        mean=images.mean((0, 2, 3)).tolist(),
        std=images.std((0, 2, 3)).tolist(),
    )
    for stage in STAGES:
        block: Any = encoder.stages[stage][0]  # type: ignore[index] # a Sequential
        if norm == "instance":
            block.act2 = nn.Sequential(nn.InstanceNorm2d(widths[stage]), block.act2)
        elif norm == "half":
            block.conv1.norm = HalfInstanceNorm(widths[stage])
    return model


def make_decoder(channels: Sequence[int], *, thin: bool) -> nn.Module:
    """Return the decoder of DeepLabV3+, or one that reaches the image's size for thin objects."""
    if thin:
        return UNetDecoder(channels, (channels[1] // 2, *channels[1:-1]), block=ConvNormAct)
    return DeepLabV3PlusDecoder(
        channels, channels[2], (1, 2, 3), skip_channels=channels[1], dropout=0.0
    )


def class_weights(domains: Domains) -> Tensor | None:
    """Weight rare classes as ENet does, 1 / log(1.02 + share), where all but one are rare."""
    if not domains.thin:
        return None
    labels = domains.train[1]
    counts = torch.bincount(labels[labels != IGNORED], minlength=domains.classes)
    return 1 / (1.02 + counts / counts.sum()).log()


class HalfInstanceNorm(nn.Module):
    """IBN-a of Pan et al., ECCV 2018: instance normalisation of one half, batch of the other.

    Args:
        channels: Number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cut = channels // 2
        self.instance = nn.InstanceNorm2d(self.cut, affine=True)
        self.batch = nn.BatchNorm2d(channels - self.cut)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        return torch.cat([self.instance(x[:, : self.cut]), self.batch(x[:, self.cut :])], dim=1)


def hooked(norm: Norm) -> list[str]:
    """Return the layers where an arm may whiten and erase: what leaves the normalisation."""
    last = "act2.0" if norm == "instance" else "conv1.norm"
    return [f"encoder.stages.{stage}.0.{last}" for stage in STAGES]
