"""Occlusion of one image by 196 windows of 16 x 16 pixels on a ResNet-18, beside captum.

``--small`` compares the outputs on a small image and does not race.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

import torch
from cv_core.explain.attribution import Occlusion
from cv_core.random import seeded, torch_generator
from cv_core.testing.race import Peer, race, write
from torch import Tensor, nn
from torchvision.models import resnet18

WINDOW = 16


def given(side: int) -> tuple[nn.Module, Tensor]:
    with seeded(0, "model"):
        model = resnet18().eval()
    return model, torch.randn(1, 3, side, side, generator=torch_generator(0, "image"))


def captums(model: nn.Module, x: Tensor, together: int) -> Callable[[], Tensor]:
    occlusion = import_module("captum.attr").Occlusion(model)
    options = {
        "sliding_window_shapes": (3, WINDOW, WINDOW),
        "strides": (3, WINDOW, WINDOW),
        "perturbations_per_eval": together,
    }
    return lambda: occlusion.attribute(x, target=0, **options)[:, 0]


def main() -> None:
    small = "--small" in sys.argv[1:]
    side = 64 if small else 224
    model, x = given(side)
    explainer = Occlusion(model, window=WINDOW, stride=WINDOW, batch_size=32)
    maps = explainer.attribute(x, 0)
    peers = {}
    if find_spec("captum"):
        for together in (32, 1):
            run = captums(model, x, together)
            torch.testing.assert_close(maps, run().float(), rtol=1e-3, atol=1e-4)
            name = f"captum, {together} at once"
            peers[name] = Peer(run, version("captum"), bar=1.5, repeats=5)
    if small:
        return
    shape = f"ResNet-18, 1 x 3 x {side} x {side}, {(side // WINDOW) ** 2} windows"
    ours = lambda: explainer.attribute(x, 0)  # noqa: E731
    write(race("occlusion", "Occlusion", shape, ours=ours, peers=peers, repeats=7), __file__)


if __name__ == "__main__":
    main()
