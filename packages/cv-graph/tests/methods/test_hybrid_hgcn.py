from itertools import pairwise

import numpy as np
import pytest
import torch
from cv_graph.baselines.hypergraph import HGNN
from cv_graph.construction import knn_hypergraph, neighborhood_hypergraph
from cv_graph.hypergraph import Hypergraph
from cv_graph.methods.hybrid_hgcn import (
    HybridHGCN,
    hypergraph_power,
    order_propagations,
    sparse_features,
)
from cv_graph.propagation import graph_propagation, hypergraph_propagation

MIXES = ("max", "mean", "attention")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_graph(n=14, edges=16, seed=0):
    """An undirected graph with both directions of every edge, and one isolated node."""
    pairs = torch.randint(n - 1, (2, edges), generator=generator(seed))
    pairs = pairs[:, pairs[0] != pairs[1]]
    return torch.cat([pairs, pairs.flip(0)], dim=1).unique(dim=1)


def random_hypergraph(n=10, m=10, seed=0, weighted=False):
    draw = generator(seed)
    H = torch.rand(n, m, generator=draw, dtype=torch.float64)
    H = H * (torch.rand(n, m, generator=draw) < 0.3)
    weight = torch.rand(m, generator=draw, dtype=torch.float64) + 0.1 if weighted else None
    return Hypergraph.from_incidence(H, hyperedge_weight=weight)


def dense(hypergraph):
    return hypergraph.incidence(torch.float64).to_dense()


def features(n=10, d=6, seed=1):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def network(**options):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        built = HybridHGCN(6, 8, 4, **{"dropout": 0.0, **options}).double()
        if built.attention is not None:
            torch.nn.init.normal_(built.attention)
        return built


def slow_operator(H, w):
    """The operator of an incidence matrix, entry by entry."""
    (n, m), d, delta = H.shape, (w * H).sum(1), H.sum(0)
    P = torch.zeros(n, n, dtype=H.dtype)
    for i in range(n):
        for j in range(n):
            for e in range(m):
                if H[i, e] * H[j, e] > 0:
                    P[i, j] += H[i, e] * w[e] * H[j, e] / delta[e] / (d[i] * d[j]) ** 0.5
    return P


def slow_network(model, x, H, w, orders):
    """The paper's equations, order by order, and mixed entry by entry."""
    branches = []
    for k, order in enumerate(orders):
        first, second = (convs[k % len(convs)] for convs in (model.conv1, model.conv2))
        power = H
        for _ in range(order - 1):
            power = H @ power if H.shape[0] == H.shape[1] else H @ H.T @ power
        P = slow_operator(power, w)
        hidden = (P @ x @ first.weight + first.bias).clamp(min=0)
        branches.append(P @ hidden @ second.weight + second.bias)
    out = torch.zeros_like(branches[0])
    for i in range(len(out)):
        rows = [branch[i] for branch in branches]
        if model.mix == "max":
            for c in range(out.shape[1]):
                out[i, c] = max(row[c] for row in rows)
        elif model.mix == "mean":
            out[i] = sum(rows) / len(rows)
        else:
            score = torch.stack([row @ model.attention for row in rows]).exp()
            out[i] = sum(s * row for s, row in zip(score / score.sum(), rows, strict=True))
    return out


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("m", [10, 7])
def test_network_equals_its_equations(mix, shared, m):
    hypergraph, x = random_hypergraph(m=m, weighted=True), features()
    model = network(mix=mix, share_weights=shared)
    for conv in (*model.conv1, *model.conv2):
        torch.nn.init.uniform_(conv.bias, generator=generator(5))
    expected = slow_network(model, x, dense(hypergraph), hypergraph.hyperedge_weight, (1, 2, 3))
    given = order_propagations(hypergraph, dtype=torch.float64)
    torch.testing.assert_close(model(x, given), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(model(x, hypergraph), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(model(sparse_features(x), given), expected, rtol=1e-9, atol=1e-11)


def test_memberships_are_taken_like_the_hypergraph():
    x = features()
    hypergraph = knn_hypergraph(x, 4)
    model = network()
    torch.testing.assert_close(model(x, hypergraph.hyperedge_index), model(x, hypergraph))


def test_property_1_order_one_is_hgnn():
    hypergraph, x = random_hypergraph(), features()
    plain = HGNN(6, 8, 4, dropout=0.0).double()
    expected = plain(x, hypergraph)
    for mix in MIXES:
        for orders in ((1,), (1, 1, 1)):
            model = network(orders=orders, mix=mix)
            model.conv1[0].load_state_dict(plain.conv1.state_dict())
            model.conv2[0].load_state_dict(plain.conv2.state_dict())
            torch.testing.assert_close(model(x, hypergraph), expected)
    # with dropout each branch draws a mask of its own, and the largest answer is not one's
    model.dropout = 0.5
    masked = model.train().branches(x, hypergraph)
    assert not torch.allclose(masked[0], masked[1])
    assert torch.equal(model.eval().branches(x, hypergraph)[0], model.branches(x, hypergraph)[1])


def test_order_one_starts_from_the_weights_of_hgnn():
    states = []
    for build in (lambda: HGNN(6, 8, 4), lambda: HybridHGCN(6, 8, 4)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            states.append(list(build().parameters()))
    assert all(map(torch.equal, *states))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("m", [10, 6])
def test_property_2_operators_are_symmetric_with_spectrum_in_0_1(order, m):
    hypergraph = random_hypergraph(m=m, seed=order, weighted=True)
    power = hypergraph_power(hypergraph, order)
    P = hypergraph_propagation(power, dtype=torch.float64).dense()
    torch.testing.assert_close(P, P.T)
    spectrum = torch.linalg.eigvalsh(P)
    assert float(spectrum.min()) > -1e-12
    assert float(spectrum.max()) < 1 + 1e-12
    root = (dense(power) @ hypergraph.hyperedge_weight).sqrt()
    torch.testing.assert_close(P @ root, root)


def relabelled(hypergraph, nodes, edges):
    """Send node i to nodes[i] and hyperedge e to edges[e]."""
    node, edge = hypergraph.hyperedge_index
    H = torch.zeros(hypergraph.num_nodes, hypergraph.num_hyperedges, dtype=torch.float64)
    H[nodes[node], edges[edge]] = hypergraph.incidence_values(torch.float64)
    weight = torch.empty_like(hypergraph.hyperedge_weight)
    weight[edges] = hypergraph.hyperedge_weight
    return Hypergraph.from_incidence(H, hyperedge_weight=weight)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_property_3_permutations(order):
    hypergraph, x = random_hypergraph(weighted=True), features()
    model = network(orders=(order,))
    answer = model(x, hypergraph)
    nodes, edges = (torch.randperm(10, generator=generator(seed)) for seed in (7, 8))
    stay = torch.arange(10)
    moved = torch.empty_like(x)
    moved[nodes] = x
    # nodes together with the hyperedges centred at them
    together = model(moved, relabelled(hypergraph, nodes, nodes))
    torch.testing.assert_close(together[nodes], answer)
    # nodes alone, or hyperedges alone: only where columns have no centres
    same = [
        torch.allclose(model(moved, relabelled(hypergraph, nodes, stay))[nodes], answer),
        torch.allclose(model(x, relabelled(hypergraph, stay, edges)), answer),
    ]
    assert same == [order == 1] * 2
    # the extension has no centres in any order
    for changed in (hypergraph, relabelled(hypergraph, stay, edges)):
        P = order_propagations(changed, (order,), rule="gram", dtype=torch.float64)[0].dense()
        first = P if changed is hypergraph else first
        torch.testing.assert_close(P, first)


def distances(edge_index, n):
    """Steps between any two nodes, by breadth-first search."""
    near = [set() for _ in range(n)]
    for a, b in edge_index.T.tolist():
        near[a].add(b)
    found = np.full((n, n), np.inf)
    for start in range(n):
        front, step = {start}, 0
        while front:
            for node in front:
                found[start, node] = step
            step += 1
            front = {b for a in front for b in near[a] if found[start, b] == np.inf}
    return torch.from_numpy(found)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_property_4_supports_are_balls(order):
    edges = random_graph(20, 16)
    hypergraph = neighborhood_hypergraph(edges, num_nodes=20)
    steps = distances(edges, 20)
    assert float(steps[steps.isfinite()].max()) > 6  # the largest ball is not everything
    support = dense(hypergraph_power(hypergraph, order)) > 0
    assert torch.equal(support, steps <= order)
    P = order_propagations(hypergraph, (order,))[0].dense() > 0
    assert torch.equal(P, steps <= 2 * order)
    forgetful = hypergraph_power(hypergraph, order, binarize=True)
    assert torch.equal(dense(forgetful), support.double())


def test_property_4_supports_grow_with_the_order():
    hypergraph = knn_hypergraph(features(20, 3), 3, weight="hgnn")
    supports = [dense(hypergraph_power(hypergraph, order)) > 0 for order in (1, 2, 3, 4)]
    for small, large in pairwise(supports):
        assert bool((large | ~small).all())
    assert int(supports[0].sum()) < int(supports[2].sum()) < 400


def test_property_5_pairwise_hyperedges_are_a_graph():
    edges = random_graph()
    pairs = edges[:, edges[0] < edges[1]]
    hypergraph = Hypergraph.from_lists(pairs.T.tolist(), num_nodes=14)
    adjacency = graph_propagation(edges, num_nodes=14, self_loops=False, dtype=torch.float64)
    inside = torch.diag((hypergraph.node_degree() > 0).double())
    P = hypergraph_propagation(hypergraph, dtype=torch.float64).dense()
    torch.testing.assert_close(P, (inside + adjacency.dense()) / 2)


def test_property_6_the_maximum_and_where_its_gradient_flows():
    hypergraph, x = random_hypergraph(), features()
    model = network(share_weights=False)
    branches = model.branches(x, hypergraph)
    mixed = model(x, hypergraph)
    assert bool((mixed >= branches).all())
    winner = branches.argmax(dim=0)
    for row, column in ((0, 0), (3, 2), (9, 1)):
        model.zero_grad()
        model(x, hypergraph)[row, column].backward()
        moved = [bool(conv.weight.grad is not None and conv.weight.grad.any())
                 for conv in model.conv2]  # fmt: skip
        assert moved == [k == int(winner[row, column]) for k in range(3)]
    # a tie, here everywhere, goes to one branch as well
    tied = network(orders=(1, 1), share_weights=False)
    tied.conv1[1].load_state_dict(tied.conv1[0].state_dict())
    tied.conv2[1].load_state_dict(tied.conv2[0].state_dict())
    tied(x, hypergraph)[0, 0].backward()
    assert sum(bool(conv.weight.grad.any()) for conv in tied.conv2) == 1


@pytest.mark.parametrize("rule", ["auto", "gram"])
@pytest.mark.parametrize("m", [10, 6])
def test_powers_by_dense_products(rule, m):
    hypergraph = random_hypergraph(m=m, weighted=True)
    H = dense(hypergraph)
    for order in (1, 2, 3):
        step = H if rule == "auto" and m == 10 else H @ H.T
        power = hypergraph_power(hypergraph, order, rule=rule)
        torch.testing.assert_close(dense(power), torch.linalg.matrix_power(step, order - 1) @ H)
        assert power.hyperedge_weight is hypergraph.hyperedge_weight
    assert dense(hypergraph_power(hypergraph, 1, binarize=True)).unique().tolist() == [0, 1]


def test_columns_and_not_rows_are_hyperedges():
    hypergraph = knn_hypergraph(features(12, 2), 3)
    turned = Hypergraph.from_incidence(dense(hypergraph).T)
    one, other = (order_propagations(item, (2,))[0].dense() for item in (hypergraph, turned))
    assert not torch.allclose(one, other)


def test_gradients_reach_the_weights_of_hyperedges():
    x = features()
    weight = torch.ones(10, dtype=torch.float64, requires_grad=True)
    base = random_hypergraph()
    hypergraph = Hypergraph(
        base.hyperedge_index,
        num_nodes=10,
        num_hyperedges=10,
        hyperedge_weight=weight,
        incidence_weight=base.incidence_weight,
    )
    network(mix="mean")(x, hypergraph).square().sum().backward()
    assert bool((weight.grad != 0).all())


def test_a_node_in_no_hyperedge_gets_the_offset():
    hypergraph = Hypergraph.from_lists([[0, 1], [1, 2]], num_nodes=10)
    model = network()
    torch.nn.init.uniform_(model.conv2[0].bias, generator=generator())
    answer = model(features(), hypergraph)
    assert torch.equal(answer[5], model.conv2[0].bias)


def test_bad_options_and_input_are_refused():
    x = features()
    hypergraph = random_hypergraph()
    for options, message in (
        ({"orders": ()}, "number of orders must be at least 1"),
        ({"orders": (0, 1)}, "orders must be at least 1"),
        ({"mix": "min"}, "mix must be one of"),
        ({"dropout": 1.0}, "dropout must lie in"),
    ):
        with pytest.raises(ValueError, match=f"HybridHGCN: {message}"):
            HybridHGCN(6, 8, 4, **options)
    model = network()
    operators = order_propagations(hypergraph, dtype=torch.float64)
    with pytest.raises(ValueError, match="HybridHGCN: one operator"):
        model(x, operators[:2])
    with pytest.raises(ValueError, match="HybridHGCN: one operator"):
        model(x[:9], operators)
    with pytest.raises(ValueError, match="HybridHGCN: x must have 6 columns; got 5"):
        model(sparse_features(x[:, :5]), operators)
    with pytest.raises(ValueError, match="hyperedge_index"):
        model(x, hypergraph.hyperedge_index + 1)
    with pytest.raises(ValueError, match="needs one hyperedge per node"):
        hypergraph_power(random_hypergraph(m=6), 2, rule="power")
    with pytest.raises(ValueError, match="order must be at least 1"):
        hypergraph_power(hypergraph, 0)
    learned = Hypergraph(
        hypergraph.hyperedge_index,
        incidence_weight=hypergraph.incidence_weight.clone().requires_grad_(),
    )
    with pytest.raises(ValueError, match="must not carry gradients"):
        hypergraph_power(learned, 2)
    assert hypergraph_power(learned, 1).incidence_weight is learned.incidence_weight


def test_weights_of_hyperedges_and_a_single_operator_are_taken():
    hypergraph, x = knn_hypergraph(features(), 4), features()
    weight = torch.rand(10, generator=generator(), dtype=torch.float64) + 0.1
    weighted = Hypergraph(hypergraph.hyperedge_index, hyperedge_weight=weight)
    model = network()
    found = model(x, hypergraph.hyperedge_index, weight)
    torch.testing.assert_close(found, model(x, weighted))
    assert not torch.allclose(found, model(x, hypergraph))
    operators = order_propagations(hypergraph, dtype=torch.float64)
    for given in (weighted, operators):
        with pytest.raises(ValueError, match="HybridHGCN: hyperedge_weight goes with an index"):
            model(x, given, weight)
    one = network(orders=(1,))
    assert torch.equal(one(x, operators[0]), one(x, operators[:1]))
    with pytest.raises(ValueError, match="HybridHGCN: one operator"):
        model(x, operators[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    x, model = features().float(), network().float()
    hypergraph = knn_hypergraph(x, 4)
    expected = model(x, hypergraph)
    model = model.to(dtype)
    for given in (x.to(dtype), sparse_features(x.to(dtype))):
        torch.testing.assert_close(model(given, hypergraph).float(), expected, atol=0.05, rtol=0.05)
