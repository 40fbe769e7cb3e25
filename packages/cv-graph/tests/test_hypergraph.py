"""Hypergraphs: what they hold, what they refuse."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from cv_graph.hypergraph import Hypergraph
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

LISTS = st.lists(st.lists(st.integers(0, 8), max_size=6), min_size=1, max_size=12)


@given(LISTS)
def test_lists_come_back_sorted_and_without_repeats(lists):
    h = Hypergraph.from_lists(lists, num_nodes=9)
    assert h.lists() == [sorted(set(members)) for members in lists]
    assert h.num_hyperedges == len(lists)


def sparse_rows(dense):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its compressed layouts a beta
        return dense.to_sparse_csr()


@given(LISTS)
def test_incidence_of_every_kind_gives_the_same_hypergraph(lists):
    dense = torch.zeros(9, len(lists))
    for edge, members in enumerate(lists):
        dense[members, edge] = 1.0
    for kind in (
        dense,
        dense.bool(),
        dense.numpy(),
        dense.to_sparse_coo(),
        sparse_rows(dense),
        sparse.csr_array(dense.numpy()),
        sparse.coo_matrix(dense.numpy()),
    ):
        h = Hypergraph.from_incidence(kind)
        assert h.lists() == [sorted(set(members)) for members in lists]
        assert torch.equal(h.incidence().to_dense(), dense)
        assert h.incidence_weight is None


def test_weights_of_memberships_are_kept_through_the_sorting(drawn):
    dense = drawn.incidence(torch.float64).to_dense()
    np.testing.assert_array_equal(drawn.scipy_incidence().toarray(), dense.numpy())
    again = Hypergraph.from_incidence(dense.float())
    assert torch.equal(again.hyperedge_index, drawn.hyperedge_index)
    assert torch.equal(again.incidence_weight, drawn.incidence_weight)


def test_degrees_are_the_sums_of_the_weighted_incidence(drawn, odd):
    for h in (drawn, odd):
        H = h.incidence().to_dense()
        torch.testing.assert_close(h.node_degree(), H @ h.hyperedge_weight)
        torch.testing.assert_close(h.hyperedge_size(), H.sum(dim=0))


def test_order_of_columns_does_not_matter(drawn):
    turned = torch.arange(drawn.hyperedge_index.shape[1]).flip(0)
    again = Hypergraph(
        drawn.hyperedge_index[:, turned], incidence_weight=drawn.incidence_weight[turned],
        num_nodes=40, num_hyperedges=25,
    )  # fmt: skip
    assert torch.equal(again.hyperedge_index, drawn.hyperedge_index)
    assert torch.equal(again.incidence_weight, drawn.incidence_weight)


def test_a_repeated_membership_counts_once():
    index = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1]])
    h = Hypergraph(index, incidence_weight=torch.tensor([0.5, 1.0, 0.5, 2.0]))
    assert h.hyperedge_index.tolist() == [[0, 1, 1], [0, 0, 1]]
    assert h.incidence_weight.tolist() == [1.0, 0.5, 2.0]


def test_a_repeated_membership_with_two_weights_is_refused():
    index = torch.tensor([[1, 0, 1], [0, 0, 0]])
    with pytest.raises(ValueError, match=r"columns 0 and 2 .*node 1, hyperedge 0.*merge"):
        Hypergraph(index, incidence_weight=torch.tensor([0.5, 1.0, 0.25]))


@pytest.mark.parametrize(
    ("index", "options", "message"),
    [
        ([[0, 5], [0, 0]], {"num_nodes": 3}, r"hyperedge_index\[0, 1\] is node 5.*3 nodes"),
        ([[0, 1], [0, -2]], {}, r"hyperedge_index\[1, 1\] is hyperedge -2"),
        ([[0, 1], [0, 7]], {"num_hyperedges": 2}, r"\[1, 1\] is hyperedge 7.*lie in \[0, 1\]"),
        ([[0, 1]], {}, r"shape \(2, e\): row 0 the node, row 1 the hyperedge"),
        ([[0, 1], [0, 0]], {"hyperedge_weight": torch.tensor([-1.0])}, "entry 0 is -1"),
        ([[0, 1], [0, 0]], {"hyperedge_weight": torch.ones(3)}, r"shape \(1,\); got \(3,\)"),
        (
            [[0, 1], [0, 0]],
            {"incidence_weight": torch.tensor([1.0, float("nan")])},
            "entry 1 is nan",
        ),
        (
            [[0, 1], [0, 0]],
            {"incidence_weight": torch.tensor([float("inf"), 1.0])},
            "entry 0 is inf",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(index, options, message):
    with pytest.raises(ValueError, match=message):
        Hypergraph(torch.tensor(index), **options)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="integers"):
        Hypergraph(torch.tensor([[0.0], [1.0]]))
    with pytest.raises(TypeError, match="must be a tensor"):
        Hypergraph([[0], [1]])
    with pytest.raises(TypeError, match="floating-point"):
        Hypergraph(torch.tensor([[0], [0]]), hyperedge_weight=torch.tensor([1]))
    with pytest.raises(TypeError, match="integers"):
        Hypergraph.from_lists([[0, 1.5]])
    with pytest.raises(TypeError, match="integers"):
        Hypergraph.from_lists([["a"]])
    with pytest.raises(ValueError, match="must be a matrix"):
        Hypergraph.from_incidence(torch.zeros(3))
    for kind in (torch.tensor, np.array, sparse.csr_array):
        with pytest.raises(ValueError, match=r"from_incidence: .*; entry \[1, 2\] is -1"):
            Hypergraph.from_incidence(kind([[1.0, 0.0, 2.0], [0.0, 0.0, -1.0]]))
    with pytest.raises(ValueError, match=r"entry \[0, 1\] is nan"):
        Hypergraph.from_incidence(torch.tensor([[1.0, torch.nan]]))


def test_nothing_at_all_is_a_hypergraph():
    h = Hypergraph(torch.empty(2, 0, dtype=torch.long), num_nodes=3, num_hyperedges=2)
    assert h.lists() == [[], []]
    assert h.node_degree().tolist() == [0.0, 0.0, 0.0]
    assert Hypergraph.from_lists([[], []], num_nodes=1).num_hyperedges == 2


def test_a_copy_elsewhere_keeps_everything(drawn):
    again = drawn.to("cpu")
    for name in ("hyperedge_index", "hyperedge_weight", "incidence_weight"):
        assert torch.equal(getattr(again, name), getattr(drawn, name))
    assert (again.num_nodes, again.num_hyperedges) == (40, 25)


def test_a_list_that_does_not_fit_is_named():
    lists = [[0, 1], [], [2, 0, 7]]
    with pytest.raises(ValueError, match=r"hyperedges\[2\]\[2\] is node 7; .* there are 7"):
        Hypergraph.from_lists(lists, num_nodes=7)
    with pytest.raises(ValueError, match=r"hyperedges\[1\]\[0\] is node -3; .* from 0\."):
        Hypergraph.from_lists([[0], [-3]])
    assert Hypergraph.from_lists(lists, num_nodes=8).lists() == [[0, 1], [], [0, 2, 7]]


def test_double_precision_of_the_memberships_is_kept():
    weight = torch.tensor([0.1, 0.3], dtype=torch.float64)
    h = Hypergraph(torch.tensor([[0, 1], [0, 0]]), incidence_weight=weight)
    assert torch.equal(h.incidence_values(), weight)
    assert torch.equal(h.node_degree(), weight)
    assert h.hyperedge_size().item() == 0.1 + 0.3
    many = Hypergraph(
        torch.stack([torch.arange(600), torch.zeros(600, dtype=torch.long)]),
        incidence_weight=torch.ones(600, dtype=torch.bfloat16),
    )
    assert many.hyperedge_size().item() == 600  # bfloat16 counts no further than 256
