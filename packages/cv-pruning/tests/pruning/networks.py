"""The networks that structural pruning is tried on; small inputs, real architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from cv_core.models.unet import UNet
from cv_core.random import torch_generator
from torch import Tensor, nn


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None, num_classes=10)

    return build


def _vit() -> nn.Module:
    import torchvision

    return torchvision.models.VisionTransformer(64, 16, 3, 4, 64, 128, num_classes=10)


def _convnext() -> nn.Module:
    return pytest.importorskip("timm").create_model("convnext_atto", num_classes=10)


BATCH_NORM: Mapping[str, Callable[[], nn.Module]] = {
    **{
        name: _torchvision(name)
        for name in ("resnet18", "resnet50", "mobilenet_v3_small", "densenet121", "resnext50_32x4d")
    },
    "unet": lambda: UNet(3, 5, widths=(16, 32, 64)),
}
ALL = {**BATCH_NORM, "vgg16": _torchvision("vgg16"), "vit": _vit, "convnext_atto": _convnext}


def image(size: int = 64, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch_generator(seed, "images"))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms other than the neutral weights and statistics, so that mistakes would show."""
    generator = torch_generator(seed, "norms")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.2, 0.2, generator=generator)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


class Chain(nn.Module):
    """Convolution, norm and a residual pair: small enough to follow by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.inner = nn.Conv2d(10, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 10, 3, padding=1)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))
