"""The operations on the edges of a searched cell (Liu, Simonyan, Yang: *DARTS*, ICLR 2019).

Each maps ``(B, C, H, W)`` to ``(B, C, H / s, W / s)``, odd sides rounded up. Convolutions come
after a ReLU and before a batch normalisation, so that a chain of operations ends in one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_core.checks import check_choice, check_floating, check_integer, check_shape
from cv_core.models.genotypes import OPERATION_NAMES


class ZeroEdge(nn.Module):
    """An edge that is not there: zeros of the shape that an operation would give.

    Args:
        stride: Of the operation; sides are divided by it and rounded up.
        channels: Of the output; None keeps those of the input.

    Example:
        >>> ZeroEdge(2)(torch.ones(1, 4, 7, 8)).shape
        torch.Size([1, 4, 4, 4])
    """

    def __init__(self, stride: int = 1, *, channels: int | None = None) -> None:
        super().__init__()
        check_integer("ZeroEdge", "stride", stride, low=1)
        if channels is not None:
            check_integer("ZeroEdge", "channels", channels, low=1)
        self.stride = stride
        self.channels = channels

    @classmethod
    def like(cls, operation: nn.Module) -> ZeroEdge:
        """Make the zero edge with an operation's stride and channels, found without computing it.

        Args:
            operation: Maps ``(B, C, H, W)`` to maps whose sides are divided by a whole number.

        Raises:
            ValueError: If it changes the size in another way.
        """
        given, sides = _input_channels(operation), (56, 63)  # one even, one odd
        probe = copy.deepcopy(operation).to("meta")
        dtype = next((p.dtype for p in probe.parameters()), torch.get_default_dtype())
        with torch.no_grad():
            out = probe.eval()(torch.empty(1, given, *sides, device="meta", dtype=dtype))
        stride = round(sides[0] / out.shape[2])
        channels = int(out.shape[1])
        made = cls(stride, channels=None if channels == given else channels)
        if out.shape[2:] != tuple(-(-side // stride) for side in sides):
            raise ValueError(
                f"ZeroEdge.like: operation must divide the sides by a whole number, rounded up; "
                f"{type(operation).__name__} makes {tuple(out.shape[2:])} of {sides}."
            )
        return made

    def extra_repr(self) -> str:
        """Show stride and channels."""
        return f"stride={self.stride}, channels={self.channels}"

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Return zeros for maps ``(B, C, H, W)``."""
        sizes = check_shape("ZeroEdge", "x", x, "b c h w")
        check_floating("ZeroEdge", "x", x)
        sides = (-(-sizes[axis] // self.stride) for axis in "hw")
        return x.new_zeros(sizes["b"], self.channels or sizes["c"], *sides)


def _input_channels(operation: nn.Module) -> int:
    """Return the channels that an operation wants; any number will do for one without weights."""
    for layer in operation.modules():
        for name in ("in_channels", "num_features"):
            if isinstance(value := getattr(layer, name, None), int):
                return value
    return 8


class FactorizedReduce(nn.Module):
    """Halves the sides by two 1x1 convolutions of stride 2, one of them shifted by a pixel.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, an even number.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        check_integer("FactorizedReduce", "out_channels", out_channels, low=2)
        if out_channels % 2:
            raise ValueError(f"FactorizedReduce: out_channels must be even; got {out_channels}.")
        half = out_channels // 2
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, half, 1, stride=2, bias=False)
        self.conv2 = nn.Conv2d(in_channels, half, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Halve the sides of ``(B, C, H, W)``; odd ones are rounded up."""
        x = self.relu(x)
        height, width = x.shape[2:]
        # beyond an odd side the shifted half sees zeros, so that both halves have one size
        shifted = functional.pad(x[:, :, 1:, 1:], (0, width % 2, 0, height % 2))
        return self.norm(torch.cat([self.conv1(x), self.conv2(shifted)], dim=1))


def relu_conv_norm(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return ReLU, 1x1 convolution and batch normalisation."""
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
    )


def _depthwise_separable(
    channels: int, kernel_size: int, stride: int, dilation: int = 1
) -> nn.Sequential:
    depthwise = nn.Conv2d(
        channels,
        channels,
        kernel_size,
        stride=stride,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        groups=channels,
        bias=False,
    )
    pointwise = nn.Conv2d(channels, channels, 1, bias=False)
    return nn.Sequential(nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(channels))


def _separable(channels: int, kernel_size: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *_depthwise_separable(channels, kernel_size, stride),
        *_depthwise_separable(channels, kernel_size, 1),
    )


def _skip(channels: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)


_MAKERS: dict[str, Callable[[int, int], nn.Module]] = {
    "none": lambda _, stride: ZeroEdge(stride),
    "max_pool_3x3": lambda _, stride: nn.MaxPool2d(3, stride, padding=1),
    "avg_pool_3x3": lambda _, stride: nn.AvgPool2d(3, stride, padding=1, count_include_pad=False),
    "skip_connect": _skip,
    "sep_conv_3x3": lambda channels, stride: _separable(channels, 3, stride),
    "sep_conv_5x5": lambda channels, stride: _separable(channels, 5, stride),
    "dil_conv_3x3": lambda channels, stride: _depthwise_separable(channels, 3, stride, 2),
    "dil_conv_5x5": lambda channels, stride: _depthwise_separable(channels, 5, stride, 2),
}


def cell_operation(name: str, channels: int, stride: int = 1) -> nn.Module:
    """Make the operation of an edge.

    Args:
        name: One of ``OPERATION_NAMES``: zeros, a pool, the identity (at stride 2 a
            ``FactorizedReduce``), two depthwise separable convolutions, or a dilated one.
        channels: Channels of input and output.
        stride: 1 or 2.

    Returns:
        A module from ``(B, C, H, W)`` to ``(B, C, H / stride, W / stride)``, odd sides rounded up.

    Raises:
        ValueError: If the name is unknown or a number out of range.

    Example:
        >>> cell_operation("dil_conv_5x5", 8, stride=2)(torch.rand(2, 8, 7, 6)).shape
        torch.Size([2, 8, 4, 3])
    """
    check_choice("cell_operation", "name", name, OPERATION_NAMES)
    check_integer("cell_operation", "channels", channels, low=1)
    check_integer("cell_operation", "stride", stride, low=1, high=2)
    return _MAKERS[name](channels, stride)


def drop_path(x: Float[Tensor, "b *map"], rate: float) -> Float[Tensor, "b *map"]:
    """Set whole samples to zero by lot and scale the others up, as a searched network trains.

    Args:
        x: Maps, samples first.
        rate: Share of the samples that is dropped, in [0, 1).

    Returns:
        The maps, with the same mean over draws of torch's global generator.
    """
    kept = torch.empty(len(x), *(1 for _ in x.shape[1:]), dtype=x.dtype, device=x.device)
    return x * kept.bernoulli_(1 - rate).div_(1 - rate)
