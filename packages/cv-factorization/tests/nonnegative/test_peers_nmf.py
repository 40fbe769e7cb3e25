"""NMF takes the steps of scikit-learn's, and reaches its objective."""

import numpy as np
import pytest
from cv_factorization.nonnegative.nmf import NMF
from sklearn.datasets import load_digits
from sklearn.decomposition import NMF as PEER


@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler"])
def test_multiplicative_steps_are_equal(loss):
    # scikit-learn updates codes before atoms: equal on the transpose
    rng = np.random.default_rng(0)
    X, U, V = rng.random((14, 9)), rng.random((3, 9)), rng.random((14, 3))
    peer = PEER(3, init="custom", solver="mu", beta_loss=loss, tol=0, max_iter=30)
    atoms = peer.fit_transform(X.T.copy(), W=U.T.copy(), H=V.T.copy())
    model = NMF(3, solver="mu", beta_loss=loss, init=(U, V), tol=0, max_iter=30).fit(X)
    np.testing.assert_allclose(model.components_, atoms.T, rtol=1e-7)
    np.testing.assert_allclose(model.embedding_, peer.components_.T, rtol=1e-7)
    # theirs adds a small number inside, ours does not
    assert model.reconstruction_err_ == pytest.approx(peer.reconstruction_err_, rel=1e-6)


@pytest.mark.parametrize("solver", ["hals", "pg"])
def test_objective_on_digits_is_that_of_coordinate_descent(solver):
    X = load_digits().data[:300]
    peer = PEER(10, init="nndsvda", max_iter=400, tol=1e-5, random_state=0).fit(X)
    model = NMF(10, solver=solver, init="nndsvda", max_iter=400, tol=1e-5, random_state=0).fit(X)
    assert model.reconstruction_err_ <= 1.02 * peer.reconstruction_err_
