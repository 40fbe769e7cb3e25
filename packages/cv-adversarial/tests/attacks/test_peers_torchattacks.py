"""The deterministic attacks equal torchattacks'; DeepFool is as short on the median."""

import warnings

import pytest
import torch
from cv_adversarial.attacks.deepfool import DeepFool
from cv_adversarial.attacks.gradient import FGSM, PGD
from cv_adversarial.attacks.transfer import MIFGSM, NIFGSM

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the peer's imports speak of their own versions
    peer = pytest.importorskip(
        "torchattacks", reason="torchattacks is the peer", exc_type=ImportError
    )

SHARED = {"eps": 0.1, "alpha": 0.02, "steps": 8}


def assert_same_attack(ours, theirs):
    """Equal but for pixels whose gradient is zero but for rounding, where signs may differ."""
    far = (ours - theirs).abs() > 1e-6
    assert float(far.float().mean()) < 0.002


def test_fgsm(cnn, batch):
    x, y = batch
    assert_same_attack(FGSM(cnn, eps=0.1)(x, y), peer.FGSM(cnn, eps=0.1)(x, y))


def test_pgd_without_a_random_start(cnn, batch):
    x, y = batch
    theirs = peer.PGD(cnn, random_start=False, **SHARED)
    assert_same_attack(PGD(cnn, random_start=False, **SHARED)(x, y), theirs(x, y))


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_mifgsm(decay, cnn, batch):
    x, y = batch
    theirs = peer.MIFGSM(cnn, decay=decay, **SHARED)
    assert_same_attack(MIFGSM(cnn, decay=decay, **SHARED)(x, y), theirs(x, y))


def test_nifgsm(cnn, batch):
    x, y = batch
    theirs = peer.NIFGSM(cnn, decay=1.0, **SHARED)
    assert_same_attack(NIFGSM(cnn, decay=1.0, **SHARED)(x, y), theirs(x, y))


def test_deepfool_is_as_short(mlp, cnn, batch):
    x, y = batch
    for model in (mlp, cnn):
        ours = DeepFool(model, steps=50, overshoot=0.02).run(x, y)
        theirs = peer.DeepFool(model, steps=50, overshoot=0.02)(x, y)
        with torch.no_grad():
            fooled = float((model(theirs).argmax(1) != y).float().mean())
        assert float(ours.success.float().mean()) >= fooled
        median = float((theirs - x).flatten(1).norm(dim=1).median())
        assert float(ours.norm.median()) == pytest.approx(median, rel=0.03)
