import dataclasses
from functools import partial

import pytest
import torch
from cv_core.data.kinds import Graph, Hypergraph
from cv_core.data.sources import load
from cv_core.experiment.trial import SkipTrial, Trial, merge_settings
from cv_core.metrics.cost import count_macs
from cv_graph.baselines.hypergraph import HGNN, HGNNPlus, HyperGCN, UniGCN
from cv_graph.experiments._node_problems import (
    edges_of,
    problem_of,
    split_of,
    with_nobody_left_out,
)
from cv_graph.experiments.hybrid_hgcn import (
    _ARMS,
    EXPERIMENT,
    OWN,
    gcn,
    hgnn_plus,
    hypergcn,
    nothing,
    operator_powers,
    order_one_thrice,
    orders,
    unigcn,
)
from cv_graph.hypergraph import Hypergraph as Incidences
from cv_graph.methods.hybrid_hgcn import HybridHGCN

ORIGIN = load("karate-club").origin


def trial(arm="HGNN", *, data=None, seed=0, **over):
    settings = merge_settings(EXPERIMENT.settings["smoke"], {"nodes": 80, "epochs": 12, **over})
    made = Trial(
        arm=arm, case=OWN, seed=seed, budget="smoke", source="digits-matrix", settings=settings
    )
    if data is not None:
        made.__dict__["data"] = data
    return made


def bags(n, words=9, seed=0):
    return (torch.rand(n, words, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


def hypergraph_data(x=None):
    index = torch.tensor([[0, 1, 2, 2, 3, 5, 6], [0, 0, 0, 1, 1, 2, 2]])
    y = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    split = (torch.tensor([1, 0]), torch.arange(2, 8))
    x = bags(8) if x is None else x
    return Hypergraph(x, index, y, (split, split[::-1]), ("a", "b"), ORIGIN)


def graph_data():
    edges = torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
    masks = [torch.zeros(6, dtype=torch.bool) for _ in range(3)]
    masks[0][:2] = masks[2][2:] = True
    y = torch.tensor([0, 1, 0, 1, 0, -1])
    return Graph(bags(6), edges, y, *masks, ("a", "b"), ORIGIN)


def test_arms_report_what_is_declared_and_start_alike():
    declared = {metric.name for metric in EXPERIMENT.metrics}
    seen, starts = {}, {}
    for arm in EXPERIMENT.arms:
        made = trial(arm.name)
        numbers = arm.run(made)
        assert set(numbers) <= declared
        assert 0 <= numbers["test accuracy"] <= 100
        assert arm.run(trial(arm.name)) == numbers
        seen[arm.name] = numbers
        if arm.name != "label spreading":
            course = made.record.curves["train loss"]
            assert [step for step, _ in course] == [0, 10, 11]
            assert course[-1][1] < course[0][1]
            assert made.record.costs["steps"] == 12
            starts[arm.name] = made.record.costs["parameters"]
    assert len(set(starts.values())) == 1
    winners = [[row.get(f"won by order {k}") for k in (1, 2, 3)] for row in seen.values()]
    with_winners = [name for name, row in zip(seen, winners, strict=True) if row[0] is not None]
    assert with_winners == ["HybridHGCN", "operator powers"]
    assert all(sum(row) == pytest.approx(100) for row in winners if row[0] is not None)
    entries = {name: row["operator entries"] for name, row in seen.items()}
    assert entries["HybridHGCN"] == sum(entries[k] for k in ("HGNN", "order 2", "order 3"))
    assert entries["operator powers"] == 6 * entries["HGNN"]
    assert entries["MLP"] == 80


def test_the_classes_of_test_nodes_are_not_seen():
    made, other = trial(), trial()
    (arm,) = [arm for arm in _ARMS if arm.name == "HybridHGCN"]
    arm.run(made)
    data = other.data
    split = split_of(other, problem_of(other))
    y = data.y.copy()
    y[split.test.numpy()] = (y[split.test.numpy()] + 1) % 10
    spoiled = dataclasses.replace(data, y=y)
    # the same nodes must train although the split is drawn by the classes
    other.__dict__["data"] = spoiled
    import cv_graph.experiments.hybrid_hgcn as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "split_of", lambda *_: split)
        arm.run(other)
    assert other.record.curves == made.record.curves


def test_operators_are_those_of_the_networks():
    problem = problem_of(trial())
    h, x = problem.hypergraph, problem.x
    for made, network in (
        (partial(orders, chosen=(1,)), HGNN),
        (hgnn_plus, HGNNPlus),
        (hypergcn, HyperGCN),
        (unigcn, UniGCN),
    ):
        (operator,) = made(problem)
        assert torch.equal(operator.dense(), network(64, 4, 4).operator(h, x).dense())
    first, second, third = (operator.dense() for operator in operator_powers(problem))
    torch.testing.assert_close(second, first @ first)
    torch.testing.assert_close(third, first @ first @ first)
    assert len({id(operator) for operator in order_one_thrice(problem)}) == 1
    assert torch.equal(nothing(problem)[0].dense(), torch.eye(80))


def test_graphs_get_their_neighbourhoods_and_give_their_edges_back():
    data = graph_data()
    problem = problem_of(trial(data=data))
    assert problem.hypergraph.lists() == [[0, 1], [0, 1, 2], [1, 2], [3, 4], [3, 4], [5]]
    assert torch.equal(edges_of(problem), data.edge_index)
    degree = torch.tensor([2.0, 3, 2, 2, 2, 1])
    A = torch.eye(6)
    A[data.edge_index[0], data.edge_index[1]] = 1
    (operator,) = gcn(problem)
    torch.testing.assert_close(operator.dense(), A / (degree[:, None] * degree).sqrt())
    torch.testing.assert_close(problem.x.sum(1), data.x.any(1).float())
    torch.testing.assert_close(problem.inputs.dense(), problem.x)


def test_nearest_neighbours_of_bags_go_by_angle_and_leave_empty_ones_out():
    x = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]])
    data = dataclasses.replace(
        graph_data(), x=x, y=torch.tensor([0, 0, -1, 1, 1]), edge_index=torch.zeros(2, 0).long()
    )
    made = trial(data=data, neighbours=2, per_class=1)
    problem = problem_of(made)
    assert problem.y.tolist() == [0, 0, 1, 1]
    assert problem.hypergraph.lists() == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert len(split_of(made, problem).test) == 2
    with pytest.raises(SkipTrial, match="left out"):
        split_of(trial(data=data, published=True), problem)


def test_hypergraphs_keep_their_hyperedges_and_nobody_is_left_out():
    data = hypergraph_data()
    problem = problem_of(trial(data=data))
    assert problem.rule == "gram"
    assert problem.hypergraph.lists() == [[0, 1, 2], [2, 3], [5, 6], [4], [7]]
    pairs = {tuple(pair) for pair in edges_of(problem).T.tolist()}
    expected = {(0, 1), (0, 2), (1, 2), (2, 3), (5, 6)}
    assert pairs == expected | {pair[::-1] for pair in expected}
    whole = Incidences.from_lists([[0, 1], [2]])
    assert with_nobody_left_out(whole).lists() == [[0, 1], [2]]
    assert problem_of(trial(data=load("digits-hypergraph"))).rule == "power"


def test_hyperedges_that_were_added_leave_no_power():
    data = hypergraph_data()
    index = torch.cat([data.hyperedge_index, torch.tensor([[5, 6], [3, 7]])], dim=1)
    square = dataclasses.replace(data, hyperedge_index=index)  # 8 hyperedges, 4 and 7 in none
    problem = problem_of(trial(data=square))
    assert (problem.hypergraph.num_hyperedges, problem.rule) == (10, "gram")
    assert len(orders(problem, chosen=(1, 2))) == 2


def test_published_splits_are_taken_by_the_seed():
    data = hypergraph_data()
    problem = problem_of(trial(data=data))
    assert split_of(trial(data=data, seed=0), problem).train.tolist() == [0, 1]
    assert split_of(trial(data=data, seed=1), problem).test.tolist() == [0, 1]
    with pytest.raises(SkipTrial, match="there are 2 published splits"):
        split_of(trial(data=data, seed=2), problem)
    graph = graph_data()
    problem = problem_of(trial(data=graph))
    for seed in (0, 1):
        split = split_of(trial(data=graph, seed=seed, published=True), problem)
        assert split.train.tolist() == [0, 1]
    drawn = split_of(trial(data=graph, per_class=1), problem)
    assert len(drawn.test) == 3  # the node without a class is in no part


def test_sparse_work_is_counted_by_entries():
    made = trial("MLP")
    next(arm for arm in EXPERIMENT.arms if arm.name == "MLP").run(made)
    problem = problem_of(made)
    model = HybridHGCN(64, 32, 10, orders=(1,))
    # without propagation the counter of dense products is right, but for the identity's entries
    dense = count_macs(torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 10)),
                       problem.x)  # fmt: skip
    assert made.record.costs["macs"] == dense + 80 * (32 + 10)
    assert made.record.costs["parameters"] == sum(p.numel() for p in model.parameters())


def test_data_of_other_kinds_are_skipped():
    matrix = dataclasses.replace(load("digits-matrix"), y=None)
    for data, reason in ((load("digits"), "a graph, a hypergraph"), (matrix, "need classes")):
        with pytest.raises(SkipTrial, match=reason):
            problem_of(trial(data=data))
