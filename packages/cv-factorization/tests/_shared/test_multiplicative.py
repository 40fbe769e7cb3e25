import numpy as np
import pytest
from cv_factorization._shared.multiplicative import (
    Pull,
    balance_,
    multiply_,
    nonnegative_codes,
    random_factors,
    unit_atoms_,
    update_codes_,
)
from scipy.optimize import nnls


@pytest.fixture
def factors():
    rng = np.random.default_rng(0)
    return rng.random((12, 7)), rng.random((3, 7)), rng.random((12, 3))


def test_multiply_raises_the_quotient_to_the_exponent():
    factor = np.array([[2.0, 0.0], [3.0, 1.0]])
    numerator, denominator = np.array([[4.0, 1.0], [9.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 2.0]])
    whole, half = factor.copy(), factor.copy()
    multiply_(whole, numerator, denominator)
    multiply_(half, numerator, denominator, 0.5)
    np.testing.assert_array_equal(whole, [[8.0, 0.0], [27.0, 0.0]])
    np.testing.assert_array_equal(half, [[4.0, 0.0], [9.0, 0.0]])


def test_codes_step_returns_the_fit_without_the_datas_norm(factors):
    X, U, V = factors
    returned = update_codes_(V, X, U, Pull(falling=0.1, rising=0.2))
    expected = np.linalg.norm(X - V @ U) ** 2 - np.linalg.norm(X) ** 2
    assert returned == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale_", [balance_, unit_atoms_])
def test_scaling_keeps_the_product(factors, scale_):
    _, U, V = factors
    U[1] *= 1000.0
    product = V @ U
    scale_(U, V)
    np.testing.assert_allclose(V @ U, product, rtol=1e-12)
    lengths = np.linalg.norm(V, axis=0) if scale_ is balance_ else np.ones(3)
    np.testing.assert_allclose(np.linalg.norm(U, axis=1), lengths, rtol=1e-12)


@pytest.mark.parametrize("m", [3, 7, 10])  # fewer atoms than columns, as many, more
def test_codes_reach_the_error_of_scipy(m):
    rng = np.random.default_rng(m)
    X, U = rng.normal(size=(8, 7)), rng.random((m, 7))
    codes = nonnegative_codes(X, U)
    assert codes.min() >= 0
    for x, code in zip(X, codes, strict=True):
        assert np.linalg.norm(x - code @ U) == pytest.approx(nnls(U.T, x)[1], abs=1e-12)


def test_random_factors_are_positive_and_have_the_datas_mean():
    X = np.random.default_rng(0).random((200, 150)) * 40
    U, V = random_factors(X, 8, np.random.default_rng(1))
    assert min(U.min(), V.min()) > 0
    assert (V @ U).mean() == pytest.approx(X.mean(), rel=0.1)
