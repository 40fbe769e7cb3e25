"""The layer: index, hypergraph and prepared operator give one answer."""

from __future__ import annotations

import copy

import pytest
import torch
from cv_core.random import torch_generator
from cv_graph.conv import HypergraphConv
from cv_graph.hypergraph import Hypergraph
from cv_graph.propagation import hypergraph_propagation


@pytest.fixture
def x():
    return torch.randn(7, 3, generator=torch_generator(0, "features"))


@pytest.mark.parametrize("normalization", ["symmetric", "random-walk"])
def test_index_hypergraph_and_operator_are_one(odd, x, normalization):
    layer = HypergraphConv(3, 4, normalization=normalization)
    expected = layer(x, hypergraph_propagation(odd, normalization=normalization))
    assert torch.equal(layer(x, odd), expected)
    assert torch.equal(layer(x, odd.hyperedge_index, odd.hyperedge_weight), expected)


def test_result_is_the_formula(odd, x):
    layer = HypergraphConv(3, 4)
    P = hypergraph_propagation(odd).dense()
    torch.testing.assert_close(layer(x, odd), P @ x @ layer.weight + layer.bias)


def test_a_node_without_hyperedge_gets_the_offset(odd, x):
    layer = HypergraphConv(3, 4)
    torch.nn.init.normal_(layer.bias, generator=torch_generator(1, "offset"))
    assert torch.equal(layer(x, odd)[6], layer.bias)


def test_weights_of_hyperedges_can_be_learned(odd, x):
    weight = odd.hyperedge_weight.clone().requires_grad_()
    HypergraphConv(3, 4)(x, odd.hyperedge_index, weight).square().sum().backward()
    assert int((weight.grad != 0).sum()) >= 4


def test_autocast_and_copies_work(odd, x):
    layer = HypergraphConv(3, 4, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x, odd)
    torch.testing.assert_close(half, layer(x, odd), atol=0.05, rtol=0.05)
    assert torch.equal(copy.deepcopy(layer)(x, odd), layer(x, odd))
    assert list(layer.state_dict()) == ["weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_in_half_precision(dtype):
    h = Hypergraph.from_lists([list(range(600)), [3, 4]])  # more members than it can count
    x = torch.randn(600, 3, generator=torch_generator(0, "features"))
    layer = HypergraphConv(3, 4)
    half = copy.deepcopy(layer).to(dtype)
    for given in (h, h.hyperedge_index, hypergraph_propagation(h)):
        found = half(x.to(dtype), given)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), layer(x, h), atol=0.02, rtol=0.02)
    found.sum().backward()
    assert half.weight.grad.dtype == dtype


def test_what_does_not_fit_is_refused(odd, x):
    layer = HypergraphConv(3, 4)
    with pytest.raises(ValueError, match="goes with an index only"):
        layer(x, odd, odd.hyperedge_weight)
    with pytest.raises(ValueError, match="x must have shape"):
        layer(x[:, :2], odd)
    with pytest.raises(ValueError, match=r"\[0, 2\] is node 9, but there are 7 nodes"):
        layer(x, torch.tensor([[0, 1, 9], [0, 0, 0]]))
    with pytest.raises(TypeError, match="floating-point"):
        layer(x.long(), odd)
    with pytest.raises(TypeError, match="HypergraphConv: hyperedge_index must be a tensor"):
        layer(x, odd.hyperedge_index.tolist())
    with pytest.raises(TypeError, match="hyperedge_weight must be a floating-point tensor; got li"):
        layer(x, odd.hyperedge_index, odd.hyperedge_weight.tolist())
