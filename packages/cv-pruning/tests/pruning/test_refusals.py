"""What ``prune`` refuses; the network is bit for bit as before, its parameters the same objects."""

from __future__ import annotations

import pytest
import torch
from cv_pruning.pruning import structural
from cv_pruning.pruning.importance import CRITERIA
from cv_pruning.pruning.structural import prune
from torch import nn

from .networks import Chain, image

pytest.importorskip("torch_pruning")


class Tied(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.twin = nn.Conv2d(10, 10, 3, padding=1)
        self.other = nn.Conv2d(10, 10, 3, padding=1)
        self.other.weight = self.twin.weight

    def forward(self, x):
        return self.other(self.twin(self.stem(x)))


class Branching(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Conv2d(10, 10, 1)

    def forward(self, x):
        return super().forward(x) if x.mean() < 100 else self.aside(self.stem(x))


class Stubborn(nn.Module):
    """States its width in code: the narrowed network cannot run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.Linear(10, 4)

    def forward(self, x):
        return self.head(self.norm(self.stem(x)).reshape(len(x), 10, -1).mean(2))


class WithInput(nn.Module):
    """Concatenates its input, which autograd does not trace."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(11, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.c(self.b(torch.cat([x, self.a(x)], 1)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.cell, self.head = nn.Linear(3, 8), nn.LSTM(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.cell(self.inner(x))[0])


def refused(model, message, error=ValueError, inputs=None, **options):
    """Check the message, and that nothing at all has changed."""
    parameters = dict(model.named_parameters())
    values = {name: p.detach().clone() for name, p in parameters.items()}
    attributes = {
        name: {k: v for k, v in m.__dict__.items() if type(v) in (int, bool, tuple)}
        for name, m in model.named_modules()
    }
    with pytest.raises(error, match=message):
        prune(model, image(8) if inputs is None else inputs, **options)
    assert dict(model.named_parameters()).keys() == parameters.keys()
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert torch.equal(parameter, values[name])
    for name, module in model.named_modules():
        now = {k: v for k, v in module.__dict__.items() if type(v) in (int, bool, tuple)}
        assert now == attributes[name]
        assert not module._forward_hooks


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_ratio_outside_the_interval(ratio):
    refused(Chain(), "ratio must lie in", ratio=ratio)
    refused(Chain(), r"ratio\['stem'\] must lie in", ratio={"stem": ratio})


def test_options_that_mean_nothing():
    refused(Chain(), "criterion must be one of .*Did you mean .*'l2'", criterion="l2_norm")
    refused(Chain(), "criterion must be a name", TypeError, criterion=3)
    refused(Chain(), "scope must be one of", scope="layer")
    refused(Chain(), "round_to must be at least 1", round_to=0)
    refused(Chain(), "one number with scope='global'", ratio={"stem": 0.5}, scope="global")
    refused(Chain(), "names no layer", ratio={})
    refused(Chain(), "'stm'", ratio={"stm": 0.5})


def test_example_inputs_that_do_not_fit():
    refused(Chain(), "does not run on example_inputs", inputs=torch.rand(1, 4, 8, 8))
    refused(Chain(), "example_inputs must be a tensor or a tuple", TypeError, inputs={"x": 1})
    refused(Chain(), "example_inputs must be", TypeError, inputs=())


def test_criterion_without_a_layer_to_act_on():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    refused(model, "'bn_scale' has nothing to act on in '.*'", criterion="bn_scale")


def test_taylor_without_gradients_names_the_layer():
    refused(Chain(), "group of layer '(stem|outer|inner)'.*loss.backward", criterion="taylor")


def test_criterion_that_returns_nonsense():
    refused(Chain(), "must return a tensor of shape", criterion=lambda _: torch.ones(1))
    refused(Chain(), "got list", criterion=lambda _: [1.0])
    nan = float("nan")
    refused(Chain(), "NaN", criterion=lambda group: torch.full((len(group[0].idxs),), nan))


def test_tied_weights_are_named():
    refused(Tied(), "'twin.weight' and 'other.weight' are one tied parameter")


def test_parametrised_layers_are_named():
    model = Chain()
    nn.utils.parametrizations.weight_norm(model.inner)
    refused(model, "layer 'inner' is parametrised")


def test_a_layer_that_the_trace_misses_is_named_and_can_be_ignored():
    refused(Branching(), "never reached 'aside'")
    assert prune(Branching(), image(8), ignored=("aside", "stem")).kept.keys() == {"inner"}


def test_detached_outputs_are_no_trace():
    class Detached(Chain):
        def forward(self, x):
            return super().forward(x).detach()

    refused(Detached(), "nothing that model returns")


def test_ignored_layers_have_to_exist():
    refused(Chain(), "'stemm'", ignored="stemm")
    refused(Chain(), "names a Conv2d that is not in model", ignored=nn.Conv2d(1, 1, 1))


def test_everything_ignored():
    refused(Chain(), "no layer is left to prune; '.*' is ignored", ignored=("stem", "inner"))
    refused(nn.Sequential(nn.Linear(3, 2)), "reaches the network's output", inputs=torch.rand(1, 3))


def test_a_failure_during_surgery_is_taken_back():
    refused(Stubborn(), "model is as before.*ignored")


def test_an_interrupt_during_surgery_is_taken_back(monkeypatch):
    calls = []

    def interrupted(model, inputs):
        calls.append(model.stem.out_channels)
        if len(calls) == 2:
            raise KeyboardInterrupt("stopped")
        return structural_cost(model, inputs)

    structural_cost = structural._cost
    monkeypatch.setattr(structural, "_cost", interrupted)
    refused(Chain(), "stopped", KeyboardInterrupt)
    assert calls == [10, 5]  # it had been narrowed


def test_what_is_concatenated_with_the_input_is_left_whole():
    model = WithInput()
    report = prune(model, image(8))
    assert "the trace does not see" in report.untouched["a"]
    assert (model.a.out_channels, model.b.in_channels, model.b.out_channels) == (8, 11, 4)


def test_layers_that_cannot_be_narrowed_are_left_whole():
    refused(Recurrent(), "goes through LSTM", inputs=torch.rand(2, 1, 3))


def test_every_named_criterion_exists():
    assert set(CRITERIA) == {"l1", "l2", "bn_scale", "taylor", "fpgm", "lamp"}
