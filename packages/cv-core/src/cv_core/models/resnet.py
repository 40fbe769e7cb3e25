"""Residual networks for small images (He et al., CVPR 2016, section 4.2; ECCV 2016).

Every layer has a name of its own and no ReLU is shared or in place, so that any activation can be
tapped, rewritten or wrapped (``cv_core.nn.hooks``, ``cv_core.nn.surgery``). A block reads

    out = relu2(bn2(conv2(relu1(bn1(conv1(x))))) + shortcut(x))            # as published in 2016a
    out = conv2(relu2(bn2(conv1(relu1(bn1(x)))))) + shortcut(x)            # pre-activated, 2016b
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cv_core.checks import check_integer, check_range, check_shape


class PadShortcut(nn.Module):
    """Option A of He et al.: subsample the map and fill the new channels with zeros.

    It has no parameters; with equal channels and stride 1 it is the identity.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, at least as many.
        stride: Every how many pixels one is kept.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        check_integer("PadShortcut", "out_channels", out_channels, low=in_channels)
        check_integer("PadShortcut", "stride", stride, low=1)
        self.extra = out_channels - in_channels
        self.stride = stride

    def extra_repr(self) -> str:
        """Show the number of new channels and the stride."""
        return f"extra={self.extra}, stride={self.stride}"

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Subsample and pad ``(B, C, H, W)``."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.extra:
            x = functional.pad(x, (0, 0, 0, 0, 0, self.extra))
        return x


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a parameter-free shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = PadShortcut(in_channels, out_channels, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Apply the block to ``(B, C, H, W)``."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(residual + self.shortcut(x))


class PreActivatedBlock(nn.Module):
    """A basic block with normalisation and ReLU in front of each convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.shortcut = PadShortcut(in_channels, out_channels, stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Apply the block to ``(B, C, H, W)``."""
        hidden = self.conv1(self.relu1(self.bn1(x)))
        return self.conv2(self.relu2(self.bn2(hidden))) + self.shortcut(x)


class CifarResNet(nn.Module):
    """A residual network of ``6n + 2`` layers in three stages: ``layer1``, ``layer2``, ``layer3``.

    Between the stages the sides are halved and the channels doubled. Build it by ``cifar_resnet``
    or ``cifar_preactivated_resnet``.

    Args:
        block: The class of the blocks; called as ``block(in_channels, out_channels, stride)``.
        blocks: Blocks per stage, the ``n`` above.
        num_classes: Number of outputs.
        in_channels: Channels of the image.
        channels: Channels of the first stage.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[PreActivatedBlock],
        blocks: int,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        channels: int = 16,
    ) -> None:
        super().__init__()
        for name, value in (
            ("blocks", blocks),
            ("num_classes", num_classes),
            ("in_channels", in_channels),
            ("channels", channels),
        ):
            check_integer("CifarResNet", name, value, low=1)
        self.in_channels = in_channels
        self.num_classes = num_classes
        preactivated = issubclass(block, PreActivatedBlock)

        self.conv1 = _conv3x3(in_channels, channels)
        # normalisation and ReLU come after the stem, or, pre-activated, after the last block
        self.bn1 = nn.Identity() if preactivated else nn.BatchNorm2d(channels)
        self.relu1 = nn.Identity() if preactivated else nn.ReLU()
        self.layer1 = self._stage(block, blocks, channels, channels, stride=1)
        self.layer2 = self._stage(block, blocks, channels, 2 * channels, stride=2)
        self.layer3 = self._stage(block, blocks, 2 * channels, 4 * channels, stride=2)
        self.bn_last = nn.BatchNorm2d(4 * channels) if preactivated else nn.Identity()
        self.relu_last = nn.ReLU() if preactivated else nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * channels, num_classes)
        self.reset_parameters()

    @staticmethod
    def _stage(
        block: type[BasicBlock] | type[PreActivatedBlock],
        blocks: int,
        in_channels: int,
        out_channels: int,
        stride: int,
    ) -> nn.Sequential:
        first = block(in_channels, out_channels, stride)
        return nn.Sequential(
            first, *(block(out_channels, out_channels, 1) for _ in range(blocks - 1))
        )

    def reset_parameters(self) -> None:
        """Draw new weights from torch's global generator (He et al., ICCV 2015)."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(layer, (nn.BatchNorm2d, nn.Linear)):
                layer.reset_parameters()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Map images to logits.

        Args:
            x: Images ``(B, in_channels, H, W)`` of any size.

        Returns:
            Logits ``(B, num_classes)``.

        Raises:
            ValueError: If the shape does not fit.
        """
        check_shape("CifarResNet", "x", x, "b c h w", c=self.in_channels)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.relu_last(self.bn_last(x))
        return self.fc(self.pool(x).flatten(1))


def _blocks_and_channels(owner: str, depth: int, width: float) -> tuple[int, int]:
    check_integer(owner, "depth", depth, low=8)
    if (depth - 2) % 6:
        below = depth - (depth - 2) % 6
        raise ValueError(
            f"{owner}: depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110, ...); got {depth}. "
            f"The nearest are {below} and {below + 6}."
        )
    check_range(owner, "width", width, low=0.0, low_open=True)
    return (depth - 2) // 6, max(1, round(16 * width))


def cifar_resnet(
    depth: int, num_classes: int = 10, *, in_channels: int = 3, width: float = 1.0
) -> CifarResNet:
    """Build a residual network of He et al., *Deep Residual Learning*, CVPR 2016, section 4.2.

    With 10 classes ResNet-44 has 658 586 parameters and ResNet-56 has 853 018.

    Args:
        depth: Number of layers, ``6n + 2``: 8, 14, 20, 32, 44, 56, 110, ...
        num_classes: Number of outputs.
        in_channels: Channels of the image.
        width: Multiplies the channels 16, 32 and 64 of the stages.

    Raises:
        ValueError: If the depth is none of those, or another option is out of range.

    Example:
        >>> sum(p.numel() for p in cifar_resnet(44, 10).parameters())
        658586
    """
    blocks, channels = _blocks_and_channels("cifar_resnet", depth, width)
    return CifarResNet(
        BasicBlock, blocks, num_classes=num_classes, in_channels=in_channels, channels=channels
    )


def cifar_preactivated_resnet(
    depth: int, num_classes: int = 10, *, in_channels: int = 3, width: float = 1.0
) -> CifarResNet:
    """Build a network of He et al., *Identity Mappings in Deep Residual Networks*, ECCV 2016.

    Args:
        depth: Number of layers, ``6n + 2``: 8, 14, 20, 32, 44, 56, 110, ...
        num_classes: Number of outputs.
        in_channels: Channels of the image.
        width: Multiplies the channels 16, 32 and 64 of the stages.

    Raises:
        ValueError: If the depth is none of those, or another option is out of range.
    """
    blocks, channels = _blocks_and_channels("cifar_preactivated_resnet", depth, width)
    return CifarResNet(
        PreActivatedBlock,
        blocks,
        num_classes=num_classes,
        in_channels=in_channels,
        channels=channels,
    )
