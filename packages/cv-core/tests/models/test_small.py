import copy
import pickle

import pytest
import torch
from cv_core.models.small import MLP, SmallCNN
from cv_core.random import seeded
from torch import nn


def test_mlp_is_its_matrices_with_relus_between():
    with seeded(0):
        model = MLP(6, [5, 4], 3).double()
    x = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    linear1, linear2 = model.layers.linear1, model.layers.linear2
    hidden = (x @ linear1.weight.T + linear1.bias).clamp(min=0)
    hidden = (hidden @ linear2.weight.T + linear2.bias).clamp(min=0)
    torch.testing.assert_close(model(x), hidden @ model.fc.weight.T + model.fc.bias)
    assert torch.equal(model(x), model(x.reshape(7, 1, 2, 3)))  # images are laid out as vectors


def test_mlp_without_hidden_layers_is_a_linear_classifier():
    model = MLP(4, [], 2)
    assert [type(module) for module in model.modules()] == [MLP, nn.Sequential, nn.Linear]
    assert MLP(4, 8, 2).state_dict().keys() == MLP(4, [8], 2).state_dict().keys()


@pytest.mark.parametrize("size", [4, 8, 28, 32])
def test_small_cnn_reaches_every_parameter(size):
    with seeded(0):
        model = SmallCNN(2, 5, width=4)
    model(torch.rand(3, 2, size, size)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    # 3x3 kernels without bias, two affine numbers per channel, one linear layer
    expected = 9 * (2 * 4 + 4 * 8 + 8 * 16) + 2 * (4 + 8 + 16) + 16 * 5 + 5
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("make", [lambda: MLP(64, [8], 3), lambda: SmallCNN(1, 3, width=2)])
def test_copies_agree_and_a_seed_repeats_the_weights(make):
    with seeded(3):
        model = make().eval()
    with seeded(3):
        again = make().eval()
    with seeded(3):
        again.reset_parameters()
    x = torch.rand(2, 1, 8, 8)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own
        assert torch.equal(model(x), twin(x))
    fresh = make().eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model(x), fresh(x))
    assert not torch.equal(make()(x), again(x))


def test_bad_options_and_inputs_are_refused():
    with pytest.raises(ValueError, match="hidden must be at least 1; got 0"):
        MLP(4, [0], 2)
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        SmallCNN(1, 0)
    with pytest.raises(ValueError, match="x must have 4 entries per sample; got 5"):
        MLP(4, [3], 2)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="c=1"):
        SmallCNN(1, 2)(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="at least 4 pixels"):
        SmallCNN(1, 2)(torch.zeros(2, 1, 3, 8))
