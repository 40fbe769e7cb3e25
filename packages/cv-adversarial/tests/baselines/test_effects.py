"""The rivals of CETransformer: regressions, TARNet and CFR."""

import numpy as np
import pytest
import torch
from cv_adversarial.baselines.cfr import CFR, sinkhorn_distance
from cv_adversarial.baselines.meta_learners import SLearner, TLearner
from cv_adversarial.baselines.tarnet import TARNet
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance
from sklearn.neighbors import KNeighborsRegressor


def units(n=60, d=3, seed=0):
    rng = np.random.default_rng(seed)
    X, t = rng.normal(size=(n, d)), rng.integers(2, size=n)
    t[:4] = 0, 1, 0, 1
    return X, t, X[:, 0] + 2.0 * t * X[:, 1]


def test_linear_learners_are_least_squares():
    X, t, y = units()
    y = y + np.random.default_rng(1).normal(size=len(y))
    ones = np.ones((len(X), 1))
    joint = np.linalg.lstsq(np.hstack([ones, X, t[:, None]]), y, rcond=None)[0]
    np.testing.assert_allclose(SLearner().fit(X, t, y).predict_effect(X), joint[-1])
    lines = [
        np.linalg.lstsq(np.hstack([ones, X])[t == g], y[t == g], rcond=None)[0] for g in (0, 1)
    ]
    expected = np.hstack([ones, X]) @ np.stack(lines, axis=1)
    np.testing.assert_allclose(TLearner().fit(X, t, y).predict(X), expected)


def test_neighbours_of_each_group_by_loop():
    X, t, y = units()
    outcomes = TLearner(KNeighborsRegressor(3)).fit(X, t, y).predict(X)
    for row in range(len(X)):
        for group in (0, 1):
            members = np.flatnonzero(t == group)
            near = members[np.argsort(np.linalg.norm(X[members] - X[row], axis=1))[:3]]
            assert outcomes[row, group] == pytest.approx(y[near].mean())


def test_sinkhorn_comes_near_the_best_assignment():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 12, 3))
    cost = cdist(a, b)
    exact = cost[linear_sum_assignment(cost)].mean()
    ours = sinkhorn_distance(*map(torch.from_numpy, (a, b)), smoothing=0.005, iterations=2000)
    assert float(ours) == pytest.approx(exact, rel=2e-3)
    assert float(ours) >= exact * (1 - 1e-6)
    u, v = rng.normal(size=9), 1 + rng.normal(size=14)
    line = sinkhorn_distance(
        torch.from_numpy(u[:, None]), torch.from_numpy(v[:, None]), smoothing=0.005, iterations=2000
    )
    assert float(line) == pytest.approx(wasserstein_distance(u, v), rel=5e-3)


def test_sinkhorn_of_one_point_is_zero_with_a_finite_gradient():
    a = torch.ones(3, 2, requires_grad=True)
    distance = sinkhorn_distance(a, torch.ones(4, 2))
    distance.backward()
    assert distance == 0
    assert bool(torch.isfinite(a.grad).all())


def test_cfr_without_balance_is_tarnet():
    X, t, y = units()
    options = {"max_epochs": 4, "random_state": 3}
    ours = CFR(balance=0.0, **options).fit(X, t, y)
    np.testing.assert_array_equal(ours.predict(X), TARNet(**options).fit(X, t, y).predict(X))


def test_cfr_draws_the_groups_together():
    rng = np.random.default_rng(0)
    t = rng.integers(2, size=200)
    X = rng.normal(size=(200, 4)) + t[:, None]

    def separation(balance):
        model = CFR(balance=balance, max_epochs=60, patience=None, random_state=0)
        embedding = model.fit(X, t, X[:, 0] - X[:, 1]).embed(X)  # where the shift cancels
        gap = embedding[t == 1].mean(axis=0) - embedding[t == 0].mean(axis=0)
        return float(np.linalg.norm(gap) / np.linalg.norm(embedding.std(axis=0)))

    assert separation(3.0) < 0.5 * separation(0.0)


def test_units_of_measure_do_not_matter():
    X, t, y = units()
    options = {"max_epochs": 5, "random_state": 1}
    plain = TARNet(**options).fit(X, t, y).predict_effect(X)
    scaled = TARNet(**options).fit(X * 50.0 + 7.0, t, y * 100.0 - 3.0)
    effect = scaled.predict_effect(X * 50.0 + 7.0)
    np.testing.assert_allclose(effect, 100.0 * plain, rtol=1e-3, atol=1e-3)


def test_the_epoch_kept_is_the_best_one_held_out():
    X, t, y = units()
    model = TARNet(max_epochs=30, patience=3, lr=0.02, random_state=0).fit(X, t, y)
    course = [row["validation factual loss"] for row in model.history_]
    assert model.validation_loss_ == min(course)
    best = int(np.argmin(course))
    assert len(course) == 30 or len(course) == best + 4


def test_a_group_with_nobody_to_train_on_is_refused():
    X, _, y = units()
    t = np.zeros(60, dtype=int)
    t[:2] = 1
    with pytest.raises(ValueError, match=r"part to train on: t must hold at least 1 treated"):
        TARNet(validation_fraction=0.95, random_state=0).fit(X, t, y)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TARNet(head_width=0), "TARNet: head_width must be at least 1"),
        (lambda: TARNet(lr=0.0), "TARNet: lr must lie in"),
        (lambda: TARNet(weight_decay=-1.0), "weight_decay must lie in"),
        (lambda: TARNet(batch_size=0), "batch_size must be at least 1"),
        (lambda: TARNet(max_epochs=0), "max_epochs must be at least 1"),
        (lambda: TARNet(patience=0), "patience must be at least 1"),
        (lambda: TARNet(validation_fraction=1.0), "validation_fraction must lie in"),
        (lambda: CFR(balance=-1.0), "CFR: balance must lie in"),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build().fit(*units())
