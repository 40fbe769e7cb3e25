import numpy as np
from cv_factorization.baselines.nmf import GNMF, MCNMF
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
        GNMF(3, lam_graph=0.0, init=(U, V), tol=0, max_iter=30).fit(X),
        MCNMF(3, n_views=1, init=(U, V), tol=0, max_iter=30).fit(X),
    ):
        np.testing.assert_allclose(plain.components_[0], atoms.T, rtol=1e-9)
        np.testing.assert_allclose(plain.embeddings_[0], peer.components_.T, rtol=1e-9)


def test_special_cases_take_identical_steps():
    X = problem(2)[0]
    options = {"n_neighbors": 4, "max_iter": 20, "tol": 0, "random_state": 5}
    for special, general in (
        (GNMF(3, lam_graph=2.0, **options), ANMMF(3, n_views=1, lam_graph=2.0, **options)),
        (
            MCNMF(3, lam_hsic=2.0, max_iter=20, tol=0, random_state=5),
            ANMMF(3, lam_hsic=2.0, lam_graph=0.0, **options),
        ),
    ):
        special.fit(X)
        general.fit(X)
        np.testing.assert_array_equal(special.embeddings_, general.embeddings_)
        np.testing.assert_array_equal(special.objective_, general.objective_)


def test_constant_codes_feel_no_graph():
    X = np.outer(np.ones(6), [1.0, 2.0, 3.0])
    U, V = np.array([[[1.0, 2.0, 3.0]]]), np.ones((1, 6, 1))
    model = GNMF(1, lam_graph=100.0, n_neighbors=2, init=(U, V), tol=0, max_iter=5).fit(X)
    np.testing.assert_allclose(model.embeddings_, V, rtol=1e-12)
    np.testing.assert_allclose(model.objective_, 0.0, atol=1e-12)


def test_training_codes_feel_the_graph_and_new_codes_do_not():
    X = problem(12)[0]
    model = GNMF(2, lam_graph=1e6, n_neighbors=13, normalize="u_columns", random_state=0).fit(X)
    spread = model.embeddings_[0].std(axis=0) / model.embeddings_[0].mean(axis=0)
    assert (spread < 1e-2).all()  # neighbours, here all, are pulled together
    assert (model.transform(X).std(axis=0) > 0.05 * model.transform(X).mean(axis=0)).all()
