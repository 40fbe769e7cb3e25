"""Unfolded encoders: ISTA before training, the analytic weights' optimality, better after it."""

from itertools import pairwise

import pytest
import torch
from cv_core.numerics import descent
from cv_core.numerics.proximal import prox_l1
from cv_factorization.sparse.coding import lasso_fista, lasso_objective
from cv_factorization.sparse.unfolded import ALISTA, LISTA, CoupledLISTA, analytic_weights

ENCODERS = [LISTA, CoupledLISTA, ALISTA]


def problem(n=6, d=6, m=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator, dtype=dtype)
    return x, torch.randn(m, d, generator=generator, dtype=dtype)


def slow_ista(x, D, lam, steps):
    """Soft thresholding one entry at a time; D has atoms as rows."""
    L = float(torch.linalg.eigvalsh(D @ D.T)[-1])
    codes = torch.zeros(len(x), len(D), dtype=x.dtype)
    for row, z in enumerate(codes):
        for _ in range(steps):
            slope = [float(d @ (z @ D - x[row])) for d in D]
            for j, value in enumerate(slope):
                t = float(z[j]) - value / L
                z[j] = (1 if t > 0 else -1) * max(abs(t) - lam / L, 0.0)
    return codes


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize(
    "build", [LISTA, lambda *args: LISTA(*args, shared=False), CoupledLISTA],
    ids=["shared", "own", "coupled"],
)  # fmt: skip
def test_untrained_equals_one_more_step_of_ista(build, n_layers):
    x, D = problem()
    codes = build(D, 0.7, n_layers)(x)
    assert 0 < (codes == 0).double().mean() < 1
    torch.testing.assert_close(codes, slow_ista(x, D, 0.7, n_layers + 1), rtol=1e-11, atol=1e-13)


def test_alista_is_ista_where_its_weights_are_the_dictionary():
    x, D = problem()
    basis = torch.linalg.qr(D.T).Q.T[:5]  # orthonormal atoms that do not span the space
    torch.testing.assert_close(analytic_weights(basis), basis, rtol=0, atol=1e-13)
    torch.testing.assert_close(ALISTA(basis, 0.4, 3)(x), prox_l1(x @ basis.T, 0.4))
    model = ALISTA(D, 0.7, 3)
    L = float(torch.linalg.matrix_norm(D, 2)) ** 2
    model.weight.copy_(D)
    with torch.no_grad():
        model.gamma.fill_(1 / L)
        model.theta.fill_(0.7 / L)
    torch.testing.assert_close(model(x), slow_ista(x, D, 0.7, 4), rtol=1e-11, atol=1e-13)


def test_ista_never_raises_the_objective():
    x, D = problem()
    with torch.no_grad():
        codes = [LISTA(D, 0.7, layers)(x) for layers in range(1, 25)]
    values = [lasso_objective(x, D, z, 0.7).sum().item() for z in codes]
    assert all(new <= old * (1 + 1e-12) for old, new in pairwise(values))
    assert values[-1] < 0.95 * values[0]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_weight_beyond_every_correlation_gives_zero(encoder):
    x, D = problem()
    D = D / D.norm(dim=1, keepdim=True)
    if encoder is ALISTA:  # which correlates with its own weights
        lam = float((x @ analytic_weights(D).T).abs().max())
    else:
        lam = float((x @ D.T).abs().max())
    assert not encoder(D, lam * (1 + 1e-12), 5)(x).any()
    assert encoder(D, 0.9 * lam, 5)(x).any()
    assert not lasso_fista(x, D, float((x @ D.T).abs().max()) + 1e-9).any()


def test_one_step_solves_an_orthonormal_dictionary():
    x, D = problem()
    basis = torch.linalg.qr(D.T).Q.T
    expected = prox_l1(x @ basis.T, 0.3)
    one = descent.ista(
        torch.zeros_like(expected), lambda z: (z @ basis - x) @ basis.T,
        lambda z, step: prox_l1(z, 0.3 * step), step=1.0, max_iter=1, tol=0.0,
    )  # fmt: skip
    torch.testing.assert_close(one.solution, expected)
    for encoder in ENCODERS:
        torch.testing.assert_close(encoder(basis, 0.3, 2)(x), expected)


def test_analytic_weights_are_feasible_and_optimal():
    _, D = problem()
    W = analytic_weights(D)
    torch.testing.assert_close((W * D).sum(dim=1), torch.ones(11, dtype=W.dtype))
    generator = torch.Generator().manual_seed(1)
    least = torch.linalg.matrix_norm(W @ D.T)
    for _ in range(20):  # feasible directions: orthogonal to the atom
        step = torch.randn(W.shape, generator=generator, dtype=W.dtype)
        step -= (step * D).sum(dim=1, keepdim=True) / D.square().sum(dim=1, keepdim=True) * D
        assert torch.linalg.matrix_norm((W + 0.1 * step) @ D.T) > least
    # stationary: the gradient of each row is a multiple of its atom
    slope = W @ D.T @ D
    torch.testing.assert_close(slope, (slope * W).sum(dim=1, keepdim=True) * D)


def test_analytic_weights_of_atoms_that_do_not_span_and_of_zeros():
    _, D = problem(m=4)
    D[1] = 0
    W = analytic_weights(D)
    assert not W[1].any()
    torch.testing.assert_close((W * D).sum(dim=1), torch.tensor([1.0, 0, 1, 1], dtype=W.dtype))


@pytest.mark.parametrize(("encoder", "rate"), [(LISTA, 3e-3), (CoupledLISTA, 3e-3), (ALISTA, 3e-2)])
def test_training_beats_the_untrained(encoder, rate):
    x, D = problem(n=128, dtype=torch.float32)
    D = D / D.norm(dim=1, keepdim=True)
    best = lasso_fista(x, D, 0.4, max_iter=5000, tol=1e-6)
    model = encoder(D, 0.4, 3)
    losses = []
    for _ in range(100):
        loss = (model(x) - best).square().mean()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():  # plain normalised steps: how to train is not what is tested
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter.sub_(rate * (1 - len(losses) / 100) * grad.sign())
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_thresholds_stay_thresholds_whatever_the_sign_of_their_parameter():
    x, D = problem()
    model = LISTA(D, 0.7, 2)
    before = model(x)
    with torch.no_grad():
        model.theta.neg_()
    assert torch.equal(model(x), before)


def test_the_dictionary_is_the_modules_own():
    x, D = problem()
    for encoder in ENCODERS:
        given = D.clone()
        model = encoder(given, 0.5, 2)
        before = model(x)
        given.zero_()
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_bad_options_are_refused(encoder):
    _, D = problem()
    name = encoder.__name__
    with pytest.raises(ValueError, match=rf"{name}: dictionary must have shape"):
        encoder(D[0], 0.5)
    with pytest.raises(ValueError, match=rf"{name}: dictionary must be finite"):
        encoder(D * torch.nan, 0.5)
    with pytest.raises(ValueError, match=rf"{name}: dictionary must hold an atom"):
        encoder(D * 0, 0.5)
    with pytest.raises(TypeError, match=rf"{name}: dictionary must be a floating-point tensor"):
        encoder(D.long(), 0.5)
    with pytest.raises(ValueError, match=rf"{name}: lam must lie in \(0"):
        encoder(D, 0.0)
    with pytest.raises(ValueError, match=rf"{name}: n_layers must be at least 1"):
        encoder(D, 0.5, 0)
    with pytest.raises(ValueError, match=rf"{name}: x must have shape \(b, d\) with d=6"):
        encoder(D, 0.5)(D[:, :5])
