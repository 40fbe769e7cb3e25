import copy
import pickle

import pytest
import torch
from cv_core.models.resnet import cifar_resnet
from cv_core.nn.surgery import (
    Followed,
    Wrapper,
    find,
    insert_after,
    out_channels,
    remove,
    replace,
    wrap,
)
from torch import nn


class Scale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1), 2.0))

    def forward(self, x):
        return self.weight * x


class Doubled(Wrapper):
    def forward(self, x):
        return 2 * self.inner(x)


@pytest.fixture
def model():
    return cifar_resnet(14, 4, in_channels=1, width=0.25).eval()


def test_globs_stay_within_a_part_unless_doubled(model):
    assert list(find(model, "conv*")) == ["conv1"]
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)]
    assert list(find(model, "layer*.*.conv2")) == [f"{block}.conv2" for block in blocks]
    assert list(find(model, "layer[13].?")) == ["layer1.0", "layer1.1", "layer3.0", "layer3.1"]
    assert len(find(model, "**.conv?")) == 12
    assert len(find(model, nn.Conv2d)) == 13
    assert list(find(model, ["fc", "conv1", nn.Linear])) == ["conv1", "fc"]
    assert find(model, "") == {"": model}


def test_a_pattern_that_selects_nothing_names_the_nearest(model):
    with pytest.raises(ValueError, match=r"'layer1.0.conv3' selects no module .*conv"):
        find(model, "layer1.0.conv3")
    with pytest.raises(ValueError, match="no module of class LSTM"):
        find(model, nn.LSTM)
    with pytest.raises(TypeError, match="a name pattern, a class"):
        find(model, [3])


def test_a_module_in_two_places_has_two_names():
    relu = nn.ReLU()
    model = nn.Sequential(relu, nn.Sequential(relu))
    assert list(find(model, nn.ReLU)) == ["0", "1.0"]
    replace(model, "1.0", nn.Identity())
    assert model[0] is relu


def test_a_name_may_hold_the_signs_of_patterns():
    model = nn.Sequential(nn.ReLU())
    model.add_module("a[0]*", nn.Tanh())
    assert isinstance(replace(model, "a[0]*", nn.Identity()), nn.Tanh)
    assert list(find(model, nn.Identity)) == ["a[0]*"]


def test_replacing_back_is_undoing(model):
    x = torch.rand(2, 1, 8, 8)
    plain = model(x)
    old = replace(model, "layer2.0.relu1", nn.Identity())
    assert not torch.equal(model(x), plain)
    replace(model, "layer2.0.relu1", old)
    assert torch.equal(model(x), plain)
    with pytest.raises(ValueError, match="the model itself"):
        replace(model, "", nn.Identity())
    with pytest.raises(ValueError, match="selects no module"):
        replace(model, "layer2.*.relu1", nn.Identity())  # a full name, not a pattern


def test_wrapping_keeps_the_keys_and_loads_plain_checkpoints(model):
    plain = copy.deepcopy(model)
    wrap(model, "layer*.*.conv2", Doubled)
    assert list(model.state_dict()) == list(plain.state_dict())
    fresh = cifar_resnet(14, 4, in_channels=1, width=0.25).eval()
    wrap(fresh, "layer*.*.conv2", Doubled)
    fresh.load_state_dict(plain.state_dict())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(fresh(x), model(x))
    assert not torch.equal(fresh(x), plain(x))


def test_wrapping_parents_and_children_and_twice():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    keys = list(model.state_dict())
    wrap(model, "**", Doubled)
    wrap(model, "0", Doubled)
    assert set(model.state_dict()) == set(keys)
    x = torch.ones(1, 2)
    plain = model[0].inner.inner[0].inner(x)
    assert torch.equal(model(x), 8 * plain)  # two wrappers around the block, one around the layer
    assert remove(model) == ["0", "0.0"]
    assert torch.equal(model(x), plain)
    assert remove(model) == []


def test_parameters_of_the_insert_come_on_top(model):
    plain = copy.deepcopy(model)
    made = insert_after(model, "layer*.*.bn2", lambda bn: Scale(out_channels(bn)))
    assert [scale.weight.shape[0] for scale in made.values()] == [4, 4, 8, 8, 16, 16]
    added = set(model.state_dict()) - set(plain.state_dict())
    assert added == {f"{name}.after.weight" for name in made}
    result = model.load_state_dict(plain.state_dict(), strict=False)
    assert set(result.missing_keys) == added
    assert not result.unexpected_keys
    # twice the output of the last normalisation is what twice its weight and bias give
    for name in made:
        bn = plain.get_submodule(name)
        with torch.no_grad():
            bn.weight *= 2
            bn.bias *= 2
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(model(x), plain(x))
    model.load_state_dict(model.state_dict())  # its own checkpoint, strictly


def test_two_inserts_at_one_place_keep_both_their_states():
    model = nn.Sequential(nn.Linear(2, 2))
    first = insert_after(model, "0", lambda _: nn.Linear(2, 2))["0"]
    second = insert_after(model, "0", lambda _: nn.Linear(2, 3))["0"]
    states = model.state_dict()
    assert torch.equal(states["0.after.weight"], first.weight)
    assert torch.equal(states["0.after2.weight"], second.weight)
    x = torch.ones(1, 2)
    assert torch.equal(model(x), second(first(model[0].inner.inner(x))))
    model.load_state_dict(states)


def test_a_key_is_never_lost_silently():
    class Careless(Wrapper):
        def __init__(self, inner):
            super().__init__(inner)
            self.weight = nn.Parameter(torch.zeros(1))

    with pytest.raises(KeyError, match="'weight' already exists"):
        Careless(nn.Linear(2, 2))


def test_unknown_keys_are_still_refused(model):
    wrap(model, "conv1", Doubled)
    states = dict(model.state_dict())
    states["conv1.wieght"] = states.pop("conv1.weight")
    with pytest.raises(RuntimeError, match=r"(?s)conv1.*weight.*wieght"):
        model.load_state_dict(states)


def test_remove_takes_off_one_kind_only(model):
    x = torch.rand(1, 1, 8, 8)
    plain = model(x)
    wrap(model, "conv1", Doubled)
    insert_after(model, "bn1", lambda _: nn.Identity())
    assert remove(model, Followed) == ["bn1"]
    assert remove(model) == ["conv1"]
    assert torch.equal(model(x), plain)


def test_training_flags_dtype_and_the_wrapped_module_are_kept():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3)).double()
    model.train()
    model[1].eval()  # a frozen normalisation
    made = insert_after(model, nn.BatchNorm2d, lambda bn: nn.Sequential(Scale(out_channels(bn))))
    assert not made["1"].training
    assert not model[1].training
    assert model.training
    assert made["1"][0].weight.dtype == torch.float64
    assert torch.isfinite(model(torch.ones(2, 1, 2, 2, dtype=torch.float64))).all()
    made["1"][0].weight.requires_grad_(requires_grad=False)
    insert_after(model, "0", lambda conv: Scale(conv.out_channels))
    assert model[0].follower.weight.requires_grad
    assert model[0].training


def test_a_wrapper_answers_for_what_it_wraps():
    wrapper = Wrapper(nn.Conv2d(2, 5, 3))
    assert wrapper.out_channels == 5
    assert wrapper.weight is wrapper.inner.weight
    with pytest.raises(AttributeError, match="nonsense"):
        _ = wrapper.nonsense
    x = torch.rand(1, 2, 4, 4)
    for twin in (copy.deepcopy(wrapper), pickle.loads(pickle.dumps(wrapper))):  # noqa: S301
        assert torch.equal(twin(x), wrapper(x))
        assert list(twin.state_dict()) == ["weight", "bias"]


def test_out_channels():
    assert out_channels(nn.Sequential(nn.Conv2d(1, 7, 1), nn.ReLU())) == 7
    assert out_channels(nn.GroupNorm(2, 6)) == 6
    with pytest.raises(ValueError, match="ReLU holds no convolution"):
        out_channels(nn.ReLU())


def test_the_root_is_refused(model):
    with pytest.raises(ValueError, match="the model itself"):
        wrap(model, "", Doubled)


def test_a_foreign_network_keeps_its_checkpoint():
    torchvision = pytest.importorskip("torchvision", reason="needs torchvision")
    model = torchvision.models.resnet18(num_classes=3).eval()
    plain = copy.deepcopy(model)
    x = torch.rand(1, 3, 32, 32)
    made = insert_after(model, "layer*.*.bn2", lambda _: nn.Identity())
    assert len(made) == 8
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model(x), plain(x))


def test_a_factory_that_fails_leaves_the_network_as_it_was():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), nn.ReLU())
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match="ReLU holds no convolution"):
        insert_after(model, "**", lambda layer: nn.BatchNorm2d(out_channels(layer)))
    after = dict(model.named_modules())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def test_a_copy_keeps_the_wrapper_around_a_module_that_copies_itself():
    wrapper = Doubled(torch.fx.symbolic_trace(nn.Linear(2, 2)))  # has its own __deepcopy__
    x = torch.ones(1, 2)
    assert torch.equal(copy.deepcopy(wrapper)(x), 2 * wrapper.inner(x))


def test_a_module_selects_itself_and_nothing_selects_nothing():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    assert list(find(model, model[1][0])) == ["1.0"]
    assert list(find(model, [model[0], nn.Sequential])) == ["0", "1"]
    with pytest.raises(ValueError, match="the Linear given is no part of this Sequential"):
        find(model, nn.Linear(2, 2))
    assert find(model, []) == {}
    with pytest.raises(ValueError, match="wrap: where must select a module; it is empty"):
        wrap(model, [], nn.Identity)
