"""One view without a link is scikit-learn's spectral clustering, the SVD its truncated one."""

import numpy as np
from cv_factorization.baselines.views import CoRegularizedSpectralClustering, SharedSVD
from scipy.spatial.distance import pdist
from sklearn.cluster import SpectralClustering
from sklearn.decomposition import TruncatedSVD
from sklearn.metrics import adjusted_rand_score


def test_one_view_is_spectral_clustering():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 20)
    X = 5 * np.eye(3)[y] + rng.normal(size=(60, 3))
    gamma = 1 / (2 * np.median(pdist(X)) ** 2)
    peer = SpectralClustering(3, gamma=gamma, assign_labels="kmeans", random_state=0).fit(X)
    ours = CoRegularizedSpectralClustering(3, random_state=0).fit(X)
    assert adjusted_rand_score(peer.labels_, ours.labels_) == 1.0


def test_one_view_is_the_truncated_svd():
    X = np.random.default_rng(1).normal(size=(30, 8)) * np.arange(1, 9)
    ours = SharedSVD(3).fit(X)
    peer = TruncatedSVD(3, algorithm="arpack", random_state=0)
    codes = peer.fit_transform(X / 8**0.5)
    np.testing.assert_allclose(np.abs(ours.embedding_), np.abs(codes), rtol=1e-8)
    np.testing.assert_allclose(ours.singular_values_ * 30**0.5, peer.singular_values_, rtol=1e-8)
