"""MAI-FGPLM: the paper's algebra, a slow loop, AI-FGTM as a special case, the mean change."""

import math
from functools import partial

import pytest
import torch
from cv_adversarial.attacks.transfer import MIFGSM
from cv_adversarial.methods.mai_fgplm import (
    AIFGTM,
    MAIFGPLM,
    AdamRatioAttack,
    average_perturbation_size,
    mixed_input,
    piecewise_linear,
    step_sizes,
)
from cv_core.imaging.kernels import gaussian_kernel1d
from cv_core.models.small import MLP, SmallCNN
from cv_core.random import seeded, torch_generator
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import conv2d, cross_entropy, pad

FULL = {"nesterov": True, "diversity": 1.0, "kernel_size": 3, "mix_kernel_size": 3}


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return torch.tensor(bunch.images / 16.0).float()[:, None], torch.tensor(bunch.target)


@pytest.fixture(scope="module")
def cnn(digits):
    with seeded(0, "cnn"):
        model = SmallCNN(1, 10, width=8)
    generator = torch_generator(0, "batches")
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        rows = torch.randint(1200, (128,), generator=generator)
        optimiser.zero_grad()
        cross_entropy(model(digits[0][rows]), digits[1][rows]).backward()
        optimiser.step()
    model.zero_grad(set_to_none=True)
    return model.eval()


@pytest.fixture(scope="module")
def batch(digits, cnn):
    x, y = digits[0][1200:], digits[1][1200:]
    with torch.no_grad():
        right = cnn(x).argmax(1) == y
    return x[right][:40], y[right][:40]


class Linear(nn.Module):
    """Two classes whose cross entropy has a gradient of fixed signs and nearly fixed size."""

    def __init__(self, slope):
        super().__init__()
        self.register_buffer("slope", slope)

    def forward(self, x):
        score = (x * self.slope).flatten(1).sum(1)
        return torch.stack([-score - 50, score + 50], dim=1)  # the label 0 is hopeless: p = 0


def linear(generator, sides=(1, 1, 4, 4)):
    slope = torch.randn(sides, generator=generator, dtype=torch.float64)
    return Linear(slope), slope


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "build",
    [MAIFGPLM, partial(MAIFGPLM, **FULL), partial(MAIFGPLM, rho=5.0), AIFGTM],
    ids=["plain", "full", "steep", "tanh"],
)
@settings(max_examples=5, deadline=None)
@given(eps=st.floats(1e-5, 2.0), seed=st.integers(0, 10**6), aimed=st.booleans())
def test_results_lie_in_the_ball_and_the_pixel_range(build, dtype, eps, seed, aimed):
    """Property 1."""
    with seeded(seed):
        model = SmallCNN(1, 5, width=2).to(dtype).eval()
        x = torch.rand(4, 1, 8, 8, dtype=dtype).mul(1.4).sub(0.2).clamp(0, 1)
    y = torch.arange(4)
    result = build(model, eps=eps, steps=3).run(x, y, target=(y + 1) % 5 if aimed else None)
    assert bool(((result.adv.double() - x.double()).abs() <= eps).all())
    assert bool(((result.adv >= 0) & (result.adv <= 1)).all())
    assert result.adv.dtype == dtype
    assert (result.forwards, result.backwards) == (12, 12)


@pytest.mark.parametrize(
    ("attack", "factor"),
    [
        (partial(MAIFGPLM, tau=0.0), 0.5 * 1.3 * (1.5 + 0.12) / math.sqrt(1.9 + 0.12)),
        (AIFGTM, math.tanh(1.3 * 1.5 / math.sqrt(1.9))),
    ],
    ids=["piecewise linear", "tanh"],
)
def test_first_step_is_a_scaled_sign_step(attack, factor):
    """Property 2: 0.741 of the step's size, and 0.8885 with tanh."""
    model, slope = linear(torch_generator(0))
    x = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    adv = attack(model, eps=0.1, steps=1, floor=1e-30)(x, torch.tensor([0]))
    torch.testing.assert_close(adv - x, factor * 0.1 * slope.sign(), rtol=1e-9, atol=0)
    assert round(factor, 3) in (0.741, 0.888)


def test_directions_are_odd_and_cross_once():
    """Property 3."""
    z = torch.linspace(-6, 6, 4801, dtype=torch.float64)
    assert torch.equal(piecewise_linear(-z), -piecewise_linear(z))
    inside = z[(z > 0) & (z < 1.915)]
    assert bool((piecewise_linear(inside) < inside.tanh()).all())
    beyond = z[(z > 1.916) & (z < 3)]
    assert bool((piecewise_linear(beyond) > beyond.tanh()).all())
    ends = torch.tensor([2.999999, 3.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(
        piecewise_linear(ends), torch.tensor([1.4999995, 1.0, -1.0]).double()
    )


@pytest.mark.parametrize("scale", [2.0**20, 1e-3])
def test_the_size_of_the_loss_does_not_matter(scale, cnn, batch):
    """Property 4, up to the floor."""

    class Scaled(MAIFGPLM):
        def _gradient(self, *arguments):
            return scale * super()._gradient(*arguments)

    x, y = batch[0][:8].double(), batch[1][:8]
    model = cnn.double()
    try:
        options = {"eps": 0.2, "floor": 1e-40, **FULL}
        plain, scaled = (
            attack(model, **options)(x, y, generator=torch_generator(0))
            for attack in (MAIFGPLM, Scaled)
        )
    finally:
        model.float()
    assert not torch.equal(plain, x)
    torch.testing.assert_close(scaled, plain, atol=1e-9, rtol=0)


def test_mixing(batch):
    """Property 5: nothing mixed for a share of 0 or one tap, constants kept, a loop otherwise."""
    x = batch[0][:2].double()
    assert mixed_input(x, 0.0, 9) is x
    assert mixed_input(x, 0.5, 1) is x
    constant = torch.full((1, 2, 5, 7), 0.3, dtype=torch.float64)
    torch.testing.assert_close(mixed_input(constant, 0.7, 9), constant)
    line = gaussian_kernel1d(1 / 3, 3, dtype=torch.float64)
    assert float(line.sum()) == pytest.approx(1.0, abs=1e-12)
    bordered = pad(x, (1, 1, 1, 1), mode="reflect")
    expected = torch.zeros_like(x)
    for row in range(8):
        for column in range(8):
            window = bordered[:, :, row : row + 3, column : column + 3]
            blurred = (window * torch.outer(line, line)).sum((2, 3))
            expected[:, :, row, column] = 0.3 * blurred + 0.7 * x[:, :, row, column]
    torch.testing.assert_close(mixed_input(x, 0.3, 3), expected)


def test_a_slope_of_a_third_is_a_clamp():
    """Property 5, the continuous direction."""
    z = torch.linspace(-6, 6, 4801, dtype=torch.float64)
    torch.testing.assert_close(piecewise_linear(z, 1 / 3), (z / 3).clamp(-1, 1))


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_step_sizes_grow_and_sum_to_eps(steps):
    """Property 6, second half."""
    sizes = step_sizes(0.07, steps)
    assert sum(sizes) == pytest.approx(0.07, rel=1e-12)
    assert sizes == sorted(sizes)
    ratio = ((1 - 0.9**2) / math.sqrt(1 - 0.99**2)) / (0.1 / math.sqrt(0.01))
    if steps > 1:
        assert sizes[1] / sizes[0] == pytest.approx(ratio, rel=1e-12)


def slow(model, x, y, *, direction, gamma, tau, nesterov, kernel, eps=0.2, steps=6):
    """One image after the other, written from the paper's Algorithm 1."""
    total = sum((1 - 0.9 ** (s + 1)) / math.sqrt(1 - 0.99 ** (s + 1)) for s in range(steps))
    side, results = len(kernel) // 2, []
    for image, label in zip(x, y, strict=True):
        z = image[None]
        m, v = torch.zeros_like(z), torch.zeros_like(z)
        for t in range(steps):
            ahead = z.clone()
            if nesterov and t > 0:
                ahead += eps / steps * m / m.abs().mean()
            bordered = pad(ahead, [side] * 4, mode="reflect")
            mixed = tau * conv2d(bordered, kernel[None, None]) + (1 - tau) * ahead
            mixed.requires_grad_()
            g = torch.autograd.grad(cross_entropy(model(mixed), label[None]), mixed)[0]
            blurred = conv2d(g, kernel[None, None], padding=side)
            m = m + 1.5 * blurred + gamma * g
            v = v + 1.9 * blurred**2 + gamma * g**2
            q = (1 - 0.9 ** (t + 1)) / math.sqrt(1 - 0.99 ** (t + 1))
            z = z + eps * q / total * direction(1.3 * m / (v.sqrt() + 1e-8))
            z = z.clamp(image - eps, image + eps).clamp(0, 1)
        results.append(z)
    return torch.cat(results)


def broken_line(z):
    return torch.where(z.abs() < 3, 0.5 * z, z.sign())


@pytest.mark.parametrize(
    ("attack", "paper", "side"),
    [
        (AIFGTM, {"direction": torch.tanh, "gamma": 0, "tau": 0}, 1),
        (AIFGTM, {"direction": torch.tanh, "gamma": 0, "tau": 0}, 3),
        (partial(MAIFGPLM, gamma1=0.0, gamma2=0.0, tau=0.0), {"gamma": 0, "tau": 0}, 3),
        (MAIFGPLM, {"gamma": 0.12, "tau": 0.5}, 3),
        (partial(MAIFGPLM, nesterov=True), {"gamma": 0.12, "tau": 0.5, "nesterov": True}, 5),
    ],
    ids=["ai-fgtm", "ti-ai-fgtm", "pl", "ti-mai", "ni-ti-mai"],
)
def test_against_a_slow_loop(attack, paper, side, cnn, batch):
    paper = {"direction": broken_line, "nesterov": False, **paper}
    line = torch.ones(1).double()
    if side > 1:
        line = gaussian_kernel1d(side // 2 / 3, side, dtype=torch.float64)
    x, y = batch[0][:4].double(), batch[1][:4]
    model = cnn.double()
    try:
        sides = {"kernel_size": side, "mix_kernel_size": side}
        got = attack(model, eps=0.2, steps=6, **sides)(x, y)
        expected = slow(model, x, y, kernel=torch.outer(line, line), **paper)
    finally:
        model.float()
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)


def test_with_the_tangent_and_without_the_rest_it_is_aifgtm(cnn, batch):
    """Property 6, to the bit."""
    x, y = batch
    options = {"eps": 0.2, "nesterov": True, "kernel_size": 3, "diversity": 1.0, "tau": 0.0}
    aifgtm, special, other = (
        attack(cnn, **options)(x, y, generator=torch_generator(0))
        for attack in (AIFGTM, partial(AdamRatioAttack, direction=torch.tanh), MAIFGPLM)
    )
    assert torch.equal(aifgtm, special)
    assert not torch.equal(aifgtm, other)


@pytest.mark.parametrize(
    ("attack", "share"),
    [(partial(MAIFGPLM, gamma1=0.0, gamma2=0.0, tau=0.0), 16.0), (AIFGTM, 15.81)],
    ids=["piecewise linear", "tanh"],
)
def test_under_a_steady_gradient_the_change_is_no_smaller(attack, share):
    """The smaller change is a matter of gradients that turn: here the ball's surface is reached."""
    model, _ = linear(torch_generator(1))
    x = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    adv = attack(model, eps=16 / 255, floor=1e-30)(x, torch.tensor([0]))
    assert float(average_perturbation_size(x, adv)) == pytest.approx(share, abs=0.01)


class Turning(nn.Module):
    """Gradients whose signs are drawn anew at every call."""

    def __init__(self):
        super().__init__()
        self.generator = torch_generator(2)

    def forward(self, x):
        slope = torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
        score = (x * slope).flatten(1).sum(1)
        return torch.stack([-score - 500, score + 500], dim=1)


def test_where_gradients_turn_the_change_is_ordered_as_published():
    """Piecewise linear below tanh below sign, by far: 4096 pixels, a standard error under 1 %."""
    x, y = torch.full((1, 1, 64, 64), 0.5, dtype=torch.float64), torch.tensor([0])
    linear, tanh, sign = (
        float(average_perturbation_size(x, attack(Turning(), eps=0.2)(x, y), scale=5.0))
        for attack in (
            partial(MAIFGPLM, gamma1=0.0, gamma2=0.0, tau=0.0),
            AIFGTM,
            partial(MIFGSM, alpha=0.02),
        )
    )
    assert linear < 0.9 * tanh
    assert tanh < 0.95 * sign


def test_it_fools_the_network_and_reaches_targets(cnn, batch):
    x, y = batch
    assert float(MAIFGPLM(cnn, eps=0.3).run(x, y).success.float().mean()) > 0.8
    target = (y + 1) % 10
    with torch.no_grad():
        before = cross_entropy(cnn(x), target)
        after = cross_entropy(cnn(MAIFGPLM(cnn, eps=0.3)(x, y, target=target)), target)
    assert float(after) < 0.5 * float(before)


def test_random_shrinking_comes_from_the_seed(cnn, batch):
    x, y = batch
    state = torch.get_rng_state()
    first, second, other = (
        MAIFGPLM(cnn, eps=0.2, **FULL, resize_rate=0.5, seed=seed)(x, y) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_flat_gradients_move_nothing():
    """A network that does not look at the image: no division by zero, with look-ahead too."""

    class Blind(nn.Module):
        def forward(self, x):
            return 0.0 * x.flatten(1)[:, :3]

    x = torch.rand(2, 1, 4, 4)
    got = MAIFGPLM(Blind(), nesterov=True, kernel_size=3)(x, torch.tensor([0, 1]))
    assert torch.equal(got, x)


def test_feature_vectors_can_be_attacked_without_blurs():
    with seeded(0):
        model = MLP(6, [8], 3)
    x, y = torch.rand(5, 6), torch.tensor([0, 1, 2, 0, 1])
    adv = MAIFGPLM(model, eps=0.1, tau=0.0)(x, y)
    assert float((adv - x).abs().max()) == pytest.approx(0.1, abs=1e-6)
    with pytest.raises(ValueError, match="MAIFGPLM: images must have shape"):
        MAIFGPLM(model, eps=0.1)(x, y)


def test_average_perturbation_size_by_hand():
    x = torch.zeros(2, 1, 1, 2)
    x_adv = torch.tensor([[[[0.1, -0.3]]], [[[0.0, 1.0]]]])
    torch.testing.assert_close(average_perturbation_size(x, x_adv), torch.tensor([51.0, 127.5]))
    share = average_perturbation_size(x, x_adv, scale=1 / 0.5)
    torch.testing.assert_close(share, torch.tensor([0.4, 1.0]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MAIFGPLM(abs, eps=-1.0), "MAIFGPLM: eps must lie in"),
        (lambda: MAIFGPLM(abs, rho=0.0), "MAIFGPLM: rho must lie in"),
        (lambda: MAIFGPLM(abs, gamma1=-0.1), "MAIFGPLM: gamma1 must lie in"),
        (lambda: MAIFGPLM(abs, tau=1.5), "MAIFGPLM: tau must lie in"),
        (lambda: MAIFGPLM(abs, mix_kernel_size=4), "MAIFGPLM: mix_kernel_size must be odd"),
        (lambda: MAIFGPLM(abs, steps=0), "MAIFGPLM: steps must be at least 1"),
        (lambda: AIFGTM(abs, floor=0.0), "AIFGTM: floor must lie in"),
        (lambda: mixed_input(torch.zeros(3, 3)), "mixed_input: x must have shape"),
        (lambda: piecewise_linear(torch.zeros(3), -1.0), "piecewise_linear: rho"),
        (
            lambda: average_perturbation_size(torch.zeros(2, 3), torch.zeros(3, 2)),
            "x and x_adv must have the same shape",
        ),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
