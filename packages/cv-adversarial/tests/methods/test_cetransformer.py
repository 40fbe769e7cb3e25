"""CETransformer: the spec's properties, exact degenerate cases, and the estimator's conventions."""

import pickle

import numpy as np
import pytest
import torch
from cv_adversarial.baselines.meta_learners import SLearner
from cv_adversarial.baselines.tarnet import TARNet
from cv_adversarial.causal.network import factual_loss
from cv_adversarial.methods.cetransformer import (
    CETransformer,
    CovariateTransformer,
    FeatureTokenizer,
    TreatmentEffectRegressor,
    _Critic,
    wasserstein_critic_loss,
)
from cv_core.losses.adversarial import clip_weights_
from cv_core.models.small import MLP
from cv_core.testing.tensors import global_state
from sklearn.base import clone
from sklearn.exceptions import NotFittedError


def small(n_features: int) -> CovariateTransformer:
    return CovariateTransformer(n_features, 8, depth=1, heads=2)


def units(n=40, d=3, seed=0):
    rng = np.random.default_rng(seed)
    X, t = rng.normal(size=(n, d)), rng.integers(2, size=n)
    t[:4] = 0, 1, 0, 1
    return X, t, X[:, 0] + 2.0 * t


FAST = {"encoder": small, "max_epochs": 3, "batch_size": 16, "random_state": 0}


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_tokens_and_attention_by_loops():
    torch.manual_seed(0)
    tokens, x = FeatureTokenizer(3, 4).double(), draws(2, 3)
    out = tokens(x)
    for unit in range(2):
        for j in range(3):
            torch.testing.assert_close(out[unit, j], x[unit, j] * tokens.weight[j] + tokens.bias[j])
    encoder = CovariateTransformer(3, 4, depth=1, heads=1).double()
    block = encoder.blocks.blocks[0]
    normed = block.norm1(encoder.tokens(x))
    query, key, value = block.attn.qkv(normed).chunk(3, dim=-1)
    mixed = torch.zeros_like(query)
    for unit in range(2):
        for i in range(3):
            logits = torch.stack([query[unit, i] @ key[unit, j] / 2.0 for j in range(3)])  # Eq. 3
            mixed[unit, i] = sum(p * v for p, v in zip(logits.softmax(0), value[unit], strict=True))
    attended = encoder.tokens(x) + block.attn.proj(mixed)
    expected = encoder.blocks.norm(attended + block.mlp(block.norm2(attended)))
    torch.testing.assert_close(encoder(x), expected.flatten(1))


def test_control_units_leave_the_treated_head_alone():  # property 2
    model = CETransformer(3, small(3)).double()
    outputs = model(draws(8, 3))
    t = torch.zeros(8, dtype=torch.int64)
    factual_loss(outputs["y0"], outputs["y1"], t, draws(8, seed=1)).backward()
    assert all(not item.grad.any() for item in model.head1.parameters())
    assert all(item.grad.any() for item in model.head0.parameters())


def test_factual_loss_by_loop():
    y0, y1, y = draws(3, 7)
    t = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    errors = [(float(y1[i] if t[i] else y0[i]) - float(y[i])) ** 2 for i in range(7)]
    assert float(factual_loss(y0, y1, t, y)) == pytest.approx(np.mean(errors))
    with pytest.raises(ValueError, match="factual_loss: y0 and y1 and t and y must have the same"):
        factual_loss(y0[:3], y1, t, y)


def test_critic_objective_of_equal_shifted_and_swapped_groups():  # property 3
    treated, control = draws(6, 5), draws(9, 5, seed=1)
    for seed in range(5):
        torch.manual_seed(seed)
        critic = MLP(5, 8, 1).double()
        repeated = treated.repeat(3, 1)[torch.randperm(18)]  # the same distribution
        none = wasserstein_critic_loss(critic, treated, repeated)
        torch.testing.assert_close(none, torch.zeros_like(none), atol=1e-12, rtol=0)
        gap = wasserstein_critic_loss(critic, treated, control)
        torch.testing.assert_close(
            wasserstein_critic_loss(lambda x, D=critic: D(x) + 3.5, treated, control), gap
        )
        torch.testing.assert_close(wasserstein_critic_loss(critic, control, treated), -gap)
    with pytest.raises(ValueError, match="wasserstein_critic_loss: control is empty"):
        wasserstein_critic_loss(critic, treated, control[:0])


def test_without_critic_and_decoder_it_is_tarnet_with_attention():  # property 4
    X, t, y = units()
    ours = TreatmentEffectRegressor(alpha=0.0, beta=0.0, **FAST).fit(X, t, y)
    plain = TARNet(**FAST).fit(X, t, y)
    np.testing.assert_array_equal(ours.predict(X), plain.predict(X))
    np.testing.assert_array_equal(ours.embed(X), plain.embed(X))
    # and each term has a say of its own
    for weights in ({"alpha": 1.0, "beta": 0.0}, {"alpha": 0.0, "beta": 1.0}):
        other = TreatmentEffectRegressor(**weights, **FAST).fit(X, t, y)
        assert not np.allclose(other.embed(X), plain.embed(X))


def test_critic_learns_on_embeddings_that_it_leaves_alone():  # properties 4 and 5
    torch.manual_seed(0)
    network = MLP(4, 8, 1).double()
    critic = _Critic(network, steps=3, clip=0.05, lr=0.1, seed=0)
    treated, control = draws(6, 4).requires_grad_(), (draws(9, 4, seed=1) + 1).requires_grad_()
    clip_weights_(network, 0.05)
    before = critic.gap(treated, control).item()
    for _ in range(4):
        critic.learn(treated, control)
        assert max(item.detach().abs().max().item() for item in network.parameters()) <= 0.05
    assert critic.gap(treated, control).item() > before  # it ascends
    assert treated.grad is None
    assert control.grad is None
    critic.gap(treated, control).backward()  # the encoder's part
    assert bool(treated.grad.any())
    assert bool(control.grad.any())


def test_gradient_penalty_bounds_the_slope():
    torch.manual_seed(0)
    network = MLP(4, 32, 1)
    critic = _Critic(network, steps=200, clip=None, lr=0.01, seed=0)
    treated, control = draws(20, 4).float() + 3.0, draws(30, 4, seed=1).float()
    critic.learn(treated, control)
    between = ((treated[:20] + control[:20]) / 2).requires_grad_()
    (slope,) = torch.autograd.grad(network(between).sum(), between)
    assert float(slope.norm(dim=1).mean()) == pytest.approx(1.0, abs=0.3)
    X, t, y = units()
    fitted = TreatmentEffectRegressor(clip=None, **FAST).fit(X, t, y)
    assert np.isfinite(fitted.predict(X)).all()
    assert max(item.detach().abs().max().item() for item in fitted.critic_.parameters()) > 0.01


def test_fitted_critic_is_clipped():  # property 5
    fitted = TreatmentEffectRegressor(clip=0.02, **FAST).fit(*units())
    largest = max(item.detach().abs().max().item() for item in fitted.critic_.parameters())
    assert largest == pytest.approx(0.02)


def test_covariates_have_no_order():  # property 6
    encoder = CovariateTransformer(5, 8, depth=2, heads=2, pool="mean").double()
    x, order = draws(4, 5), torch.tensor([3, 0, 4, 1, 2])
    expected = encoder(x)
    with torch.no_grad():
        encoder.tokens.weight.copy_(encoder.tokens.weight[order])
        encoder.tokens.bias.copy_(encoder.tokens.bias[order])
    torch.testing.assert_close(encoder(x[:, order]), expected)
    assert not torch.allclose(encoder(x), expected)


def test_critic_aligns_shifted_groups():
    rng = np.random.default_rng(0)
    t = rng.integers(2, size=200)
    X = rng.normal(size=(200, 4)) + t[:, None]

    def separation(beta):
        model = TreatmentEffectRegressor(
            lambda n: MLP(n, 64, 64), alpha=0.0, beta=beta, max_epochs=60, patience=None,
            random_state=0,
        )  # fmt: skip
        embedding = model.fit(X, t, X[:, 0] - X[:, 1]).embed(X)  # where the shift cancels
        gap = embedding[t == 1].mean(axis=0) - embedding[t == 0].mean(axis=0)
        return float(np.linalg.norm(gap) / np.linalg.norm(embedding.std(axis=0)))

    assert separation(3.0) < 0.7 * separation(0.0)


def test_foreign_encoders_and_their_modes():
    dropping = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Dropout(0.5))
    model = CETransformer(3, dropping)
    assert model.embedding_size == 6
    assert dropping.training
    with pytest.raises(ValueError, match=r"Unflatten: the embedding must have shape \(b, e\)"):
        CETransformer(4, torch.nn.Unflatten(1, (2, 2)))


def test_seed_decides_and_nothing_else_is_touched():
    X, t, y = units()
    kept = X.copy(), t.copy(), y.copy()
    with global_state() as changed:
        one = TreatmentEffectRegressor(**FAST).fit(X, t, y)
        assert not changed()
    for before, after in zip(kept, (X, t, y), strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(one.predict(X), clone(one).fit(X, t, y).predict(X))
    other = clone(one).set_params(random_state=1).fit(X, t, y)
    assert not np.allclose(one.predict(X), other.predict(X))
    again = pickle.loads(pickle.dumps(one))  # noqa: S301 - our own bytes
    np.testing.assert_array_equal(one.predict(X), again.predict(X))
    np.testing.assert_array_equal(one.predict_effect(X), np.diff(one.predict(X))[:, 0])
    assert clone(one).get_params() == one.get_params()
    assert not one.network_.training


def test_a_batch_of_one_group_is_taken():
    X, t, y = units()
    options = {**FAST, "batch_size": 2}
    fitted = TreatmentEffectRegressor(**options).fit(X, t, y)
    assert np.isfinite(fitted.predict(X)).all()
    assert {"factual loss", "reconstruction", "critic gap"} <= set(fitted.history_[0])


X, T, Y = units()


@pytest.mark.parametrize("build", [lambda: TreatmentEffectRegressor(**FAST), SLearner])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X * np.nan, T, Y), "NaN"),
        ((X, T, np.full(40, np.inf)), "infinity"),
        ((X, T[:-1], Y), r"t must have shape \(n\) with n=40"),
        ((X, T, Y[:-1]), "inconsistent numbers of samples"),
        ((X, T + 1, Y), r"t must hold 0 \(control\) and 1 \(treated\) only; got"),
        ((X, T * 0.5, Y), "t must hold 0"),
        ((X, np.where(T == 1, np.nan, 0), Y), "t must hold 0"),
        ((X, np.zeros(40, int), Y), "got 0 treated and 40 control"),
        ((X, np.ones(40, int), Y), "got 40 treated and 0 control"),
        ((X[0], T, Y), "2D array"),
    ],
)
def test_bad_data_are_refused(build, data, message):
    with pytest.raises(ValueError, match=message):
        build().fit(*data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "TreatmentEffectRegressor: alpha must lie in"),
        ({"beta": np.nan}, "beta must lie in"),
        ({"gamma": 0.0}, "gamma must lie in"),
        ({"n_critic": 0}, "n_critic must be at least 1"),
        ({"clip": 0.0}, "clip must lie in"),
        ({"critic_width": 0}, "critic_width must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TreatmentEffectRegressor(**{**FAST, **options}).fit(*units())


def test_predict_needs_a_fit_and_the_same_columns():
    with pytest.raises(NotFittedError):
        TreatmentEffectRegressor().predict_effect(X)
    model = TreatmentEffectRegressor(**FAST).fit(X, T, Y)
    with pytest.raises(ValueError, match="is expecting 3 features"):
        model.embed(X[:, :2])
    with pytest.raises(ValueError, match="CovariateTransformer: pool must be one of"):
        CovariateTransformer(3, pool="max")
