import numpy as np
import pytest
from cv_core.numerics.affinity import (
    graph_laplacian,
    hypergraph_incidence,
    hypergraph_laplacian,
    knn_affinity,
    nearest_neighbors,
)
from scipy import sparse
from scipy.sparse.csgraph import laplacian
from sklearn.neighbors import kneighbors_graph


def slow_neighbors(X, k):
    rows = []
    for i in range(len(X)):
        others = [(float(((X[i] - X[j]) ** 2).sum()), j) for j in range(len(X)) if j != i]
        rows.append(sorted(others)[:k])
    return rows


def slow_affinity(X, k, weight, bandwidth, symmetrize):
    if weight == "cosine":
        X = X / np.linalg.norm(X, axis=1, keepdims=True)
    neighbors = slow_neighbors(X, k)
    if bandwidth is None:
        bandwidth = np.mean([distance for row in neighbors for distance, _ in row])
    directed = np.zeros((len(X), len(X)))
    for i, row in enumerate(neighbors):
        for distance, j in row:
            directed[i, j] = {
                "heat": np.exp(-distance / bandwidth),
                "binary": 1.0,
                "cosine": max(float(X[i] @ X[j]), 0.0),
            }[weight]
    return {
        "max": np.maximum(directed, directed.T),
        "mean": (directed + directed.T) / 2,
        "mutual": np.minimum(directed, directed.T),
    }[symmetrize]


@pytest.mark.parametrize("symmetrize", ["max", "mean", "mutual"])
@pytest.mark.parametrize("weight", ["heat", "binary", "cosine"])
@pytest.mark.parametrize("bandwidth", [None, 0.7])
@pytest.mark.parametrize("d", [2, 40])
def test_affinity_equals_loops(weight, symmetrize, bandwidth, d):
    X = np.random.default_rng(d).normal(size=(30, d))
    W = knn_affinity(X, 4, weight=weight, bandwidth=bandwidth, symmetrize=symmetrize)
    expected = slow_affinity(X, 4, weight, bandwidth, symmetrize)
    np.testing.assert_allclose(W.toarray(), expected, atol=1e-12)
    assert W.nnz == np.count_nonzero(expected)


def test_binary_graph_equals_scikit_learn():
    X = np.random.default_rng(0).random((50, 6))
    peer = kneighbors_graph(X, 5).toarray()
    W = knn_affinity(X, 5, weight="binary")
    np.testing.assert_array_equal(W.toarray(), np.maximum(peer, peer.T))


def test_ties_before_the_cut_are_in_order_too():
    # centring turns equal distances of whole numbers into numbers that differ by rounding
    rng = np.random.default_rng(0)
    for _ in range(100):
        X = rng.integers(0, 4, size=(15, 3)).astype(float)
        index, squared = nearest_neighbors(X, 6)
        for i, row in enumerate(slow_neighbors(X, 6)):
            assert index[i].tolist() == [j for _, j in row]
            np.testing.assert_allclose(squared[i], [distance for distance, _ in row], rtol=1e-9)


@pytest.mark.parametrize("d", [2, 20])  # a tree search and a brute one
def test_ties_go_to_the_lower_index(d):
    grid = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), axis=-1).reshape(-1, 2)
    X = np.concatenate([grid, grid[:5]])  # duplicates are neighbours at distance 0
    X = np.concatenate([X, np.zeros((len(X), d - 2))], axis=1) + 1000.0
    for k in (1, 3, 6):
        index, squared = nearest_neighbors(X, k)
        for i, row in enumerate(slow_neighbors(X, k)):
            assert [j for _, j in row] == index[i].tolist()
            np.testing.assert_allclose(squared[i], [distance for distance, _ in row], atol=1e-9)


def test_all_equal_rows_are_joined_with_weight_one():
    W = knn_affinity(np.ones((4, 3)), 2)
    expected = np.zeros((4, 4))
    for i, js in enumerate([(1, 2), (0, 2), (0, 1), (0, 1)]):
        expected[i, list(js)] = 1
    np.testing.assert_array_equal(W.toarray(), np.maximum(expected, expected.T))


def test_every_other_row_may_be_a_neighbour():
    W = knn_affinity(np.random.default_rng(0).random((5, 2)), 4, weight="binary")
    np.testing.assert_array_equal(W.toarray(), 1 - np.eye(5))


@pytest.fixture
def affinity():
    W = np.random.default_rng(1).random((12, 12))
    W = np.triu(np.where(W < 0.4, W, 0), 1)
    W[:, 3] = W[3] = 0  # a node without edges
    return W + W.T


def test_laplacian_measures_differences_along_edges(affinity):
    f = np.random.default_rng(2).normal(size=12)
    expected = sum(affinity[i, j] * (f[i] - f[j]) ** 2 for i in range(12) for j in range(i))
    assert f @ graph_laplacian(affinity) @ f == pytest.approx(expected, rel=1e-12)


def test_laplacian_equals_scipy(affinity):
    plain = graph_laplacian(sparse.csr_array(affinity)).toarray()
    np.testing.assert_allclose(plain, laplacian(affinity), atol=1e-14)
    symmetric = graph_laplacian(affinity, "symmetric").toarray()
    np.testing.assert_allclose(symmetric, laplacian(affinity, normed=True), atol=1e-14)


def test_random_walk_laplacian_is_one_minus_the_transition_matrix(affinity):
    walk = graph_laplacian(affinity, "random-walk").toarray()
    degree = affinity.sum(axis=1)
    for i in range(12):
        for j in range(12):
            step = affinity[i, j] / degree[i] if degree[i] else 1.0 * (i == j)
            assert walk[i, j] == pytest.approx((i == j) - step, abs=1e-14)


@pytest.fixture
def hyperedges():
    return np.array([[0, 1, 2, 1, 3, 4, 0, 2, 3], [0, 0, 0, 1, 1, 1, 2, 2, 2]])


def test_incidence_marks_the_pairs(hyperedges):
    H = hypergraph_incidence(hyperedges, n_nodes=6, n_edges=4)
    expected = np.zeros((6, 4))
    for node, edge in hyperedges.T:
        expected[node, edge] = 1
    np.testing.assert_array_equal(H.toarray(), expected)
    twice = np.concatenate([hyperedges, hyperedges[:, :1]], axis=1)
    np.testing.assert_array_equal(hypergraph_incidence(twice).toarray(), expected[:5, :3])


def test_hypergraph_laplacian_equals_zhous_quadratic_form(hyperedges):
    H = hypergraph_incidence(hyperedges, n_nodes=6).toarray()
    weights = np.array([0.5, 2.0, 1.5])
    f = np.random.default_rng(0).normal(size=6)
    degree = H @ weights
    expected = 0.0
    for e in range(3):
        members = np.flatnonzero(H[:, e])
        for u in members:
            for v in members:
                gap = f[u] / np.sqrt(degree[u]) - f[v] / np.sqrt(degree[v])
                expected += weights[e] / len(members) * gap**2 / 2
    assert f @ hypergraph_laplacian(H, weights) @ f == pytest.approx(expected, rel=1e-12)


def test_hypergraph_of_pairs_is_half_the_graph_laplacian(affinity):
    i, j = np.nonzero(np.triu(affinity))
    pairs = np.stack([np.concatenate([i, j]), np.concatenate([np.arange(len(i))] * 2)])
    H = hypergraph_incidence(pairs, n_nodes=12)
    np.testing.assert_allclose(
        hypergraph_laplacian(H, affinity[i, j]).toarray(),
        graph_laplacian(affinity, "symmetric").toarray() / 2,
        atol=1e-14,
    )


X = np.random.default_rng(0).random((6, 2))
ASYMMETRIC = np.triu(np.ones((3, 3)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: knn_affinity(X, 6), ValueError, "n_neighbors must be at least 1 and at most 5"),
        (lambda: knn_affinity(X[0], 1), ValueError, r"X must have shape \(n, d\)"),
        (lambda: knn_affinity(X * np.nan, 1), ValueError, "X must be finite"),
        (lambda: knn_affinity(X, 1, weight="heet"), ValueError, "Did you mean 'heat'"),
        (lambda: knn_affinity(X, 1, symmetrize="or"), ValueError, "symmetrize must be one of"),
        (lambda: knn_affinity(X, 1, bandwidth=0.0), ValueError, "bandwidth must lie in"),
        (lambda: knn_affinity(0 * X, 1, weight="cosine"), ValueError, "row 0 is zero"),
        (lambda: graph_laplacian(X), ValueError, r"W must have shape \(n, n\)"),
        (lambda: graph_laplacian(ASYMMETRIC), ValueError, "W must be symmetric"),
        (lambda: graph_laplacian(-np.ones((2, 2))), ValueError, "W must be non-negative"),
        (lambda: graph_laplacian(np.eye(2), "sym"), ValueError, "normalization must be one of"),
        (lambda: hypergraph_incidence(np.ones((2, 3))), TypeError, "must hold integers"),
        (lambda: hypergraph_incidence(np.array([[0], [-1]])), ValueError, "must not be negative"),
        (lambda: hypergraph_incidence(np.array([[4], [0]]), n_nodes=4), ValueError, "at least 5"),
        (lambda: hypergraph_laplacian(np.eye(3), np.ones(2)), ValueError, "edge_weights must have"),
        (lambda: hypergraph_laplacian(-np.eye(3)), ValueError, "H must be non-negative"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
