"""ScoreCAM of one image at the 512 maps of a ResNet-18's last layer, beside pytorch-grad-cam.

``--small`` compares the outputs on a small image and does not race.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

import torch
from cv_core.explain.attribution import normalize_maps
from cv_core.explain.cams import ScoreCAM
from cv_core.random import seeded, torch_generator
from cv_core.testing.race import Peer, race, write
from torch import Tensor, nn
from torchvision.models import resnet18


def given(side: int) -> tuple[nn.Module, Tensor]:
    with seeded(0, "model"):
        model = resnet18().eval()
    return model, torch.randn(1, 3, side, side, generator=torch_generator(0, "image"))


def grad_cams(model: nn.Module, x: Tensor, layer: str) -> Callable[[], Tensor]:
    kind = import_module("pytorch_grad_cam").ScoreCAM
    target = import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    cam = kind(model, [model.get_submodule(layer)])
    cam.batch_size = 16
    return lambda: torch.from_numpy(cam(x, [target(0)]))  # scaled to [0, 1]


def main() -> None:
    small = "--small" in sys.argv[1:]
    side, layer = (64, "layer2") if small else (224, "layer4")
    model, x = given(side)
    explainer = ScoreCAM(model, layer)
    last = x.contiguous(memory_format=torch.channels_last)  # grad-cam's masked images lose it
    maps = normalize_maps(explainer.attribute(last, 0))
    peers = {}
    if find_spec("pytorch_grad_cam"):
        other, _ = given(side)
        run = grad_cams(other, x, layer)
        # it enlarges the masks with align_corners, so that its weights differ a little
        torch.testing.assert_close(maps, run(), rtol=0.0, atol=0.05)
        if not small:
            peers["grad-cam"] = Peer(run, version("grad-cam"), bar=1.5, repeats=3)
    if small:
        return
    shape = f"ResNet-18, {layer}, 512 maps, 1 x 3 x {side} x {side}"
    ours = lambda: explainer.attribute(last, 0)  # noqa: E731
    write(race("scorecam", "ScoreCAM", shape, ours=ours, peers=peers, repeats=7), __file__)


if __name__ == "__main__":
    main()
