import numpy as np
import pytest
from cv_graph.matrix_roots import psd_null_space, psd_sqrt, psd_sqrt_pinv
from scipy.linalg import sqrtm


def semidefinite(seed=0, n=9, rank=6):
    factor = np.random.default_rng(seed).normal(size=(n, rank))
    return factor @ factor.T


def test_roots_are_symmetric_and_of_the_matrix():
    L = semidefinite()
    root, inverse, null = psd_sqrt(L), psd_sqrt_pinv(L), psd_null_space(L)
    np.testing.assert_allclose(root, root.T, atol=1e-12)
    np.testing.assert_allclose(root @ root, L, atol=1e-10)
    np.testing.assert_allclose(inverse @ inverse, np.linalg.pinv(L, rcond=1e-12), atol=1e-9)
    np.testing.assert_allclose(inverse @ root, np.eye(9) - null @ null.T, atol=1e-9)
    assert null.shape == (9, 3)
    np.testing.assert_allclose(null.T @ null, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(L @ null, 0, atol=1e-10)
    full = semidefinite(rank=12)
    np.testing.assert_allclose(psd_sqrt(full), sqrtm(full).real, atol=1e-9)
    np.testing.assert_allclose(psd_sqrt_pinv(full), np.linalg.inv(sqrtm(full).real), atol=1e-8)
    assert psd_null_space(full).shape == (9, 0)


def test_matrix_of_zeros():
    zero = np.zeros((3, 3))
    np.testing.assert_array_equal(psd_sqrt(zero), zero)
    np.testing.assert_array_equal(psd_sqrt_pinv(zero), zero)
    np.testing.assert_allclose(psd_null_space(zero) @ psd_null_space(zero).T, np.eye(3))


@pytest.mark.parametrize("function", [psd_sqrt, psd_sqrt_pinv, psd_null_space])
def test_bad_input_is_refused(function):
    with pytest.raises(ValueError, match="positive semidefinite; it has the eigenvalue -2"):
        function(np.diag([1.0, -2.0]))
    with pytest.raises(ValueError, match=r"L must have shape \(n, n\)"):
        function(np.ones((2, 3)))
    with pytest.raises(ValueError, match="L must be finite"):
        function(np.full((2, 2), np.inf))
