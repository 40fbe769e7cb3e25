import pytest
import torch
from cv_graph.baselines.labels import label_propagation, label_spreading
from cv_graph.hypergraph import Hypergraph
from cv_graph.propagation import graph_propagation, hypergraph_propagation

EDGES = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4, 5, 6], [1, 0, 2, 1, 3, 2, 4, 3, 6, 5]])
Y = torch.tensor([0, -1, -1, -1, 1, -1, -1])  # 5 and 6 are cut off


def graph(**options):
    return graph_propagation(EDGES, num_nodes=7, dtype=torch.float64, **options)


def test_spreading_solves_its_linear_system():
    S = graph(self_loops=False)
    known = torch.zeros(7, 2, dtype=torch.float64)
    known[0, 0] = known[4, 1] = 1
    for alpha in (0.3, 0.9):
        exact = torch.linalg.solve(torch.eye(7, dtype=torch.float64) - alpha * S.dense(), known)
        exact = exact / exact.sum(1, keepdim=True).clamp(min=1e-300)
        found = label_spreading(S, Y, alpha=alpha, tol=1e-12)
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-10)
    assert found[5:].eq(0).all()


def test_spreading_over_a_hypergraph():
    h = Hypergraph.from_lists([[0, 1, 2], [2, 3], [3, 4]], num_nodes=7)
    S = hypergraph_propagation(h, dtype=torch.float64)
    found = label_spreading(S, Y, alpha=0.9)
    assert found.argmax(1)[:5].tolist() == [0, 0, 0, 1, 1]
    assert found.dtype == torch.float64


def test_propagation_is_harmonic_and_keeps_what_is_known():
    P = graph(normalization="random-walk", self_loops=False)
    found = label_propagation(P, Y, tol=1e-12)
    line = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    torch.testing.assert_close(found[:5, 1], line, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found[:5].sum(1), torch.ones(5, dtype=torch.float64))
    assert found[5:].eq(0).all()


def test_what_does_not_rest_warns_and_bad_input_is_refused():
    S = graph(self_loops=False)
    with pytest.warns(RuntimeWarning, match="tol=0.001 was not reached in max_iter=2"):
        label_spreading(S, Y, max_iter=2)
    with pytest.raises(ValueError, match="label_spreading: alpha must lie in"):
        label_spreading(S, Y, alpha=1.0)
    for wrong in (Y.float(), torch.full((7,), -1), Y - 1):
        with pytest.raises(ValueError, match="label_propagation: y must hold classes"):
            label_propagation(S, wrong)
    with pytest.raises(ValueError, match="y must have shape"):
        label_propagation(S, Y[:5])
    with pytest.raises(ValueError, match="tol must lie in"):
        label_propagation(S, Y, tol=0.0)
