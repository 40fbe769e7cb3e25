r"""AGLNet: forged clips found by recurrence over two levels of features, weighed by attention.

*Attention Guided Spatio-Temporal Artifacts Extraction for Deepfake Detection*, Z. Wang, Y. Li,
R. Ni and Y. Zhao, PRCV 2021, LNCS 13022, pp. 374-386.

A backbone shared by the frames of a clip gives each frame a map of its middle level and a vector. A
ConvLSTM reads the maps, an LSTM the vectors. Non-local attention with :math:`P` positions,
:math:`g, \theta, \phi \in R^{K/2 \times P}` three 1 x 1 convolutions of :math:`x \in R^{K \times
P}`,

.. math:: F = W_h\,(g A^\top) + x, \qquad A = \mathrm{softmax}(\theta^\top \phi) \in R^{P \times P}

mixes the states: over time (TAM, :math:`P = T`, Eqs. 4 and 5), or over space and time (STAM,
:math:`P = THW`, followed by the mean of each frame and a TAM). The mean of :math:`F` over time is a
branch's output, and one linear layer of both outputs classifies the clip.

Deviations from the paper, and why:

- The printed A is K/2 x K/2, between channels, while text, motivation and the cited non-local
  network are of attention between positions. Positions are the default;
  ``attention=ChannelNonLocalBlock`` is the printed shape. As printed, A g does not conform for x
  stored as T x K; here g is K/2 x P.
- Kernels of TAM's convolutions are not stated: 1. No factor :math:`1/\sqrt d` is printed, none is
  here. The ConvLSTM has no peepholes.
- The paper kept the weights that were best on the test set; use a validation set.

Example:
    >>> import torch
    >>> from torch import nn
    >>> class Backbone(nn.Module):
    ...     def forward(self, frames):
    ...         return frames[:, :, ::8, ::8], frames.mean((2, 3))
    >>> model = AGLNet(Backbone(), 3, 3, conv_hidden=4, fc_hidden=6)
    >>> model(torch.zeros(2, 5, 3, 32, 32)).shape
    torch.Size([2, 2])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from cv_core.checks import check_floating, check_integer, check_shape
from cv_core.nn.attention import NonLocalBlock, attention_map
from cv_core.nn.convlstm import ConvLSTM
from cv_core.optional import require
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float
from torch import Tensor, nn

Block = Callable[[int], nn.Module]
"""Makes a module (B, C, *positions) -> same shape for a number of channels."""


class ChannelNonLocalBlock(NonLocalBlock):
    r"""The paper's printed form: attention between channels instead of positions.

    .. math:: y = x + W_h\,(A g), \qquad A = \mathrm{softmax}(\theta \phi^\top) \in
              R^{K/2 \times K/2}

    It has the parameters of ``cv_core.nn.attention.NonLocalBlock``, the form between positions.

    Args:
        channels: Channels K of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def maps(self, x: Float[Tensor, "b c *positions"]) -> Float[Tensor, "b k k"]:
        """Return the weights (B, K/2, K/2) between channels; rows sum to 1."""
        query, key, _ = self._tokens(x)
        return attention_map(query.mT, key.mT, scale=1.0)

    def forward(self, x: Float[Tensor, "b c *positions"]) -> Float[Tensor, "b c *positions"]:
        """Apply the block to (B, K, ...)."""
        _, _, value = self._tokens(x)
        return x + self.z(self.maps(x) @ value.mT).view_as(x)


class TemporalAttention(nn.Module):
    """TAM: attention between the frames' vectors, then their mean.

    Args:
        channels: Entries of a vector.
        attention: Makes the block; attention between positions by default.
    """

    def __init__(self, channels: int, attention: Block = NonLocalBlock) -> None:
        super().__init__()
        check_integer("TemporalAttention", "channels", channels, low=1)
        self.channels = channels
        self.block = attention(channels)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b c"]:
        """Return (B, C) of a sequence (B, T, C)."""
        check_shape("TemporalAttention", "x", x, "b t c", c=self.channels)
        return self.block(x.mT).mean(2)


class SpatioTemporalAttention(nn.Module):
    """STAM: attention between all places of all frames, each frame's mean, then a TAM.

    Between positions the P x P weights, P = THW, are never formed in memory.

    Args:
        channels: Channels of the maps.
        attention: Makes both blocks; attention between positions by default.
    """

    def __init__(self, channels: int, attention: Block = NonLocalBlock) -> None:
        super().__init__()
        check_integer("SpatioTemporalAttention", "channels", channels, low=1)
        self.channels = channels
        self.block = attention(channels)
        self.time = TemporalAttention(channels, attention)

    def forward(self, x: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b c"]:
        """Return (B, C) of a clip of maps (B, T, C, H, W)."""
        check_shape("SpatioTemporalAttention", "x", x, "b t c h w", c=self.channels)
        mixed = self.block(x.transpose(1, 2))
        return self.time(mixed.mean((3, 4)).mT)


class AGLNet(nn.Module):
    """The paper's network on any backbone.

    Args:
        backbone: Maps frames (N, C, H, W) to a map (N, mid_channels, h, w) and a vector
            (N, feat_dim). To train the rest only, freeze it: ``requires_grad_(False)``.
        mid_channels: Channels of the backbone's map.
        feat_dim: Entries of its vector.
        conv_hidden: Channels of the ConvLSTM.
        fc_hidden: Width of the two-layer LSTM.
        num_classes: Outputs; genuine and forged by default.
        attention: Makes the attention blocks for a number of channels: ``NonLocalBlock``,
            ``ChannelNonLocalBlock``, or your own; ``lambda _: nn.Identity()`` for none.
    """

    def __init__(
        self,
        backbone: nn.Module,
        mid_channels: int,
        feat_dim: int,
        *,
        conv_hidden: int = 512,
        fc_hidden: int = 1024,
        num_classes: int = 2,
        attention: Block = NonLocalBlock,
    ) -> None:
        super().__init__()
        for name, value in (
            ("mid_channels", mid_channels), ("feat_dim", feat_dim), ("conv_hidden", conv_hidden),
            ("fc_hidden", fc_hidden), ("num_classes", num_classes),
        ):  # fmt: skip
            check_integer("AGLNet", name, value, low=1)
        self.backbone = backbone
        self.mid_channels = mid_channels
        self.feat_dim = feat_dim
        self.convlstm = ConvLSTM(mid_channels, conv_hidden)
        self.lstm = nn.LSTM(feat_dim, fc_hidden, num_layers=2, batch_first=True)
        self.stam = SpatioTemporalAttention(conv_hidden, attention)
        self.tam = TemporalAttention(fc_hidden, attention)
        self.fc = nn.Linear(conv_hidden + fc_hidden, num_classes)

    def features(
        self, clips: Float[Tensor, "b t c h w"]
    ) -> tuple[Float[Tensor, "b t m h2 w2"], Float[Tensor, "b t f"]]:
        """Return the backbone's maps and vectors of all frames.

        Raises:
            TypeError: If the clips are not floating.
            ValueError: If a shape does not fit, the backbone's own among them.
        """
        check_floating("AGLNet", "clips", clips)
        check_shape("AGLNet", "clips", clips, "b t c h w")
        maps, vectors = self.backbone(clips.flatten(0, 1))
        check_shape("AGLNet", "the backbone's map", maps, "n m h w", m=self.mid_channels)
        check_shape("AGLNet", "the backbone's vector", vectors, "n f", f=self.feat_dim)
        frames = clips.shape[:2]
        return maps.unflatten(0, frames), vectors.unflatten(0, frames)

    def classify(
        self, maps: Float[Tensor, "b t d h w"], vectors: Float[Tensor, "b t e"]
    ) -> Float[Tensor, "b k"]:
        """Return the logits (B, num_classes) of both branches' states over time."""
        return self.fc(torch.cat([self.stam(maps), self.tam(vectors)], dim=1))

    def forward(self, clips: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b k"]:
        """Return the logits (B, num_classes) of clips (B, T, C, H, W)."""
        maps, vectors = self.features(clips)
        return self.classify(self.convlstm(maps)[0], self.lstm(vectors)[0])


class _EfficientNetTaps(nn.Module):
    def __init__(self, network: nn.Module, feat_dim: int) -> None:
        super().__init__()
        extraction = require(
            "torchvision.models.feature_extraction", package="cv-adversarial", extra="lab",
            purpose="efficientnet_b4_taps",
        )  # fmt: skip
        nodes = {"features.5": "map", "flatten": "pooled"}
        self.trunk = extraction.create_feature_extractor(network, nodes)
        self.fc = nn.Linear(1792, feat_dim)

    def forward(self, frames: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, Tensor]:
        taps = self.trunk(frames)
        return taps["map"], self.fc(taps["pooled"])


def efficientnet_b4_taps(
    weights: Literal["IMAGENET1K_V1"] | None = None, *, feat_dim: int = 1024
) -> nn.Module:
    """Return the paper's backbone: EfficientNet-B4 of torchvision with its two taps.

    Args:
        weights: torchvision's name of the weights, downloaded by it; the paper's are ImageNet's.
            None draws them.
        feat_dim: Entries of the vector, made by a new linear layer.

    Returns:
        A module of frames (N, 3, H, W), which gives maps (N, 160, H / 16, W / 16) of the fifth
        stage and vectors (N, feat_dim): ``AGLNet(efficientnet_b4_taps(), 160, 1024)``.

    Raises:
        ImportError: Without torchvision.
        ValueError: If ``feat_dim`` is below 1.
    """
    check_integer("efficientnet_b4_taps", "feat_dim", feat_dim, low=1)
    models = require(
        "torchvision.models", package="cv-adversarial", extra="lab", purpose="efficientnet_b4_taps"
    )
    return _EfficientNetTaps(models.efficientnet_b4(weights=weights), feat_dim)


class _Tiny(nn.Module):
    """The least backbone, for the card's examples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.conv(frames).tanh()
        return maps, self.fc(maps.mean((2, 3)))


def _examples() -> list[Example]:
    def clips(generator: torch.Generator) -> tuple[Tensor]:
        return (torch.rand(2, 3, 3, 8, 8, generator=generator),)

    def build(attention: Block) -> AGLNet:
        return AGLNet(_Tiny(), 4, 5, conv_hidden=4, fc_hidden=6, attention=attention)

    return [
        Example(build=lambda: build(NonLocalBlock), inputs=clips, output_shapes=((2, 2),)),
        Example(build=lambda: build(ChannelNonLocalBlock), inputs=clips, output_shapes=((2, 2),)),
    ]


CARD = Card(
    slug="aglnet",
    title="Forged clips found by two recurrent branches with attention over space and time",
    reference=Reference(
        title=("Attention Guided Spatio-Temporal Artifacts Extraction for Deepfake Detection"),
        authors="Z. Wang, Y. Li, R. Ni, Y. Zhao",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="374-386",
    ),
    kind="module",
    objects=(
        "cv_adversarial.methods.aglnet.AGLNet",
        "cv_adversarial.methods.aglnet.TemporalAttention",
        "cv_adversarial.methods.aglnet.SpatioTemporalAttention",
        "cv_adversarial.methods.aglnet.ChannelNonLocalBlock",
        "cv_adversarial.methods.aglnet.efficientnet_b4_taps",
    ),
    examples=_examples,
    properties=("batch-independent", "deterministic"),
)
