import numpy as np
import pytest
import torch
from cv_factorization._shared.views import as_views, holds_views, like_views
from scipy import sparse
from sklearn.base import BaseEstimator

A, B = np.arange(6.0).reshape(3, 2), np.arange(12.0).reshape(3, 4)


class Owner(BaseEstimator):
    pass


@pytest.mark.parametrize(
    ("X", "several"),
    [
        ([A, B], True),
        ((A,), True),
        ([torch.ones(2, 3)], True),
        (np.ones((2, 3, 4)), True),
        (torch.ones(2, 3, 4), True),
        ([], True),
        (A, False),
        (A.tolist(), False),
        (torch.ones(2, 3), False),
        ([1.0, 2.0], False),
    ],
)
def test_views_are_told_from_a_matrix(X, several):
    assert holds_views(X) == several


def test_views_become_tensors_of_one_type_and_sizes_are_kept():
    owner = Owner()
    views = as_views(owner, [A.astype(np.float32), B], reset=True)
    assert [view.dtype for view in views] == [torch.float64] * 2
    np.testing.assert_array_equal(views[1], B)
    assert owner.n_features_in_ == [2, 4]
    single = as_views(owner, [A.astype(np.float32)], reset=True)
    assert single[0].dtype == torch.float32
    (alone,) = as_views(owner, A, reset=False)  # one view fitted, a matrix given
    np.testing.assert_array_equal(alone, A)


def test_a_matrix_fitted_takes_one_view_of_its_columns():
    owner = Owner()
    as_views(owner, A, reset=True)
    assert owner.n_features_in_ == 2
    np.testing.assert_array_equal(as_views(owner, [A], reset=False)[0], A)
    with pytest.raises(
        ValueError, match=r"Owner: X must hold views with the columns of fit, \[2\]"
    ):
        as_views(owner, [B], reset=False)


def test_an_array_of_views_is_a_list_of_views():
    stacked = np.stack([A, 2 * A])
    views = as_views(Owner(), stacked, reset=True)
    np.testing.assert_array_equal(np.stack(views), stacked)


def test_results_come_back_as_what_came():
    assert isinstance(like_views(torch.ones(2), [A, B]), np.ndarray)
    assert isinstance(like_views(torch.ones(2), [torch.ones(2, 2)]), torch.Tensor)
    assert isinstance(like_views(torch.ones(2), np.stack([A, A])), np.ndarray)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ([], ValueError, "at least one view; got none"),
        ([A, B[:2]], ValueError, r"X\[1\] must have shape \(n, d\) with n=3"),
        ([A, B * np.nan], ValueError, r"X\[1\] must be finite"),
        ([A[:1]], ValueError, "at least 2 samples; got 1"),
        ([A, sparse.csr_array(B)], TypeError, r"X\[1\] must be dense; call X\[1\].toarray\(\)"),
        ([torch.ones(3, 2).int()], TypeError, "must be float32 or float64"),
    ],
)
def test_bad_views_are_refused(X, error, message):
    with pytest.raises(error, match=message):
        as_views(Owner(), X, reset=True, min_samples=2)
