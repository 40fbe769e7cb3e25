r"""Residual correction: a second network adds to a segmentation what is wrong with it.

Li, Zheng: *A Residual Correction Approach for Semi-supervised Semantic Segmentation*, PRCV 2021,
LNCS 13022, pp. 90-102.

A segmentation network :math:`S` is corrected by a network :math:`C` that sees the image and the
segmentation. On labelled images :math:`(x, y)` and unlabelled ones :math:`u`, with the cross
entropy :math:`H` and :math:`\hat y = S(x)` held constant,

.. math::
    L_{ce} &= H(S(x), y)                                             && (1) \\
    L_{cor} &= H(\hat y + C(x, \hat y), y)                           && (2) \\
    y^p &= \arg\max\,[S(u) + C(u, S(u))]                             && (3) \\
    L_{semi} &= H(S(u), y^p)                                         && (4) \\
    L &= L_{ce} + L_{cor} + \lambda L_{semi}                         && (5)

:math:`S` learns from the first and the third, :math:`C` from the second alone, whose gradient
:math:`\mathrm{softmax}(\hat y + C) - y` is near zero wherever :math:`S` is rightly confident. At
test time the answer is Eq. 3.

:math:`C` is a segmentation network of its own. The segmentation enters it as attention: for each
map :math:`F_i` that enters its decoder an ``AncillaryEncoder`` :math:`a_i` makes a map of the same
shape, and :math:`F_i a_i(\mathrm{softmax}(\hat y))` takes the place of :math:`F_i`. The encoder
sees the image only, so that pretrained weights fit.

The paper trains S alone, then C alone with ``correction_loss``, then both.

Deviations from the paper:
    - It does not say whether logits or probabilities are added. Eq. 2 has a cross entropy for
      logits only, which are added here; ``correct=add_probabilities`` is the other reading.
    - Its Eq. 2 does not hold the segmentation constant where it enters C; it is held constant here,
      as S would learn from :math:`L_{cor}` otherwise.
    - C starts from zero, that is from S: its last layer does. The paper does not say.
    - The widths inside an ancillary encoder and its ReLUs are not stated.
    - Losses are means over all pixels of the batch that count, not means of images' means.

Example:
    >>> seg, cor = small_unet_pair(num_classes=4, base=4)
    >>> x, u, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16), torch.ones(2, 16, 16).long()
    >>> losses = residual_correction_losses(seg, cor, x, y, u)
    >>> losses["total"].backward()
    >>> sorted(losses)
    ['ce', 'cor', 'semi', 'total']
    >>> torch.equal(losses["ce"], losses["cor"])  # C starts from zero
    True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from cv_core.checks import check_floating, check_integer, check_range, check_shape
from cv_core.engine.evaluation import modes_kept
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from cv_segmentation.decoders.deeplab import DeepLabV3PlusDecoder
from cv_segmentation.decoders.features import resized
from cv_segmentation.decoders.unet import UNetDecoder
from cv_segmentation.encoders import ConvEncoder
from cv_segmentation.losses.pixelwise import cross_entropy_loss
from cv_segmentation.model import SegmentationModel, build_model

Correct = Callable[[Tensor, Tensor], Tensor]
"""Makes logits (B, K, H, W) of a segmentation's logits and a correction of the same shape."""

_LEAST = 1e-6  # of a corrected probability


def add_logits(
    seg_logits: Float[Tensor, "b k h w"], residual: Float[Tensor, "b k h w"]
) -> Float[Tensor, "b k h w"]:
    """Correct logits by adding the residual to them.

    Args:
        seg_logits: Of the segmentation, ``(B, K, H, W)``.
        residual: What C returns, of the same shape.

    Returns:
        Corrected logits.
    """
    return seg_logits + residual


def add_probabilities(
    seg_logits: Float[Tensor, "b k h w"], residual: Float[Tensor, "b k h w"]
) -> Float[Tensor, "b k h w"]:
    """Correct probabilities by adding the residual to them.

    A sum below 1e-6 counts as 1e-6, and the softmax of what is returned divides by the classes'
    sum: the residual is not bounded, so that the sums alone are no distribution.

    Args:
        seg_logits: Of the segmentation, ``(B, K, H, W)``.
        residual: What C returns, of the same shape.

    Returns:
        Logarithms of the corrected probabilities, which a cross entropy takes as logits.
    """
    return (seg_logits.softmax(1) + residual).clamp_min(_LEAST).log()


class AncillaryEncoder(nn.Module):
    """Turns a segmentation into attention for a feature map: three 3x3 convolutions and a sigmoid.

    Args:
        num_classes: Classes of the segmentation.
        out_channels: Channels of the feature map.
        hidden: Channels between the convolutions; by default a quarter of ``out_channels``, but at
            least ``num_classes`` and 16.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(self, num_classes: int, out_channels: int, hidden: int | None = None) -> None:
        super().__init__()
        width = max(16, num_classes, out_channels // 4) if hidden is None else hidden
        for name, value in (
            ("num_classes", num_classes), ("out_channels", out_channels), ("hidden", width)
        ):  # fmt: skip
            check_integer("AncillaryEncoder", name, value, low=1)
        self.num_classes = num_classes
        self.body = nn.Sequential(
            nn.Conv2d(num_classes, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, out_channels, 3, padding=1),
        )

    def forward(
        self, seg_probs: Float[Tensor, "b k h w"], size: Sequence[int]
    ) -> Float[Tensor, "b c h2 w2"]:
        """Make attention of a size.

        Args:
            seg_probs: Probabilities of the classes, ``(B, num_classes, H, W)``.
            size: Height and width of the feature map; the probabilities are averaged or
                interpolated to it.

        Returns:
            Attention in (0, 1), ``(B, out_channels, *size)``.
        """
        check_floating("AncillaryEncoder", "seg_probs", seg_probs)
        check_shape("AncillaryEncoder", "seg_probs", seg_probs, "b k h w", k=self.num_classes)
        if tuple(size) != tuple(seg_probs.shape[2:]):
            # bilinear averages do not exist for every half precision
            wide = seg_probs.to(torch.promote_types(seg_probs.dtype, torch.float32))
            wide = functional.interpolate(wide, size=tuple(size), mode="bilinear", antialias=True)
            seg_probs = wide.to(seg_probs.dtype)
        return self.body(seg_probs).sigmoid()


class ResidualCorrectionNet(nn.Module):
    """The network C: it looks at an image and its segmentation and says what to add to the latter.

    Args:
        backbone_features: Maps images ``(B, C, H, W)`` to a list of feature maps, or to a mapping
            of them as torchvision's ``IntermediateLayerGetter`` does.
        decoder: Maps that list to one map ``(B, decoder.out_channels, h, w)``, as the decoders of
            this package do.
        feature_channels: Channels of each feature map in the list; 0 for one that does not enter
            the decoder, such as the image itself: it gets no attention.
        num_classes: Classes of the segmentation, at least 2.
        hidden: Of the ancillary encoders; see there.

    The last layer, ``head``, starts from zero, so that training starts from the segmentation.

    Raises:
        ValueError: If a number is out of range, or no map enters the decoder.
    """

    def __init__(
        self,
        backbone_features: nn.Module,
        decoder: nn.Module,
        feature_channels: Sequence[int],
        num_classes: int,
        *,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        owner = "ResidualCorrectionNet"
        check_integer(owner, "num_classes", num_classes, low=2)  # softmax of one class says nothing
        for place, channels in enumerate(feature_channels):
            check_integer(owner, f"feature_channels[{place}]", channels, low=0)
        if not any(feature_channels):
            raise ValueError(
                f"{owner}: feature_channels must name the channels of at least one map; got "
                f"{list(feature_channels)}."
            )
        self.num_classes = num_classes
        self.feature_channels = tuple(feature_channels)
        self.backbone_features = backbone_features
        self.decoder = decoder
        self.attention = nn.ModuleDict(
            {
                str(place): AncillaryEncoder(num_classes, channels, hidden)
                for place, channels in enumerate(feature_channels)
                if channels
            }
        )
        width: Any = decoder.out_channels
        self.head = nn.Conv2d(width, num_classes, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type] # it has one

    def forward(
        self, image: Float[Tensor, "b c h w"], seg_logits: Float[Tensor, "b k h w"]
    ) -> Float[Tensor, "b k h w"]:
        """Return the residual, in logits.

        Args:
            image: ``(B, C, H, W)``.
            seg_logits: Its segmentation ``(B, num_classes, H, W)``; pass ``detach()`` of it where
                the network that made it must not learn from this.
        """
        owner = "ResidualCorrectionNet"
        check_floating(owner, "image", image)
        sizes = check_shape(owner, "image", image, "b c h w")
        check_floating(owner, "seg_logits", seg_logits)
        check_shape(
            owner, "seg_logits", seg_logits, "b k h w",
            b=sizes["b"], k=self.num_classes, h=sizes["h"], w=sizes["w"],
        )  # fmt: skip
        maps = self.backbone_features(image)
        maps = list(maps.values()) if isinstance(maps, Mapping) else list(maps)
        if len(maps) != len(self.feature_channels):
            raise ValueError(
                f"{owner}: backbone_features must return {len(self.feature_channels)} maps, as "
                f"many as feature_channels; got {len(maps)}."
            )
        probabilities = seg_logits.softmax(1)
        for place, attention in self.attention.items():
            feature = maps[int(place)]
            maps[int(place)] = feature * attention(probabilities, feature.shape[2:])
        residual = self.head(self.decoder(maps))
        if residual.shape == seg_logits.shape:
            return residual
        return functional.interpolate(residual, size=image.shape[2:], mode="bilinear")


def corrected_logits(
    seg: nn.Module, cor: nn.Module, x: Float[Tensor, "b c h w"], *, correct: Correct = add_logits
) -> Float[Tensor, "b k h w"]:
    """Return ``S(x) + C(x, S(x))``, the answer at test time.

    Args:
        seg: S, maps images to logits. It is called in the mode in which it is, like C.
        cor: C, maps images and logits to a residual.
        x: Images.
        correct: How the residual is added.

    Returns:
        Logits. C's input is held constant; otherwise gradients flow.
    """
    seg_logits = seg(x)
    return correct(seg_logits, cor(x, seg_logits.detach()))


@torch.no_grad()
def pseudo_label(
    seg: nn.Module, cor: nn.Module, x: Float[Tensor, "b c h w"], *, correct: Correct = add_logits
) -> Int[Tensor, "b h w"]:
    """Label every pixel by ``argmax [S(x) + C(x, S(x))]`` (Eq. 3), without a threshold.

    Args:
        seg: S; it is used in evaluation mode, and its mode is put back, like that of C.
        cor: C.
        x: Images.
        correct: How the residual is added.

    Returns:
        Classes, int64, without a gradient.
    """
    check_floating("pseudo_label", "x", x)
    check_shape("pseudo_label", "x", x, "b c h w")
    with modes_kept(seg), modes_kept(cor):
        return corrected_logits(seg.eval(), cor.eval(), x, correct=correct).argmax(1)


def correction_loss(
    cor: nn.Module,
    x: Float[Tensor, "b c h w"],
    seg_logits: Float[Tensor, "b k h w"],
    y: Int[Tensor, "b h w"],
    *,
    ignore_index: int = 255,
    correct: Correct = add_logits,
) -> Float[Tensor, ""]:
    """Return ``H(S(x) + C(x, S(x)), y)`` (Eq. 2), from which C alone learns.

    Args:
        cor: C.
        x: Labelled images.
        seg_logits: Their segmentation by S, held constant here.
        y: Their classes.
        ignore_index: The label that does not count.
        correct: How the residual is added.

    Returns:
        The mean over the pixels that count; 0 if none does.
    """
    fixed = seg_logits.detach()
    corrected = correct(fixed, cor(x, fixed))
    return cross_entropy_loss(corrected, y, "multiclass", ignore_index=ignore_index)


def residual_correction_losses(
    seg: nn.Module,
    cor: nn.Module,
    x_l: Float[Tensor, "b c h w"],
    y_l: Int[Tensor, "b h w"],
    x_u: Float[Tensor, "b2 c h2 w2"] | None = None,
    lam: float = 1.0,
    ignore_index: int = 255,
    *,
    correct: Correct = add_logits,
) -> dict[str, Tensor]:
    """Return the losses of a joint step of S and C (Eq. 1-5).

    Labelled images pass S once, unlabelled ones once without a gradient and in evaluation mode
    (for the pseudo labels) and once with. Both see one and the same augmented image.

    Args:
        seg: S, maps images to logits.
        cor: C, maps images and logits to a residual.
        x_l: Labelled images.
        y_l: Their classes.
        x_u: Unlabelled images, usually as many as labelled ones; the paper does not say.
        lam: Weight of the unlabelled images, at least 0.
        ignore_index: The label that does not count.
        correct: How the residual is added.

    Returns:
        ``"ce"``, ``"cor"``, ``"semi"`` (0 without unlabelled images or weight) and ``"total"``.

    Raises:
        TypeError: If images are not floating or labels not integer.
        ValueError: If shapes, classes or ``lam`` do not fit.
    """
    owner = "residual_correction_losses"
    check_range(owner, "lam", lam, low=0.0)
    check_floating(owner, "x_l", x_l)
    sizes = check_shape(owner, "x_l", x_l, "b c h w")
    check_shape(owner, "y_l", y_l, "b h w", b=sizes["b"], h=sizes["h"], w=sizes["w"])
    if x_u is not None:
        check_floating(owner, "x_u", x_u)
        check_shape(owner, "x_u", x_u, "b c h w", c=sizes["c"])
    seg_logits = seg(x_l)
    ce = cross_entropy_loss(seg_logits, y_l, "multiclass", ignore_index=ignore_index)
    cor_loss = correction_loss(
        cor, x_l, seg_logits, y_l, ignore_index=ignore_index, correct=correct
    )
    semi = torch.zeros_like(ce)
    if x_u is not None and lam > 0.0:  # else S's running statistics would see them
        labels = pseudo_label(seg, cor, x_u, correct=correct)
        semi = cross_entropy_loss(seg(x_u), labels, "multiclass")
    return {"ce": ce, "cor": cor_loss, "semi": semi, "total": ce + cor_loss + lam * semi}


def small_unet_pair(
    num_classes: int, base: int = 16, *, in_channels: int = 3
) -> tuple[SegmentationModel, ResidualCorrectionNet]:
    """Build S and C as small U-Nets from scratch, for a CPU.

    Args:
        num_classes: Number of classes.
        base: Channels of the finest of four scales; they double from scale to scale.
        in_channels: Channels of the image.

    Returns:
        S and C.
    """
    check_integer("small_unet_pair", "num_classes", num_classes, low=2)
    check_integer("small_unet_pair", "base", base, low=1)

    def parts() -> tuple[ConvEncoder, UNetDecoder]:
        widths = [base, 2 * base, 4 * base, 8 * base]
        encoder = ConvEncoder(widths, in_channels)
        return encoder, UNetDecoder(encoder.out_channels, [base, *widths[:-1]])

    seg = SegmentationModel(*parts(), num_classes)
    encoder, decoder = parts()
    channels = [0, *encoder.out_channels[1:]]  # the image itself does not enter the decoder
    return seg, ResidualCorrectionNet(encoder, decoder, channels, num_classes)


def deeplabv3plus_pair(
    num_classes: int,
    weights: str | None = None,
    *,
    encoder: str = "resnet50",
    in_channels: int = 3,
) -> tuple[SegmentationModel, ResidualCorrectionNet]:
    """Build the paper's S and C: two DeepLabv3+.

    Attention goes to the two maps that enter the decoder: the one of stride 4, and what the atrous
    pooling makes of the coarsest one.

    Args:
        num_classes: Number of classes.
        weights: Pretrained weights of both encoders, such as ``"imagenet"``, as the paper has them;
            None for random ones.
        encoder: As for ``cv_segmentation.encoders.build_encoder``.
        in_channels: Channels of the image.

    Returns:
        S and C.

    Raises:
        ImportError: If the library that has the encoder is not installed.
        ValueError: If the encoder is unknown or has no such weights.
    """
    check_integer("deeplabv3plus_pair", "num_classes", num_classes, low=2)
    seg, other = (
        build_model(encoder, "deeplab", classes=num_classes, weights=weights,
                    in_channels=in_channels)
        for _ in range(2)
    )  # fmt: skip
    features, join = _DeepLabFeatures(other), _DeepLabJoin(other)
    return seg, ResidualCorrectionNet(features, join, features.out_channels, num_classes)


def _deeplab(model: SegmentationModel) -> DeepLabV3PlusDecoder:
    decoder = model.decoder
    assert isinstance(decoder, DeepLabV3PlusDecoder)  # noqa: S101 - for the type checker
    return decoder


class _DeepLabFeatures(nn.Module):
    """The maps that enter DeepLabv3+'s decoder: of stride 4, and behind the atrous pooling."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        decoder = _deeplab(model)
        self.encoder, self.aspp, self.scale = model.encoder, decoder.aspp, decoder.scale
        self.out_channels = (decoder.encoder_channels[decoder.scale], decoder.out_channels)
        for name in ("mean", "std"):
            self.register_buffer(name, getattr(model, name), persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.encoder((x - self.mean) / self.std)
        return [maps[self.scale], self.aspp(maps[-1])]


class _DeepLabJoin(nn.Module):
    """What DeepLabv3+'s decoder does with these two maps."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        decoder = _deeplab(model)
        self.reduce, self.refine = decoder.reduce, decoder.refine
        self.out_channels = decoder.out_channels

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        fine, coarse = maps
        joined: Tensor = self.refine(torch.cat([resized(coarse, fine), self.reduce(fine)], dim=1))
        return joined


def _small() -> ResidualCorrectionNet:
    """Return a small C whose last layer is not zero, so that its output says something."""
    _, cor = small_unet_pair(3, base=2)
    cor.head.reset_parameters()
    return cor


def _examples() -> list[Example]:
    def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        image = torch.rand(2, 3, 18, 21, generator=generator)
        return image, torch.randn(2, 3, 18, 21, generator=generator)

    return [Example(build=_small, inputs=inputs, output_shapes=((2, 3, 18, 21),))]


CARD = Card(
    slug="residual-correction",
    title="Pseudo labels from a second network that corrects a segmentation",
    reference=Reference(
        title="A Residual Correction Approach for Semi-supervised Semantic Segmentation",
        authors="Li, Zheng",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="90-102",
    ),
    kind="module",
    objects=(
        "cv_segmentation.methods.residual_correction.ResidualCorrectionNet",
        "cv_segmentation.methods.residual_correction.AncillaryEncoder",
        "cv_segmentation.methods.residual_correction.residual_correction_losses",
        "cv_segmentation.methods.residual_correction.correction_loss",
        "cv_segmentation.methods.residual_correction.corrected_logits",
        "cv_segmentation.methods.residual_correction.pseudo_label",
        "cv_segmentation.methods.residual_correction.add_logits",
        "cv_segmentation.methods.residual_correction.add_probabilities",
        "cv_segmentation.methods.residual_correction.small_unet_pair",
        "cv_segmentation.methods.residual_correction.deeplabv3plus_pair",
    ),
    examples=_examples,
    properties=("batch-independent", "deterministic"),
)
