"""Costs of operations by hand; saved activations of one path against all."""

import copy

import pytest
import torch
from cv_core.models.cell_operations import ZeroEdge
from cv_core.random import seeded, torch_generator
from cv_pruning.search_cost import ActivationMemory, Resources, resource_cost
from cv_pruning.search_space import MixedOp, set_architecture_
from torch import nn


def images(*shape):
    return torch.rand(*shape, generator=torch_generator(0, "images")).requires_grad_()


def test_costs_by_hand():
    conv = nn.Conv2d(3, 5, 3, padding=1, stride=2)  # 5 x 7 out of 10 x 14
    weights, places = 5 * 3 * 9 + 5, 5 * 7
    expected = Resources(weights, places * 5 * 27, 3 * 140 + 5 * places + weights)
    assert resource_cost(conv, (1, 3, 10, 14)) == expected
    chain = nn.Sequential(conv, nn.Sequential(nn.ReLU(), nn.Identity()))
    more = 2 * 5 * places
    assert resource_cost(chain, (1, 3, 10, 14)) == Resources(
        weights, places * 5 * 27, expected.memory_access + more
    )
    assert resource_cost(nn.Identity(), (1, 3, 4, 4)) == Resources(0, 0, 0)
    assert resource_cost(ZeroEdge(), (1, 3, 4, 4)).macs == 0


def test_counting_leaves_the_operation_as_it_is():
    op = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).double()
    before = copy.deepcopy(op.state_dict())
    resource_cost(op, (2, 1, 3, 3))
    assert op.training
    assert not op[0]._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in op.state_dict().items())


def test_bytes_by_hand():
    with ActivationMemory() as memory:
        y = images(2, 3).exp()  # saves its output
        (y * y).sum().backward()  # saves y twice
    assert memory.bytes == 3 * 24
    assert memory.distinct_bytes == 24
    with ActivationMemory() as memory, torch.no_grad():
        images(2, 3).exp()
    assert memory.bytes == memory.distinct_bytes == 0


def test_weights_of_the_ignored_network_do_not_count():
    layer, x = nn.Conv2d(3, 4, 3), images(2, 3, 8, 8)
    with ActivationMemory() as everything:
        layer(x)
    with ActivationMemory(ignore=layer) as activations:
        layer(x)
    assert activations.bytes == 2 * 3 * 64 * 4
    assert everything.bytes == activations.bytes + layer.weight.numel() * 4


def test_gradients_are_the_same_and_the_hooks_go_even_after_an_error():
    x = images(2, 3)
    with ActivationMemory():
        out = x.exp().square().sum()
    (got,) = torch.autograd.grad(out, x)
    torch.testing.assert_close(got, 2 * (2 * x.detach()).exp())
    memory = ActivationMemory()
    with pytest.raises(KeyError), memory:
        raise KeyError
    x.exp()
    assert memory.bytes == 0


def equal_candidates(count):
    """Candidates of several layers that are all alike in size."""

    def block():
        return nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()
        )

    with seeded(0, "init"):
        return [block() for _ in range(count)]


@pytest.mark.parametrize("count", [2, 5])
def test_4_one_path_saves_one_part_in_k(count):
    op, x = MixedOp(equal_candidates(count)), images(2, 4, 6, 6)
    with ActivationMemory(ignore=op) as everything:
        sum(candidate(x) for candidate in op.candidates)
    for active in range(count):
        set_architecture_(op, (active,))
        with ActivationMemory(ignore=op) as path:
            op(x)
        assert count * path.bytes == everything.bytes
        assert path.distinct_bytes < everything.distinct_bytes  # the input is shared by all


def test_4_with_the_weights_of_a_mixture_it_is_less():
    op, x = MixedOp(equal_candidates(4)), images(2, 4, 6, 6)
    shares = nn.Parameter(torch.zeros(4))
    with ActivationMemory(ignore=op) as mixture:
        weights = shares.softmax(0)
        sum(weight * candidate(x) for weight, candidate in zip(weights, op.candidates, strict=True))
    with ActivationMemory(ignore=op) as path:
        op(x)
    assert 4 * path.bytes < mixture.bytes
