"""Networks small enough for a processor: a perceptron and a plain convolutional network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from cv_core.checks import check_integer, check_shape


class MLP(nn.Module):
    """A multi-layer perceptron with ReLUs, on feature vectors or on images laid out as vectors.

    The layers are named ``linear1``, ``relu1``, ..., and the last one ``fc``.

    Args:
        in_features: Entries of one sample; images count ``C * H * W``.
        hidden: Width of the hidden layer, or of each hidden layer in order; empty for a linear
            classifier.
        num_classes: Number of outputs.

    Example:
        >>> import torch
        >>> MLP(64, [256], 10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_features: int, hidden: int | Sequence[int], num_classes: int) -> None:
        super().__init__()
        widths = [hidden] if isinstance(hidden, int) else list(hidden)
        check_integer("MLP", "in_features", in_features, low=1)
        check_integer("MLP", "num_classes", num_classes, low=1)
        for width in widths:
            check_integer("MLP", "hidden", width, low=1)
        self.in_features = in_features
        self.num_classes = num_classes
        self.layers = nn.Sequential()
        for number, (fan_in, width) in enumerate(
            zip([in_features, *widths], widths, strict=False), start=1
        ):
            self.layers.add_module(f"linear{number}", nn.Linear(fan_in, width))
            self.layers.add_module(f"relu{number}", nn.ReLU())
        self.fc = nn.Linear([in_features, *widths][-1], num_classes)

    def reset_parameters(self) -> None:
        """Draw new weights from torch's global generator."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(self, x: Float[Tensor, "b *sample"]) -> Float[Tensor, "b k"]:
        """Map samples to logits.

        Args:
            x: Samples ``(B, ...)`` with ``in_features`` entries each.

        Returns:
            Logits ``(B, num_classes)``.

        Raises:
            ValueError: If a sample does not have ``in_features`` entries.
        """
        check_shape("MLP", "x", x, "b ...")
        entries = math.prod(x.shape[1:])
        if entries != self.in_features:
            raise ValueError(
                f"MLP: x must have {self.in_features} entries per sample; got {entries} from shape "
                f"{tuple(x.shape)}."
            )
        return self.fc(self.layers(x.flatten(1)))


class SmallCNN(nn.Module):
    """Three convolutions, two poolings and a linear layer, for images of 8x8 to 32x32 pixels.

    Each stage is ``conv``, ``bn``, ``relu`` (numbered from 1), with ``pool1`` and ``pool2`` between
    the stages; a global mean and ``fc`` end it. Any size from 4x4 on is accepted.

    Args:
        in_channels: Channels of the image.
        num_classes: Number of outputs.
        width: Channels of the first stage; the second has twice, the third four times as many.

    Example:
        >>> import torch
        >>> SmallCNN(1, 10, width=4)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        check_integer("SmallCNN", "in_channels", in_channels, low=1)
        check_integer("SmallCNN", "num_classes", num_classes, low=1)
        check_integer("SmallCNN", "width", width, low=1)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu3 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from torch's global generator (He et al., ICCV 2015)."""
        for layer in self.children():
            if isinstance(layer, (nn.BatchNorm2d, nn.Linear)):
                layer.reset_parameters()
            elif isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Map images to logits.

        Args:
            x: Images ``(B, in_channels, H, W)`` with sides of at least 4 pixels.

        Returns:
            Logits ``(B, num_classes)``.

        Raises:
            ValueError: If the shape does not fit or a side is shorter than 4 pixels.
        """
        check_shape("SmallCNN", "x", x, "b c h w", c=self.in_channels)
        if min(x.shape[-2:]) < 4:
            raise ValueError(
                f"SmallCNN: x must have sides of at least 4 pixels; got shape {tuple(x.shape)}."
            )
        x = self.pool1(self.relu1(self.bn1(self.conv1(x))))
        x = self.pool2(self.relu2(self.bn2(self.conv2(x))))
        x = self.relu3(self.bn3(self.conv3(x)))
        return self.fc(self.pool(x).flatten(1))
