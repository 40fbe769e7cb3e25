r"""MRANet: nested residual groups with channel attention that remove speckle.

Lei, Liu, Zhang, Zhao, Zhao: *Multi-level Residual Attention Network for Speckle Suppression*, PRCV
2021, LNCS 13022, pp. 288-299.

Speckle multiplies a radar or ultrasound image. The network works on the intensities themselves,
without a logarithm, and predicts what has to be subtracted:

.. math::
    f_0 &= \mathrm{Conv}(\mathrm{Conv}(x))                                           && (1) \\
    f_i &= \mathrm{RG}_i(f_{i-1}), \quad
    \mathrm{RG}(u) = u + \mathrm{Conv}(B_n(\dots B_1(u)))                            && (2, 3) \\
    z &= \mathrm{Conv}(\mathrm{CA}([f_1, \dots, f_m])), \quad y = x - z              && (4, 5)

with blocks :math:`B(u) = u + \mathrm{CA}(\mathrm{ReLU}(\mathrm{Conv}(\mathrm{PReLU}(
\mathrm{RAB}(\mathrm{RAB}(u))))))` and
:math:`\mathrm{RAB}(u) = u + \mathrm{CA}(\mathrm{Conv}(\mathrm{ReLU}(\mathrm{Conv}(u))))`; all
convolutions are 3 x 3, CA is ``cv_core.nn.gates.SqueezeExcitation``, and [...] joins
channels. It is trained with the mean absolute error (Eq. 6), ``torch.nn.L1Loss``, on pairs made by
``cv_core.imaging.noise.add_speckle``.

Deviations from the paper:
    - The inside of B and RAB is drawn there, not written: the reading above has two convolutions
      in a RAB (5.8 million parameters); ``convs_per_rab=1`` has one (3.6 million).
    - The text speaks of one more skip connection without a formula; ``long_skip=True`` adds
      :math:`f_0` to the last group's output.
    - Eq. 6 sums over the pixels; Adam does not notice the factor.

Example:
    >>> model = MRANet(width=16, groups=2, blocks=1)
    >>> noisy = torch.rand(1, 1, 32, 32)
    >>> clean = model(noisy)
    >>> torch.equal(clean, noisy - model.residual(noisy))
    True
"""

from __future__ import annotations

from functools import partial

import torch
from cv_core.checks import check_floating, check_integer, check_shape
from cv_core.nn.gates import SqueezeExcitation
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float
from torch import Tensor, nn


class ResidualAttentionBlock(nn.Module):
    """``u + CA(Conv(ReLU(Conv(u))))``, or with one convolution ``u + CA(ReLU(Conv(u)))``.

    Args:
        width: Channels of the map.
        reduction: Of the channel attention.
        convs: Convolutions, 1 or 2.
    """

    def __init__(self, width: int, *, reduction: int = 8, convs: int = 2) -> None:
        super().__init__()
        check_integer("ResidualAttentionBlock", "width", width, low=1)
        check_integer("ResidualAttentionBlock", "convs", convs, low=1, high=2)
        layers: list[nn.Module] = [_conv(width, width), nn.ReLU()]
        if convs == 2:
            layers.append(_conv(width, width))
        self.body = nn.Sequential(*layers, SqueezeExcitation(width, reduction=reduction))

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Refine ``(B, width, H, W)``."""
        return u + self.body(u)


class RCB(nn.Module):
    """Residual channel-attention block: ``u + CA(ReLU(Conv(PReLU(RAB(RAB(u))))))``.

    Args:
        width: Channels of the map.
        reduction: Of the channel attentions.
        convs_per_rab: Convolutions in each of the two inner blocks, 1 or 2.
    """

    def __init__(self, width: int, *, reduction: int = 8, convs_per_rab: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ResidualAttentionBlock(width, reduction=reduction, convs=convs_per_rab),
            ResidualAttentionBlock(width, reduction=reduction, convs=convs_per_rab),
            nn.PReLU(),
            _conv(width, width),
            nn.ReLU(),
            SqueezeExcitation(width, reduction=reduction),
        )

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Refine ``(B, width, H, W)``."""
        return u + self.body(u)


class RecursiveGroup(nn.Module):
    """Several ``RCB`` and a convolution inside a skip connection (Eq. 3).

    Args:
        width: Channels of the map.
        blocks: Number of blocks n.
        reduction: Of the channel attentions.
        convs_per_rab: Convolutions in each inner block, 1 or 2.
    """

    def __init__(
        self, width: int, blocks: int = 10, *, reduction: int = 8, convs_per_rab: int = 2
    ) -> None:
        super().__init__()
        check_integer("RecursiveGroup", "blocks", blocks, low=1)
        inner = [
            RCB(width, reduction=reduction, convs_per_rab=convs_per_rab) for _ in range(blocks)
        ]
        self.body = nn.Sequential(*inner, _conv(width, width))

    def forward(self, u: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Refine ``(B, width, H, W)``."""
        return u + self.body(u)


class MRANet(nn.Module):
    """Multi-level residual attention network.

    It takes images of any size. Because channel attention sees the whole image, cut a large one
    into parts as large as those it was trained on only if that is what you want.

    Args:
        in_channels: Channels of the image.
        width: Channels of all maps inside.
        groups: Number of groups m.
        blocks: Number of blocks n in each group.
        reduction: Of the channel attentions.
        convs_per_rab: Convolutions in each inner block, 1 or 2.
        long_skip: Whether the first features are added to the last group's output.

    Raises:
        ValueError: If an option lies outside its range.
    """

    def __init__(
        self,
        in_channels: int = 1,
        width: int = 64,
        *,
        groups: int = 3,
        blocks: int = 10,
        reduction: int = 8,
        convs_per_rab: int = 2,
        long_skip: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("width", width), ("groups", groups)):
            check_integer("MRANet", name, value, low=1)
        self.in_channels = in_channels
        self.long_skip = long_skip
        self.shallow = nn.Sequential(_conv(in_channels, width), _conv(width, width))
        self.groups = nn.ModuleList(
            RecursiveGroup(width, blocks, reduction=reduction, convs_per_rab=convs_per_rab)
            for _ in range(groups)
        )
        self.attention = SqueezeExcitation(groups * width, reduction=reduction)
        self.last = _conv(groups * width, in_channels)

    def residual(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the z that is subtracted from the image ``(B, in_channels, H, W)``."""
        check_floating("MRANet", "x", x)
        check_shape("MRANet", "x", x, "b c h w", c=self.in_channels)
        first = self.shallow(x)
        outputs = [first]
        for group in self.groups:
            outputs.append(group(outputs[-1]))
        if self.long_skip:
            outputs[-1] = outputs[-1] + first
        return self.last(self.attention(torch.cat(outputs[1:], dim=1)))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the image without speckle, of the shape of ``x``; it is not clipped."""
        return x - self.residual(x)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _examples() -> list[Example]:
    def inputs(generator: torch.Generator) -> tuple[Tensor]:
        return (torch.rand(2, 1, 9, 12, generator=generator),)

    small = partial(MRANet, width=12, groups=2, blocks=1, reduction=2)
    other = partial(small, convs_per_rab=1, long_skip=True)
    shapes = ((2, 1, 9, 12),)
    return [Example(build=build, inputs=inputs, output_shapes=shapes) for build in (small, other)]


CARD = Card(
    slug="mranet",
    title="Speckle removal by nested residual groups with channel attention",
    reference=Reference(
        title="Multi-level Residual Attention Network for Speckle Suppression",
        authors="Lei, Liu, Zhang, Zhao, Zhao",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="288-299",
    ),
    kind="module",
    objects=(
        "cv_attention.methods.mranet.MRANet",
        "cv_attention.methods.mranet.RCB",
        "cv_attention.methods.mranet.RecursiveGroup",
        "cv_attention.methods.mranet.ResidualAttentionBlock",
    ),
    examples=_examples,
    properties=("batch-independent", "deterministic", "shape-preserving"),
)
