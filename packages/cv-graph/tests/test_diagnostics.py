import numpy as np
import pytest
import torch
from cv_core.numerics.affinity import graph_laplacian
from cv_graph.diagnostics import (
    adjusted_homophily,
    class_insensitive_homophily,
    dirichlet_energy,
    edge_homophily,
    hyperedge_agreement,
    hyperedge_majority,
    mean_average_distance,
    node_homophily,
)
from torch.nn.functional import cosine_similarity

MEASURES = [edge_homophily, node_homophily, class_insensitive_homophily, adjusted_homophily]


def graph(seed=0, n=40, edges=90, classes=4):
    """A directed graph with repeated edges and self-loops; the last three nodes are isolated."""
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(n - 3, (2, edges), generator=generator)
    y = torch.randint(classes, (n,), generator=generator)
    return edge_index, y


def undirected(seed=0, n=12):
    """An undirected graph without self-loops, weighted, as (2, E) and as a matrix."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.rand(n, n, generator=generator, dtype=torch.float64).triu(1)
    W = W * (W > 0.6)
    W[-1], W[:, -1] = 0, 0  # an isolated node
    W = W + W.T
    edge_index = W.nonzero().T
    return edge_index, W[edge_index[0], edge_index[1]], W


# homophily of graphs


def test_edge_and_node_homophily_by_counting():
    edges, y = graph()
    same = [int(y[u] == y[v]) for u, v in edges.T.tolist()]
    assert edge_homophily(edges, y) == pytest.approx(sum(same) / len(same))
    shares = []
    for v in range(len(y)):
        into = [s for s, (_, w) in zip(same, edges.T.tolist(), strict=True) if w == v]
        if into:
            shares.append(sum(into) / len(into))
    assert node_homophily(edges, y) == pytest.approx(sum(shares) / len(shares))
    assert len(shares) < len(y) - 3


def test_class_insensitive_homophily_by_counting():
    edges, y = graph()
    total = 0.0
    for k in range(4):
        into = [int(y[u]) for u, v in edges.T.tolist() if y[v] == k]
        total += max(0.0, into.count(k) / len(into) - (y == k).float().mean().item())
    assert class_insensitive_homophily(edges, y) == pytest.approx(total / 3)


def test_adjusted_homophily_by_counting():
    edges, y = graph()
    matrix = np.zeros((4, 4))
    for u, v in edges.T.tolist():
        matrix[y[u], y[v]] += 1 / edges.shape[1]
    chance = sum(matrix[k].sum() * matrix[:, k].sum() for k in range(4))
    expected = (np.trace(matrix) - chance) / (1 - chance)
    assert adjusted_homophily(edges, y) == pytest.approx(expected)


@pytest.mark.parametrize("measure", MEASURES)
def test_full_and_no_homophily(measure):
    y = torch.tensor([0, 0, 1, 1])
    within = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    across = torch.tensor([[0, 2, 1, 3], [2, 0, 3, 1]])
    assert measure(within, y) == pytest.approx(1)
    assert measure(across, y) == pytest.approx(-1 if measure is adjusted_homophily else 0)


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_adjusted_for_chance_are_0_at_random(measure):
    # every ordered pair of nodes, loops included: edges know nothing of the classes
    y = torch.tensor([0] * 6 + [1] * 3 + [2])
    edges = torch.cartesian_prod(torch.arange(10), torch.arange(10)).T
    chance = sum(share**2 for share in (0.6, 0.3, 0.1))
    adjusted = measure in (class_insensitive_homophily, adjusted_homophily)
    assert measure(edges, y) == pytest.approx(0 if adjusted else chance, abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_unlabelled_nodes_are_as_if_they_were_not_there(measure):
    edges, y = graph(1)
    y[::5] = -1
    kept = (y >= 0).nonzero().flatten()
    place = torch.full_like(y, -1)
    place[kept] = torch.arange(len(kept))
    inner = place[edges][:, (place[edges] >= 0).all(dim=0)]
    assert inner.shape[1] < edges.shape[1]
    assert measure(edges, y) == pytest.approx(measure(inner, y[kept]))


@pytest.mark.parametrize("measure", MEASURES)
def test_classes_are_names(measure):
    edges, y = graph(2)
    renamed = torch.tensor([9, 0, 4, 2])[y]
    assert measure(edges, renamed) == pytest.approx(measure(edges, y))
    assert measure(edges.int(), y.int()) == pytest.approx(measure(edges, y))


# homophily of hypergraphs


def lists(seed=0):
    generator = torch.Generator().manual_seed(seed)
    index = torch.stack(
        [
            torch.randint(20, (60,), generator=generator),
            torch.randint(15, (60,), generator=generator),
        ]
    )
    y = torch.randint(3, (20,), generator=generator) - (torch.arange(20) % 7 == 0).long()
    return index, y.clamp(min=-1)


def test_hyperedges_by_counting():
    index, y = lists()
    majority = hyperedge_majority(index, y, num_hyperedges=17)
    agreement = hyperedge_agreement(index, y, num_hyperedges=17)
    assert majority.shape == agreement.shape == (17,)
    for e in range(17):
        members = {u for u, each in index.T.tolist() if each == e}
        labels = [int(y[u]) for u in members if y[u] >= 0]
        n = len(labels)
        if n:
            most = max(labels.count(k) for k in range(3))
            assert majority[e] == pytest.approx(most / n)
        else:
            assert majority[e].isnan()
        if n > 1:
            pairs = [labels[i] == labels[j] for i in range(n) for j in range(i)]
            assert agreement[e] == pytest.approx(sum(pairs) / len(pairs))
        else:
            assert agreement[e].isnan()
    assert majority[15:].isnan().all()


def test_hyperedges_of_two_are_edges():
    edges, y = graph(3)
    edges = edges[:, edges[0] != edges[1]]
    count = edges.shape[1]
    index = torch.stack([edges.T.flatten(), torch.arange(count).repeat_interleave(2)])
    agreement = hyperedge_agreement(index, y)
    assert float(agreement.mean()) == pytest.approx(edge_homophily(edges, y))
    np.testing.assert_allclose(hyperedge_majority(index, y), (1 + agreement) / 2)


def test_hypergraph_without_labels():
    index = torch.tensor([[0, 1], [0, 0]])
    y = torch.tensor([-1, -1])
    assert hyperedge_majority(index, y).isnan().tolist() == [True]
    assert hyperedge_agreement(index, y).isnan().tolist() == [True]


# over-smoothing


@pytest.mark.parametrize("normalization", [None, "symmetric"])
def test_energy_is_the_trace_with_the_laplacian(normalization):
    edges, weights, W = undirected()
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for weight, matrix in ((weights, W), (None, (W > 0).double())):
        L = torch.tensor(graph_laplacian(matrix.numpy(), normalization).toarray())
        energy = dirichlet_energy(x, edges, edge_weight=weight, normalization=normalization)
        assert float(energy) == pytest.approx(float(torch.trace(x.T @ L @ x)), rel=1e-10)


def test_energy_falls_under_smoothing_to_what_it_cannot_see():
    edges, _, W = undirected()
    A = (W > 0).double()
    degree = A.sum(dim=1, keepdim=True)
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float(dirichlet_energy(torch.ones(12, 3), edges)) == 0
    root = degree.sqrt()
    assert float(dirichlet_energy(root, edges, normalization="symmetric")) < 1e-25
    step = (torch.eye(12) + A / (root * root.T).clamp(min=1e-9)) / 2
    energies = []
    for _ in range(6):
        energies.append(float(dirichlet_energy(x, edges, normalization="symmetric")))
        x = step @ x
    assert (np.diff(energies) < 0).all()


def test_energy_carries_gradients():
    edges, weights, _ = undirected()
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x.requires_grad_()
    weights.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w: dirichlet_energy(x, edges, edge_weight=w, normalization="symmetric"),
        (x, weights),
    )


def test_average_distance_by_counting():
    edges, _ = graph(4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    rows = []
    for v in range(40):
        near = [u for u, w in edges.T.tolist() if w == v and u != v]
        if near:
            rows.append(sum(1 - cosine_similarity(x[u], x[v], dim=0) for u in near) / len(near))
    assert float(mean_average_distance(x, edges)) == pytest.approx(float(sum(rows) / len(rows)))
    every = torch.cartesian_prod(torch.arange(40), torch.arange(40)).T
    assert float(mean_average_distance(x)) == pytest.approx(float(mean_average_distance(x, every)))
    x[3] = 0
    assert float(mean_average_distance(x)) == pytest.approx(float(mean_average_distance(x, every)))


def test_average_distance_does_not_depend_on_lengths_and_is_0_for_one_direction():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    lengths = torch.rand(30, 1, generator=generator, dtype=torch.float64) + 0.1
    value = float(mean_average_distance(x))
    assert float(mean_average_distance(lengths * x)) == pytest.approx(value)
    assert float(mean_average_distance(lengths * x[:1])) == pytest.approx(0, abs=1e-12)
    # some that become equal lower the mean; the printed formula would leave them out
    x[:10] = x[0]
    assert float(mean_average_distance(x)) < value
    assert torch.autograd.gradcheck(mean_average_distance, (x[:6].clone().requires_grad_(),))


# bad input

EDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])
LABELS = torch.tensor([0, 1, 1])
X = torch.ones(3, 2)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("edges", "y", "error", "message"),
    [
        (EDGES, LABELS[:2], ValueError, r"edge_index\[0, 2\] is source node 2, but there are 2"),
        (EDGES - 1, LABELS, ValueError, r"edge_index\[0, 0\] is source node -1"),
        (EDGES.T[:1], LABELS, ValueError, r"shape \(2, e\)"),
        (EDGES.float(), LABELS, TypeError, "must hold integers"),
        (EDGES, LABELS.float(), TypeError, "y must hold class indices"),
        (EDGES, LABELS - 2, ValueError, r"y must lie in .* got -2"),
        (EDGES, LABELS[:, None], ValueError, r"y must have shape \(n\)"),
        (EDGES, torch.tensor([0, -1, -1]), ValueError, "between two labelled nodes"),
        (EDGES[:, :0], LABELS, ValueError, "between two labelled nodes"),
    ],
)
def test_bad_graphs_are_refused(measure, edges, y, error, message):
    with pytest.raises(error, match=message):
        measure(edges, y)


@pytest.mark.parametrize("measure", [hyperedge_majority, hyperedge_agreement])
def test_bad_hypergraphs_are_refused(measure):
    with pytest.raises(ValueError, match=r"hyperedge_index\[0, 2\] is node 2, but there are 2"):
        measure(EDGES, LABELS[:2])
    with pytest.raises(ValueError, match=r"hyperedge_index\[1, 1\] is hyperedge 2"):
        measure(EDGES, LABELS, num_hyperedges=2)
    with pytest.raises(ValueError, match=r"y must lie in .* got -2"):
        measure(EDGES, LABELS - 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: class_insensitive_homophily(EDGES, LABELS * 0), ValueError, "at least two"),
        (lambda: adjusted_homophily(EDGES, LABELS * 0), ValueError, "more than one class"),
        (lambda: dirichlet_energy(X[:2], EDGES), ValueError, r"edge_index\[0, 2\] is source node"),
        (lambda: dirichlet_energy(X.long(), EDGES), TypeError, "x must be a floating-point"),
        (lambda: dirichlet_energy(X * torch.inf, EDGES), ValueError, "x must be finite"),
        (
            lambda: dirichlet_energy(X, EDGES, edge_weight=-torch.ones(3)),
            ValueError,
            "edge_weight must be finite and at least 0; entry 0 is -1",
        ),
        (
            lambda: dirichlet_energy(X, EDGES, normalization="symetric"),
            ValueError,
            "Did you mean 'symmetric'",
        ),
        (lambda: mean_average_distance(X[:1]), ValueError, "at least two rows"),
        (
            lambda: mean_average_distance(X, torch.tensor([[1], [1]])),
            ValueError,
            "between different nodes",
        ),
        (lambda: mean_average_distance(X, EDGES + 1), ValueError, "is source node 3"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_row_that_is_not_finite_is_named():
    x = torch.zeros(4, 2)
    x[2, 1] = torch.nan
    for call in (lambda: dirichlet_energy(x, EDGES), lambda: mean_average_distance(x)):
        with pytest.raises(
            ValueError, match="x must be finite; 1 rows are not, the first is row 2"
        ):
            call()


def test_equal_rows_have_no_negative_distance():
    for seed in range(20):
        row = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))
        assert 0 <= float(mean_average_distance(row.expand(300, 8))) < 1e-5
