"""The prepared operator against the formula, its gradients, and what it refuses."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from cv_core.random import torch_generator
from cv_graph.hypergraph import Hypergraph
from cv_graph.propagation import (
    Propagation,
    graph_propagation,
    hypergraph_propagation,
    sparse_factor,
)


def by_formula(h, normalization):
    """Return the operator entry by entry, in loops over nodes and hyperedges."""
    H = h.incidence(torch.float64).to_dense()
    w = torch.ones(h.num_hyperedges) if h.hyperedge_weight is None else h.hyperedge_weight
    n, m = H.shape
    d = [sum(float(w[e] * H[v, e]) for e in range(m)) for v in range(n)]
    size = [sum(float(H[v, e]) for v in range(n)) for e in range(m)]
    P = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            for e in range(m):
                if size[e] and d[i] and d[j]:
                    scale = (d[i] * d[j]) ** 0.5 if normalization == "symmetric" else d[i]
                    P[i, j] += float(w[e] * H[i, e] * H[j, e]) / size[e] / scale
    return P


@pytest.mark.parametrize("normalization", ["symmetric", "random-walk"])
@pytest.mark.parametrize("name", ["odd", "drawn"])
def test_equals_the_formula_in_loops(name, normalization, request):
    h = request.getfixturevalue(name)
    P = hypergraph_propagation(h, normalization=normalization, dtype=torch.float64)
    expected = by_formula(h, normalization)
    torch.testing.assert_close(P.dense(), expected, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(P.transpose().dense(), expected.T, atol=1e-7, rtol=1e-6)


def test_hypergraph_operator_is_symmetric_and_has_its_spectrum_in_the_unit_interval(drawn):
    P = hypergraph_propagation(drawn, dtype=torch.float64).dense()
    assert torch.allclose(P, P.T, atol=1e-12)
    values = torch.linalg.eigvalsh(P)
    assert values.min() > -1e-9
    assert values.max() == pytest.approx(1.0, abs=1e-6)


def test_random_walk_rows_sum_to_one_where_a_node_has_hyperedges(odd):
    P = hypergraph_propagation(odd, normalization="random-walk").dense()
    connected = odd.node_degree() > 0
    torch.testing.assert_close(P.sum(dim=1), connected.float())
    assert not bool(connected[6])


def test_pairwise_hyperedges_give_half_the_lazy_graph_walk():
    edges = torch.tensor([[0, 1, 1, 2, 3, 0, 1], [1, 0, 2, 1, 0, 3, 3]])
    edges = torch.cat([edges, edges.flip(0)], dim=1).unique(dim=1)
    once = edges[:, edges[0] < edges[1]]
    h = Hypergraph.from_lists(once.T.tolist(), num_nodes=4)
    A = graph_propagation(edges, num_nodes=4, self_loops=False).dense()
    torch.testing.assert_close(hypergraph_propagation(h).dense(), (torch.eye(4) + A) / 2)


def test_gradients_with_respect_to_features_and_weights(drawn):
    index = drawn.hyperedge_index

    def run(weight, incidence, x):
        h = Hypergraph(
            index, num_nodes=40, num_hyperedges=25, hyperedge_weight=weight,
            incidence_weight=incidence,
        )  # fmt: skip
        return hypergraph_propagation(h, dtype=torch.float64)(x)

    generator = torch_generator(1, "gradients")
    inputs = (
        drawn.hyperedge_weight.double().requires_grad_(),
        drawn.incidence_weight.double().requires_grad_(),
        torch.randn(40, 2, dtype=torch.float64, generator=generator).requires_grad_(),
    )
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_a_weight_of_zero_has_a_finite_gradient(odd):
    weight = odd.hyperedge_weight.clone().requires_grad_()
    h = Hypergraph(odd.hyperedge_index, num_nodes=7, num_hyperedges=8, hyperedge_weight=weight)
    hypergraph_propagation(h)(torch.ones(7, 2)).sum().backward()
    assert torch.isfinite(weight.grad).all()


def test_learned_entries_are_read_anew_in_every_pass():
    values = torch.tensor([2.0], requires_grad=True)
    factor = sparse_factor(torch.tensor([0]), torch.tensor([0]), values, (1, 1))
    P, x = Propagation(factor), torch.ones(1, 1)
    assert P(x).item() == 2.0
    with torch.no_grad():
        factor.values.mul_(3.0)
    assert P(x).item() == 6.0


def test_graph_operator_equals_the_formula():
    edges = torch.tensor([[0, 1, 2, 2, 2, 3], [1, 2, 0, 0, 3, 3]])  # directed, repeated, a loop
    weight = torch.tensor([1.0, 2.0, 0.5, 0.25, 0.0, 4.0])
    A = torch.zeros(5, 5)
    for (source, target), value in zip(edges.T.tolist(), weight.tolist(), strict=True):
        A[target, source] += value
    looped = A + torch.diag((A.diagonal() == 0).float())
    d = looped.sum(dim=1)
    P = graph_propagation(edges, weight, num_nodes=5)
    torch.testing.assert_close(P.dense(), d[:, None] ** -0.5 * looped * d**-0.5)
    P = graph_propagation(edges, weight, num_nodes=5, normalization="random-walk")
    torch.testing.assert_close(P.dense(), looped / d[:, None])


def test_an_isolated_node_without_loop_gets_nothing():
    P = graph_propagation(torch.tensor([[0, 1], [1, 0]]), num_nodes=3, self_loops=False)
    assert P(torch.ones(3, 1)).flatten().tolist() == [1.0, 1.0, 0.0]


def test_power_applies_the_operator_again_and_again(drawn):
    P = hypergraph_propagation(drawn, dtype=torch.float64)
    torch.testing.assert_close(P.power(3).dense(), torch.linalg.matrix_power(P.dense(), 3))


def test_half_precision_is_computed_in_single(odd):
    P = hypergraph_propagation(odd)
    x = torch.ones(7, 2, dtype=torch.bfloat16)
    assert P(x).dtype == torch.float32
    assert torch.equal(P(x), P(x.float()))
    assert P.to(torch.float64)(torch.ones(7, 2, dtype=torch.float64)).dtype == torch.float64


def test_a_nan_reaches_only_the_nodes_that_share_a_hyperedge(odd):
    x = torch.zeros(7, 1)
    x[0] = float("nan")
    reached = hypergraph_propagation(odd)(x).isnan().flatten().nonzero().flatten()
    assert reached.tolist() == [0, 1, 2]


def test_no_warning_is_given_and_no_filter_is_left_behind(odd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        hypergraph_propagation(odd)(torch.ones(7, 1))
        assert warnings.filters == before


def test_what_does_not_fit_is_refused(odd):
    P = hypergraph_propagation(odd)
    with pytest.raises(ValueError, match="must have shape"):
        P(torch.ones(6, 2))
    with pytest.raises(ValueError, match=r"x is torch.float64, the operator torch.float32.*\.to"):
        P(torch.ones(7, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x is on meta"):
        P(torch.ones(7, 2, device="meta"))
    with pytest.raises(ValueError, match="at least one factor"):
        Propagation()
    with pytest.raises(ValueError, match="do not fit"):
        Propagation(P.factors[0], P.factors[0])
    with pytest.raises(ValueError, match="normalization"):
        hypergraph_propagation(odd, normalization="none")
    with pytest.raises(ValueError, match=r"edge_index\[1, 0\] is target 4"):
        graph_propagation(torch.tensor([[0], [4]]), num_nodes=3)
    with pytest.raises(ValueError, match="entry 0 is -1"):
        graph_propagation(torch.tensor([[0], [1]]), torch.tensor([-1.0]), num_nodes=3)


def test_copies_of_a_used_operator_are_the_operator(drawn):
    P = hypergraph_propagation(drawn)
    x = torch.randn(40, 2, generator=torch_generator(0, "x"), requires_grad=True)
    expected = P(x)
    expected.sum().backward()  # both directions are kept now
    for again in (copy.deepcopy(P), pickle.loads(pickle.dumps(P))):  # noqa: S301 - our own
        other = x.detach().clone().requires_grad_()
        assert torch.equal(again(other), expected)
        again(other).sum().backward()
        assert torch.equal(other.grad, x.grad)


def test_entries_that_change_in_place_change_the_gradient_too(odd):
    P = hypergraph_propagation(odd)
    x = torch.ones(7, 1, requires_grad=True)
    (before,) = torch.autograd.grad(P(x).sum(), x)
    P.factors[0].values.mul_(3.0)
    (after,) = torch.autograd.grad(P(x).sum(), x)
    torch.testing.assert_close(after, 3.0 * before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_degrees_are_counted_in_single_precision(dtype):
    h = Hypergraph.from_lists([list(range(600))])
    P = hypergraph_propagation(h, dtype=dtype)
    assert torch.equal(P.dense(), hypergraph_propagation(h).dense())
    star = torch.stack([torch.arange(1, 600), torch.zeros(599, dtype=torch.long)])
    P = graph_propagation(star, num_nodes=600, dtype=dtype)
    assert torch.equal(P.dense(), graph_propagation(star, num_nodes=600).dense())
