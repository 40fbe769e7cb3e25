"""What holds for every loss of adversarial training: call, refusals, the untouched model."""

import copy
import pickle

import pytest
import torch
from cv_adversarial.methods.fgsmpr import FGSMPRLoss
from cv_adversarial.training.multi_step import MARTLoss, PGDATLoss, TRADESLoss
from cv_adversarial.training.pairing import ALPLoss
from cv_adversarial.training.single_step import FastATLoss, FGSMATLoss, FreeATLoss
from cv_core.testing.tensors import global_state

ATTACKED = {
    "FGSM-AT": lambda: FGSMATLoss(0.2),
    "Fast-AT": lambda: FastATLoss(0.2),
    "PGD-AT": lambda: PGDATLoss(0.2, steps=3),
    "TRADES": lambda: TRADESLoss(0.2, steps=3),
    "MART": lambda: MARTLoss(0.2, steps=3),
    "ALP": lambda: ALPLoss(0.2, steps=3),
    "FGSMPR": lambda: FGSMPRLoss(0.2, m=2),
}
RANDOM = ("Fast-AT", "PGD-AT", "TRADES", "MART", "ALP")
EVERY = {**ATTACKED, "Free-AT": lambda: FreeATLoss(0.2)}


@pytest.fixture(params=EVERY)
def objective(request):
    return EVERY[request.param]()


@pytest.fixture(params=ATTACKED)
def attacked(request):
    return ATTACKED[request.param]()


def test_a_scalar_and_detached_parts_come_back(objective, mlp, batch):
    loss, parts = objective(mlp, *batch)
    assert loss.shape == ()
    assert loss.requires_grad
    assert parts
    assert all(value.shape == () and not value.requires_grad for value in parts.values())
    loss.backward()
    assert all(item.grad.abs().sum() > 0 for item in mlp.parameters())


def test_examples_stay_in_the_ball_and_in_the_pixel_range(attacked, mlp, batch):
    """Property 3 of FGSMPR's, for all of them, to the last bit."""
    adv = attacked.examples(mlp, *batch)
    assert float((adv - batch[0]).abs().max()) <= 0.2
    assert float((adv - batch[0]).abs().max()) > 1e-3
    assert float(adv.min()) >= 0.0
    assert float(adv.max()) <= 1.0


def test_attack_neither_mixes_the_batch_nor_moves_the_statistics(attacked, cnn, batch):
    """In evaluation mode an image's example does not depend on the others."""
    before = {name: value.clone() for name, value in cnn.state_dict().items()}
    twin = copy.deepcopy(attacked)
    x, y = batch
    whole = attacked.examples(cnn, x, y)
    cnn.eval()
    expected = twin.examples(cnn, x, y)
    torch.testing.assert_close(whole, expected, rtol=0, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in cnn.state_dict().items())


def test_modes_gradients_and_flags_are_as_before(objective, cnn, batch):
    cnn.bn1.eval()  # a user who freezes one layer's statistics
    cnn.conv1.weight.requires_grad_(requires_grad=False)
    modes = [part.training for part in cnn.modules()]
    objective(cnn, *batch)
    assert modes == [part.training for part in cnn.modules()]
    assert not cnn.conv1.weight.requires_grad
    assert cnn.conv2.weight.requires_grad
    assert all(item.grad is None for item in cnn.parameters())


def test_modes_are_as_before_after_an_error(attacked, cnn, batch):
    x, y = batch
    cnn.bn2.eval()
    modes = [part.training for part in cnn.modules()]
    with pytest.raises(ValueError, match="labels must lie in"):
        attacked(cnn, x, y + 10)
    assert modes == [part.training for part in cnn.modules()]
    assert all(item.requires_grad for item in cnn.parameters())


def test_global_state_and_arguments_are_untouched(objective, mlp, batch):
    x, y = batch
    kept = x.clone(), y.clone()
    with global_state() as changed:
        objective(mlp, x, y)
        assert not changed()
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


def test_validation_without_gradients_works(objective, mlp, batch):
    with torch.no_grad():
        loss, _ = objective(mlp, *batch)
    assert not loss.requires_grad
    assert bool(loss.isfinite())


def test_any_callable_is_a_model(objective, mlp, batch):
    expected, _ = copy.deepcopy(objective)(mlp, *batch)
    loss, _ = objective(mlp.forward, *batch)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", RANDOM)
def test_random_starts_differ_from_call_to_call_and_begin_at_the_seed(name, mlp, batch):
    objective = ATTACKED[name]()
    first, second = (objective.examples(mlp, *batch) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(ATTACKED[name]().examples(mlp, *batch), first)


@pytest.mark.parametrize("way", ["state dict", "pickle", "deepcopy"])
@pytest.mark.parametrize("name", RANDOM)
def test_a_saved_loss_goes_on_with_its_stream(name, way, mlp, batch):
    objective = ATTACKED[name]()
    objective(mlp, *batch)
    if way == "state dict":
        again = ATTACKED[name]()
        again.load_state_dict(objective.state_dict())
    elif way == "pickle":
        again = pickle.loads(pickle.dumps(objective))  # noqa: S301 - our own bytes
    else:
        again = copy.deepcopy(objective)
    expected, _ = objective(mlp, *batch)
    assert torch.equal(again(mlp, *batch)[0], expected)


@pytest.mark.parametrize("factor", [-1.0, 255.0])
def test_pixels_outside_the_range_are_refused(objective, factor, mlp, batch):
    x, y = batch
    with pytest.raises(ValueError, match=r"must have pixels in \[0, 1\]"):
        objective(mlp, factor * x, y)


@pytest.mark.parametrize("build", [FGSMATLoss, FastATLoss, FreeATLoss, PGDATLoss, TRADESLoss,
                                   MARTLoss, ALPLoss, FGSMPRLoss])  # fmt: skip
@pytest.mark.parametrize("eps", [0.0, -0.1, float("nan"), "large"])
def test_a_radius_that_is_none_is_refused(build, eps):
    with pytest.raises((ValueError, TypeError), match=f"{build.__name__}: eps must"):
        build(eps)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PGDATLoss(0.1, steps=0), "PGDATLoss: steps must be at least 1"),
        (lambda: PGDATLoss(0.1, alpha=0.0), r"PGDATLoss: alpha must lie in \(0, "),
        (lambda: PGDATLoss(0.1, norm="l7"), "PGDATLoss: norm must be one of"),
        (lambda: FastATLoss(0.1, seed=0.5), "FastATLoss: seed must be a whole number"),
        (lambda: FGSMATLoss(0.1, alpha=-1.0), "FGSMATLoss: alpha must lie in"),
        (lambda: TRADESLoss(0.1, beta=-1.0), "TRADESLoss: beta must lie in"),
        (lambda: MARTLoss(0.1, lam=-1.0), "MARTLoss: lam must lie in"),
        (lambda: ALPLoss(0.1, lam=-1.0), "ALPLoss: lam must lie in"),
        (lambda: ALPLoss(0.1, clean_share=1.5), "ALPLoss: clean_share must lie in"),
        (lambda: ALPLoss(0.1, distance="l1"), "ALPLoss: distance must be one of"),
        (lambda: FGSMPRLoss(0.1, lam=-1.0), "FGSMPRLoss: lam must lie in"),
        (lambda: FGSMPRLoss(0.1, m=-1), "FGSMPRLoss: m must be at least 0"),
        (lambda: FGSMPRLoss(0.1, steps=0), "FGSMPRLoss: steps must be at least 1"),
        (lambda: FGSMPRLoss(0.1, fgsm_alpha=0.0), "FGSMPRLoss: fgsm_alpha must lie in"),
        (lambda: FGSMPRLoss(0.1, distance="l1"), "FGSMPRLoss: distance must be one of"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


def test_options_are_shown():
    assert repr(TRADESLoss(0.1, 3.0, steps=5)) == (
        "TRADESLoss(eps=0.1, alpha=0.05, steps=5, norm='linf', random_start=True, beta=3.0)"
    )
