import pytest
import torch
from cv_graph.baselines.hypergraph import (
    HGNN,
    HGNNPlus,
    HyperGCN,
    UniGCN,
    hypergcn_propagation,
    unigcn_propagation,
)
from cv_graph.hypergraph import Hypergraph
from torch.utils._python_dispatch import TorchDispatchMode

LISTS = [[0, 1, 2, 3], [2, 4], [], [5], [1, 3, 4, 6, 7], [0, 1, 2, 3], [6, 7, 0]]
N, D = 9, 5  # node 8 is in no hyperedge
NETWORKS = [HGNN, HGNNPlus, UniGCN, HyperGCN]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def features(seed=0):
    return torch.randn(N, D, generator=generator(seed), dtype=torch.float64)


def hypergraph(weighted=False):
    weight = torch.rand(len(LISTS), generator=generator(1), dtype=torch.float64) + 0.2
    return Hypergraph.from_lists(LISTS, num_nodes=N, hyperedge_weight=weight if weighted else None)


def build(kind, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind(D, 6, 3, dropout=0.0, **options).double()
    for conv in (network.conv1, network.conv2):
        torch.nn.init.uniform_(conv.bias, generator=generator(4))
    return network


def slow_hgnn_plus(lists, w):
    """Means of hyperedges, then weighted means of nodes."""
    P = torch.zeros(N, N, dtype=torch.float64)
    for i in range(N):
        own = [e for e, members in enumerate(lists) if i in members]
        for e in own:
            for j in lists[e]:
                P[i, j] += w[e] / sum(w[other] for other in own) / len(lists[e])
    return P


def slow_unigcn(lists, self_loops):
    if self_loops:
        lists = lists + [[v] for v in range(N) if [v] not in lists]
    d = [sum(v in members for members in lists) for v in range(N)]
    P = torch.zeros(N, N, dtype=torch.float64)
    for i in range(N):
        for members in lists:
            if i in members:
                mean = sum(d[v] for v in members) / len(members)
                for j in members:
                    P[i, j] += d[i] ** -0.5 * mean**-0.5 / len(members)
    return P


def slow_hypergcn(lists, w, signal):
    A = torch.eye(N, dtype=torch.float64)
    for e, members in enumerate(lists):
        if len(members) < 2:
            continue
        pairs = [(a, b) for a in members for b in members if a < b]
        i, j = max(pairs, key=lambda pair: (signal[pair[0]] - signal[pair[1]]).norm().item())
        edges = [(i, j)] + [(end, k) for k in members if k not in (i, j) for end in (i, j)]
        assert len(edges) == 2 * len(members) - 3
        for a, b in edges:
            A[a, b] += w[e] / len(edges)
            A[b, a] += w[e] / len(edges)
    scale = A.sum(1) ** -0.5
    return scale[:, None] * A * scale


def two_layers(network, x, P1, P2):
    hidden = (P1 @ x @ network.conv1.weight + network.conv1.bias).clamp(min=0)
    return P2 @ hidden @ network.conv2.weight + network.conv2.bias


@pytest.mark.parametrize("weighted", [False, True])
def test_hgnn_plus_is_means_of_means(weighted):
    h, network, x = hypergraph(weighted), build(HGNNPlus), features()
    w = h.hyperedge_weight if weighted else torch.ones(len(LISTS), dtype=torch.float64)
    P = slow_hgnn_plus(LISTS, w)
    torch.testing.assert_close(network(x, h), two_layers(network, x, P, P))
    rows = P.sum(1)
    torch.testing.assert_close(rows, torch.tensor([1.0] * 8 + [0.0], dtype=torch.float64))


def test_hgnn_in_loops():
    network, x = build(HGNN), features()
    H = torch.zeros(N, len(LISTS), dtype=torch.float64)
    for e, members in enumerate(LISTS):
        H[members, e] = 1
    d = H.sum(1)
    P = torch.zeros(N, N, dtype=torch.float64)
    for members in LISTS:
        for i in members:
            for j in members:
                P[i, j] += 1 / len(members) / (d[i] * d[j]) ** 0.5
    torch.testing.assert_close(network(x, hypergraph()), two_layers(network, x, P, P))


@pytest.mark.parametrize("self_loops", [False, True])
def test_unigcn_in_loops(self_loops):
    P = slow_unigcn(LISTS, self_loops)
    operator = unigcn_propagation(hypergraph(), self_loops=self_loops, dtype=torch.float64)
    torch.testing.assert_close(operator.dense(), P)
    assert bool(P[8].any()) == self_loops
    network, x = build(UniGCN), features()
    torch.testing.assert_close(network(x, operator), two_layers(network, x, P, P))
    if self_loops:
        torch.testing.assert_close(network(x, hypergraph()), two_layers(network, x, P, P))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_hypergcn_in_loops(weighted, seed):
    h, x = hypergraph(weighted), features(seed)
    w = h.hyperedge_weight if weighted else [1.0] * len(LISTS)
    P = slow_hypergcn(LISTS, w, x)
    torch.testing.assert_close(hypergcn_propagation(h, x).dense(), P)
    fast = build(HyperGCN)
    torch.testing.assert_close(fast(x, h), two_layers(fast, x, P, P))
    torch.testing.assert_close(fast(x, fast.operator(h, x)), two_layers(fast, x, P, P))
    slow = build(HyperGCN, fast=False)
    first = slow_hypergcn(LISTS, w, x @ slow.conv1.weight)
    hidden = (first @ x @ slow.conv1.weight + slow.conv1.bias).clamp(min=0)
    second = slow_hypergcn(LISTS, w, hidden @ slow.conv2.weight)
    torch.testing.assert_close(slow(x, h), two_layers(slow, x, first, second))


def test_hypergcn_finds_the_pair_across_chunks(monkeypatch):
    draw = generator(2)
    index = torch.stack(
        [torch.randint(60, (300,), generator=draw), torch.randint(12, (300,), generator=draw)]
    )
    h = Hypergraph(index, num_nodes=60)
    x = torch.randn(60, 4, generator=draw, dtype=torch.float64)
    whole = hypergcn_propagation(h, x).dense()
    monkeypatch.setattr("cv_graph.baselines.hypergraph._ENTRIES", 40)
    assert torch.equal(hypergcn_propagation(h, x).dense(), whole)


def test_hypergcn_of_pairs_is_a_graph_and_of_single_nodes_nothing():
    pairs = Hypergraph.from_lists([[0, 1], [1, 2]], num_nodes=3)
    A = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.float64)
    scale = A.sum(1) ** -0.5
    P = hypergcn_propagation(pairs, features()[:3]).dense()
    torch.testing.assert_close(P, scale[:, None] * A * scale)
    alone = Hypergraph.from_lists([[0], [2], []], num_nodes=3)
    P = hypergcn_propagation(alone, features()[:3]).dense()
    torch.testing.assert_close(P, torch.eye(3, dtype=torch.float64))


def test_equal_signals_take_the_first_pair():
    h = Hypergraph.from_lists([[1, 2, 3]], num_nodes=4)
    P = hypergcn_propagation(h, torch.zeros(4, 2)).dense()
    third = 1 / 3
    A = torch.tensor([[1, 0, 0, 0], [0, 1, third, third], [0, third, 1, third],
                      [0, third, third, 1]])  # fmt: skip
    torch.testing.assert_close(P, A / A.sum(1, keepdim=True))


def test_gradients_do_not_flow_through_the_choice_of_pairs():
    network = build(HyperGCN, fast=False)
    x = features().requires_grad_()
    inputs = (x, *network.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: network(x, hypergraph()), inputs)


@pytest.mark.parametrize("kind", NETWORKS)
def test_memberships_hypergraphs_and_operators_are_taken_alike(kind):
    network, x, h = build(kind), features(), hypergraph()
    expected = network(x, h)
    torch.testing.assert_close(network(x, h.hyperedge_index), expected)
    torch.testing.assert_close(network(x, network.operator(h, x)), expected)
    single = network.float()(x.float(), h)
    torch.testing.assert_close(single, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_dropout_only_in_training(kind):
    network, x, h = build(kind), features(), hypergraph()
    expected = network(x, h)
    network.dropout = 0.5
    assert not torch.allclose(network(x, h), expected)
    assert torch.equal(network.eval()(x, h), expected)


@pytest.mark.parametrize("kind", NETWORKS)
def test_bad_input_is_refused(kind):
    name = kind.__name__
    network, x, h = build(kind), features(), hypergraph()
    with pytest.raises(ValueError, match=f"{name}: dropout must lie in"):
        kind(D, 6, 3, dropout=1.0)
    with pytest.raises(ValueError, match=f"{name}: hidden_channels must be at least 1"):
        kind(D, 0, 3)
    with pytest.raises(ValueError, match=f"{name}: x must have shape"):
        network(x[:, :4], h)
    with pytest.raises(TypeError, match=f"{name}: x must"):
        network(x.long(), h)
    with pytest.raises(ValueError, match=f"{name}: hyperedge_index"):
        network(x[:5], h.hyperedge_index)


def test_weights_without_a_place_are_refused():
    index = torch.tensor([[0, 1], [0, 0]])
    members = Hypergraph(index, incidence_weight=torch.tensor([0.5, 1.0]))
    edges = Hypergraph(index, hyperedge_weight=torch.tensor([2.0]))
    for call in (
        lambda: unigcn_propagation(members),
        lambda: unigcn_propagation(edges),
        lambda: hypergcn_propagation(members, torch.zeros(2, 3)),
    ):
        with pytest.raises(ValueError, match=r"_propagation: hypergraph must have no \w+_weight"):
            call()
    with pytest.raises(ValueError, match="hypergcn_propagation: signal"):
        hypergcn_propagation(edges, torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(ValueError, match="got an operator"):
        build(HyperGCN, fast=False)(features(), unigcn_propagation(hypergraph()))


@pytest.mark.parametrize("kind", [HGNN, HGNNPlus, HyperGCN])
def test_weights_of_hyperedges_are_taken_with_memberships(kind):
    h, x = hypergraph(weighted=True), features()
    for options in ({}, {"fast": False}) if kind is HyperGCN else ({},):
        network = build(kind, **options)
        found = network(x, h.hyperedge_index, h.hyperedge_weight)
        torch.testing.assert_close(found, network(x, h))
        assert not torch.allclose(found, network(x, h.hyperedge_index))
        with pytest.raises(ValueError, match=f"{kind.__name__}: hyperedge_weight goes with an ind"):
            network(x, h, h.hyperedge_weight)
        with pytest.raises(TypeError, match=f"{kind.__name__}: hyperedge_index must be a tensor"):
            network(x, h.lists())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", NETWORKS)
def test_half_precision_and_autocast(kind, dtype):
    h, x = hypergraph(), features().float()
    for options in ({}, {"fast": False}) if kind is HyperGCN else ({},):
        network = build(kind, **options).float()
        expected = network(x, h)
        with torch.autocast("cpu", dtype=dtype):
            torch.testing.assert_close(network(x, h).float(), expected, atol=0.1, rtol=0.05)
        found = network.to(dtype)(x.to(dtype), h)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.05)


def test_pairs_of_a_large_hyperedge_are_not_all_held(monkeypatch):
    monkeypatch.setattr("cv_graph.baselines.hypergraph._ENTRIES", 2000)
    signal = torch.randn(400, 2, generator=generator(), dtype=torch.float64)
    h = Hypergraph.from_lists([list(range(400)), [1, 2]])  # 79,800 pairs

    class Largest(TorchDispatchMode):
        entries = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.entries = max(self.entries, out.numel())
            return out

    with Largest() as seen:
        P = hypergcn_propagation(h, signal)
    assert seen.entries < 4000
    distance = torch.cdist(signal, signal)
    ends = divmod(int(distance.argmax()), 400)
    degree = (P.dense() > 0).sum(1)
    assert sorted(degree.topk(2).indices.tolist()) == sorted(ends)
