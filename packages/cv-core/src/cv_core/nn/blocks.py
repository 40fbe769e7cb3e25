"""Convolution with normalisation and activation, the residual block, adaptive instance norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cv_core.checks import check_integer, check_odd, check_range, check_shape

Norm = Callable[[int], nn.Module]
"""Makes a normalisation from a number of channels, such as ``nn.BatchNorm2d``."""

Activation = Callable[[], nn.Module]
"""Makes an activation, such as ``nn.ReLU``."""


class ConvNormAct(nn.Sequential):
    """A convolution that keeps the size at stride 1, a normalisation and an activation.

    The layers are named ``conv``, ``norm`` and ``act``; the convolution has a bias only where no
    normalisation follows.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel, an odd number.
        stride: Stride of the convolution.
        dilation: Dilation of the convolution.
        groups: Groups of the convolution.
        norm: Makes the normalisation; None leaves it out.
        activation: Makes the activation; None leaves it out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: Norm | None = nn.BatchNorm2d,
        activation: Activation | None = nn.ReLU,
    ) -> None:
        super().__init__()
        check_odd("ConvNormAct", "kernel_size", kernel_size)
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=norm is None,
        )
        self.add_module("conv", conv)
        if norm is not None:
            self.add_module("norm", norm(out_channels))
        if activation is not None:
            self.add_module("act", activation())


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: ``act2(conv2(conv1(x)) + shortcut(x))``.

    ``conv1`` and ``conv2`` include their normalisation, ``conv1`` its activation. The shortcut is
    the identity where the shape stays, else a 1x1 convolution with normalisation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; as the input by default.
        stride: Stride of the first convolution and of the shortcut.
        norm: Makes the normalisations; None leaves them out.
        activation: Makes the activations.
        last_activation: Makes the activation after the sum; None leaves it out, as in most networks
            for restoration.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        stride: int = 1,
        norm: Norm | None = nn.BatchNorm2d,
        activation: Activation = nn.ReLU,
        last_activation: Activation | None = nn.ReLU,
    ) -> None:
        super().__init__()
        width = in_channels if out_channels is None else out_channels
        self.conv1 = ConvNormAct(
            in_channels, width, stride=stride, norm=norm, activation=activation
        )
        self.conv2 = ConvNormAct(width, width, norm=norm, activation=None)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width != in_channels:
            self.shortcut = ConvNormAct(
                in_channels, width, kernel_size=1, stride=stride, norm=norm, activation=None
            )
        self.act2 = nn.Identity() if last_activation is None else last_activation()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Apply the block to ``(B, C, H, W)``."""
        return self.act2(self.conv2(self.conv1(x)) + self.shortcut(x))


def channel_statistics(
    x: Float[Tensor, "b c h w"], eps: float = 1e-5
) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
    r"""Return the mean and the deviation :math:`\sqrt{\mathrm{var} + \epsilon}` of each channel.

    Args:
        x: ``(B, C, H, W)``.
        eps: Keeps the deviation of a constant channel from zero.

    Returns:
        Mean ``(B, C)`` and deviation ``(B, C)``.
    """
    check_shape("channel_statistics", "x", x, "b c h w")
    check_range("channel_statistics", "eps", eps, low=0.0)
    return x.mean((2, 3)), (x.var((2, 3), correction=0) + eps).sqrt()


def adaptive_instance_norm(
    x: Float[Tensor, "b c h w"],
    scale: Float[Tensor, "b c"],
    shift: Float[Tensor, "b c"],
    *,
    eps: float = 1e-5,
) -> Float[Tensor, "b c h w"]:
    r"""Adaptive instance normalisation of Huang and Belongie, ICCV 2017.

    .. math:: y = \gamma \, \frac{x - \mu(x)}{\sqrt{\sigma^2(x) + \epsilon}} + \beta

    For style transfer, scale and shift are the deviation and the mean of the style's features; see
    ``channel_statistics``.

    Args:
        x: ``(B, C, H, W)``.
        scale: The :math:`\gamma` of each channel ``(B, C)``.
        shift: The :math:`\beta` of each channel ``(B, C)``.
        eps: Keeps a constant channel from a division by zero.

    Returns:
        ``(B, C, H, W)``: each channel has mean ``shift`` and, up to ``eps``, deviation ``|scale|``.

    Raises:
        ValueError: If the shapes do not fit.
    """
    sizes = check_shape("adaptive_instance_norm", "x", x, "b c h w")
    for name, code in (("scale", scale), ("shift", shift)):
        check_shape("adaptive_instance_norm", name, code, "b c", b=sizes["b"], c=sizes["c"])
    mean, deviation = channel_statistics(x, eps)
    normal = (x - mean[..., None, None]) / deviation[..., None, None]
    return scale[..., None, None] * normal + shift[..., None, None]


class AdaIN(nn.Module):
    """Adaptive instance normalisation whose scale and shift are linear in a code.

    The scale's bias starts at one and the shift's at zero.

    Args:
        channels: Channels of the map.
        code_features: Entries of the code.
        eps: Keeps a constant channel from a division by zero.
    """

    def __init__(self, channels: int, code_features: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        check_integer("AdaIN", "channels", channels, low=1)
        check_integer("AdaIN", "code_features", code_features, low=1)
        self.eps = eps
        self.affine = nn.Linear(code_features, 2 * channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from torch's global generator."""
        self.affine.reset_parameters()
        with torch.no_grad():
            scale, shift = self.affine.bias.chunk(2)
            scale.fill_(1.0)
            shift.zero_()

    def forward(
        self, x: Float[Tensor, "b c h w"], code: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b c h w"]:
        """Normalise ``(B, C, H, W)`` and restyle it by a code ``(B, code_features)``."""
        scale, shift = self.affine(code).chunk(2, dim=1)
        return adaptive_instance_norm(x, scale, shift, eps=self.eps)
