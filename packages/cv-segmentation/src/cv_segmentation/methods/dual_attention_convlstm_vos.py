r"""Several objects followed through a clip in one pass, from their masks in the first frame.

*Dual Attention Based Network with Hierarchical ConvLSTM for Video Object Segmentation*, Z. Zhao and
S. Zhao, PRCV 2021, LNCS 13022, pp. 323-335.

An encoder gives each frame t four maps. The deepest goes through channel attention (CAM), the third
from the end is fused with a shallow branch of the image that ends in two rounds of criss-cross
attention (SCB, FFM). A decoder of convolutional LSTM cells, k from the deepest level to the finest,
reads for each object i

.. math:: x_{t,i,k} = [\mathrm{Up}(h_{t,i,k+1}), f_{t,k}, M_{t-1,i}], \qquad
          (h, c)_{t,i,k} = \mathrm{LSTM}_k(x_{t,i,k}, h_{t,i-1,k}, h_{t-1,i,k}, c_{t,i-1,k})

and the finest h becomes the mask :math:`M_{t,i}` (Eqs. 5 to 8). The first frame reads the given
masks. The loss, ``VideoObjectLoss``, is soft IoU, balanced cross entropy and the overlap of the
objects with each other.

Deviations from the paper, and why:

- :math:`C_j = \beta \sum_i x_{ji} B_i + B_j` (Eq. 4) is X B with rows of X that sum to 1; the
  prose's transpose holds for X stored the other way round. Unscaled as printed, X is nearly the
  identity; ``affinity="cosine"`` is the remedy (see ``ChannelAffinityAttention``).
- Eq. 2 sums h + w terms; row and column together have h + w - 1 places, and that is what is summed.
- The fusion and the cell are drawn, not written: they are as in the docstrings of
  ``ContextFusion`` and ``BiRecurrentConvLSTMCell``, the latter after RVOS (Ventura et al., 2019).
- Maps are resized to each other's size, not doubled: frames of 240 x 427 do not halve evenly. Masks
  shrink by their mean over a cell.
- Batch normalisation and ReLU follow the convolutions outside the decoder, which has neither.
- No largest number of objects: the weights do not depend on it. An absent object is an empty mask.
- The masks that are fed back carry a gradient; the paper does not say.

Example:
    >>> from cv_segmentation.encoders import ConvEncoder
    >>> model = DualAttentionVOS(ConvEncoder((8, 8, 16, 16)), hidden=16)
    >>> frames, first = torch.rand(1, 4, 3, 32, 48), torch.zeros(1, 2, 32, 48)
    >>> first[0, 0, 5:15, 8:20] = 1.0  # the second object is absent
    >>> model(frames, first).shape
    torch.Size([1, 4, 2, 32, 48])
"""

from __future__ import annotations

from typing import cast

import torch
from cv_core.checks import check_floating, check_integer, check_shape
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_segmentation.encoders import ConvEncoder, Encoder
from cv_segmentation.video.attention import Affinity, ChannelAffinityAttention, CrissCrossContext
from cv_segmentation.video.context import Block, ContextFusion, SpatialContextBranch, separable
from cv_segmentation.video.decoder import HierarchicalConvLSTMDecoder, Memory

_LEVELS = 4


class DualAttentionVOS(nn.Module):
    """The paper's network on any encoder.

    Args:
        backbone: An encoder of at least four halvings, whose last four maps are decoded:
            ``build_encoder("resnet50", weights="imagenet")`` in the paper, at a thousandth of the
            other weights' learning rate. Pretrained weights expect frames from which
            ``cv_segmentation.encoders.normalization``'s mean is subtracted, divided by its
            deviation; this is not done here.
        hidden: Channels of the spatial context, of the deepest cell and of what that reads of the
            backbone; every finer level has half as many.
        attention: Makes the attention of the spatial context branch for a number of channels: two
            rounds of criss-cross by default, ``lambda _: nn.Identity()`` for none. None leaves out
            the branch and its fusion.
        affinity: Kind of the channel attention: ``"dot"`` as printed, ``"cosine"``, ``"danet"``;
            None leaves it out.
        over_objects: Whether the cells read the states of the object before.
        over_time: Whether they read those of the frame before; the last masks are read anyway.

    Raises:
        ValueError: If an option is out of range or the backbone has fewer than four halvings.
    """

    def __init__(
        self,
        backbone: nn.Module,
        hidden: int = 128,
        *,
        attention: Block | None = CrissCrossContext,
        affinity: Affinity | None = "dot",
        over_objects: bool = True,
        over_time: bool = True,
    ) -> None:
        super().__init__()
        check_integer("DualAttentionVOS", "hidden", hidden, low=2 ** (_LEVELS - 1))
        channels = [int(count) for count in cast("Encoder", backbone).out_channels]
        if len(channels) <= _LEVELS or 0 in channels[-_LEVELS:]:
            raise ValueError(
                f"DualAttentionVOS: backbone must have at least {_LEVELS} halvings, the last "
                f"{_LEVELS} with maps; its maps have {tuple(channels)} channels."
            )
        self.in_channels = channels[0]
        self.backbone = backbone
        widths = [hidden // 2**level for level in range(_LEVELS)]
        self.skips = nn.ModuleList(
            _normalised(source, width)
            for source, width in zip(channels[: -_LEVELS - 1 : -1], widths, strict=True)
        )
        self.context: SpatialContextBranch | None = None
        if attention is not None:
            middle = channels[-_LEVELS + 1]
            self.context = SpatialContextBranch(
                hidden, self.in_channels, steps=len(channels) - _LEVELS + 1, attention=attention
            )
            self.skips[2] = ContextFusion(hidden, middle, widths[2])
        self.channel_attention = (
            nn.Identity() if affinity is None else ChannelAffinityAttention(affinity)
        )
        self.decoder = HierarchicalConvLSTMDecoder(
            widths, hidden, over_objects=over_objects, over_time=over_time
        )

    def encode(self, frames: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """Return the four maps of each frame that the decoder reads, deepest first.

        Raises:
            TypeError: If the frames are not floating.
            ValueError: If a shape does not fit.
        """
        check_floating("DualAttentionVOS", "frames", frames)
        check_shape("DualAttentionVOS", "frames", frames, "b c h w", c=self.in_channels)
        found: list[Tensor] = self.backbone(frames)[: -_LEVELS - 1 : -1]
        maps = []
        for level, (skip, feature) in enumerate(zip(self.skips, found, strict=True)):
            if level == 2 and self.context is not None:
                maps.append(skip(self.context(frames), feature))
            else:
                maps.append(skip(feature))
        maps[0] = self.channel_attention(maps[0])
        return maps

    def decode(
        self, maps: list[Tensor], masks: Float[Tensor, "b n h w"], memory: Memory | None = None
    ) -> tuple[Float[Tensor, "b n h w"], Memory]:
        """Return logits of the masks' size, and the memory for the next frame.

        Args:
            maps: From ``encode``.
            masks: The objects' masks in the frame before, or the given ones in the first frame.
            memory: What the frame before returned; None in the first one.
        """
        logits, memory = self.decoder(maps, masks, memory)
        size = masks.shape[-2:]
        whole = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return whole, memory

    def logits(
        self,
        frames: Float[Tensor, "b t c h w"],
        first_masks: Float[Tensor, "b n h w"],
        truth: Float[Tensor, "b t n h w"] | None = None,
    ) -> Float[Tensor, "b t n h w"]:
        """Return the logits of the masks in all frames, for training.

        Args:
            frames: Clips ``(B, T, C, H, W)``.
            first_masks: The objects' masks in the first frame ``(B, N, H, W)``, in [0, 1].
            truth: The true masks ``(B, T, N, H, W)``, to be read in place of the predicted ones
                (teacher forcing, for early training).

        Raises:
            TypeError: If an argument is not floating.
            ValueError: If a shape does not fit, or the first masks leave [0, 1].
        """
        owner = "DualAttentionVOS"
        check_floating(owner, "frames", frames)
        check_floating(owner, "first_masks", first_masks)
        sizes = check_shape(owner, "frames", frames, "b t c h w", c=self.in_channels)
        known = {name: sizes[name] for name in "bhw"}
        known = check_shape(owner, "first_masks", first_masks, "b n h w", **known)
        _check_unit("first_masks", first_masks)
        if truth is not None:
            check_floating(owner, "truth", truth)
            check_shape(owner, "truth", truth, "b t n h w", t=sizes["t"], **known)
        # the encoder sees all frames at once: only the decoder has to wait
        maps = [part.unflatten(0, frames.shape[:2]) for part in self.encode(frames.flatten(0, 1))]
        masks, memory, found = first_masks, None, []
        for t in range(sizes["t"]):
            logits, memory = self.decode([part[:, t] for part in maps], masks, memory)
            found.append(logits)
            masks = logits.sigmoid() if truth is None else truth[:, t]
        return torch.stack(found, dim=1)

    def forward(
        self, frames: Float[Tensor, "b t c h w"], first_masks: Float[Tensor, "b n h w"]
    ) -> Float[Tensor, "b t n h w"]:
        """Return the probabilities of the masks in all frames, the first one included.

        Args:
            frames: Clips ``(B, T, C, H, W)``, in [0, 1] or as the backbone's weights expect them.
            first_masks: The objects' masks in the first frame ``(B, N, H, W)``, in [0, 1]; empty
                for an absent object.

        Raises:
            TypeError: If an argument is not floating.
            ValueError: If a shape does not fit, or the masks leave [0, 1].
        """
        return self.logits(frames, first_masks).sigmoid()

    def step(
        self,
        frame: Float[Tensor, "b c h w"],
        masks: Float[Tensor, "b n h w"],
        memory: Memory | None = None,
    ) -> tuple[Float[Tensor, "b n h w"], Memory]:
        """Follow the objects by one frame, for clips that are still being recorded.

        Call it under ``torch.no_grad()``: else the graph of all frames stays in memory.

        Args:
            frame: The next frame ``(B, C, H, W)``.
            masks: The given masks for the first frame, then those that the last call returned.
            memory: What the last call returned; None for the first frame.

        Returns:
            Probabilities of the masks, and the memory, both for the next call. In evaluation mode
            they equal those of ``forward``.

        Raises:
            TypeError: If an argument is not floating.
            ValueError: If a shape does not fit, or the given masks leave [0, 1].
        """
        if memory is None:
            check_floating("DualAttentionVOS", "masks", masks)
            _check_unit("masks", masks)
        logits, memory = self.decode(self.encode(frame), masks, memory)
        return logits.sigmoid(), memory


def _check_unit(name: str, masks: Tensor) -> None:
    """Refuse masks of 0 and 255, object numbers and NaN, which would be followed as they are."""
    if torch.compiler.is_compiling():
        return
    low, high = masks.detach().aminmax()
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"DualAttentionVOS: {name} must lie in [0, 1]; got values from {low.item():g} to "
            f"{high.item():g}. Give each object a mask of its own, of 0 and 1."
        )


def _normalised(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = separable(in_channels, out_channels, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


def _examples() -> list[Example]:
    def clips(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        frames = torch.rand(2, 3, 3, 20, 24, generator=generator)
        return frames, torch.rand(2, 2, 20, 24, generator=generator)

    def build(affinity: Affinity) -> DualAttentionVOS:
        return DualAttentionVOS(ConvEncoder((8, 8, 8, 8)), hidden=16, affinity=affinity)

    shapes = ((2, 3, 2, 20, 24),)
    return [
        Example(build=lambda: build("dot"), inputs=clips, output_shapes=shapes),
        Example(build=lambda: build("cosine"), inputs=clips, output_shapes=shapes),
    ]


CARD = Card(
    slug="dual-attention-convlstm-vos",
    title="Video objects followed by a decoder recurrent over objects and time",
    reference=Reference(
        title=(
            "Dual Attention Based Network with Hierarchical ConvLSTM for Video Object Segmentation"
        ),
        authors="Z. Zhao, S. Zhao",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="323-335",
    ),
    kind="module",
    objects=(
        "cv_segmentation.methods.dual_attention_convlstm_vos.DualAttentionVOS",
        "cv_segmentation.video.attention.ChannelAffinityAttention",
        "cv_segmentation.video.attention.CrissCrossContext",
        "cv_segmentation.video.context.ContextFusion",
        "cv_segmentation.video.context.SpatialContextBranch",
        "cv_segmentation.video.decoder.BiRecurrentConvLSTMCell",
        "cv_segmentation.video.decoder.HierarchicalConvLSTMDecoder",
        "cv_segmentation.video.losses.VideoObjectLoss",
        "cv_segmentation.video.losses.balanced_bce_loss",
        "cv_segmentation.video.losses.self_iou_loss",
    ),
    examples=_examples,
    properties=("batch-independent", "deterministic", "non-negative"),
)
