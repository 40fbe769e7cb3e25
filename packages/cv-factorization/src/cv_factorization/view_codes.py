"""Codes of an image's shape, texture and ground, and the decoder that joins them again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, get_args

import torch
from cv_core.checks import check_choice, check_integer
from cv_core.losses.image import gram_matrix
from cv_core.nn.blocks import AdaIN, ConvNormAct, ResidualBlock
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Mode = Literal["gap", "gram"]


class ShapeEncoder(nn.Module):
    """Residual blocks with instance normalisation on one map of features.

    Args:
        in_channels: Channels of the map.
        channels: Channels of the code.
        n_blocks: Number of blocks, at least 1; 4 in the paper.
    """

    def __init__(self, in_channels: int, channels: int, *, n_blocks: int = 4) -> None:
        super().__init__()
        check_integer("ShapeEncoder", "n_blocks", n_blocks, low=1)
        widths = [in_channels] + [channels] * n_blocks
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(before, after, norm=nn.InstanceNorm2d)
                for before, after in pairwise(widths)
            )
        )

    def forward(self, s: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        """Return the shape code of a map."""
        return self.blocks(s)


class TextureEncoder(nn.Module):
    """A vector from maps of several layers that does not know where anything was.

    Args:
        layer_channels: Channels of each map.
        dim: Entries of the code.
        mode: ``"gap"`` maps each layer to ``dim`` channels, pools to the smallest map's size, adds
            and averages over places; ``"gram"`` maps each layer's correlations of channels to
            ``dim`` numbers and adds. A linear layer follows.
    """

    def __init__(self, layer_channels: Sequence[int], dim: int, *, mode: Mode = "gap") -> None:
        super().__init__()
        check_choice("TextureEncoder", "mode", mode, get_args(Mode))
        check_integer("TextureEncoder", "dim", dim, low=1)
        if not layer_channels:
            raise ValueError("TextureEncoder: layer_channels must name at least one layer.")
        self.mode = mode
        sizes = [c if mode == "gap" else c * (c + 1) // 2 for c in layer_channels]
        self.maps = nn.ModuleList(nn.Linear(size, dim) for size in sizes)
        self.fc = nn.Linear(dim, dim)

    def forward(self, layers: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b d"]:
        """Return the texture code of maps, one of each layer."""
        if len(layers) != len(self.maps):
            raise ValueError(
                f"TextureEncoder: layers must be {len(self.maps)} maps; got {len(layers)}."
            )
        statistics = _means if self.mode == "gap" else _correlations
        parts = [
            transform(item) for transform, item in zip(self.maps, statistics(layers), strict=True)
        ]
        return self.fc(torch.stack(parts).sum(dim=0))


def _means(layers: Sequence[Tensor]) -> list[Tensor]:
    # a 1x1 convolution, pooling and the mean commute, so that the mean may come first
    height, width = (min(layer.shape[axis] for layer in layers) for axis in (2, 3))
    return [
        functional.adaptive_avg_pool2d(layer, (height, width)).mean(dim=(2, 3)) for layer in layers
    ]


def _correlations(layers: Sequence[Tensor]) -> list[Tensor]:
    found = []
    for layer in layers:
        rows, columns = torch.triu_indices(layer.shape[1], layer.shape[1], device=layer.device)
        # per place only: divided by the channels as well, large layers would count less
        found.append(layer.shape[1] * gram_matrix(layer)[:, rows, columns])
    return found


class AdaINDecoder(nn.Module):
    """An image from a map of shape and a code of texture, which sets the channels' statistics.

    Args:
        shape_channels: Channels of the map.
        texture_dim: Entries of the texture code.
        out_channels: Channels of the image.
        n_up: How often the map is doubled in size, at least 0.
    """

    def __init__(
        self, shape_channels: int, texture_dim: int, out_channels: int, *, n_up: int = 1
    ) -> None:
        super().__init__()
        check_integer("AdaINDecoder", "n_up", n_up, low=0)
        self.mlp = nn.Sequential(nn.Linear(texture_dim, texture_dim), nn.ReLU())
        # no bias in front of a normalisation that takes the mean away
        conv = partial(nn.Conv2d, shape_channels, shape_channels, 3, padding=1, bias=False)
        self.conv1, self.conv2 = conv(), conv()
        self.norm1 = AdaIN(shape_channels, texture_dim)
        self.norm2 = AdaIN(shape_channels, texture_dim)
        up: list[nn.Module] = []
        for _ in range(n_up):
            up += [
                nn.Upsample(scale_factor=2, mode="nearest"),
                ConvNormAct(shape_channels, shape_channels, norm=None),
            ]
        self.up = nn.Sequential(*up, nn.Conv2d(shape_channels, out_channels, 3, padding=1))

    def forward(
        self, shape: Float[Tensor, "b c h w"], texture: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b c2 h2 w2"]:
        """Return the image of a shape code and a texture code."""
        code = self.mlp(texture)
        h = functional.relu(self.norm1(self.conv1(shape), code))
        h = shape + self.norm2(self.conv2(h), code)
        return self.up(h)


def otsu_mask(x: Float[Tensor, "b c h w"], *, bins: int = 64) -> Float[Tensor, "b 1 h w"]:
    """Return 1 where an image is brighter than the threshold that best splits its grey values.

    Args:
        x: Images.
        bins: Thresholds tried between an image's least and largest value, at least 2.

    Returns:
        0 or 1; the split with the largest variance between the two sides (Otsu, 1979).
    """
    check_integer("otsu_mask", "bins", bins, low=2)
    grey = x.mean(dim=1, keepdim=True)
    flat = grey.flatten(1)
    low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
    steps = torch.linspace(0.0, 1.0, bins + 1, dtype=x.dtype, device=x.device)[:-1]
    thresholds = low + (high - low) * steps
    above = (flat[:, None, :] > thresholds[..., None]).to(x)
    share = above.mean(dim=2)
    total = flat.mean(dim=1, keepdim=True)
    upper = (above * flat[:, None, :]).mean(dim=2)
    between = (total * share - upper).square() / (share * (1.0 - share)).clamp_min(1e-12)
    best = thresholds.gather(1, between.argmax(dim=1, keepdim=True))
    return (grey > best[..., None, None]).to(x)
