"""Orthogonal matching pursuit against a loop, scikit-learn and its defining properties."""

import numpy as np
import pytest
import torch
from cv_factorization.sparse import pursuit
from cv_factorization.sparse.pursuit import omp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp_gram


def problem(seed=0, n=40, d=12, m=20, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator, dtype=dtype)
    D = torch.randn(m, d, generator=generator, dtype=dtype)
    return X, D / D.norm(dim=1, keepdim=True)


def slow_omp(x, D, k):
    """One sample, by least squares on the atoms taken so far."""
    taken, residual, code = [], x, torch.zeros(len(D), dtype=x.dtype)
    for _ in range(k):
        correlation = (D @ residual).abs() / D.norm(dim=1)
        correlation[taken] = -1.0
        taken.append(int(correlation.argmax()))
        values = torch.linalg.lstsq(D[taken].T, x[:, None]).solution[:, 0]
        residual = x - values @ D[taken]
    code[taken] = values
    return code


@pytest.mark.parametrize("k", [1, 3, 7])
def test_equals_a_loop_of_least_squares(k):
    X, D = problem()
    slow = torch.stack([slow_omp(x, D, k) for x in X])
    torch.testing.assert_close(omp(X, D, n_nonzero=k), slow, rtol=1e-9, atol=1e-11)


def test_equals_scikit_learn_on_the_gram_matrix():
    X, D = problem(1, n=300, d=64, m=128)
    theirs = orthogonal_mp_gram((D @ D.T).numpy(), (D @ X.T).numpy(), n_nonzero_coefs=5).T
    torch.testing.assert_close(
        omp(X, D, n_nonzero=5), torch.from_numpy(theirs), rtol=1e-10, atol=1e-12
    )


def test_tolerance_equals_scikit_learn():
    X, D = problem(2, n=60)
    norms = X.square().sum(dim=1)
    theirs = orthogonal_mp_gram(
        (D @ D.T).numpy(), (D @ X.T).numpy(), tol=0.8, norms_squared=norms.numpy()
    ).T
    ours = omp(X, D, tol=0.8)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-8, atol=1e-10)
    left = (X - ours @ D).square().sum(dim=1)
    assert (left <= 0.8 + 1e-9).all()
    fewer = omp(X, D, n_nonzero=2, tol=0.8)
    assert (fewer != 0).sum(dim=1).max() == 2


def test_residual_is_orthogonal_to_the_atoms_taken():
    X, D = problem(3)
    codes = omp(X, D, n_nonzero=4)
    correlation = (X - codes @ D) @ D.T
    assert correlation[codes != 0].abs().max() < 1e-12
    assert ((codes != 0).sum(dim=1) == 4).all()


def test_orthonormal_atoms_give_the_largest_coefficients():
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64)).Q
    X = torch.randn(5, 9, generator=generator, dtype=torch.float64)
    products = X @ Q.T
    kept = products.abs() >= products.abs().topk(3).values[:, -1:]
    torch.testing.assert_close(omp(X, Q, n_nonzero=3), products * kept)


def test_sparse_samples_are_recovered_and_need_no_more_atoms():
    _, D = problem(4, d=40, m=60)
    codes = torch.zeros(30, 60, dtype=torch.float64)
    for i, row in enumerate(codes):
        row[(7 * i + torch.tensor([0, 19, 41])) % 60] = torch.tensor([1.0, -2.0, 3.0]).double()
    found = omp(codes @ D, D, n_nonzero=10)
    torch.testing.assert_close(found, codes, rtol=0, atol=1e-10)
    assert ((found != 0).sum(dim=1) == 3).all()


def test_lengths_and_signs_of_atoms_change_the_codes_alone():
    X, D = problem(5)
    scale = torch.linspace(-3.0, 4.0, len(D), dtype=torch.float64)
    scaled = omp(X, D * scale[:, None], n_nonzero=3)
    torch.testing.assert_close(scaled * scale, omp(X, D, n_nonzero=3), rtol=1e-9, atol=1e-12)


def test_blocks_and_batches_do_not_matter(monkeypatch):
    X, D = problem(6)
    whole = omp(X, D, n_nonzero=3)
    monkeypatch.setitem(pursuit.BLOCK, "cpu", 7 * len(D))
    torch.testing.assert_close(omp(X, D, n_nonzero=3), whole, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(omp(X[3:4], D, n_nonzero=3), whole[3:4], rtol=1e-12, atol=1e-14)


def test_size_of_the_samples_does_not_matter():
    X, D = problem(7)
    codes = omp(X, D, n_nonzero=3)
    for size in (1e-180, 1e180):  # whose squares no number holds
        torch.testing.assert_close(omp(X * size, D, n_nonzero=3) / size, codes)


def test_default_is_a_tenth_of_the_features():
    X, D = problem(8, d=40, m=50)
    assert (omp(X, D) != 0).sum(dim=1).max() == 4
    assert (omp(X[:, :5], D[:, :5]) != 0).sum(dim=1).max() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_is_kept(dtype):
    X, D = problem(9, dtype=dtype)
    codes = omp(X.requires_grad_(), D, n_nonzero=2)
    assert codes.dtype == dtype
    assert not codes.requires_grad


entries = st.sampled_from([0.0, 0.0, 1.0, -1.0, 2.0, 1e-3, 1 + 1e-9])


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 6))
def test_degenerate_matrices_give_finite_codes_that_help(data, n, d, m):
    def matrix(rows):
        flat = data.draw(st.lists(entries, min_size=rows * d, max_size=rows * d))
        return torch.tensor(flat, dtype=torch.float64).reshape(rows, d)

    X, D = matrix(n), matrix(m)
    errors = [X.square().sum(dim=1)]
    for k in range(1, m + 1):
        codes = omp(X, D, n_nonzero=k)
        assert torch.isfinite(codes).all()
        assert ((codes != 0).sum(dim=1) <= k).all()
        assert not codes[:, ~D.any(dim=1)].any()
        errors.append((X - codes @ D).square().sum(dim=1))
        assert (errors[-1] <= errors[-2] + 1e-9).all()
    # with all atoms the error is that of the projection on their span
    inverse = torch.linalg.pinv(D, rtol=1e-3)
    best = (X - X @ inverse @ D).square().sum(dim=1)
    assert (errors[-1] <= best + 1e-5 * errors[0]).all()


X, D = problem()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_nonzero": 21}, ValueError, "n_nonzero must not exceed the number of atoms, 20; got 2"),
        ({"n_nonzero": 0}, ValueError, "n_nonzero must be at least 1"),
        ({"n_nonzero": 1.5}, TypeError, "n_nonzero must be a whole number"),
        ({"tol": -1.0}, ValueError, "tol must lie in"),
        ({"X": X[:, :5]}, ValueError, r"dictionary must have shape \(m, d\) with d=5"),
        ({"X": X * np.nan}, ValueError, "X must be finite"),
        ({"dictionary": D / 0}, ValueError, "dictionary must be finite"),
        ({"X": X[:0]}, ValueError, "X is empty"),
        ({"dictionary": D[:0]}, ValueError, "dictionary is empty"),
        ({"X": X.long()}, TypeError, "floating-point"),
        ({"X": X.numpy()}, TypeError, "X must be a tensor"),
    ],
)
def test_bad_input_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        omp(**{"X": X, "dictionary": D, **arguments})
