import collections

import pytest
import torch
from cv_core.nn.hooks import rewrite, tap
from torch import nn


class Shared(nn.Module):
    """One ReLU called twice, and an in-place one: what foreign networks do."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.relu, self.last = nn.ReLU(), nn.ReLU(inplace=True)

    def forward(self, x, *, scale=1.0):
        return self.last(self.second(self.relu(self.first(self.relu(x)) * scale)))


def _hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def test_inputs_and_outputs_are_those_of_the_layers():
    model, x = Shared(), torch.randn(2, 3)
    with tap(model, ["first", "second"], copy=True) as taps:
        model(x)
    assert torch.equal(taps["first"].input, x.relu())
    assert torch.equal(taps["first"].output, model.first(x.relu()))
    assert torch.equal(taps["second"].output, model.second(taps["first"].output.relu()))
    assert _hooks(model) == 0


def test_gradients_reach_recorded_tensors():
    model, x = Shared(), torch.randn(2, 3)
    with tap(model, "first") as taps:
        out = model(x)
    hidden = taps["first"].output
    (gradient,) = torch.autograd.grad(out.sum(), hidden)
    mask = ((hidden.relu() @ model.second.weight.T + model.second.bias) > 0).float()
    expected = (mask @ model.second.weight) * (hidden > 0)
    torch.testing.assert_close(gradient, expected)


def test_calls_of_a_shared_module():
    model, x = Shared(), torch.randn(2, 3)
    with tap(model, "relu", keep="all") as every, tap(model, "relu") as last:
        model(x)
        model(x)
    assert len(every["relu"]) == 4
    assert len(last["relu"]) == 1
    assert torch.equal(every["relu"].outputs[0], x.relu())
    assert torch.equal(last["relu"].output, every["relu"].outputs[3])


def test_an_activation_overwritten_in_place_is_refused_not_returned_wrong():
    model, x = Shared(), torch.randn(4, 3)
    with torch.no_grad(), tap(model, "second") as taps:
        model(x)
    with pytest.raises(RuntimeError, match=r"'second' in place .* copy=True"):
        _ = taps["second"].output
    with torch.no_grad(), tap(model, "second", copy=True) as taps:
        out = model(x)
    assert torch.equal(taps["second"].output.relu(), out)
    assert (taps["second"].output < 0).any()  # else the test could not tell the two apart


def test_inference_mode_and_keyword_arguments():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Shared()

        def forward(self, x):
            return self.inner(x, scale=2.0)

    with torch.inference_mode(), tap(Outer(), "inner") as taps:
        Outer()  # a second network has no hooks
    with pytest.raises(RuntimeError, match="'inner' was not called"):
        _ = taps["inner"].output
    model, x = Outer(), torch.randn(1, 3)
    with torch.inference_mode(), tap(model, "inner") as taps:
        model(x)
    assert taps["inner"].inputs[1] == 2.0


def test_nested_outputs_are_copied():
    pair = collections.namedtuple("pair", "first second")

    class Two(nn.Module):
        def forward(self, x):
            return pair(x + 1, {"key": [x]})

    model = nn.Sequential(Two())
    x = torch.zeros(2)
    with tap(model, "0", copy=True) as taps:
        model(x)
    x += 5
    assert isinstance(taps["0"].output, pair)
    assert taps["0"].output.second["key"][0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("context", "count"), [(tap, 8), (lambda m, w: rewrite(m, w, lambda out, *_: out), 4)]
)
def test_hooks_go_even_when_the_block_fails(context, count):
    model = Shared()
    with context(model, "*"):
        assert _hooks(model) == count
    with pytest.raises(RuntimeError, match="mat1 and mat2"), context(model, "*"):
        model(torch.zeros(1, 4))
    assert _hooks(model) == 0
    with pytest.raises(ValueError, match="selects no module"), context(model, ["first", "third"]):
        pass
    assert _hooks(model) == 0


def test_rewrite_sees_output_and_inputs_and_takes_their_place():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.randn(2, 3)
    plain = model(x)
    with rewrite(model, "0", lambda output, x: output - x):
        changed = model(x)
    torch.testing.assert_close(changed, torch.tanh(model[0](x) - x))
    assert torch.equal(model(x), plain)
    with rewrite(model, "*", lambda _, x: x):  # every layer becomes the identity
        assert torch.equal(model(x), x)


def test_a_shared_module_is_rewritten_once():
    relu = nn.ReLU()
    model = nn.Sequential(relu, relu)
    with rewrite(model, nn.ReLU, lambda output, *_: output + 1):
        assert model(torch.zeros(1)).item() == 2.0  # two calls, one rewriting each


def test_an_unknown_keep_is_refused():
    with pytest.raises(ValueError, match="keep must be one of"), tap(Shared(), "*", keep="first"):
        pass


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_input_of_a_layer_that_writes_into_it(context):
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)), torch.randn(8, 3)
    with context(), tap(model, "1", copy=True) as taps:
        out = model(x)
    assert (model[0](x) < 0).any()  # else input and output would be equal
    assert torch.equal(taps["1"].input, model[0](x))
    assert torch.equal(taps["1"].output, out)
    with torch.no_grad(), tap(model, "1") as taps:
        model(x)
    assert torch.equal(taps["1"].output, out)
    with pytest.raises(RuntimeError, match=r"'1' in place .* copy=True"):
        _ = taps["1"].input


def test_a_call_that_failed_is_not_recorded():
    model, x = Shared(), torch.randn(1, 3)
    with tap(model, "first", keep="all") as taps:
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            model(torch.zeros(1, 4))
        model(x)
    assert len(taps["first"]) == 1
    assert torch.equal(taps["first"].input, x.relu())


def test_compiled_networks_call_hooks_in_the_block():
    pytest.importorskip("torch", "2.6", "older torch cannot run compiled networks uncompiled")
    parts = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    whole = torch.compile(parts, backend="eager")
    inside = nn.Sequential(nn.Identity(), torch.compile(nn.Sequential(nn.ReLU()), backend="eager"))
    x = torch.ones(1, 2)
    for model in (whole, inside):
        with torch.no_grad():
            plain = model(x)  # traced without any hook
            with tap(model, nn.ReLU) as taps:
                assert torch.equal(model(x), plain)
            with rewrite(model, nn.ReLU, lambda output, _: output + 1):
                assert torch.equal(model(x), plain + 1)
            assert torch.equal(model(x), plain)
        (activation,) = taps.values()
        assert torch.equal(activation.output, plain)
