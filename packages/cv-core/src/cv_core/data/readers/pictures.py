"""Decoding of pictures, and sequences that decode when an item is asked for."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from cv_core.data.root import CorruptData

if TYPE_CHECKING:
    from PIL.Image import Image

Sample = TypeVar("Sample")

Channels = Literal["grey", "rgb", "as stored"]


class Decoded(Sequence[Sample]):
    """A sequence whose samples are made from small items each time they are asked for.

    Args:
        items: What is kept in memory, such as the bytes of a PNG file.
        decode: Makes a sample of an item; a module's function, so that it can be sent to workers.
    """

    def __init__(self, items: Sequence[Any], decode: Callable[[Any], Sample]) -> None:
        self.items = items
        self.decode = decode

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Decoded[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Decoded[Sample]:
        if isinstance(index, slice):
            return Decoded(self.items[index], self.decode)
        return self.decode(self.items[index])

    def __repr__(self) -> str:
        return f"Decoded({len(self)} samples)"

    def select(self, indices: Sequence[int] | np.ndarray) -> Decoded[Sample]:
        """Return the sequence of some of the samples, in the order given."""
        return Decoded([self.items[int(index)] for index in indices], self.decode)


@overload
def decode_image(
    picture: bytes | Path, *, name: str = ..., channels: Literal["rgb"]
) -> Float32[Tensor, "3 h w"]: ...
@overload
def decode_image(
    picture: bytes | Path, *, name: str = ..., channels: Channels = ...
) -> Float32[Tensor, "c h w"]: ...
def decode_image(
    picture: bytes | Path, *, name: str = "", channels: Channels = "as stored"
) -> Float32[Tensor, "c h w"]:
    """Decode a picture.

    Args:
        picture: The content of a picture file, or its path.
        name: What to call it in an error; by default the path.
        channels: ``as stored`` gives one channel for a grey picture and three for any other.

    Returns:
        (1 or 3, H, W) in [0, 1].

    Raises:
        CorruptData: If it cannot be decoded; the message names it.
    """
    return to_tensor(_pixels(picture, name, channels))


def decode_mask(picture: bytes | Path, *, name: str = "") -> Int64[Tensor, "h w"]:
    """Decode a picture of class indices or grey values without changing the numbers.

    Args:
        picture: The content of a picture file, or its path.
        name: What to call it in an error; by default the path.

    Raises:
        CorruptData: If it cannot be decoded or has several channels.
    """
    pixels = _pixels(picture, name, "mask")
    if pixels.ndim != 2:
        raise CorruptData(f"{_title(picture, name)}: a mask must have one channel.")
    return torch.from_numpy(pixels.astype(np.int64))


def to_tensor(pixels: np.ndarray) -> Float32[Tensor, "c h w"]:
    """Turn (H, W) or (H, W, C) integers of 8 or 16 bits into (C, H, W) in [0, 1]."""
    top = float(np.iinfo(pixels.dtype).max)
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    floats = np.ascontiguousarray(planes, dtype=np.float32)
    floats /= top
    return torch.from_numpy(floats)


def _title(picture: bytes | Path, name: str) -> str:
    return name or (str(picture) if isinstance(picture, Path) else "picture")


def _pixels(picture: bytes | Path, name: str, channels: str) -> np.ndarray:
    from PIL import Image, ImageOps

    source = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    try:
        with Image.open(source) as image:
            if channels == "mask":
                return _mask_pixels(image)
            upright = ImageOps.exif_transpose(image)
            return _image_pixels(upright, channels)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptData(f"{_title(picture, name)}: not a readable picture: {error}") from error


def _mask_pixels(image: Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels


def _image_pixels(image: Image, channels: str) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode == "I":
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("grey values beyond 16 bits")
        grey = deep.astype(np.uint16)
        return np.repeat(grey[..., None], 3, axis=2) if channels == "rgb" else grey
    keep_grey = channels == "grey" or (channels == "as stored" and image.mode in {"1", "L", "LA"})
    return np.asarray(image.convert("L" if keep_grey else "RGB"))
