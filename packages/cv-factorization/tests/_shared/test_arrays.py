import numpy as np
import pytest
import torch
from cv_factorization._shared.arrays import as_floating, as_samples, coo_tensor, drawn, like_given
from scipy import sparse
from sklearn.base import BaseEstimator


def test_sparse_matrices_become_coalesced_tensors():
    # unsorted, with a duplicate and a stored zero
    given = sparse.coo_array(([1.0, 2.0, 3.0, 0.0], ([2, 0, 2, 1], [1, 3, 1, 0])), shape=(3, 4))
    for matrix in (given, given.tocsr(), given.tocsc()):
        before = matrix.copy()
        tensor = coo_tensor(matrix)
        assert tensor.is_coalesced()
        np.testing.assert_array_equal(tensor.to_dense().numpy(), given.toarray())
        assert (matrix != before).nnz == 0
    empty = coo_tensor(sparse.csr_array((2, 3)))
    assert empty.to_dense().sum() == 0


def test_arrays_of_any_layout_are_taken():
    base = np.arange(12.0).reshape(3, 4)
    base.flags.writeable = False
    for view in (base, base[::-1], base.T, base[:, ::2]):
        np.testing.assert_array_equal(as_samples(BaseEstimator(), view, reset=True).numpy(), view)
    assert as_floating([[1, 2]]).dtype == torch.float64
    assert as_floating(np.ones(2, dtype=np.float32)).dtype == torch.float32


def test_results_come_back_as_what_came_in():
    tensor = torch.ones(2)
    assert like_given(tensor, tensor) is tensor
    assert isinstance(like_given(tensor, np.ones(2)), np.ndarray)


def test_draws_depend_on_the_seed_only():
    first, second = (
        drawn(np.random.default_rng(0), (2, 3), torch.empty(0, dtype=dtype))
        for dtype in (torch.float64, torch.float32)
    )
    np.testing.assert_allclose(first.numpy(), second.numpy(), rtol=1e-6)


def test_tensors_are_checked_in_scikit_learns_words():
    estimator = BaseEstimator()
    as_samples(estimator, torch.ones(3, 2), reset=True)
    assert estimator.n_features_in_ == 2
    with pytest.raises(ValueError, match="expecting 2 features"):
        as_samples(estimator, torch.ones(3, 4), reset=False)
    with pytest.raises(ValueError, match="minimum of 4 is required"):
        as_samples(estimator, torch.ones(3, 2), reset=True, min_samples=4)
    with pytest.raises(ValueError, match="infinity"):
        as_samples(estimator, torch.full((3, 2), torch.inf), reset=True)
