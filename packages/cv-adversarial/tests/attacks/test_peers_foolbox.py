"""The deterministic attacks equal foolbox's; DeepFool is as short on the median."""

import warnings

import pytest
from cv_adversarial.attacks.deepfool import DeepFool
from cv_adversarial.attacks.gradient import FGSM, PGD

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the peer's imports speak of their own versions
    peer = pytest.importorskip("foolbox", reason="foolbox is the peer", exc_type=ImportError)


def theirs(attack, model, x, y, eps):
    bounded = peer.PyTorchModel(model, bounds=(0, 1))
    _, clipped, success = attack(bounded, x, peer.criteria.Misclassification(y), epsilons=eps)
    return clipped, success


def assert_same_attack(ours, other):
    """Equal but for pixels whose gradient is zero but for rounding, where signs may differ."""
    far = (ours - other).abs() > 1e-5
    assert float(far.float().mean()) < 0.002


def test_fgsm(cnn, batch):
    x, y = batch
    other, _ = theirs(peer.attacks.LinfFastGradientAttack(), cnn, x, y, 0.1)
    assert_same_attack(FGSM(cnn, eps=0.1)(x, y), other)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_without_a_random_start(norm, cnn, batch):
    x, y = batch
    eps, alpha = {"linf": (0.1, 0.02), "l2": (0.5, 0.1)}[norm]
    kinds = {
        "linf": peer.attacks.LinfProjectedGradientDescentAttack,
        "l2": peer.attacks.L2ProjectedGradientDescentAttack,
    }
    attack = kinds[norm](abs_stepsize=alpha, steps=8, random_start=False)
    other, _ = theirs(attack, cnn, x, y, eps)
    ours = PGD(cnn, eps=eps, alpha=alpha, steps=8, norm=norm, random_start=False)(x, y)
    assert_same_attack(ours, other)


def test_deepfool_is_as_short(mlp, cnn, batch):
    x, y = batch
    for model in (mlp, cnn):
        ours = DeepFool(model, steps=50, overshoot=0.02).run(x, y)
        attack = peer.attacks.L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02)
        other, success = theirs(attack, model, x, y, None)
        assert float(ours.success.float().mean()) >= float(success.float().mean())
        median = float((other - x).flatten(1).norm(dim=1).median())
        assert float(ours.norm.median()) == pytest.approx(median, rel=0.03)
