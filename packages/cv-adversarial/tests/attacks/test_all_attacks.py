"""What every attack keeps: the ball, the model, the refusals, the record."""

import inspect

import pytest
import torch
from cv_adversarial.attacks.apgd import APGD, apgd
from cv_adversarial.attacks.carlini_wagner import CarliniWagner, carlini_wagner
from cv_adversarial.attacks.deepfool import DeepFool, deepfool
from cv_adversarial.attacks.fab import FAB, fab
from cv_adversarial.attacks.gradient import FGSM, PGD, fgsm, pgd
from cv_adversarial.attacks.square import Square, square
from cv_adversarial.attacks.transfer import (
    DIFGSM,
    MIFGSM,
    NIFGSM,
    SIFGSM,
    TIFGSM,
    TransferAttack,
    transfer_attack,
)
from cv_core.models.small import MLP, SmallCNN
from cv_core.random import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

WITH_BALL = {
    "fgsm": (FGSM, {}),
    "fgsm-l2": (FGSM, {"norm": "l2"}),
    "fgsm-l1": (FGSM, {"norm": "l1"}),
    "pgd": (PGD, {"steps": 3}),
    "pgd-l2": (PGD, {"steps": 3, "norm": "l2", "alpha": 0.1}),
    "pgd-l1": (PGD, {"steps": 3, "norm": "l1", "alpha": 0.5}),
    "pgd-stop": (PGD, {"steps": 3, "stop_on_success": True}),
    "mi": (MIFGSM, {"steps": 3}),
    "ni": (NIFGSM, {"steps": 3}),
    "si": (SIFGSM, {"steps": 2, "scales": 3}),
    "di": (DIFGSM, {"steps": 3, "diversity": 1.0, "resize_rate": 0.5}),
    "ti": (TIFGSM, {"steps": 3, "kernel_size": 3}),
    "all-transfer": (
        TransferAttack,
        {"steps": 3, "nesterov": True, "scales": 2, "diversity": 0.5, "kernel_size": 5},
    ),
    "apgd-ce": (APGD, {"steps": 6}),
    "apgd-dlr": (APGD, {"steps": 6, "loss": "dlr"}),
    "apgd-l2": (APGD, {"steps": 6, "norm": "l2"}),
    "square": (Square, {"steps": 12}),
    "square-l2": (Square, {"steps": 12, "norm": "l2"}),
}
MINIMAL = {
    "deepfool": (DeepFool, {"steps": 5}),
    "cw": (CarliniWagner, {"steps": 10, "search_steps": 3}),
    "fab": (FAB, {"steps": 4}),
    "fab-l2": (FAB, {"steps": 4, "norm": "l2"}),
}
ALL = WITH_BALL | MINIMAL
every_attack = pytest.mark.parametrize("name", ALL)
every_ball = pytest.mark.parametrize("name", WITH_BALL)


def build(name, model, **more):
    kind, options = ALL[name]
    return kind(model, **options, **more)


@every_ball
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=6, deadline=None)
@given(eps=st.floats(1e-5, 2.0), seed=st.integers(0, 10**6), aimed=st.booleans())
def test_results_lie_in_the_ball_and_the_pixel_range(name, dtype, eps, seed, aimed):
    with seeded(seed):
        model = SmallCNN(1, 5, width=2).to(dtype).eval()
        x = torch.rand(4, 1, 8, 8, dtype=dtype).mul(1.4).sub(0.2).clamp(0, 1)
    y = torch.tensor([0, 1, 2, 3])
    attack = build(name, model, eps=eps)
    result = attack.run(x, y, target=(y + 1) % 5 if aimed else None)
    exact = (result.adv.double() - x.double()).flatten(1)
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[attack.norm]
    assert bool((exact.norm(order, dim=1) <= eps).all())
    assert bool(((result.adv - x).flatten(1).norm(order, dim=1) <= eps).all())
    torch.testing.assert_close(result.norm, exact.norm(order, dim=1))
    assert bool(((result.adv >= 0) & (result.adv <= 1)).all())
    assert result.adv.dtype == dtype
    assert result.adv.shape == x.shape


@every_attack
def test_call_and_record_agree(name, cnn, batch):
    x, y = batch[0][:8], batch[1][:8]
    given = x.clone()
    attack = build(name, cnn)
    result = attack.run(x, y)
    assert torch.equal(attack(x, y), result.adv), "two calls draw the same"
    assert torch.equal(x, given)
    assert not result.adv.requires_grad
    with torch.no_grad():
        assert torch.equal(cnn(result.adv).argmax(1) != y, result.success)
    target = (y + 1) % 10
    aimed = attack.run(x, y, target=target)
    with torch.no_grad():
        assert torch.equal(cnn(aimed.adv).argmax(1) == target, aimed.success)


class Counting(nn.Module):
    """Counts the images that go in and, by a hook, those that gradients are taken for."""

    def __init__(self, model):
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x):
        self.forwards += len(x)
        out = self.model(x)
        if out.requires_grad:
            out.register_hook(self._back)
        return out

    def _back(self, gradient):
        self.backwards += len(gradient)


@every_attack
def test_counts_are_what_the_model_sees(name, cnn, batch):
    counting = Counting(cnn)
    result = build(name, counting).run(batch[0][:6], batch[1][:6])
    assert result.forwards == counting.forwards - 6, "the pass that judges does not count"
    assert result.backwards == counting.backwards
    assert (result.backwards == 0) == name.startswith("square")


@every_attack
def test_model_is_untouched(name, cnn, batch):
    model = nn.Sequential(nn.Dropout(0.5), cnn)
    model[0].eval()
    next(cnn.parameters()).requires_grad_(False)
    try:
        asks = [item.requires_grad for item in model.parameters()]
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        modes = [part.training for part in model.modules()]
        state = torch.get_rng_state()
        build(name, model)(batch[0][:4], batch[1][:4])
        assert asks == [item.requires_grad for item in model.parameters()]
        assert modes == [part.training for part in model.modules()]
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
        assert all(item.grad is None for item in model.parameters())
        assert all(not part._forward_hooks for part in model.modules())
        assert torch.equal(state, torch.get_rng_state())
        assert torch.is_grad_enabled()
    finally:
        next(cnn.parameters()).requires_grad_(True)


@every_attack
def test_parameters_are_frozen_during_the_attack(name, mlp, batch):
    """No gradient is computed that nobody asks for."""
    asks = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = mlp

        def forward(self, x):
            asks.extend(item.requires_grad for item in self.parameters())
            return self.model(x)

    build(name, Watched())(batch[0][:3], batch[1][:3])
    assert asks
    assert not any(asks)
    assert all(item.requires_grad for item in mlp.parameters())


class Failing(nn.Module):
    """Works for a number of calls, then raises."""

    def __init__(self, calls):
        super().__init__()
        self.layer, self.calls = nn.Linear(64, 5), calls

    def forward(self, x):
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("out of order")
        return self.layer(x.flatten(1))


@pytest.mark.parametrize(
    ("name", "calls"),
    [(name, calls) for name in ALL for calls in (0, 1) if calls == 0 or "fgsm" not in name],
)
def test_model_is_untouched_after_an_exception(name, calls):
    model = Failing(calls)
    # the label is the model's own class, so that every attack has work to do
    x = torch.rand(3, 1, 8, 8)
    y = model.layer(x.flatten(1)).argmax(1)
    with pytest.raises(RuntimeError, match="out of order"):
        build(name, model)(x, y)
    assert all(item.requires_grad and item.grad is None for item in model.parameters())
    assert torch.is_grad_enabled()


@every_attack
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(name, context, mlp, batch):
    x, y = batch[0][:4], batch[1][:4]
    expected = build(name, mlp)(x, y)
    with context():
        got = build(name, mlp)(x.clone(), y.clone())
    assert torch.equal(got, expected)


@every_attack
def test_refusals(name, mlp):
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    attack = build(name, mlp)
    owner = type(attack).__name__
    nan = x.clone()
    nan[0, 0, 0, 0] = float("nan")
    for images in (x - 0.5, x + 0.5, nan):
        with pytest.raises(ValueError, match=rf"{owner}: images must have pixels in \[0, 1\]"):
            attack(images, y)
    with pytest.raises(TypeError, match="images must be a floating-point tensor"):
        attack((255 * x).byte(), y)
    with pytest.raises(TypeError, match="float32 or float64"):
        attack(x.half(), y)
    with pytest.raises(ValueError, match="empty"):
        attack(x[:0], y[:0])
    with pytest.raises(ValueError, match="labels must have shape"):
        attack(x, y[:3])
    with pytest.raises(TypeError, match="class indices"):
        attack(x, y.float())
    for wrong in (y - 1, y + 8):
        with pytest.raises(ValueError, match="labels must lie in"):
            attack(x, wrong)
    with pytest.raises(ValueError, match="target must lie in"):
        attack(x, y, target=y + 8)
    with pytest.raises(ValueError, match="target must differ"):
        attack(x, y, target=y)


@every_attack
def test_models_refused(name):
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    flat = nn.Flatten()
    with pytest.raises(ValueError, match="the model's output must have shape"):
        build(name, nn.Sequential(nn.Conv2d(1, 5, 1)))(x, y)
    with pytest.raises(ValueError, match=r"BatchNorm2d in training mode.*model\.eval\(\)"):
        build(name, SmallCNN(1, 5, width=2))(x, y)
    with pytest.raises(ValueError, match="2 classes or more"):
        build(name, nn.Sequential(flat, nn.Linear(64, 1)))(x, 0 * y)
    with pytest.raises(ValueError, match="model's output must be finite"):
        build(name, lambda images: flat(images)[:, :5] / 0.0)(0.0 * x, y)
    with pytest.raises(TypeError, match="model must be callable"):
        build(name, "resnet18")


@pytest.mark.parametrize("name", [key for key in ALL if not key.startswith("square")])
def test_models_without_gradients_refused(name):
    x = torch.rand(2, 1, 8, 8)
    layer = nn.Linear(64, 5)
    y = layer(x.flatten(1)).argmax(1)
    constant = torch.zeros(1, requires_grad=True)
    for model in (
        lambda images: layer(images.detach().flatten(1)),
        lambda images: layer(images.detach().flatten(1)) + constant,
    ):
        with pytest.raises(ValueError, match="not differentiable"):
            build(name, model)(x, y)


def test_gradients_that_are_nan_are_refused():
    def root(images):
        return torch.stack([(0.0 * images).sum((1, 2, 3)).sqrt(), images.sum((1, 2, 3))], 1)

    with pytest.raises(ValueError, match="the model's gradient must be finite"):
        PGD(root)(torch.rand(2, 1, 8, 8), torch.tensor([1, 1]))


@every_ball
@pytest.mark.parametrize("eps", [0.0, -0.1, float("nan")])
def test_radii_refused(name, eps, mlp):
    with pytest.raises(ValueError, match="eps must lie in"):
        build(name, mlp, eps=eps)


def test_options_refused(mlp):
    for kind, options in [
        (PGD, {"alpha": 0.0}),
        (PGD, {"steps": 0}),
        (PGD, {"norm": "l3"}),
        (MIFGSM, {"decay": -1.0}),
        (TIFGSM, {"kernel_size": 4}),
        (SIFGSM, {"scales": 0}),
        (DIFGSM, {"diversity": 1.5}),
        (DIFGSM, {"resize_rate": 0.0}),
        (DeepFool, {"overshoot": -0.1}),
        (DeepFool, {"candidates": 0}),
        (CarliniWagner, {"c": 0.0}),
        (CarliniWagner, {"confidence": -1.0}),
        (APGD, {"norm": "l1"}),
        (APGD, {"loss": "hinge"}),
        (APGD, {"rho": 1.5}),
        (FAB, {"beta": 1.0}),
        (FAB, {"norm": "l1"}),
        (Square, {"p": 0.0}),
        (Square, {"norm": "l1"}),
    ]:
        with pytest.raises(ValueError, match=rf"{kind.__name__}: {next(iter(options))} must"):
            kind(mlp, **options)


@pytest.mark.parametrize("name", ["pgd", "di", "apgd-ce", "square"])
def test_generators_and_seeds_decide(name, cnn, batch):
    x, y = batch[0][:6], batch[1][:6]
    attack, other = build(name, cnn, eps=0.01), build(name, cnn, eps=0.01, seed=1)
    assert not torch.equal(attack(x, y), other(x, y))
    draws = [torch.Generator().manual_seed(5) for _ in range(2)]
    first = attack(x, y, generator=draws[0])
    assert torch.equal(first, other(x, y, generator=draws[1]))
    assert not torch.equal(first, attack(x, y, generator=draws[0])), "the generator has moved on"


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (fgsm, FGSM),
        (pgd, PGD),
        (transfer_attack, TransferAttack),
        (deepfool, DeepFool),
        (carlini_wagner, CarliniWagner),
        (apgd, APGD),
        (fab, FAB),
        (square, Square),
    ],
)
def test_functions_are_the_classes(function, kind, mlp, batch):
    x, y = batch[0][:4], batch[1][:4]
    options = {"steps": 3} if "steps" in inspect.signature(kind).parameters else {"eps": 0.2}
    target = (y + 3) % 10
    expected = kind(mlp, **options)(x, y, target=target)
    assert torch.equal(function(mlp, x, y, target=target, **options), expected)


@pytest.mark.parametrize("name", MINIMAL)
def test_misread_images_stay_as_they_are(name, mlp, batch):
    x, y = batch[0][:6], batch[1][:6].clone()
    y[:3] = (y[:3] + 1) % 10
    result = build(name, mlp).run(x, y)
    assert torch.equal(result.adv[:3], x[:3])
    assert bool(result.success[:3].all())
    assert not result.norm[:3].any()


def test_flat_samples_are_images_too():
    model = MLP(6, [], 3)
    x = torch.rand(4, 6)
    y = model(x).argmax(1)
    for attack in (PGD(model), MIFGSM(model), APGD(model), DeepFool(model), FAB(model)):
        assert attack(x, y).shape == x.shape
    for attack in (Square(model), TIFGSM(model), DIFGSM(model)):
        with pytest.raises(ValueError, match=r"images must have shape \(b, c, h, w\)"):
            attack(x, y)
