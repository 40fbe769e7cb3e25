"""PGD of 10 steps on 64 images of 3 x 32 x 32, beside torchattacks, foolbox and ART."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from cv_adversarial.attacks.gradient import PGD
from cv_core.models.small import SmallCNN
from cv_core.random import seeded, torch_generator
from cv_core.testing.race import Peer, race, write
from torch import Tensor

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 10


def given(count: int) -> tuple[SmallCNN, Tensor, Tensor]:
    """Return a network of three convolutions, images, and the classes that it sees in them."""
    with seeded(0, "model"):
        model = SmallCNN(3, 10, width=32).eval()
    x = torch.rand(count, 3, 32, 32, generator=torch_generator(0, "images"))
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def assert_same_attack(ours: Tensor, theirs: Tensor) -> None:
    """Compare but for pixels whose gradient is zero but for rounding: their signs may differ."""
    assert float(((ours - theirs).abs() > 1e-5).float().mean()) < 0.005


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
        attack = torchattacks.PGD(model, eps=EPS, alpha=ALPHA, steps=STEPS, random_start=False)
        found["torchattacks"] = lambda: attack(x, y)
    if foolbox := installed("foolbox"):
        kind = foolbox.attacks.LinfProjectedGradientDescentAttack
        descent = kind(abs_stepsize=ALPHA, steps=STEPS, random_start=False)
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1))
        found["foolbox"] = lambda: descent(bounded, x, y, epsilons=EPS)[1]
    if installed("art"):
        estimators = import_module("art.estimators.classification")
        evasion = import_module("art.attacks.evasion")
        classifier = estimators.PyTorchClassifier(
            model, torch.nn.CrossEntropyLoss(), (3, 32, 32), 10, clip_values=(0.0, 1.0)
        )
        options = {"eps": EPS, "eps_step": ALPHA, "max_iter": STEPS, "batch_size": len(x)}
        art = evasion.ProjectedGradientDescent(classifier, verbose=False, **options)
        images, labels = x.numpy(), y.numpy()
        found["art"] = lambda: torch.from_numpy(art.generate(images, labels))
    return found


def main() -> None:
    model, x, y = given(64)
    ours = PGD(model, EPS, alpha=ALPHA, steps=STEPS, random_start=False)
    result = ours.run(x, y)
    assert bool((result.norm <= EPS).all())
    assert result.backwards == STEPS * len(x)

    bars = {"torchattacks": 1.0, "foolbox": 1.3, "art": 1.3}
    sources = {"torchattacks": "torchattacks", "foolbox": "foolbox"}
    sources["art"] = "adversarial-robustness-toolbox"
    peers = {}
    for name, run in runs(model, x, y).items():
        assert_same_attack(result.adv, run())
        peers[name] = Peer(run, version(sources[name]), bar=bars[name])
    shape = "64 x 3 x 32 x 32, 10 steps"
    write(race("pgd", "PGD", shape, ours=lambda: ours(x, y), peers=peers), __file__)


if __name__ == "__main__":
    main()
