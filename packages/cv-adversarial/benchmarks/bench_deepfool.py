"""DeepFool of at most 20 steps on 128 images with 10 classes, beside torchattacks and foolbox."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from cv_adversarial.attacks.deepfool import DeepFool
from cv_core.models.small import SmallCNN
from cv_core.random import seeded, torch_generator
from cv_core.testing.race import Peer, race, write
from torch import Tensor

STEPS, OVERSHOOT = 20, 0.02
BARS = {"torchattacks": 2.5, "foolbox": 1.5}


def given(count: int) -> tuple[SmallCNN, Tensor, Tensor]:
    """Return a network of three convolutions, images, and the classes that it sees in them."""
    with seeded(0, "model"):
        model = SmallCNN(3, 10, width=32).eval()
    x = torch.rand(count, 3, 32, 32, generator=torch_generator(0, "images"))
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def installed(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(name)
    except ImportError:
        print(f"{name} is not installed: left out")
        return None


def runs(model: SmallCNN, x: Tensor, y: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return what each peer that is installed computes."""
    found: dict[str, Callable[[], Tensor]] = {}
    if torchattacks := installed("torchattacks"):
        attack = torchattacks.DeepFool(model, steps=STEPS, overshoot=OVERSHOOT)
        found["torchattacks"] = lambda: attack(x, y)
    if foolbox := installed("foolbox"):
        deepfool = foolbox.attacks.L2DeepFoolAttack(steps=STEPS, candidates=10, overshoot=OVERSHOOT)
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1))
        found["foolbox"] = lambda: deepfool(bounded, x, y, epsilons=None)[1]
    return found


def quality(model: SmallCNN, adv: Tensor, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the share of fooled images and the median length of the perturbations."""
    with torch.no_grad():
        fooled = float((model(adv).argmax(1) != y).float().mean())
    return fooled, float((adv - x).flatten(1).norm(dim=1).median())


def main() -> None:
    model, x, y = given(128)
    ours = DeepFool(model, STEPS, overshoot=OVERSHOOT)
    fooled, median = quality(model, ours(x, y), x, y)
    peers = {}
    for name, run in runs(model, x, y).items():
        their_fooled, their_median = quality(model, run(), x, y)
        assert fooled >= their_fooled - 0.01, f"{name} fools {their_fooled}, ours {fooled}"
        assert abs(median / their_median - 1.0) < 0.03, f"{name}: {their_median}, ours {median}"
        note = f"{their_fooled:.1%} fooled at median {their_median:.4f}; ours {fooled:.1%}"
        peers[name] = Peer(
            run, version(name), bar=BARS[name], repeats=7, note=f"{note} at {median:.4f}"
        )
    shape = "128 x 3 x 32 x 32, 10 classes, at most 20 steps"
    write(
        race("deepfool", "DeepFool", shape, ours=lambda: ours(x, y), peers=peers, repeats=9),
        __file__,
    )


if __name__ == "__main__":
    main()
