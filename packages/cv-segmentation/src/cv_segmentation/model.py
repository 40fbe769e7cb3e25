"""A segmentation network of an encoder and a decoder, and keeping it on disk without pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from cv_core.checks import check_choice, check_integer, check_shape
from cv_core.files import write_atomically
from cv_core.random import seeded
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_segmentation.decoders.deeplab import DeepLabV3PlusDecoder
from cv_segmentation.decoders.fpn import FPNDecoder
from cv_segmentation.decoders.unet import UNetDecoder
from cv_segmentation.encoders import build_encoder, normalization

DecoderName = Literal["unet", "fpn", "deeplab"]

FORMAT = "cv-segmentation model 1"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class ModelConfig:
    """What ``build_model`` makes a network from, apart from its weights.

    Args:
        encoder: As for ``build_encoder``.
        decoder: ``"unet"``, ``"fpn"`` or ``"deeplab"``.
        classes: Number of classes.
        in_channels: Channels of the image.
        depth: Halvings of the encoder.
        mean: Of the images that the encoder was trained on, by channel; None for no normalisation.
        std: Their standard deviations.
    """

    encoder: str
    decoder: DecoderName
    classes: int
    in_channels: int = 3
    depth: int = 5
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class SegmentationModel(nn.Module):
    """An encoder, a decoder and a 1x1 convolution: logits at the image's size.

    Args:
        encoder: Follows ``cv_segmentation.encoders.Encoder``: ours, timm's through
            ``build_encoder``, segmentation-models-pytorch's or your own.
        decoder: Maps the encoder's list of maps to one with ``decoder.out_channels`` channels.
        classes: Number of classes, 1 for a binary decision by sigmoid.
        mean: Subtracted from each channel of the image in [0, 1]; None for no normalisation.
        std: What the difference is divided by.

    Attributes:
        config: What ``build_model`` made it from; None for a model of parts of your own.

    Raises:
        ValueError: If the decoder is not made for the encoder's channels.

    Example:
        >>> from cv_segmentation.encoders import ConvEncoder
        >>> encoder = ConvEncoder((8, 16))
        >>> model = SegmentationModel(encoder, UNetDecoder(encoder.out_channels), 5)
        >>> model(torch.rand(2, 3, 97, 131)).shape
        torch.Size([2, 5, 97, 131])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        classes: int,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_integer("SegmentationModel", "classes", classes, low=1)
        channels: Any = encoder.out_channels
        wanted: Any = getattr(decoder, "encoder_channels", channels)
        if tuple(wanted) != tuple(channels):
            raise ValueError(
                f"SegmentationModel: decoder must be made for encoder.out_channels "
                f"{tuple(channels)}; got one for {tuple(wanted)}."
            )
        self.encoder = encoder
        self.decoder = decoder
        width: Any = decoder.out_channels
        self.head = nn.Conv2d(width, classes, 1)
        self.in_channels, self.classes = int(channels[0]), classes
        self.config: ModelConfig | None = None
        for name, values in (("mean", mean or [0.0]), ("std", std or [1.0])):
            if len(values) not in (1, self.in_channels):
                raise ValueError(
                    f"SegmentationModel: {name} must have one value, or {self.in_channels}, one "
                    f"per channel; got {len(values)}."
                )
            buffer = torch.tensor([float(value) for value in values]).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)  # the configuration has them
        self._normalizes = mean is not None or std is not None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Return the logits of images in [0, 1], at their size."""
        check_shape("SegmentationModel", "x", x, "b c h w", c=self.in_channels)
        seen = (x - self.mean) / self.std if self._normalizes else x
        logits = self.head(self.decoder(self.encoder(seen)))
        if logits.shape[2:] == x.shape[2:]:
            return logits
        return functional.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)


def build_model(
    encoder: str = "small",
    decoder: DecoderName = "unet",
    *,
    classes: int,
    weights: str | None = None,
    in_channels: int = 3,
    depth: int = 5,
) -> SegmentationModel:
    """Return a network by the names of its parts; ``save_model`` keeps such networks.

    Args:
        encoder: As for ``build_encoder``: ``"small"``, ``"resnet18"``, ``"timm/convnext_tiny"`` ...
        decoder: ``"unet"``, ``"fpn"`` or ``"deeplab"`` (with dilations for the encoder's stride).
        classes: Number of classes.
        weights: Pretrained weights of the encoder, which are downloaded; None for random ones. The
            network then normalises its images as they were for these weights, if they have three
            channels; for others no mean is known, and none is taken off.
        in_channels: Channels of the image.
        depth: Halvings of the encoder.

    Raises:
        ImportError: If the library that has the encoder is not installed.
        ValueError: If a name is unknown or an option out of range.

    Example:
        >>> build_model("small", "fpn", classes=3, depth=3)(torch.rand(1, 3, 20, 30)).shape
        torch.Size([1, 3, 20, 30])
    """
    check_choice("build_model", "decoder", decoder, get_args(DecoderName))
    check_integer("build_model", "classes", classes, low=1)
    body = build_encoder(encoder, weights=weights, in_channels=in_channels, depth=depth)
    config = ModelConfig(encoder, decoder, classes, in_channels, depth)
    if weights is not None and in_channels == 3:
        mean, std = normalization(encoder, weights)
        config = replace(config, mean=mean, std=std)
    return _assembled(body, config)


def _assembled(encoder: nn.Module, config: ModelConfig) -> SegmentationModel:
    channels: Any = encoder.out_channels
    decoder: nn.Module
    if config.decoder == "unet":
        decoder = UNetDecoder(channels)
    elif config.decoder == "fpn":
        decoder = FPNDecoder(channels)
    else:
        decoder = DeepLabV3PlusDecoder(channels, rates=_rates(config.depth))
    model = SegmentationModel(encoder, decoder, config.classes, mean=config.mean, std=config.std)
    model.config = config
    return model


def _rates(depth: int) -> tuple[int, ...]:
    """Return the dilations that reach as far as DeepLab's (12, 24, 36) at stride 8."""
    return tuple(max(1, round(rate * 8 / 2**depth)) for rate in (12, 24, 36))


def save_model(
    model: SegmentationModel, path: Path | str, *, notes: Mapping[str, Any] | None = None
) -> Path:
    """Keep a network as a folder with ``model.safetensors`` and ``config.json``.

    Each file is written whole or not at all.

    Args:
        model: From ``build_model``. Of a network of other parts keep the ``state_dict``.
        path: The folder; made if needed. What it holds of an earlier network is replaced.
        notes: What else to keep, such as names of the classes: what JSON can hold.

    Returns:
        The folder.

    Raises:
        TypeError: If the notes hold what JSON cannot.
        ValueError: If the model was not made by ``build_model``.
    """
    from safetensors.torch import save

    if model.config is None:
        raise ValueError(
            "save_model: model must come from build_model, whose arguments make it anew; keep the "
            "state_dict of one that you put together yourself."
        )
    content = {"format": FORMAT, "model": asdict(model.config), "notes": dict(notes or {})}
    text = json.dumps(content, indent=1)
    tensors = {
        name: value.detach().contiguous().cpu() for name, value in model.state_dict().items()
    }
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_atomically(folder / CONFIG, text.encode())
    return folder


def read_notes(path: Path | str) -> dict[str, Any]:
    """Return the notes that were kept with a network.

    Raises:
        FileNotFoundError: If the folder holds no network.
        ValueError: If its configuration is damaged.
    """
    return _read_config(Path(path))[1]


def load_model(path: Path | str) -> SegmentationModel:
    """Return a network that ``save_model`` kept: on the CPU, in evaluation mode.

    Args:
        path: The folder.

    Raises:
        FileNotFoundError: If the folder holds no network.
        ImportError: If the library that has the encoder is not installed.
        ValueError: If a file is damaged or the two do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(path)
    config, _ = _read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"load_model: {folder / WEIGHTS} is damaged: {error}.") from error
    with seeded(0):  # the weights that are drawn are replaced
        encoder = build_encoder(config.encoder, in_channels=config.in_channels, depth=config.depth)
        model = _assembled(encoder, config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"load_model: {folder / WEIGHTS} does not fit {folder / CONFIG}: {error}"
        ) from error
    return model.eval()


def _read_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"load_model: {folder} holds no model ({CONFIG}).")
    try:
        content = json.loads(path.read_bytes())
        form, facts, notes = content["format"], dict(content["model"]), dict(content["notes"])
        for name in ("mean", "std"):
            facts[name] = None if facts[name] is None else tuple(facts[name])
        config = ModelConfig(**facts)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"load_model: {path} is no model's configuration: {error}.") from error
    if form != FORMAT:
        raise ValueError(f"load_model: {path} must have format {FORMAT!r}; got {form!r}.")
    check_choice("load_model", f"decoder in {path}", config.decoder, get_args(DecoderName))
    return config, notes
