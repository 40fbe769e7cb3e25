"""enhanced-mvmf: the paper's losses and algorithm, its linear limit, what must not matter."""

import copy
import math

import numpy as np
import pytest
import torch
from cv_core.losses.adversarial import discriminator_loss, generator_loss
from cv_factorization.baselines.views import SharedSVD
from cv_factorization.deep import IdentityEncoder, SharedFactors, mlp
from cv_factorization.methods.enhanced_mvmf import LOGISTIC, SharedDeepMF
from sklearn.exceptions import NotFittedError
from torch import nn
from torch.nn import functional

SMALL = {"hidden": (12, 8), "disc_hidden": (6, 4), "max_iter": 15, "random_state": 0}


def views(seed=0, n=20, sizes=(5, 7), dtype=np.float64):
    rng = np.random.default_rng(seed)
    H = rng.standard_normal((n, 3))
    return [(np.tanh(H @ rng.standard_normal((3, d))) / 2 + 0.5).astype(dtype) for d in sizes]


def started(X, **options):
    """A model with the networks that ``fit`` starts from."""
    model = SharedDeepMF(3, **options)
    seed = np.random.default_rng(options["random_state"]).integers(2**63)
    model._build([torch.tensor(view) for view in X], int(seed))
    return model


def weights(module):
    return [item.detach().clone() for item in module.parameters()]


# 1. the encoder on the identity matrix is a table of rows
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [(4,), (6, 5, 3)])
def test_encoder_is_a_network_on_the_identity_matrix(widths, bias):
    encoder = IdentityEncoder(9, widths, bias=bias).double()
    with torch.no_grad():  # no unit may be dead by chance
        encoder.table.copy_(torch.randn(encoder.table.shape, dtype=torch.float64))
    dense = mlp([9, *widths], bias=bias).double()
    state = [encoder.table.T, *([encoder.bias] if bias else []), *encoder.layers.parameters()]
    with torch.no_grad():
        for mine, theirs in zip(dense.parameters(), state, strict=True):
            mine.copy_(theirs)
    expected = dense(torch.eye(9, dtype=torch.float64))
    torch.testing.assert_close(encoder(), expected)
    rows = torch.tensor([7, 0, 7])
    torch.testing.assert_close(encoder(rows), expected[rows])


# 2. the linear limit is the best approximation of the views side by side
def test_linear_factors_reach_the_bound_of_eckart_and_young():
    X = [torch.tensor(view) for view in views(1)]
    n, k = len(X[0]), 2
    encoder = IdentityEncoder(n, (k,), bias=False).double()
    decoders = nn.ModuleList(mlp((k, view.shape[1]), bias=False).double() for view in X)
    parameters = [*encoder.parameters(), *decoders.parameters()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe")
    scaled = [view / (n * view.shape[1]) ** 0.5 for view in X]

    def closure():
        optimizer.zero_grad()
        parts = zip(decoders, scaled, strict=True)
        loss = sum(((decode(encoder()) - view) ** 2).sum() for decode, view in parts)
        loss.backward()
        return loss

    optimizer.step(closure)
    sigma = torch.linalg.svdvals(torch.cat(scaled, dim=1))
    bound = float(sigma[k:].square().sum())
    assert float(closure().detach()) == pytest.approx(bound, rel=1e-6)
    assert SharedSVD(k).fit(X).objective_[0] == pytest.approx(bound, rel=1e-10)


def test_linear_estimator_reaches_it_for_centred_views():
    X = views(2, n=15, sizes=(4, 3))
    centred = [view - view.mean(axis=0) for view in X]  # which is what the layers' biases do
    bound = SharedSVD(2).fit(centred).objective_[0]
    model = SharedDeepMF(2, hidden=(), lambda_d=0, lr=0.1, max_iter=400, random_state=0).fit(X)
    assert model.objective_[-1] >= bound * (1 - 1e-9)
    assert model.objective_[-1] == pytest.approx(bound, rel=1e-3)


# 3. nothing depends on the order of the samples
def test_permuted_samples_have_permuted_codes_and_the_same_loss():
    X = [torch.tensor(view) for view in views(3)]
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(X[0])))
    model = SharedDeepMF(3, **SMALL)
    model._build(X, seed=5)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.factors_.encoder.table.copy_(model.factors_.encoder.table[order])
    courses = [
        model._train(X, np.random.default_rng(0)),
        twin._train([view[order] for view in X], np.random.default_rng(0)),
    ]
    np.testing.assert_allclose(courses[1], courses[0], rtol=1e-9)
    torch.testing.assert_close(twin.factors_.codes(), model.factors_.codes()[order])


# 4. discriminators that know nothing
def test_losses_of_discriminators_at_one_half():
    half = nn.Linear(4, 1)
    nn.init.zeros_(half.weight)
    nn.init.zeros_(half.bias)
    real, fake = torch.rand(2, 6, 4).unbind()
    fool = sum(generator_loss(half, real, fake, LOGISTIC) for _ in range(3))
    tell = sum(discriminator_loss(half, real, fake, LOGISTIC) for _ in range(3))
    assert fool.item() == pytest.approx(3 * math.log(2), rel=1e-6)
    assert -tell.item() == pytest.approx(-2 * 3 * math.log(2), rel=1e-6)


def test_losses_are_the_printed_ones():
    D, X = mlp((4, 5, 1)).double(), torch.rand(2, 6, 4, dtype=torch.float64).unbind()
    real, fake = (D(x).sigmoid() for x in X)
    tell, fool = discriminator_loss(D, *X, LOGISTIC), generator_loss(D, *X, LOGISTIC)
    torch.testing.assert_close(-tell, real.log().mean() + (1 - fake).log().mean())
    torch.testing.assert_close(fool, -fake.log().mean())


# 5. without their term discriminators have no influence
def test_discriminators_draw_from_a_stream_of_their_own():
    X = views(5)
    plain = SharedDeepMF(3, **{**SMALL, "lambda_d": 0.0, "disc_hidden": (9,)}).fit(X)
    assert len(plain.discriminators_) == 0
    assert (plain.history_["L_RD"] == 0).all()
    other = SharedDeepMF(3, **{**SMALL, "lambda_d": 1e-300}).fit(X)  # there, and of no weight
    assert len(other.discriminators_) == 2
    np.testing.assert_array_equal(other.embedding_, plain.embedding_)


def test_discriminators_matter_with_their_term_and_rest_at_rate_zero():
    X = views(5)
    plain = SharedDeepMF(3, lambda_d=0.0, **SMALL).fit(X)
    frozen = SharedDeepMF(3, lambda_d=0.5, disc_lr=0.0, **SMALL).fit(X)
    start = started(X, lambda_d=0.5, **SMALL)
    for mine, theirs in zip(
        *map(weights, (frozen.discriminators_, start.discriminators_)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    moved = SharedDeepMF(3, lambda_d=0.5, disc_lr=1e-2, **SMALL).fit(X)
    assert not np.allclose(plain.embedding_, frozen.embedding_)
    assert not np.allclose(moved.embedding_, frozen.embedding_)
    assert moved.history_["L_D"][-1] > moved.history_["L_D"][0]  # they learn to tell
    assert moved.history_["L_R"][0] == plain.history_["L_R"][0]  # all start from one place


# 6. signs of the factors, and a single matrix
def test_hidden_factors_are_not_negative():
    factors = SharedFactors(8, (5, 4), 3, hidden=(7, 6), nonnegative=True)
    seen = []
    for module in factors.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _m, _i, out: seen.append(out))
    factors()
    assert len(seen) == 1 + 2 * 2  # the encoder's table has its ReLU outside, every decoder two
    assert all((out >= 0).all() for out in seen)
    assert (factors.codes() >= 0).all()
    assert (SharedFactors(30, (5,), 6, hidden=(7,)).codes() < 0).any()


def test_one_view_is_the_deep_factorisation_of_a_matrix():
    (X,) = views(6, sizes=(6,))
    alone = SharedDeepMF(3, **SMALL).fit(X)
    listed = SharedDeepMF(3, **SMALL).fit([X])
    np.testing.assert_array_equal(alone.embedding_, listed.embedding_)
    assert alone.n_features_in_ == 6
    assert listed.n_features_in_ == [6]
    np.testing.assert_array_equal(
        alone.inverse_transform(alone.embedding_), listed.inverse_transform(listed.embedding_)[0]
    )


def slow_fit(model, X, lambda_d, lr, disc_lr, steps):
    """The algorithm as printed, Adam and losses by hand, from the networks of ``model``."""
    sides = [list(model.factors_.parameters()), list(model.discriminators_.parameters())]
    moments = [[(torch.zeros_like(w), torch.zeros_like(w)) for w in side] for side in sides]
    eye = torch.eye(len(X[0]), dtype=torch.float64)
    course = []
    for t in range(1, steps + 1):
        encoder = model.factors_.encoder
        H = encoder.layers((eye @ encoder.table + encoder.bias).clamp(min=0))
        made = [decode(H) for decode in model.factors_.decoders]
        fit = sum(((a - b) ** 2).mean() for a, b in zip(made, X, strict=True))
        D = [lambda x, d=d: 1 / (1 + torch.exp(-d(x))) for d in model.discriminators_]
        fool = -sum(d(a).log().mean() for d, a in zip(D, made, strict=True))
        first = torch.autograd.grad(fit + lambda_d * fool, sides[0])
        tell = sum(
            d(x).log().mean() + (1 - d(a.detach())).log().mean()
            for d, a, x in zip(D, made, X, strict=True)
        )
        second = torch.autograd.grad(-tell, sides[1])
        course.append([fit.item(), fool.item(), tell.item()])
        for side, gradients, state, rate in zip(
            sides, (first, second), moments, (lr, disc_lr), strict=True
        ):
            for j, (w, g) in enumerate(zip(side, gradients, strict=True)):
                m, v = 0.9 * state[j][0] + 0.1 * g, 0.999 * state[j][1] + 0.001 * g * g
                state[j] = m, v
                step = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
                w.data.sub_(rate * step)
    return np.array(course).T


def test_training_is_the_printed_algorithm():
    X = views(7)
    model = SharedDeepMF(3, lambda_d=0.7, disc_lr=5e-3, **SMALL).fit(X)
    twin = started(X, lambda_d=0.7, **SMALL)
    L_R, L_RD, L_D = slow_fit(twin, [torch.tensor(view) for view in X], 0.7, 1e-3, 5e-3, steps=15)
    np.testing.assert_allclose(model.history_["L_R"], L_R, rtol=1e-7)
    np.testing.assert_allclose(model.history_["L_RD"], L_RD, rtol=1e-7)
    np.testing.assert_allclose(model.history_["L_D"], L_D, rtol=1e-7)
    np.testing.assert_allclose(model.objective_, L_R + 0.7 * L_RD, rtol=1e-7)
    np.testing.assert_allclose(model.embedding_, twin.factors_.codes().detach(), rtol=1e-6)


def test_cross_entropy_fits_probabilities():
    X = [(view > 0.5).astype(float) for view in views(8)]
    model = SharedDeepMF(3, dist="bce", **{**SMALL, "max_iter": 100, "lr": 1e-2}).fit(X)
    made = model.inverse_transform(model.embedding_)
    for x, p in zip(X, made, strict=True):
        assert ((p >= 0) & (p <= 1)).all()
        assert p.shape == x.shape
    assert model.history_["L_R"][-1] < 0.5 * model.history_["L_R"][0]
    # the loss before the first step, from the definition
    start = SharedDeepMF(3, dist="bce", lambda_d=0.0, **{**SMALL, "max_iter": 1}).fit(X)
    twin = started(X, dist="bce", lambda_d=0.0, **SMALL)
    tensors = [torch.tensor(view) for view in X]
    expected = sum(
        functional.binary_cross_entropy(output.sigmoid(), x).item()
        for output, x in zip(twin.factors_(), tensors, strict=True)
    )
    assert start.objective_[0] == pytest.approx(expected, rel=1e-9)


def test_batches_cover_the_samples_and_one_of_all_is_the_full_step():
    X = views(9)
    full = SharedDeepMF(3, **SMALL).fit(X)
    one = SharedDeepMF(3, batch_size=20, **SMALL).fit(X)
    np.testing.assert_array_equal(one.embedding_, full.embedding_)
    model = SharedDeepMF(3, batch_size=6, **SMALL)
    parts = list(model._batches(20, np.random.default_rng(0), torch.device("cpu")))
    assert [len(part) for part in parts] == [6, 6, 6, 2]
    assert sorted(torch.cat(parts).tolist()) == list(range(20))
    # with rates of nearly 0 the parts' weighted losses add up to that of all samples
    still = {**SMALL, "lr": 1e-300, "disc_lr": 0.0, "max_iter": 1}
    np.testing.assert_allclose(
        SharedDeepMF(3, batch_size=6, **still).fit(X).objective_,
        SharedDeepMF(3, **still).fit(X).objective_,
        rtol=1e-12,
    )


def test_weight_decay_shrinks_what_no_gradient_holds():
    X = [np.zeros((6, 3))]
    options = {**SMALL, "lambda_d": 0.0, "max_iter": 1, "lr": 0.1}
    factors = [
        started(X, **options).factors_,
        SharedDeepMF(3, **options).fit(X).factors_,
        SharedDeepMF(3, weight_decay=2.0, **options).fit(X).factors_,
    ]
    for start, free, decayed in zip(*map(weights, factors), strict=True):
        torch.testing.assert_close(decayed, free - 0.1 * 2.0 * start)


def test_codes_of_new_samples_descend_from_the_nearest_training_code():
    X = views(10, n=60)
    model = SharedDeepMF(3, lambda_d=0.0, **{**SMALL, "max_iter": 120, "lr": 2e-2})
    model.fit([view[:50] for view in X])
    new = [view[50:] for view in X]

    def error(H):
        parts = zip(new, model.inverse_transform(H), strict=True)
        return sum(np.square(a - b).mean(axis=1) for a, b in parts)

    known = np.stack([error(np.repeat(h[None], 10, axis=0)) for h in model.embedding_])
    found = error(model.encode(new))
    assert (found <= known.min(axis=0) * (1 + 1e-12)).all()
    assert found.mean() < 0.9 * known.min(axis=0).mean()
    # every sample on its own
    one = model.encode([view[3:4] for view in new])
    np.testing.assert_allclose(one, model.encode(new)[3:4], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_come_back_as_tensors_of_their_type(dtype):
    X = views(11)
    plain = SharedDeepMF(3, **SMALL).fit(X)
    model = SharedDeepMF(3, **SMALL)
    H = model.fit_transform([torch.tensor(view, dtype=dtype) for view in X])
    for tensor in (H, *model.inverse_transform(H), model.encode([torch.tensor(v) for v in X])):
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dtype == dtype
        assert not tensor.requires_grad
    atol = 1e-9 if dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(H.numpy(), plain.embedding_, atol=atol)
    assert isinstance(model.encode(X), np.ndarray)


def test_fit_works_where_gradients_are_off():
    with torch.no_grad():
        model = SharedDeepMF(3, **SMALL).fit(views())
    np.testing.assert_array_equal(
        model.embedding_, SharedDeepMF(3, **SMALL).fit(views()).embedding_
    )


A, B = views()


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, [], "at least one view"),
        ({}, [A, B[:-1]], r"X\[1\] must have shape \(n, d\) with n=20"),
        ({}, [A, B * np.nan], r"X\[1\] must be finite"),
        ({"dist": "bce"}, [A, 2 * B], r"entries must lie in \[0, 1\] with dist='bce'"),
        ({"dist": "msee"}, [A], "Did you mean 'mse'"),
        ({"n_components": 0}, [A], "n_components must be at least 1"),
        ({"hidden": (5, 0)}, [A], "widths in hidden must be at least 1"),
        ({"disc_hidden": (0,)}, [A], "widths in disc_hidden must be at least 1"),
        ({"lambda_d": -1.0}, [A], "lambda_d must lie in"),
        ({"disc_lr": -1.0}, [A], "disc_lr must lie in"),
        ({"weight_decay": -1.0}, [A], "weight_decay must lie in"),
        ({"lr": 0.0}, [A], "lr must lie in"),
        ({"max_iter": 0}, [A], "max_iter must be at least 1"),
        ({"batch_size": 0}, [A], "batch_size must be at least 1"),
    ],
)
def test_bad_input_is_refused(options, given, message):
    with pytest.raises(ValueError, match=message):
        SharedDeepMF(**options).fit(given)


def test_encode_needs_a_fit_and_the_same_columns():
    with pytest.raises(NotFittedError):
        SharedDeepMF().encode([A, B])
    model = SharedDeepMF(2, **SMALL).fit([A, B])
    for wrong in ([A], [B, A], A):
        with pytest.raises(ValueError, match=r"views with the columns of fit, \[5, 7\]"):
            model.encode(wrong)
    with pytest.raises(ValueError, match=r"H must have shape \(n, k\) with k=2"):
        model.inverse_transform(A)
