"""Networks with choices: what runs, what is derived, foreign networks, bad input."""

import copy

import pytest
import torch
from cv_core.nn.surgery import find
from cv_core.random import seeded, torch_generator
from cv_pruning.search_space import (
    CANDIDATE_NAMES,
    MixedOp,
    attach_choices,
    candidate,
    derive,
    mixed_ops,
    set_architecture_,
)
from torch import nn


def images(*shape):
    return torch.rand(*shape, generator=torch_generator(0, "images"))


def supernet():
    with seeded(0, "init"):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            MixedOp([candidate(name, 4) for name in CANDIDATE_NAMES]),
            nn.ReLU(),
            MixedOp([candidate(name, 4) for name in ("sep3", "skip")]),
        )


@pytest.mark.parametrize("name", CANDIDATE_NAMES)
def test_candidates_keep_the_shape(name):
    x = images(2, 4, 7, 6)
    out = candidate(name, 4)(x)
    assert out.shape == x.shape
    assert torch.equal(out, x) == (name == "skip")
    assert bool(out.any()) == (name != "none")
    kernels = [layer for layer in candidate(name, 4).modules() if isinstance(layer, nn.Conv2d)]
    sizes = {"conv1": [(1, 1)], "conv3": [(3, 1)], "conv5": [(5, 1)], "dil3_r2": [(3, 2)],
             "dil3_r3": [(3, 3)], "sep3": [(3, 1), (1, 1)]}  # fmt: skip
    assert [(k.kernel_size[0], k.dilation[0]) for k in kernels] == sizes.get(name, [])


@pytest.mark.parametrize("actions", [(0, 0), (1, 1), (3, 0), (7, 1)])
def test_3_derived_network_equals_the_one_it_comes_from(actions):
    model = supernet().eval()
    set_architecture_(model, actions)
    x = images(2, 1, 6, 6)
    first, middle, relu, last = model
    by_hand = last.candidates[actions[1]](relu(middle.candidates[actions[0]](first(x))))
    assert torch.equal(model(x), by_hand)
    before = repr(model)
    derived = derive(model, actions)
    assert torch.equal(derived(x), by_hand)
    assert not any(isinstance(part, MixedOp) for part in derived.modules())
    assert repr(model) == before
    derived[0].weight.data.zero_()
    assert model[0].weight.any()


def test_only_the_active_candidate_runs_and_gets_a_gradient():
    model = supernet()
    set_architecture_(model, (2, 0))
    calls = []
    for k, op in enumerate(model[1].candidates):
        op.register_forward_hook(lambda *_, k=k: calls.append(k))
    model(images(2, 1, 6, 6)).square().sum().backward()
    assert calls == [2]
    for k, op in enumerate(model[1].candidates):
        assert all((p.grad is not None) == (k == 2) for p in op.parameters())


def test_choices_nest():
    inner = MixedOp([nn.ReLU(), nn.Tanh()])
    model = nn.Sequential(MixedOp([nn.Sequential(inner, nn.Sigmoid()), nn.Identity()]))
    x = images(3, 2) - 0.5
    assert list(mixed_ops(model)) == ["0", "0.candidates.0.0"]
    assert torch.equal(derive(model, (0, 1))(x), x.tanh().sigmoid())
    assert torch.equal(derive(model, (1, 0))(x), x)


def test_a_foreign_network_gets_choices():
    import torchvision

    with seeded(0, "init"):
        plain = torchvision.models.resnet18(num_classes=5).double().eval()
    model = copy.deepcopy(plain)
    where = "layer1.*.conv2"

    def choices(conv):
        return [conv, nn.Conv2d(64, 64, 5, padding=2, bias=False)]

    ops = attach_choices(model, where, choices)
    assert list(ops) == list(find(plain, where))
    x = images(2, 3, 64, 64).double()
    assert torch.equal(model(x), plain(x))
    set_architecture_(model, (0, 1))
    assert not torch.equal(model(x), plain(x))
    derived = derive(model, (0, 1))
    assert torch.equal(derived(x), model(x))
    assert list(derived.state_dict()) == list(plain.state_dict())
    assert derived.layer1[1].conv2.kernel_size == (5, 5)


def test_bad_choices_are_refused():
    with pytest.raises(ValueError, match="candidates must hold at least one operation"):
        MixedOp([])
    with pytest.raises(ValueError, match="active must be at least 0 and at most 1; got 2"):
        MixedOp([nn.ReLU(), nn.Tanh()], active=2)
    op = MixedOp([nn.ReLU(), nn.Tanh()])
    with pytest.raises(ValueError, match="active must be at least 0"):
        op.active = -1
    assert op.active == 0
    with pytest.raises(ValueError, match=r"candidate: name must be one of .*Did you mean 'conv3'"):
        candidate("conv33", 4)
    with pytest.raises(ValueError, match="model must hold a MixedOp; got Linear"):
        mixed_ops(nn.Linear(2, 2))
    model = supernet()
    for call, owner in ((set_architecture_, "set_architecture_"), (derive, "derive")):
        with pytest.raises(ValueError, match=rf"{owner}: actions must lie below \(8, 2\)"):
            call(model, (0, 2))
        with pytest.raises(ValueError, match=rf"{owner}: actions must hold one whole number"):
            call(model, (0,))
    assert [op.active for op in mixed_ops(model).values()] == [0, 0]
