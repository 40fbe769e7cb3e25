"""Online dictionary learning: its surrogate, its sums, and scikit-learn's objective."""

import warnings

import numpy as np
import pytest
import torch
from cv_factorization.sparse.coding import lasso_cd, lasso_fista, lasso_objective
from cv_factorization.sparse.online import OnlineDictionaryLearning, update_atoms_
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator


def samples(seed=0, n=400, d=12, m=20, k=3):
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((m, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    codes = rng.standard_normal((n, m)) * (rng.random((n, m)) < k / m)
    return 3 * codes @ D + 0.1 * rng.standard_normal((n, d))


def surrogate(D, P, Q):
    return float(0.5 * torch.trace(D.T @ P @ D) - torch.trace(D.T @ Q))


def sums(seed=0, n=50, d=6, m=9):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(n, m, generator=generator, dtype=torch.float64)
    codes[:, 4] = 0.0
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    D = torch.randn(m, d, generator=generator, dtype=torch.float64)
    return codes.T @ codes, codes.T @ X, D / D.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("positive", [False, True])
def test_a_pass_over_the_atoms_equals_a_loop_and_lowers_the_surrogate(positive):
    for seed in range(10):
        P, Q, D = sums(seed)
        D = D.abs() if positive else D
        slow = D.clone()
        for j in range(len(D)):
            if P[j, j] > 0:
                u = slow[j] + (Q[j] - sum(P[j, i] * slow[i] for i in range(len(D)))) / P[j, j]
                u = u.clamp(min=0) if positive else u
                before = surrogate(slow, P, Q)
                slow[j] = u / max(1.0, float(u.norm()))
                assert surrogate(slow, P, Q) <= before + 1e-9
        fast = D.clone()
        update_atoms_(fast, P, Q, positive=positive)
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(fast[4], D[4])  # no sample uses it
        assert (fast.norm(dim=1) <= 1 + 1e-12).all()


def test_passes_lead_to_the_best_atoms_of_unbounded_codes():
    P, Q, D = sums(3)
    keep = torch.arange(9) != 4
    P, Q, D = 100 * P[keep][:, keep], Q[keep], D[keep]  # so small that no bound is active
    for _ in range(3000):
        update_atoms_(D, P, Q)
    torch.testing.assert_close(D, torch.linalg.solve(P, Q), rtol=1e-6, atol=1e-9)


def test_a_batch_adds_its_sums_after_the_old_ones_have_shrunk():
    X = torch.tensor(samples(n=90))
    start = torch.eye(12, dtype=torch.float64)
    model = OnlineDictionaryLearning(12, alpha=0.3, forgetting=2.0, init=start)
    P, Q, atoms = torch.zeros(12, 12).double(), torch.zeros(12, 12).double(), start
    for t, batch in enumerate(X.split(30), start=1):
        codes = lasso_fista(batch, atoms, 0.3, max_iter=10, tol=0)
        assert codes.any(dim=0).all()  # every atom is used, so that none is replaced
        P = (1 - 1 / t) ** 2.0 * P + codes.T @ codes
        Q = (1 - 1 / t) ** 2.0 * Q + codes.T @ batch
        atoms = atoms.clone()
        update_atoms_(atoms, P, Q)
        model.partial_fit(batch)
        torch.testing.assert_close(model.components_, atoms, rtol=1e-9, atol=1e-12)
    assert model.n_steps_ == model.n_iter_ == len(model.objective_) == 3


def test_recorded_objective_is_that_of_the_batch_with_the_atoms_that_met_it():
    X = torch.tensor(samples(n=50))
    start = torch.eye(12, dtype=torch.float64)
    model = OnlineDictionaryLearning(12, alpha=0.3, init=start, code_iter=200)
    model.partial_fit(X)
    codes = lasso_cd(X, start, 0.3)
    expected = float(lasso_objective(X, start, codes, 0.3).mean())
    assert model.objective_[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Objective did not converge")  # the peer's own
def test_objective_falls_below_scikit_learns():
    X = samples(1, n=600)
    ours = OnlineDictionaryLearning(20, alpha=0.5, batch_size=64, max_iter=10, tol=0)
    ours.set_params(random_state=0).fit(X)
    peer = MiniBatchDictionaryLearning(
        20,
        alpha=0.5,
        batch_size=64,
        max_iter=10,
        tol=0,
        max_no_improvement=None,
        fit_algorithm="cd",
        random_state=0,
    ).fit(X)

    def objective(D):
        rows, atoms = torch.tensor(X), torch.tensor(D)
        return float(lasso_objective(rows, atoms, lasso_cd(rows, atoms, 0.5), 0.5).mean())

    assert objective(ours.components_) <= 1.02 * objective(peer.components_)
    assert ours.objective_[-1] < 0.9 * ours.objective_[0]
    assert objective(ours.components_) == pytest.approx(ours.objective_[-1], rel=0.05)


def test_signs_are_kept_where_asked():
    X = np.abs(samples(2, n=200))
    model = OnlineDictionaryLearning(
        10, alpha=0.2, positive_codes=True, positive_atoms=True, max_iter=3, random_state=0
    ).fit(X)
    assert model.components_.min() >= 0
    assert model.transform(X).min() >= 0
    free = OnlineDictionaryLearning(10, alpha=0.2, max_iter=3, random_state=0).fit(X)
    assert free.components_.min() < 0
    assert free.transform(X).min() < 0


def test_transform_solves_the_lasso():
    X = samples(3, n=100)
    model = OnlineDictionaryLearning(15, alpha=0.5, max_iter=2, random_state=0).fit(X)
    codes = model.transform(X)
    slope = (X - model.inverse_transform(codes)) @ model.components_.T
    assert np.abs(slope).max() <= 0.5 + 1e-3
    np.testing.assert_allclose(slope[codes != 0], 0.5 * np.sign(codes[codes != 0]), atol=1e-3)


def test_tolerance_ends_the_passes():
    X = samples(4)
    model = OnlineDictionaryLearning(20, alpha=0.3, tol=0.05, random_state=0).fit(X)
    falls = -np.diff(model.objective_) / model.objective_[1:]
    assert falls[-1] <= 0.05
    assert (falls[:-1] > 0.05).all()


def test_partial_fit_goes_on_and_leaves_given_atoms_alone():
    X = torch.tensor(samples(5, n=120))
    model = OnlineDictionaryLearning(10, alpha=0.3, random_state=0)
    kept = model.partial_fit(X[:60]).components_
    before = kept.clone()
    model.partial_fit(X[60:])
    assert torch.equal(kept, before)
    assert not torch.equal(model.components_, before)
    fitted = OnlineDictionaryLearning(10, alpha=0.3, max_iter=2, random_state=0).fit(X)
    again = model.set_params(max_iter=2).fit(X)  # a fit forgets what was learned
    torch.testing.assert_close(again.components_, fitted.components_)


def test_forgotten_atoms_become_samples():
    X = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    start = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    for seed in range(4):
        model = OnlineDictionaryLearning(2, alpha=0.1, init=start, random_state=seed).fit(X)
        # the second atom meets no sample of its own: it becomes the first's, or stays
        expected = start[:1] if bool(model.components_[1, 0] > 0) else start[1:]
        torch.testing.assert_close(model.components_[1:], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_learn_as_arrays_do(dtype):
    X = torch.tensor(samples(6, n=100), dtype=dtype)
    options = {"alpha": 0.3, "batch_size": 40, "max_iter": 3, "tol": 0, "random_state": 0}
    ours = OnlineDictionaryLearning(20, **options).fit(X)
    theirs = OnlineDictionaryLearning(20, **options).fit(X.numpy())
    assert ours.components_.dtype == dtype
    assert isinstance(theirs.components_, np.ndarray)
    np.testing.assert_array_equal(ours.components_.numpy(), theirs.components_)
    assert ours.transform(X).dtype == dtype
    assert theirs.transform(X.numpy()).dtype == X.numpy().dtype


def test_estimator_is_scikit_learns():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # samples that are almost parallel converge slowly
        check_estimator(OnlineDictionaryLearning(3, max_iter=5), on_skip=None)


entries = st.sampled_from([0.0, 0.0, 1.0, -1.0, 2.0, 1e-3, 1 + 1e-9])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_degenerate_data_never_give_nan(data, n, d, m, positive):
    flat = data.draw(st.lists(entries, min_size=n * d, max_size=n * d))
    X = np.array(flat).reshape(n, d)
    model = OnlineDictionaryLearning(
        m, alpha=0.1, batch_size=2, max_iter=3, tol=0, positive_atoms=positive, random_state=0
    ).fit(X)
    assert np.isfinite(model.components_).all()
    assert np.isfinite(model.objective_).all()
    assert (np.linalg.norm(model.components_, axis=1) <= 1 + 1e-9).all()
    assert not positive or model.components_.min() >= 0


X = np.random.default_rng(0).standard_normal((12, 4))


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({}, X * np.nan, "Input X contains NaN"),
        ({}, X[0], "Expected 2D array"),
        ({"n_components": 0}, X, "n_components must be at least 1"),
        ({"alpha": -1.0}, X, "alpha must lie in"),
        ({"batch_size": 0}, X, "batch_size must be at least 1"),
        ({"max_iter": 0}, X, "max_iter must be at least 1"),
        ({"tol": -1.0}, X, "tol must lie in"),
        ({"code_iter": 0}, X, "code_iter must be at least 1"),
        ({"forgetting": -1.0}, X, "forgetting must lie in"),
        ({"init": "sample"}, X, "Did you mean 'samples'"),
        ({"init": X[:3, :2]}, X, "init must have shape"),
    ],
)
def test_bad_input_is_refused(options, data, message):
    model = OnlineDictionaryLearning(**{"n_components": 5, **options})
    for learn in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=message):
            learn(data)


def test_later_batches_must_have_the_same_columns():
    with pytest.raises(NotFittedError):
        OnlineDictionaryLearning(2).transform(X)
    model = OnlineDictionaryLearning(2, random_state=0).partial_fit(X)
    with pytest.raises(ValueError, match="OnlineDictionaryLearning is expecting 4 features"):
        model.partial_fit(X[:, :3])
