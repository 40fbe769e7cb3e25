import numpy as np
from cv_factorization.baselines.nmf import MCNMF
from cv_factorization.methods.anmmf import ANMMF
from sklearn.decomposition import NMF


def problem(seed, n=14, d=9, m=3, views=3):
    rng = np.random.default_rng(seed)
    return rng.random((n, d)), rng.random((views, m, d)), rng.random((views, n, m))


def test_same_start_gives_plain_nmf_of_scikit_learn():
    # scikit-learn updates W before H, this code the atoms before the codes: equal on the transpose
    X, U, V = problem(1, views=1)
    peer = NMF(3, init="custom", solver="mu", tol=0, max_iter=30)
    atoms = peer.fit_transform(X.T.copy(), W=U[0].T.copy(), H=V[0].T.copy())
    for plain in (
        ANMMF(3, n_views=1, lam_graph=0.0, init=(U, V), tol=0, max_iter=30).fit(X),
        MCNMF(3, n_views=1, init=(U, V), tol=0, max_iter=30).fit(X),
    ):
        np.testing.assert_allclose(plain.components_[0], atoms.T, rtol=1e-9)
        np.testing.assert_allclose(plain.embeddings_[0], peer.components_.T, rtol=1e-9)


def test_special_case_takes_identical_steps():
    X = problem(2)[0]
    options = {"lam_hsic": 2.0, "max_iter": 20, "tol": 0, "random_state": 5}
    special, general = MCNMF(3, **options).fit(X), ANMMF(3, lam_graph=0.0, **options).fit(X)
    np.testing.assert_array_equal(special.embeddings_, general.embeddings_)
    np.testing.assert_array_equal(special.objective_, general.objective_)
