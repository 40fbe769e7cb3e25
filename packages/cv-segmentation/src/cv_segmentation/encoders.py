"""Encoders: networks that turn an image into maps of falling resolution.

All follow one protocol, which is also that of segmentation-models-pytorch: ``forward(x)`` returns a
list of maps whose entry i has stride 2^i, the image itself first, and ``out_channels`` names their
channels. A scale at which a network has no map (transformers begin at stride 4) holds a map without
channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from cv_core.checks import check_choice, check_integer, check_shape, nearest
from cv_core.nn.blocks import ResidualBlock
from cv_core.optional import require
from jaxtyping import Float
from torch import Tensor, nn

_TIMM = "timm/"
_SMALL = "small"
_FIRST_WIDTH = 16


@runtime_checkable  # the tests check types
class Encoder(Protocol):
    """What the decoders need of an encoder.

    Attributes:
        out_channels: Channels of each map, beginning with those of the image.
    """

    @property
    def out_channels(self) -> Sequence[int]: ...  # noqa: D102 - see above

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Return the image and its maps at the strides 2, 4, 8 ..."""


class ConvEncoder(nn.Module):
    """Residual stages, each of which halves the sides (rounded up), to be trained from scratch.

    Args:
        widths: Channels of each stage, the finest first; the first has stride 2.
        in_channels: Channels of the image.
        blocks: Residual blocks of a stage.

    Example:
        >>> import torch
        >>> [tuple(item.shape[1:]) for item in ConvEncoder((4, 8))(torch.zeros(1, 3, 9, 7))]
        [(3, 9, 7), (4, 5, 4), (8, 3, 2)]
    """

    def __init__(
        self, widths: Sequence[int] = (16, 32, 64, 128), in_channels: int = 3, *, blocks: int = 1
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("ConvEncoder: widths must name at least one stage; got none.")
        for width in widths:
            check_integer("ConvEncoder", "widths", width, low=1)
        check_integer("ConvEncoder", "in_channels", in_channels, low=1)
        check_integer("ConvEncoder", "blocks", blocks, low=1)
        self.out_channels = (in_channels, *widths)
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(before, width, stride=2),
                *(ResidualBlock(width) for _ in range(blocks - 1)),
            )
            for before, width in zip(self.out_channels, widths, strict=False)
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """Return the image and the map of every stage."""
        check_shape("ConvEncoder", "x", x, "b c h w", c=self.out_channels[0])
        maps = [x]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class TimmEncoder(nn.Module):
    """The maps of a timm network at the strides 2, 4 ... 2^depth, the last one of each stride.

    Args:
        name: As ``timm.list_models()`` has it.
        weights: Tag of pretrained weights, which timm downloads, such as ``"a1_in1k"``; None for
            random ones.
        in_channels: Channels of the image.
        depth: Number of halvings.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If timm has no such network or weights, or the network no map of the stride
            2^depth.
    """

    def __init__(
        self, name: str, *, weights: str | None = None, in_channels: int = 3, depth: int = 5
    ) -> None:
        super().__init__()
        check_integer("TimmEncoder", "in_channels", in_channels, low=1)
        check_integer("TimmEncoder", "depth", depth, low=1)
        timm = require("timm", package="cv-segmentation", extra="timm", purpose="TimmEncoder")
        if not timm.is_model(name):
            _refuse(name, timm.list_models(), "timm's")
        if weights is not None:
            tags = [tag.partition(".")[2] for tag in timm.list_pretrained(f"{name}.*")]
            check_choice("TimmEncoder", "weights", weights, tags)
        full = name if weights is None else f"{name}.{weights}"
        options = {"features_only": True, "in_chans": in_channels}
        model = timm.create_model(full, **options)
        strides = model.feature_info.reduction()
        places = {stride: place for place, stride in enumerate(strides)}
        wanted = [2**scale for scale in range(1, depth + 1)]
        if wanted[-1] not in places:
            raise ValueError(
                f"TimmEncoder: depth must lead to a stride of {name}, which are "
                f"{', '.join(map(str, sorted(places)))}; got {depth}, stride {wanted[-1]}."
            )
        chosen = tuple(places[stride] for stride in wanted if stride in places)
        if len(chosen) < len(strides) or weights is not None:
            pretrained = weights is not None
            model = timm.create_model(full, **options, out_indices=chosen, pretrained=pretrained)
        self.model = model
        self.name = name
        channels = dict(
            zip(model.feature_info.reduction(), model.feature_info.channels(), strict=True)
        )
        self.out_channels = (in_channels, *(int(channels.get(stride, 0)) for stride in wanted))
        self._last = str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """Return the image and its maps; a missing scale has a map without channels."""
        check_shape("TimmEncoder", "x", x, "b c h w", c=self.out_channels[0])
        found = iter(self.model(x))
        maps = [x]
        for scale, channels in enumerate(self.out_channels[1:], start=1):
            if channels:
                item = next(found)
                maps.append(item.permute(0, 3, 1, 2).contiguous() if self._last else item)
            else:
                height, width = (-(-side // 2**scale) for side in x.shape[2:])
                maps.append(x.new_zeros(len(x), 0, height, width))
        return maps


def build_encoder(
    name: str, *, weights: str | None = None, in_channels: int = 3, depth: int = 5
) -> nn.Module:
    """Return an encoder by name.

    Args:
        name: ``"small"`` for a ``ConvEncoder`` that begins with 16 channels and doubles them,
            ``"timm/NAME"`` for a network of timm, or else the name of an encoder of
            segmentation-models-pytorch, such as ``"resnet18"``.
        weights: Name of pretrained weights, which are downloaded: ``"imagenet"`` and others of
            segmentation-models-pytorch, a tag of timm's; None for random ones.
        in_channels: Channels of the image.
        depth: Number of halvings, at least 1; most named ones have 5 at the most.

    Returns:
        A module that follows the protocol ``Encoder``.

    Raises:
        ImportError: If the library that has the encoder is not installed; with the install line.
        ValueError: If there is no such encoder, or it has no such weights or depth.

    Example:
        >>> build_encoder("small", depth=3).out_channels
        (3, 16, 32, 64)
    """
    check_integer("build_encoder", "in_channels", in_channels, low=1)
    check_integer("build_encoder", "depth", depth, low=1)
    if name == _SMALL:
        if weights is not None:
            raise ValueError(f"build_encoder: weights must be None for 'small'; got {weights!r}.")
        widths = tuple(_FIRST_WIDTH * 2**stage for stage in range(depth))
        return ConvEncoder(widths, in_channels)
    if name.startswith(_TIMM):
        return TimmEncoder(
            name.removeprefix(_TIMM), weights=weights, in_channels=in_channels, depth=depth
        )
    return _smp(name, weights, in_channels, depth)


def _smp(name: str, weights: str | None, in_channels: int, depth: int) -> nn.Module:
    module = require(
        "segmentation_models_pytorch.encoders",
        package="cv-segmentation",
        extra="smp",
        purpose=f"the encoder {name!r} (without a library: 'small')",
    )
    known = module.encoders
    if name not in known:
        _refuse(name, known, "segmentation-models-pytorch's")
    if weights is not None:
        check_choice("build_encoder", "weights", weights, known[name]["pretrained_settings"])
    encoder: nn.Module = module.get_encoder(name, in_channels, depth, weights)
    return encoder


def _refuse(name: str, known: Sequence[str], whose: str) -> None:
    close = nearest(name, known)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(
        f"build_encoder: name must be 'small', one of {whose} encoders, or 'timm/NAME' for one of "
        f"timm's; got {name!r}.{hint}"
    )


def normalization(name: str, weights: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation, by channel, of images in [0, 1] for pretrained weights.

    Args:
        name: As for ``build_encoder``.
        weights: As for ``build_encoder``.

    Raises:
        ImportError: If the library that has the encoder is not installed.
        ValueError: If it has no such weights.
    """
    if name.startswith(_TIMM):
        timm = require("timm", package="cv-segmentation", extra="timm", purpose="normalization")
        model = name.removeprefix(_TIMM)
        tags = [tag.partition(".")[2] for tag in timm.list_pretrained(f"{model}.*")]
        check_choice("normalization", "weights", weights, tags)
        facts = timm.get_pretrained_cfg(f"{name.removeprefix(_TIMM)}.{weights}").to_dict()
    else:
        smp = require(
            "segmentation_models_pytorch.encoders",
            package="cv-segmentation",
            extra="smp",
            purpose="normalization",
        )
        if name not in smp.encoders:
            _refuse(name, smp.encoders, "segmentation-models-pytorch's")
        choices = smp.encoders[name]["pretrained_settings"]
        check_choice("normalization", "weights", weights, choices)
        facts = smp.get_preprocessing_params(name, weights)
    # some weights were trained on values up to 255
    scale = max(facts.get("input_range", (0, 1)))
    mean, std = (tuple(float(value) / scale for value in facts[key]) for key in ("mean", "std"))
    return mean, std
