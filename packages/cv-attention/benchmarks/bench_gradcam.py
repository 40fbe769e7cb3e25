"""GradCAM at the last layer of a ResNet-18, beside captum and pytorch-grad-cam.

``--small`` compares the outputs on small images and does not race.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

import torch
from cv_core.explain.attribution import GradCAM, normalize_maps
from cv_core.random import seeded, torch_generator
from cv_core.testing.race import Peer, race, write
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

LAYER = "layer4"


def given(count: int, side: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network, images, and the classes to explain."""
    with seeded(0, "model"):
        model = resnet18().eval()
    x = torch.randn(count, 3, side, side, generator=torch_generator(0, "images"))
    return model, x, torch.arange(count)


def captums(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    cam = import_module("captum.attr").LayerGradCam(model, model.get_submodule(LAYER))

    def run() -> Tensor:
        maps = cam.attribute(x, y, relu_attributions=True)
        return functional.interpolate(maps, x.shape[2:], mode="bilinear")[:, 0].detach()

    return run


def grad_cams(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    kind = import_module("pytorch_grad_cam").GradCAM
    target = import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    targets = [target(int(label)) for label in y]
    cam = kind(model, [model.get_submodule(LAYER)])
    return lambda: torch.from_numpy(cam(x, targets))  # scaled to [0, 1]


def main() -> None:
    small = "--small" in sys.argv[1:]
    count, side = (2, 96) if small else (16, 224)
    model, x, y = given(count, side)
    explainer = GradCAM(model, LAYER)
    maps = explainer.attribute(x, y)
    peers = {}
    if find_spec("captum"):
        run = captums(model, x, y)
        torch.testing.assert_close(maps, run(), rtol=1e-4, atol=1e-6)
        peers["captum"] = Peer(run, version("captum"), bar=1.05)
    if find_spec("pytorch_grad_cam"):
        other, _, _ = given(count, side)  # it keeps hooks for as long as it lives
        run = grad_cams(other, x, y)
        torch.testing.assert_close(normalize_maps(maps), run(), rtol=1e-3, atol=1e-3)
        if not small:
            peers["grad-cam"] = Peer(run, version("grad-cam"), bar=3.0)
    if small:
        return
    shape = f"ResNet-18, {LAYER}, {count} x 3 x {side} x {side}"
    ours = lambda: explainer.attribute(x, y)  # noqa: E731
    write(race("gradcam", "GradCAM", shape, ours=ours, peers=peers), __file__)


if __name__ == "__main__":
    main()
