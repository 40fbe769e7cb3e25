"""LISTA-MSN: the mixture's algebra and gradients, exact zeros, MSE as a special case."""

import math
import warnings

import numpy as np
import pytest
import torch
from cv_factorization.methods.lista_msn import (
    LISTAMSN,
    LISTAMSNCoder,
    MixtureSparsityHead,
    SparseMixture,
)
from cv_factorization.sparse.coding import lasso_fista
from cv_factorization.sparse.unfolded import LISTA
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator


def spread_out(head, codes):
    """Weights that reach every branch of the head."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return head(codes)


def some(batch=6, atoms=5, components=3, **options):
    head = MixtureSparsityHead(atoms, components, **options).double()
    codes = torch.randn(batch, atoms, dtype=torch.float64)
    return head, codes, spread_out(head, codes)


def test_weights_sum_to_one_and_deviations_have_a_floor():
    head, codes, mixture = some(gamma=0.8, sigma_min=1e-3)
    _, _, spreads = head.raw(codes)
    torch.testing.assert_close(mixture.log_alpha.exp().sum(1), torch.ones(6, dtype=torch.float64))
    assert (spreads < -1).any()
    expected = torch.where(spreads >= 0, spreads + 1, 0.8 * (spreads.exp() - 1) + 1)
    torch.testing.assert_close(mixture.sigma, expected)
    assert mixture.sigma.min() > 1 - 0.8
    with torch.no_grad():
        head.linear.bias.fill_(-50.0)
    assert head(codes).sigma.min().item() == pytest.approx(0.2)
    wide = MixtureSparsityHead(5, 3, gamma=1.0, sigma_min=0.05).double()
    with torch.no_grad():
        wide.linear.bias.fill_(-50.0)
    assert (wide(codes).sigma == 0.05).all()


def test_centres_are_zero_where_the_layer_is_small_and_full_samples_nowhere():
    head, codes, mixture = some(eps=0.5)
    _, centres, _ = head.raw(codes)
    assert torch.equal(mixture.mu == 0, centres.abs() <= 0.5)
    assert 0 < (mixture.mu == 0).double().mean() < 1
    generator = torch.Generator().manual_seed(0)
    for codes in (mixture.mode(), mixture.mode("density"), mixture.sample(generator)):
        assert (codes == 0).any()
        same = (codes[:, None] == mixture.mu).all(dim=2)  # each is the centre of some component
        assert same.any(dim=1).all()
    assert (mixture.sample(generator, what="full") != 0).all()


def test_autograd_equals_the_closed_form():
    head, codes, _ = some(eps=0.3, gamma=0.9)
    target = torch.randn(6, 5, dtype=torch.float64)
    logits, centres, spreads = (part.detach().requires_grad_() for part in head.raw(codes))
    head.raw = lambda _: (logits, centres, spreads)  # the head as a function of what it computes
    mixture = head(codes)
    (-mixture.log_prob(target)).sum().backward()
    alpha, mu, sigma = (part.detach() for part in (mixture.log_alpha.exp(), *mixture[1:]))
    z = target[:, None]
    density = torch.exp(-((z - mu) ** 2 / (2 * sigma**2)).sum(2)) / sigma.prod(2)
    share = alpha * density
    share = share / share.sum(1, keepdim=True)
    torch.testing.assert_close(logits.grad, alpha - share)
    inside = (centres.detach().abs() > 0.3).double()
    torch.testing.assert_close(centres.grad, share[..., None] * (mu - z) / sigma**2 * inside)
    slope = torch.where(spreads >= 0, 1.0, 0.9 * spreads.exp()).detach()
    expected = share[..., None] * (1 / sigma - (z - mu) ** 2 / sigma**3) * slope
    torch.testing.assert_close(spreads.grad, expected)


def test_one_component_of_unit_deviation_is_squared_error():
    mu, z = torch.randn(2, 4, 1, 7, dtype=torch.float64)
    mixture = SparseMixture(torch.zeros(4, 1).double(), mu, torch.ones_like(mu))
    expected = 0.5 * (z - mu).square().sum(dim=(1, 2)) + 3.5 * math.log(2 * math.pi)
    torch.testing.assert_close(-mixture.log_prob(z[:, 0]), expected)


def test_density_is_torchs_mixture_and_equal_components_are_one():
    _, _, mixture = some()
    z = torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(mixture.log_prob(z), mixture.distribution().log_prob(z))
    mu, sigma = (part[:, :1].expand(-1, 3, -1) for part in mixture[1:])
    thrice = SparseMixture(mixture.log_alpha, mu, sigma)
    alone = torch.distributions.Normal(mixture.mu[:, 0], mixture.sigma[:, 0]).log_prob(z).sum(1)
    torch.testing.assert_close(thrice.log_prob(z), alone)


def test_the_two_modes_differ_where_the_paper_approximates():
    log_alpha = torch.tensor([[0.6, 0.4]]).log()
    mu = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    mixture = SparseMixture(log_alpha, mu, torch.tensor([[[1.0, 1.0], [0.1, 0.1]]]))
    assert mixture.mode().tolist() == [[1.0, 0.0]]
    assert mixture.mode("density").tolist() == [[0.0, 2.0]]
    heights = [float(mixture.log_prob(mu[:, i])) for i in range(2)]
    assert heights[1] > heights[0]


def test_samples_follow_the_mixture():
    log_alpha = torch.tensor([[0.2, 0.8]]).log().expand(20_000, 2)
    mu = torch.tensor([[[1.0], [-2.0]]]).expand(20_000, 2, 1)
    mixture = SparseMixture(log_alpha, mu, torch.tensor([[[0.5], [0.1]]]).expand(20_000, 2, 1))
    drawn = mixture.sample(torch.Generator().manual_seed(0))
    assert abs(float((drawn == 1).double().mean()) - 0.2) < 4 * math.sqrt(0.16 / 20_000)
    full = mixture.sample(torch.Generator().manual_seed(0), what="full")
    near = full[drawn == 1]
    assert abs(float(near.mean()) - 1) < 5 * 0.5 / math.sqrt(len(near))
    assert abs(float(near.std()) - 0.5) < 5 * 0.5 / math.sqrt(2 * len(near))
    again = mixture.sample(torch.Generator().manual_seed(0), what="full")
    assert torch.equal(full, again)


def test_the_loss_has_a_floor_with_a_least_deviation_and_none_without():
    # z = mu = 0: nothing but the deviation's floor keeps the density finite
    zero = torch.zeros(1, 1, 4, dtype=torch.float64)
    logs = torch.zeros(1, 1, dtype=torch.float64)
    values = [
        float(SparseMixture(logs, zero, zero + sigma).log_prob(zero[0])) for sigma in (1e-2, 1e-8)
    ]
    assert values[1] - values[0] == pytest.approx(4 * math.log(1e6))
    head = MixtureSparsityHead(4, 1, sigma_min=1e-2).double()
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias[1 + 4 :].fill_(-1e3)
    assert head(zero[0]).log_prob(zero[0]).item() == pytest.approx(values[0])


def test_the_head_starts_at_the_coarse_code():
    D = torch.randn(30, 12)
    D = D / D.norm(dim=1, keepdim=True)
    x = torch.randn(40, 12)
    x = x / (x @ D.T).abs().amax(dim=1, keepdim=True)
    model = LISTAMSN(LISTA(D, 0.5, 4), MixtureSparsityHead(30, 5))
    coarse, mixture = model.encoder(x), model(x)
    near = (mixture.mu - coarse[:, None]).square().sum() / (5 * coarse.square().sum())
    assert near < 0.05
    assert not torch.equal(mixture.mu[:, 0], mixture.mu[:, 1])  # or they would stay equal
    torch.testing.assert_close(mixture.sigma, torch.ones_like(mixture.sigma), rtol=0, atol=0.5)


def test_gradients_reach_the_encoder():
    D = torch.randn(9, 6)
    model = LISTAMSN(LISTA(D, 0.2, 2), MixtureSparsityHead(9, 2))
    (-model(torch.randn(8, 6)).log_prob(torch.zeros(8, 9))).mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.encoder.parameters())


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    D = rng.standard_normal((24, 10)).astype(np.float32)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    X = rng.standard_normal((256, 10)).astype(np.float32)
    coder = LISTAMSNCoder(
        D, n_layers=3, n_mixtures=2, epochs=15, batch_size=32, learning_rate=3e-3, random_state=0
    )
    return coder.fit(X), X


def test_coder_learns_and_answers_on_every_scale(fitted):
    coder, X = fitted
    assert len(coder.objective_) == 15
    assert coder.objective_[-1] < coder.objective_[0] - 5
    codes = coder.transform(X)
    assert codes.dtype == np.float32
    # a relative weight makes codes as homogeneous as the lasso's are
    np.testing.assert_allclose(coder.transform(4 * X), 4 * codes, rtol=1e-4, atol=1e-5)
    new = np.random.default_rng(1).standard_normal((100, 10)).astype(np.float32)
    D = torch.from_numpy(coder.components_)
    scale = np.abs(new @ coder.components_.T).max(1, keepdims=True)
    best = scale * lasso_fista(torch.from_numpy(new / scale), D, 0.5, tol=1e-6).numpy()
    error = np.square(coder.transform(new) - best).sum() / np.square(best).sum()
    assert error < 0.8
    np.testing.assert_allclose(
        coder.inverse_transform(codes), codes @ coder.components_, rtol=1e-4, atol=1e-6
    )


def test_coders_mixture_is_a_density_of_unscaled_codes(fitted):
    coder, X = fitted
    mixture, larger = coder.mixture(X[1:5]), coder.mixture(8 * X[1:5])
    torch.testing.assert_close(larger.mu, 8 * mixture.mu, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(larger.sigma, 8 * mixture.sigma, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(larger.log_alpha, mixture.log_alpha, rtol=1e-4, atol=1e-5)


def test_coder_takes_tensors_and_repeats():
    X = torch.randn(30, 6)
    options = {"n_layers": 2, "epochs": 2, "random_state": 3}
    first, second = (LISTAMSNCoder(torch.eye(6), **options).fit(X) for _ in range(2))
    assert torch.equal(first.transform(X), second.transform(X))
    assert first.transform(X).dtype == X.dtype
    assert torch.equal(first.components_, torch.eye(6))


@pytest.mark.parametrize("encoder", ["coupled", "alista"])
def test_coder_with_an_absolute_weight_and_other_encoders(encoder):
    X = np.random.default_rng(0).standard_normal((50, 6))
    coder = LISTAMSNCoder(np.eye(6), relative=False, encoder=encoder, epochs=1, random_state=0)
    coder.fit(X)
    assert coder.transform(X).dtype == np.float64
    assert not np.allclose(coder.transform(4 * X), 4 * coder.transform(X))


def test_scikit_learns_suite():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite provokes warnings on purpose
        check_estimator(
            LISTAMSNCoder(n_layers=1, n_mixtures=2, epochs=1, random_state=0), on_skip=None
        )


X = np.random.default_rng(0).standard_normal((8, 4))


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({}, X * np.nan, "NaN"),
        ({"dictionary": np.eye(5)}, X, "dictionary must have shape"),
        ({"lam": 0.0}, X, "LISTA: lam must lie in"),
        ({"encoder": "list"}, X, "Did you mean 'lista'"),
        ({"n_layers": 0}, X, "n_layers must be at least 1"),
        ({"n_mixtures": 0}, X, "n_components must be at least 1"),
        ({"eps": -1.0}, X, "eps must lie in"),
        ({"sigma_min": 0.0}, X, "sigma_min must lie in"),
        ({"epochs": 0}, X, "epochs must be at least 1"),
        ({"batch_size": 0}, X, "batch_size must be at least 1"),
        ({"learning_rate": 0.0}, X, "learning_rate must lie in"),
    ],
)
def test_bad_input_is_refused(options, data, message):
    with pytest.raises(ValueError, match=message):
        LISTAMSNCoder(**{"dictionary": np.eye(4), "epochs": 1, **options}).fit(data)


def test_bad_calls_are_refused():
    with pytest.raises(NotFittedError):
        LISTAMSNCoder().transform(X)
    with pytest.raises(ValueError, match="gamma must lie in"):
        MixtureSparsityHead(4, gamma=1.5)
    _, _, mixture = some()
    with pytest.raises(ValueError, match="by must be one of 'weight', 'density'"):
        mixture.mode("height")
    with pytest.raises(ValueError, match="what must be one of 'mean', 'full'"):
        mixture.sample(what="all")
    with pytest.raises(ValueError, match=r"SparseMixture: codes must have shape \(b, m\)"):
        mixture.log_prob(torch.zeros(6, 4))
