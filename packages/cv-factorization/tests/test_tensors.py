import numpy as np
import pytest
import torch
from cv_factorization.tensors import parafac, tucker
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays


def planted(seed=0, shape=(7, 6, 5), rank=2):
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal((size, rank)) for size in shape]
    return np.einsum("ir,jr,kr->ijk", *factors), factors


def noisy(seed=0):
    rng = np.random.default_rng(seed)
    return planted(seed)[0] + 0.3 * rng.standard_normal((7, 6, 5)), rng.random((7, 6, 5)) < 0.7


def slow_sweep(X, M, factors):
    """One sweep of weighted least squares, row by row."""
    A, B, C = factors
    for i in range(len(A)):
        rows = [(B[j] * C[k], X[i, j, k]) for j, k in zip(*np.nonzero(M[i]), strict=True)]
        A[i] = np.linalg.lstsq(*map(np.array, zip(*rows, strict=True)), rcond=None)[0]
    for j in range(len(B)):
        rows = [(A[i] * C[k], X[i, j, k]) for i, k in zip(*np.nonzero(M[:, j]), strict=True)]
        B[j] = np.linalg.lstsq(*map(np.array, zip(*rows, strict=True)), rcond=None)[0]
    for k in range(len(C)):
        rows = [(A[i] * B[j], X[i, j, k]) for i, j in zip(*np.nonzero(M[:, :, k]), strict=True)]
        C[k] = np.linalg.lstsq(*map(np.array, zip(*rows, strict=True)), rcond=None)[0]


@pytest.mark.parametrize("masked", [False, True])
def test_sweeps_solve_every_row_by_least_squares(masked):
    X, M = noisy()
    if not masked:
        M = np.ones_like(M)
    rng = np.random.default_rng(1)
    factors = [rng.standard_normal((size, 2)) for size in X.shape]
    result = parafac(
        X, 2, mask=M if masked else None, init=[F.copy() for F in factors], max_iter=3, tol=0
    )
    course = [np.square((X - np.einsum("ir,jr,kr->ijk", *factors)) * M).sum()]
    for _ in range(3):
        slow_sweep(X, M, factors)
        course.append(np.square((X - np.einsum("ir,jr,kr->ijk", *factors)) * M).sum())
    np.testing.assert_allclose(result.objective, course, rtol=1e-7)
    np.testing.assert_allclose(result.full(), np.einsum("ir,jr,kr->ijk", *factors), atol=1e-6)


@pytest.mark.parametrize("method", [parafac, tucker])
def test_mask_of_ones_changes_nothing(method):
    X = noisy(2)[0]
    plain = method(X, 2, max_iter=30, tol=0)
    masked = method(X, 2, mask=np.ones(X.shape, dtype=bool), max_iter=30, tol=0)
    np.testing.assert_allclose(masked.full(), plain.full(), atol=1e-7)
    np.testing.assert_allclose(masked.objective, plain.objective, rtol=1e-8)


@pytest.mark.parametrize("method", [parafac, tucker])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_error_over_the_observed_entries_falls(method, masked, scale):
    X, M = noisy(3)
    M = M if masked else np.ones_like(M)
    result = method(scale * X, 3, mask=M if masked else None, max_iter=40, tol=0)
    assert result.n_iter == 40
    assert (np.diff(result.objective) <= 1e-12 * result.objective[0]).all()
    error = np.square((scale * X - result.full()) * M).sum()
    assert result.objective[-1] == pytest.approx(error, rel=1e-8)


def test_planted_components_are_found():
    X, factors = planted(4)
    weights, found = parafac(X, 2, max_iter=300, tol=0)
    for mine, theirs in zip(found, factors, strict=True):
        units = theirs / np.linalg.norm(theirs, axis=0)
        np.testing.assert_allclose(np.abs(mine.T @ units).max(axis=0), 1.0, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(mine, axis=0), 1.0)
    sizes = np.prod([np.linalg.norm(F, axis=0) for F in factors], axis=0)
    np.testing.assert_allclose(weights, np.sort(sizes)[::-1], rtol=1e-5)


@pytest.mark.parametrize("method", [parafac, tucker])
def test_missing_entries_are_filled_in(method):
    X = planted(5, rank=1)[0]
    M = np.random.default_rng(5).random(X.shape) < 0.6
    result = method(np.where(M, X, np.nan), 1, mask=M, max_iter=500, tol=0)
    np.testing.assert_allclose(result.full(), X, atol=1e-5)


def test_masked_parafac_descends_where_filling_in_crawls():
    X = planted(6, (12, 11, 10), 3)[0]
    M = np.random.default_rng(6).random(X.shape) < 0.3
    rng = np.random.default_rng(0)
    start = [rng.standard_normal((size, 3)) for size in X.shape]
    exact = parafac(X, 3, mask=M, init=start, max_iter=40, tol=0)
    filled = start
    for _ in range(40):  # one plain sweep on the filled tensor at a time
        full = np.einsum("ir,jr,kr->ijk", *filled)
        weights, units = parafac(np.where(M, X, full), 3, init=filled, max_iter=1, tol=0)
        filled = [weights * units[0], *units[1:]]
    crawled = np.square((X - np.einsum("ir,jr,kr->ijk", *filled)) * M).sum()
    assert exact.objective[-1] < 0.1 * crawled


def test_matrices_give_the_singular_value_decomposition():
    A = np.random.default_rng(7).standard_normal((8, 5))
    left, values, right = np.linalg.svd(A)
    best = values[0] * np.outer(left[:, 0], right[0])
    one = parafac(A, 1, max_iter=300, tol=0)
    np.testing.assert_allclose(one.full(), best, atol=1e-8)
    assert one.weights[0] == pytest.approx(values[0], rel=1e-10)
    three = tucker(A, 3)
    np.testing.assert_allclose(three.full(), (left[:, :3] * values[:3]) @ right[:3], atol=1e-8)
    np.testing.assert_allclose(np.linalg.svd(three.core)[1], values[:3], rtol=1e-9)


def test_tucker_of_full_rank_is_exact_and_orthonormal():
    X = np.random.default_rng(8).standard_normal((3, 4, 5, 2))
    core, factors = tucker(X, X.shape)
    np.testing.assert_allclose(np.einsum("abcd,ia,jb,kc,ld->ijkl", core, *factors), X, atol=1e-10)
    for factor in factors:
        np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), atol=1e-10)
    # a rank above the product of the others cannot be used, but must not break either
    tall = np.random.default_rng(9).standard_normal((6, 2, 2))
    result = tucker(tall, (6, 2, 1))
    assert result.objective[-1] <= np.square(tall).sum()
    assert np.isfinite(result.full()).all()


def test_four_axes_and_ranks_above_the_sizes():
    rng = np.random.default_rng(10)
    X = np.einsum("ir,jr,kr,lr->ijkl", *(rng.random((size, 2)) for size in (4, 3, 5, 2)))
    result = parafac(X, 6, max_iter=400, tol=0, random_state=0)
    assert result.objective[-1] < 1e-4 * result.objective[0]
    np.testing.assert_allclose(result.full(), X, atol=0.05)


def test_slices_of_which_nothing_is_observed_stay_finite():
    X, M = noisy(11)
    M[3] = False
    M[:, :, 2] = False
    for method in (parafac, tucker):
        result = method(np.where(M, X, np.inf), 2, mask=M, max_iter=30, tol=0)
        assert np.isfinite(result.full()).all()
        assert (np.diff(result.objective) <= 1e-12 * result.objective[0]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", [parafac, tucker])
def test_tensors_come_back_as_tensors(method, dtype):
    X, M = noisy(12)
    tensor = torch.tensor(X, dtype=dtype, requires_grad=True)
    result = method(tensor, 2, mask=torch.tensor(M), max_iter=20)
    head, factors = result
    for value in (head, *factors, result.full()):
        assert isinstance(value, torch.Tensor)
        assert value.dtype == dtype
        assert not value.requires_grad
    plain = method(X, 2, mask=M, max_iter=20)
    atol = 1e-8 if dtype == torch.float64 else 5e-2
    np.testing.assert_allclose(result.full().numpy(), plain.full(), atol=atol)
    assert method(X.astype(np.float32), 2).full().dtype == np.float32


def test_blocks_do_not_change_the_result(monkeypatch):
    X, M = noisy(13)
    whole = parafac(X, 3, mask=M, max_iter=5, tol=0)
    monkeypatch.setattr("cv_factorization.tensors.BLOCK", 40)
    np.testing.assert_allclose(parafac(X, 3, mask=M, max_iter=5, tol=0).full(), whole.full())


@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)),
        elements=st.sampled_from([0.0, 0.0, 1.0, -1.0, 1e-100, 3e5, 1e100]),
    ),
    st.integers(1, 5),
    st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_degenerate_tensors_give_finite_factors(X, rank, seed):
    mask = np.random.default_rng(seed).random(X.shape) < 0.6
    mask.flat[0] = True
    for observed in (None, mask):
        result = parafac(X, rank, mask=observed, max_iter=6, random_state=0)
        assert np.isfinite(result.weights).all()
        assert all(np.isfinite(factor).all() for factor in result.factors)
        assert (np.diff(result.objective) <= 1e-7 * result.objective[0]).all()
        result = tucker(X, 1, mask=observed, max_iter=6)
        assert np.isfinite(result.full()).all()


X = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parafac(X, 0), "parafac: rank must be at least 1"),
        (lambda: parafac(np.ones(3), 1), "at least two axes"),
        (lambda: parafac(np.ones((2, 0)), 1), "no empty one"),
        (lambda: parafac(X * np.nan, 1), "tensor must be finite"),
        (lambda: parafac(X, 1, mask=np.ones((3, 2))), r"mask must have shape \(2, 3\)"),
        (lambda: parafac(X, 1, mask=np.zeros((2, 3))), "mask must have an observed entry"),
        (lambda: parafac(X, 1, init="hosvd"), "Did you mean 'svd'"),
        (lambda: parafac(X, 1, init=[X]), "init must have a factor per axis, 2; got 1"),
        (lambda: parafac(X, 1, init=[X, X]), r"init\[0\] must have shape"),
        (lambda: parafac(X, 1, max_iter=0), "max_iter must be at least 1"),
        (lambda: parafac(X, 1, tol=-1), "tol must lie in"),
        (lambda: tucker(X, (1, 2, 1)), "rank must have one number per axis, 2; got 3"),
        (lambda: tucker(X, (3, 1)), r"rank\[0\] must be at least 1 and at most 2"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_other_tensors_are_refused():
    with pytest.raises(TypeError, match="tucker: tensor must be float32 or float64"):
        tucker(torch.ones(2, 2, dtype=torch.long), 1)
