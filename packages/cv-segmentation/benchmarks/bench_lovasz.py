"""Lovasz-softmax, forward and backward, beside segmentation-models-pytorch.

``--small`` compares values and gradients on small images and does not race.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec

import torch
from cv_core.random import torch_generator
from cv_core.testing.race import Peer, race, write
from cv_segmentation.losses.lovasz import LovaszLoss
from torch import Tensor, nn

CLASSES = 21


def given(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Return logits and labels; every class is present."""
    rng = torch_generator(0, "images")
    logits = torch.randn(count, CLASSES, side, side, generator=rng)
    return logits, torch.randint(0, CLASSES, (count, side, side), generator=rng)


def step(loss: nn.Module, logits: Tensor, target: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return what computes the loss and its gradient."""

    def run() -> tuple[Tensor, Tensor]:
        z = logits.detach().requires_grad_()
        value = loss(z, target)
        (gradient,) = torch.autograd.grad(value, z)
        return value.detach(), gradient

    return run


def main() -> None:
    small = "--small" in sys.argv[1:]
    count, side = (2, 32) if small else (4, 256)
    logits, target = given(count, side)
    ours = step(LovaszLoss("multiclass"), logits, target)
    value, gradient = ours()
    peers = {}
    if find_spec("segmentation_models_pytorch"):
        losses = import_module("segmentation_models_pytorch.losses")
        run = step(losses.LovaszLoss("multiclass"), logits, target)
        their_value, their_gradient = run()
        torch.testing.assert_close(value, their_value, rtol=1e-4, atol=1e-6)
        # Each of their slopes is a difference of neighbours in float32: only the sum is exact.
        apart = (gradient - their_gradient).norm() / gradient.norm()
        assert float(apart) < 0.05
        peers["smp"] = Peer(run, version("segmentation-models-pytorch"), bar=2.0)
    if small:
        return
    shape = f"{count} x {CLASSES} x {side} x {side}, forward and backward"
    write(race("lovasz", "Lovasz-softmax", shape, ours=ours, peers=peers), __file__)


if __name__ == "__main__":
    main()
