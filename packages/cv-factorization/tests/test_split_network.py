"""Block updates: brute force, normal equations, the printed cases, a slow sweep, no rise."""

import itertools

import numpy as np
import pytest
import torch
from cv_core.numerics.blocks import block_coordinate_descent
from cv_core.numerics.proximal import prox_l1, prox_log
from cv_factorization.split_network import (
    SplitNetwork,
    printed_log_threshold,
    prox_relu_split,
    starting_weights,
)

CONSTANTS = {
    "alpha": 0.8, "beta": 1.3, "gamma": 1.1, "rho": 1.7, "delta": 0.9, "lam": 0.02, "eps": 0.1,
}  # fmt: skip


def network(seed=0, n=15, widths=(6, 5, 4, 3), *, safeguard=True, **over):
    rng = np.random.default_rng(seed)
    X = torch.from_numpy(rng.standard_normal((n, widths[0])))
    Y = torch.eye(widths[-1], dtype=X.dtype)[torch.from_numpy(rng.integers(widths[-1], size=n))]
    options = {**CONSTANTS, **over}
    split = SplitNetwork(X=X, Y=Y, depth=len(widths) - 1, safeguard=safeguard, **options)
    blocks = split.start(starting_weights(widths, "he", rng, X))
    # away from the start, where most residuals are zero
    for name, block in blocks.items():
        blocks[name] = block + 0.3 * torch.from_numpy(rng.standard_normal(tuple(block.shape)))
    return split, blocks


def moved(split, blocks, name):
    return {**blocks, name: split.updates()[name](blocks)}


def test_the_relu_split_is_the_minimum_on_a_grid():
    grid = torch.arange(-40_000, 40_001, dtype=torch.float64) * 2e-4
    generator = torch.Generator().manual_seed(0)
    a, s = 6 * torch.rand(2, 200, generator=generator, dtype=torch.float64) - 3
    for eta in (0.1, 1.0, 7.0):
        z = prox_relu_split(a, s, eta)
        for one, target, point in zip(a, s, z, strict=True):
            values = 0.5 * (one - grid.clamp(min=0)) ** 2 + eta / 2 * (grid - target) ** 2
            value = 0.5 * (one - point.clamp(min=0)) ** 2 + eta / 2 * (point - target) ** 2
            assert values.min() - 1e-6 < value < values.min() + 1e-12


def test_the_relu_split_is_the_papers_four_cases():
    generator = torch.Generator().manual_seed(1)
    a, s = 6 * torch.rand(2, 500, generator=generator, dtype=torch.float64) - 3
    seen = set()
    for eta in (0.2, 1.6):
        for one, target, z in zip(a.tolist(), s.tolist(), prox_relu_split(a, s, eta).tolist()):  # noqa: B905
            edge = -((eta * (eta + 1)) ** 0.5 - eta) * one
            above = (one + eta * target) / (1 + eta)
            if one + eta * target < 0:
                case, expected = 1, min(target, 0)
            elif target >= 0:
                case, expected = 2, above
            elif eta * target > edge:
                case, expected = 3, above
            else:
                case, expected = 4, target
            seen.add(case)
            assert z == pytest.approx(expected, abs=1e-12)
    assert seen == {1, 2, 3, 4}


def test_a_stiff_tie_makes_the_relu_exact():
    a = torch.linspace(0, 3, 31, dtype=torch.float64)
    z = prox_relu_split(a, -2 * a, 1e-9)  # eta = (rho + delta) / gamma, gamma to infinity
    torch.testing.assert_close(z.clamp(min=0), a, rtol=0, atol=1e-7)


def test_the_printed_threshold_is_the_exact_one_beyond_its_jump():
    x = torch.linspace(-0.02, 0.02, 4001, dtype=torch.float64)
    weight, eps = 3e-6, 1e-3  # the paper's for MNIST
    exact, printed = prox_log(x, weight, eps=eps), printed_log_threshold(x, weight, eps=eps)
    kept = exact != 0
    torch.testing.assert_close(printed[kept], exact[kept], rtol=1e-12, atol=0)
    torch.testing.assert_close(printed, -printed.flip(0), rtol=1e-12, atol=0)
    # between its threshold 2.46e-3 and the exact one 2.57e-3 it keeps what 0 would beat
    between = (x.abs() > 2.47e-3) & (x.abs() < 2.565e-3)
    assert (exact[between] == 0).all()
    assert (printed[between] != 0).all()
    assert (printed[x.abs() < 2.46e-3] == 0).all()


def test_the_printed_threshold_turns_signs_where_the_problem_is_convex():
    x = torch.linspace(1e-6, 1e-3, 50, dtype=torch.float64)
    assert (printed_log_threshold(x, 2e-7, eps=1e-3) < 0).any()
    assert (prox_log(x, 2e-7, eps=1e-3) >= 0).all()


def test_a_large_eps_is_the_l1_penalty():
    x = torch.linspace(-3, 3, 61)
    torch.testing.assert_close(prox_log(x, 0.5 * 1e2, eps=1e2), prox_l1(x, 0.5), rtol=0, atol=0.02)
    split, blocks = network(lam=0.05 * 1e6, eps=1e6)
    plain = network(lam=0.0)[0]
    difference = split.objective(blocks) - plain.objective(blocks)
    assert difference == pytest.approx(0.05 * float(blocks["A1"].abs().sum()), rel=1e-5)


def slow_objective(split, blocks):
    """The objective (4), one sample at a time."""
    total, L = 0.0, split.depth
    for row in range(len(split.X)):
        a = split.X[row]
        for layer in range(1, L + 1):
            z = blocks[f"Z{layer}"][row]
            away = z - blocks[f"W{layer}"] @ a - blocks[f"b{layer}"]
            total += (split.beta if layer == L else split.rho) / 2 * float(away @ away)
            if layer < L:
                a = blocks[f"A{layer}"][row]
                total += split.gamma / 2 * float((a - z.clamp(min=0)).square().sum())
            if layer <= L - 2:
                total += split.lam * float(torch.log(1 + a.abs() / split.eps).sum())
        total += split.alpha / 2 * float((blocks[f"Z{L}"][row] - split.Y[row]).square().sum())
    return total


@pytest.mark.parametrize("widths", [(6, 5, 4, 3), (6, 5, 3), (6, 5, 4, 4, 3)])
def test_the_objective_is_the_papers(widths):
    split, blocks = network(widths=widths)
    assert split.objective(blocks) == pytest.approx(slow_objective(split, blocks), rel=1e-12)


@pytest.mark.parametrize("name", ["W1", "W2", "W3", "b1", "b2", "b3", "Z3", "A2"])
def test_quadratic_blocks_are_exact_minimisers(name):
    split, blocks = network()

    def value(block):
        # B repeats the bias in every sample, and so does the term that holds on to it
        times = len(split.X) if name[0] == "b" else 1
        held = split.delta / 2 * times * (block - blocks[name]).square().sum()
        return _differentiable(split, {**blocks, name: block}) + held

    new = split.updates()[name](blocks).requires_grad_()
    (slope,) = torch.autograd.grad(value(new), new)
    start = blocks[name].clone().requires_grad_()
    (before,) = torch.autograd.grad(value(start), start)
    assert slope.norm() < 1e-11 * before.norm()


def _differentiable(split, blocks):
    value = split.alpha / 2 * (blocks[f"Z{split.depth}"] - split.Y).square().sum()
    for layer in range(1, split.depth + 1):
        A = split.X if layer == 1 else blocks[f"A{layer - 1}"]
        away = blocks[f"Z{layer}"] - A @ blocks[f"W{layer}"].T - blocks[f"b{layer}"]
        tie = split.beta if layer == split.depth else split.rho
        value = value + tie / 2 * away.square().sum()
        if layer < split.depth:
            away = blocks[f"A{layer}"] - blocks[f"Z{layer}"].clamp(min=0)
            value = value + split.gamma / 2 * away.square().sum()
    return value


def test_the_printed_closed_forms_with_columns_as_samples():
    split, blocks = network()
    new = split.updates()
    Z, W, b, A0 = (blocks["Z2"].T, blocks["W2"], blocks["b2"][:, None], blocks["A1"].T)
    identity = torch.eye(len(A0), dtype=A0.dtype)
    d, r = split.delta, split.rho
    W7 = (d * W + r * (Z - b) @ A0.T) @ torch.linalg.inv(d * identity + r * A0 @ A0.T)
    torch.testing.assert_close(new["W2"](blocks), W7)
    b8 = (d * b + r * (Z - W @ A0).mean(dim=1, keepdim=True)) / (r + d)
    torch.testing.assert_close(new["b2"](blocks), b8[:, 0])
    W3, Z3, A2, b3 = (
        blocks["W3"], blocks["Z3"].T, blocks["A2"].T, blocks["b3"][:, None],
    )  # fmt: skip
    beta, gamma = split.beta, split.gamma
    left = beta * W3.T @ W3 + (gamma + d) * torch.eye(4, dtype=Z.dtype)
    right = d * A2 + beta * W3.T @ (Z3 - b3) + gamma * Z.clamp(min=0)
    torch.testing.assert_close(new["A2"](blocks).T, torch.linalg.solve(left, right))
    Z21 = (beta * (W3 @ A2 + b3) + split.alpha * split.Y.T + d * Z3) / (split.alpha + beta + d)
    torch.testing.assert_close(new["Z3"](blocks).T, Z21)


@pytest.mark.parametrize("lam", [0.0, 0.02])
def test_the_first_activations_take_the_printed_step(lam):
    split, blocks = network(safeguard=False, lam=lam)
    A, W, d = blocks["A1"].T, blocks["W2"], split.delta
    back = split.rho * W.T @ (W @ A - (blocks["Z2"].T - blocks["b2"][:, None]))
    point = A - (back + split.gamma * (A - blocks["Z1"].T.clamp(min=0))) / d
    expected = printed_log_threshold(point, lam / d, eps=split.eps) if lam else point
    torch.testing.assert_close(split.updates()["A1"](blocks).T, expected)


@pytest.mark.parametrize("lam", [0.0, 3e-4, 0.5])
def test_no_block_raises_the_safeguarded_objective(lam):
    for seed in range(5):
        split, blocks = network(seed, widths=(6, 5, 5, 4, 3), lam=lam, eps=1e-2, delta=0.05)
        found = block_coordinate_descent(
            blocks, split.updates(), split.objective, max_sweeps=8, tol=0.0, watch="block",
            slack=1e-9,
        )  # fmt: skip
        assert found.monotone, found.rises
        assert found.objective[-1] < found.objective[0]


def test_the_printed_step_may_raise_it():
    rises = 0
    for seed in range(5):
        split, blocks = network(seed, safeguard=False, delta=0.05)
        value = split.objective(blocks)
        rises += split.objective(moved(split, blocks, "A1")) > value
    assert rises > 0


def test_a_large_delta_holds_everything():
    split, blocks = network(delta=1e12)
    for name, update in split.updates().items():
        torch.testing.assert_close(update(blocks), blocks[name], rtol=0, atol=1e-8)


def test_the_output_lies_between_classes_and_network():
    split, blocks = network(alpha=1e12)
    torch.testing.assert_close(split.updates()["Z3"](blocks), split.Y, rtol=0, atol=1e-9)
    split, blocks = network(alpha=1e-12, delta=1e-12)
    affine = blocks["A2"] @ blocks["W3"].T + blocks["b3"]
    torch.testing.assert_close(split.updates()["Z3"](blocks), affine, rtol=0, atol=1e-9)


def test_a_sweep_goes_through_layers_and_blocks_in_the_papers_order():
    order = list(network()[0].updates())
    layers = [[f"{kind}{layer}" for kind in "WbZA"] for layer in (1, 2)]
    assert order == [*itertools.chain(*layers), "W3", "b3", "Z3"]


def test_single_precision_keeps_the_course():
    split, blocks = network(n=400)
    low, single = network(n=400)
    low = SplitNetwork(
        **{**vars(low), "X": low.X.float(), "Y": low.Y.float()}
    )  # fmt: skip
    single = {name: block.float() for name, block in single.items()}
    options = {"max_sweeps": 30, "tol": 0.0}
    exact = block_coordinate_descent(blocks, split.updates(), split.objective, **options)
    rough = block_coordinate_descent(single, low.updates(), low.objective, **options)
    np.testing.assert_allclose(rough.objective, exact.objective, rtol=1e-3)


def test_bad_input_is_refused():
    a = torch.zeros(2)
    with pytest.raises(ValueError, match="prox_relu_split: eta must lie in"):
        prox_relu_split(a, a, 0.0)
    with pytest.raises(ValueError, match="prox_relu_split: a and s must have the same shape"):
        prox_relu_split(a, a[:1], 1.0)
    with pytest.raises(ValueError, match="printed_log_threshold: eps must lie in"):
        printed_log_threshold(a, 1.0, eps=0.0)
