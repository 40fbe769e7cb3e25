"""Canonical correlations equal scikit-learn's, which it reaches by iteration."""

import numpy as np
from cv_factorization.multiview import CCA
from sklearn.cross_decomposition import CCA as PEER


def test_equal_to_scikit_learn():
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((120, 3))
    A, B = (shared @ rng.standard_normal((3, d)) + rng.standard_normal((120, d)) for d in (5, 4))
    theirs = PEER(3, max_iter=5000, tol=1e-12).fit_transform(A, B)
    model = CCA(3)
    ours = model.fit_transform([A, B])
    for k in range(3):
        peer = np.corrcoef(theirs[0][:, k], theirs[1][:, k])[0, 1]
        np.testing.assert_allclose(model.correlations_[k], peer, rtol=1e-6)
        for mine, other in zip(ours, theirs, strict=True):
            assert abs(np.corrcoef(mine[:, k], other[:, k])[0, 1]) > 1 - 1e-6
