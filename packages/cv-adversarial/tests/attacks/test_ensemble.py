"""Fused logits: the weighted mean, attacked like any network."""

import pytest
import torch
from cv_adversarial.attacks.ensemble import LogitEnsemble
from cv_adversarial.attacks.gradient import PGD
from torch import nn


def test_logits_are_the_weighted_mean(cnn, mlp, batch):
    x, _ = batch
    with torch.no_grad():
        expected = 0.3 * cnn(x) + 0.7 * mlp(x)
        torch.testing.assert_close(LogitEnsemble([cnn, mlp], [0.3, 0.7])(x), expected)
        torch.testing.assert_close(LogitEnsemble([cnn, mlp])(x), (cnn(x) + mlp(x)) / 2)
        assert torch.equal(LogitEnsemble([cnn])(x), cnn(x))


def test_an_attack_sees_one_network(cnn, mlp, batch):
    x, y = batch
    options = {"eps": 0.2, "alpha": 0.04, "steps": 5, "random_start": False}
    fused = LogitEnsemble([cnn, mlp])
    asks = [item.requires_grad for item in fused.parameters()]
    adv = PGD(fused.eval(), **options)(x, y)
    by_hand = PGD(lambda z: 0.5 * cnn(z) + 0.5 * mlp(z), **options)(x, y)
    assert torch.equal(adv, by_hand)
    with torch.no_grad():
        both = (cnn(adv).argmax(1) != y) | (mlp(adv).argmax(1) != y)
    assert float(both.float().mean()) > 0.5
    assert asks == [item.requires_grad for item in fused.parameters()]


def test_a_member_in_training_mode_is_refused(batch):
    norm = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match=r"models\.0\.0 is a BatchNorm2d in training mode"):
        PGD(LogitEnsemble([norm]))(*batch)


@pytest.mark.parametrize(
    ("models", "weights", "message"),
    [
        ([], None, "at least one network"),
        ([nn.Identity()], [0.5, 0.5], "one per network; got 2 for 1"),
        ([nn.Identity(), nn.Identity()], [1.5, -0.5], "weights must lie in"),
        ([nn.Identity(), nn.Identity()], [0.5, 0.6], "sum to 1; got 1.1"),
    ],
)
def test_bad_weights_are_refused(models, weights, message):
    with pytest.raises(ValueError, match=f"LogitEnsemble: .*{message}"):
        LogitEnsemble(models, weights)
