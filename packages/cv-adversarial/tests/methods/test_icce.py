"""ICCE: the paper's algebra, slow references, and the degenerate case that is cross entropy."""

import math

import numpy as np
import pytest
import torch
from cv_adversarial.methods.icce import ICCELoss, gradient_weight, icce, icce_loss
from cv_core.losses.classification import GCELoss, MAELoss
from scipy.integrate import quad
from scipy.special import expi
from torch.nn.functional import cross_entropy

PROBABILITIES = np.array([1e-8, 1e-4, 0.03, 0.2, 0.5, 0.75, 0.97, 1 - 1e-9, 1.0])


def batch(seed: int, size: int = 7, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (size,), generator=generator)


def by_quadrature(p: float, T: float) -> float:
    """The integral of Eq. 5 after u = e^s, where the integrand is smooth."""
    value, _ = quad(lambda s: math.exp(T * (math.exp(s) - 0.5)), math.log(p), 0.0, epsabs=1e-13)
    return value


@pytest.mark.parametrize("T", [-4.0, 0.5, 1.0, 4.0, 8.0])
def test_series_equals_the_integral(T):
    expected = [by_quadrature(p, T) for p in PROBABILITIES]
    np.testing.assert_allclose(icce(PROBABILITIES, T), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("T", [0.5, 1.0, 4.0, 8.0, 16.0])
def test_series_equals_the_exponential_integral(T):
    p = PROBABILITIES[:-2]  # at p = 1 the difference of the two Ei cancels, the series does not
    expected = math.exp(-T / 2) * (expi(T) - expi(T * p))
    np.testing.assert_allclose(icce(p, T), expected, rtol=1e-9)


def test_slow_series_by_loops():
    logits, target = batch(0)
    expected = []
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        p = math.exp(row[label]) / sum(map(math.exp, row))
        total = -math.log(p)
        for k in range(1, 40):
            total += 4.0**k * (1 - p**k) / (k * math.factorial(k))
        expected.append(math.exp(-2.0) * total)
    got = ICCELoss(T=4.0, reduction="none")(logits, target)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def by_slow_series(logits: torch.Tensor, target: torch.Tensor, T: float = 4.0) -> torch.Tensor:
    """The series with torch's own gradients."""
    log_p = logits.log_softmax(1).gather(1, target[:, None]).squeeze(1)
    p, total = log_p.exp(), -log_p
    for k in range(1, 40):
        total = total + T**k / (k * math.factorial(k)) * (1 - p**k)
    return math.exp(-T / 2) * total


def test_module_function_and_numpy_agree():
    logits, target = batch(1)
    p = logits.softmax(1)[torch.arange(len(target)), target]
    each = icce_loss(logits, target, T=2.5, reduction="none")
    np.testing.assert_allclose(each.numpy(), icce(p.numpy(), 2.5), rtol=1e-12)
    torch.testing.assert_close(ICCELoss(T=2.5)(logits, target), each.mean())


def test_zero_temperature_is_cross_entropy():
    logits, target = batch(2)
    logits.requires_grad_()
    ours, theirs = ICCELoss(T=0.0)(logits, target), cross_entropy(logits, target)
    torch.testing.assert_close(ours, theirs)
    (mine,), (other,) = (torch.autograd.grad(loss, logits) for loss in (ours, theirs))
    torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("T", [-2.0, 0.5, 4.0, 8.0])
def test_gradient_is_weighted_cross_entropys(T):
    logits, target = batch(3)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(ICCELoss(T=T, reduction="sum")(logits, target), logits)
    softmax = logits.softmax(1).detach()
    p = softmax.gather(1, target[:, None])
    onehot = torch.nn.functional.one_hot(target, logits.shape[1])
    torch.testing.assert_close(gradient, torch.exp(T * (p - 0.5)) * (softmax - onehot))
    torch.testing.assert_close(gradient.sum(1), torch.zeros(len(target), dtype=torch.float64))


def test_gradient_equals_stopped_weight_times_cross_entropy():
    logits, target = batch(4)
    logits.requires_grad_()
    p = logits.softmax(1).gather(1, target[:, None]).squeeze(1).detach()
    surrogate = (torch.exp(4.0 * (p - 0.5)) * cross_entropy(logits, target, reduction="none")).sum()
    (expected,) = torch.autograd.grad(surrogate, logits)
    (got,) = torch.autograd.grad(ICCELoss(T=4.0, reduction="sum")(logits, target), logits)
    torch.testing.assert_close(got, expected)


def test_first_and_second_derivatives_by_finite_differences():
    logits, target = batch(5, size=3)
    logits.requires_grad_()
    loss = ICCELoss(T=4.0)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), (logits,))
    assert torch.autograd.gradgradcheck(lambda z: loss(z, target), (logits,))


@pytest.mark.parametrize("T", [-4.0, 0.0, 1.0, 4.0, 8.0])
def test_zero_at_one_and_strictly_decreasing(T):
    p = np.linspace(1e-6, 1.0, 2001)
    values = icce(p, T)
    assert values[-1] == 0.0
    assert (np.diff(values) < 0).all()


@pytest.mark.parametrize("T", [-3.0, 1.0, 4.0])
@pytest.mark.parametrize("floor", [1e-3, 0.05])
def test_bounds_of_theorems_1_and_2(T, floor):
    """Th. 1 holds for every real T: e^{Tu}/u is largest at an end of [eps, 1] for it is convex."""
    bound = (1 - floor) * max(math.exp(T * (floor - 0.5)) / floor, math.exp(T / 2))
    values = icce(np.linspace(floor, 1.0, 500), T)
    assert values.min() >= 0
    assert values.max() <= bound
    classes = 6
    rest = np.random.default_rng(0).dirichlet(np.ones(classes), size=200)
    p = floor + (1 - classes * floor) * rest
    assert (icce(p, T).sum(axis=1) <= classes * bound).all()


@pytest.mark.parametrize("T", [2.0, 4.0, 8.0])
def test_weight_is_largest_at_one_minus_one_over_t(T):
    p = torch.linspace(0.001, 0.999, 1999, dtype=torch.float64)
    weights = gradient_weight(ICCELoss(T=T), p)
    torch.testing.assert_close(weights, torch.exp(T * (p - 0.5)) * (1 - p))
    assert abs(float(p[weights.argmax()]) - (1 - 1 / T)) < 1e-3


@pytest.mark.parametrize("T", [0.0, 0.5, 1.0])
def test_weight_decreases_where_t_is_at_most_one(T):
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    assert bool((gradient_weight(ICCELoss(T=T), p).diff() < 0).all())


def test_weights_of_the_losses_compared():
    p = torch.tensor([0.05, 0.2, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(gradient_weight(cross_entropy, p), 1 - p)
    torch.testing.assert_close(gradient_weight(MAELoss(), p), 2 * p * (1 - p))
    torch.testing.assert_close(gradient_weight(GCELoss(q=0.7), p), p**0.7 * (1 - p))
    # the paper argues that ICCE weighs more than GCE for p < 0.5; not so for its own T = 4
    weights = [float(gradient_weight(loss, p)[1]) for loss in (ICCELoss(T=4.0), GCELoss(q=0.7))]
    np.testing.assert_allclose(weights, [0.241, 0.259], atol=5e-4)
    assert weights[0] < weights[1]


def test_risk_identity_of_theorem_3_holds_exactly():
    """With expected instead of sampled uniform noise, on a finite sample."""
    logits, target = batch(6, size=20)
    eta, classes = 0.4, logits.shape[1]

    def loss(labels: torch.Tensor) -> torch.Tensor:
        return icce_loss(logits, labels, reduction="none")

    every = torch.stack([loss(torch.full_like(target, k)) for k in range(classes)], dim=1)
    chance = torch.full((len(target), classes), eta / (classes - 1), dtype=torch.float64)
    chance.scatter_(1, target[:, None], 1 - eta)
    noisy = (chance * every).sum(1).mean()
    clean = loss(target).mean()
    expected = (1 - eta * classes / (classes - 1)) * clean
    expected = expected + eta / (classes - 1) * every.sum(1).mean()
    torch.testing.assert_close(noisy, expected)
    assert float(every.sum(1).std()) > 0.1  # not symmetric: the sum over labels is not constant


def test_pixels_and_ignored_labels():
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(3, (2, 4, 5), generator=generator)
    target[0, 0] = 255
    flat = logits.movedim(1, -1).reshape(-1, 3)
    kept = target.flatten() != 255
    expected = icce_loss(flat[kept], target.flatten()[kept])
    torch.testing.assert_close(icce_loss(logits, target, ignore_index=255), expected)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = ICCELoss(T=4.0, reduction="none")(logits, torch.tensor([0, 0]))
    assert loss[0] == 0
    torch.testing.assert_close(loss[1], torch.tensor(2e4 * math.exp(-2.0)), rtol=1e-3, atol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("T", [4.0, 16.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_in_range(T, dtype):
    """The series' coefficients exceed float16 from T = 14 on, the loss does not."""
    logits, target = batch(8)
    low = logits.to(dtype)
    got = ICCELoss(T=T, reduction="none")(low, target)
    assert got.dtype == dtype
    exact = ICCELoss(T=T, reduction="none")(low.double(), target)
    torch.testing.assert_close(got.double(), exact, rtol=0.05, atol=0.05)


def test_compiles_in_one_graph_with_its_gradient():
    logits, target = batch(10)
    logits.requires_grad_()
    loss = ICCELoss(T=4.0)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    ours, theirs = compiled(logits, target), loss(logits, target)
    torch.testing.assert_close(ours, theirs)
    (mine,), (other,) = (torch.autograd.grad(value, logits) for value in (ours, theirs))
    torch.testing.assert_close(mine, other)


def test_function_transforms_of_torch():
    logits, target = batch(9)
    loss = ICCELoss(T=4.0)
    expected = torch.func.grad(lambda z: by_slow_series(z, target).mean())(logits)
    torch.testing.assert_close(torch.func.grad(lambda z: loss(z, target))(logits), expected)


def test_near_certainty_keeps_its_digits_in_float32():
    """What log_softmax leaves of 1 - p is kept; 1 - p^k would lose it."""
    logits = torch.tensor([[12.0, 0.0]])
    log_p = float(logits.log_softmax(1)[0, 0])
    got = ICCELoss(T=4.0)(logits, torch.tensor([0]))
    assert float(got) == pytest.approx(by_quadrature(math.exp(log_p), 4.0), rel=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ICCELoss(T=float("nan")), r"ICCELoss: T must lie in \[-8, 32\]; got nan"),
        (lambda: ICCELoss(T=100.0), r"ICCELoss: T must lie in \[-8, 32\]; got 100"),
        (lambda: ICCELoss(reduction="average"), "ICCELoss: reduction must be one of 'mean'"),
        (lambda: icce(np.array([0.5, 0.0])), r"icce: p must lie in \(0, 1\]"),
        (lambda: gradient_weight(ICCELoss(), torch.tensor([1.5])), r"p must lie in \(0, 1\)"),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
