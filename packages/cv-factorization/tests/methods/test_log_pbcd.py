"""LOG-PBCD as a classifier: it learns, predicts by its weights alone, and keeps the manners."""

import numpy as np
import pytest
import torch
from cv_factorization.methods.log_pbcd import LogPBCDClassifier
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


@pytest.fixture(scope="module")
def fitted(digits):
    X, y = digits
    return LogPBCDClassifier((40, 40), max_iter=80, random_state=0).fit(X[:600], y[:600])


def test_it_learns_and_never_rises(fitted, digits):
    X, y = digits
    assert fitted.score(X[600:1200], y[600:1200]) > 0.85
    assert len(fitted.objective_) == fitted.n_iter_ + 1 == 81
    course = fitted.objective_
    assert (np.diff(course) <= 1e-6 * course[:-1]).all()  # float32
    assert course[-1] < 0.1 * course[0]


def test_predictions_come_from_weights_alone(fitted, digits):
    X, _ = digits
    A = X[:50].astype(np.float64)
    for W, b in zip(fitted.weights_, fitted.biases_, strict=True):
        Z = A @ W.T + b
        A = np.maximum(Z, 0)
    np.testing.assert_allclose(fitted.decision_function(X[:50]), Z, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(fitted.predict(X[:50]), Z.argmax(axis=1))
    shuffled = fitted.predict(X[:50][::-1])[::-1]
    np.testing.assert_array_equal(shuffled, fitted.predict(X[:50]))


def test_the_log_penalty_makes_zeros_and_none_without(fitted, digits):
    X, y = digits
    plain = LogPBCDClassifier((40, 40), lam=0.0, max_iter=80, random_state=0).fit(X[:600], y[:600])
    assert plain.sparsity_ < 0.05
    assert fitted.sparsity_ > 0.2


def test_without_a_penalty_eps_is_nothing(digits):
    X, y = digits
    one, other = (
        LogPBCDClassifier((8, 8), lam=0.0, eps=eps, max_iter=3, random_state=0).fit(X[:99], y[:99])
        for eps in (1e-3, 5.0)
    )
    np.testing.assert_allclose(one.weights_[0], other.weights_[0], rtol=1e-4, atol=1e-7)


def test_one_hidden_layer_is_not_penalised(digits):
    X, y = digits
    one, other = (
        LogPBCDClassifier((8,), lam=lam, max_iter=5, random_state=0).fit(X[:99], y[:99])
        for lam in (0.0, 10.0)
    )
    np.testing.assert_array_equal(one.weights_[0], other.weights_[0])


def test_warm_start_goes_on(digits):
    X, y = digits
    options = {"hidden": (8, 8), "random_state": 0}
    whole = LogPBCDClassifier(max_iter=6, **options).fit(X[:99], y[:99])
    stages = LogPBCDClassifier(max_iter=2, warm_start=True, **options)
    course = [stages.fit(X[:99], y[:99]).objective_ for _ in range(3)]
    np.testing.assert_allclose(np.concatenate([course[0], course[1][1:], course[2][1:]]),
                               whole.objective_, rtol=1e-6)  # fmt: skip
    np.testing.assert_array_equal(stages.weights_[0], whole.weights_[0])
    again = LogPBCDClassifier(max_iter=2, **options).fit(X[:99], y[:99])
    np.testing.assert_array_equal(again.fit(X[:99], y[:99]).objective_, course[0])


def test_two_classes_words_and_tensors(digits):
    X, y = digits
    X, y = X[y < 2], np.array(["nought", "one"])[y[y < 2]]
    model = LogPBCDClassifier((10, 10), max_iter=100, init_std="he", random_state=0).fit(X, y)
    scores = model.decision_function(X)
    assert scores.shape == (len(X),)
    np.testing.assert_array_equal(model.predict(X) == "one", scores > 0)
    assert model.score(X, y) > 0.95
    tensors = LogPBCDClassifier((10, 10), max_iter=100, init_std="he", random_state=0)
    tensors.fit(torch.from_numpy(X), torch.from_numpy((y == "one").astype(np.int64)))
    assert isinstance(tensors.weights_[0], torch.Tensor)
    np.testing.assert_array_equal(tensors.weights_[0].numpy(), model.weights_[0])
    assert isinstance(tensors.decision_function(torch.from_numpy(X)), torch.Tensor)


def test_the_start_has_the_deviation_asked_for(digits):
    from cv_factorization.split_network import starting_weights

    rng = np.random.default_rng(0)
    like = torch.zeros(1, dtype=torch.float64)
    small = starting_weights((400, 300, 10), 0.01, rng, like)
    assert [tuple(W.shape) for W in small] == [(300, 400), (10, 300)]
    assert float(small[0].std()) == pytest.approx(0.01, rel=4 / (2 * 120_000) ** 0.5)
    he = starting_weights((400, 300, 10), "he", rng, like)
    assert float(he[0].std()) == pytest.approx((2 / 400) ** 0.5, rel=4 / (2 * 120_000) ** 0.5)


X = np.random.default_rng(0).random((6, 4))
Y = np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": ()}, "hidden must name at least one layer"),
        ({"hidden": (3, 0)}, "hidden must be at least 1"),
        ({"rho": 0.0}, "rho must lie in"),
        ({"gamma": -1.0}, "gamma must lie in"),
        ({"beta": 0.0}, "beta must lie in"),
        ({"alpha": 0.0}, "alpha must lie in"),
        ({"delta": 0.0}, "delta must lie in"),
        ({"lam": -1.0}, "lam must lie in"),
        ({"eps": 0.0}, "eps must lie in"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
        ({"init_std": 0.0}, "init_std must lie in"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LogPBCDClassifier(**{"hidden": (3, 3), **options}).fit(X, Y)


def test_bad_data_are_refused():
    model = LogPBCDClassifier((3, 3))
    with pytest.raises(ValueError, match="NaN"):
        model.fit(X * np.nan, Y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(X, Y[:4])
    with pytest.raises(NotFittedError):
        model.predict(X)
