"""Chains in networks of all kinds: which layers are found, and why the others are not."""

from __future__ import annotations

import pytest
import torch
import torchvision
from cv_core.models.small import MLP, SmallCNN
from cv_pruning.chains import Chain, find_chains
from torch import Tensor, nn
from torch.nn import functional


def reasons(model: nn.Module, *shape: int) -> dict[str, str]:
    chains, refused = find_chains(model, torch.rand(shape))
    layers = {n for n, part in model.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    assert layers == {chain.layer for chain in chains} | set(refused)
    return refused


class Net(nn.Module):
    """Two layers with a function between them."""

    def __init__(self, between, first=None, second=None):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1) if first is None else first
        self.second = nn.Conv2d(4, 2, 1) if second is None else second
        self.between = between

    def forward(self, x: Tensor):
        return self.second(self.between(self.first(x)))


def test_networks_of_cv_core_are_chains():
    chains, refused = find_chains(MLP(6, [5, 4], 3), torch.rand(2, 6))
    assert chains == [
        Chain("layers.linear1", "", ("layers.linear2",)),
        Chain("layers.linear2", "", ("fc",)),
    ]
    assert refused == {"fc": "the network puts it out"}
    chains, _ = find_chains(SmallCNN(1, 3, width=2), torch.rand(1, 1, 8, 8))
    assert chains == [
        Chain("conv1", "bn1", ("conv2",)),
        Chain("conv2", "bn2", ("conv3",)),
        Chain("conv3", "bn3", ("fc",)),
    ]


def test_all_layers_of_a_vgg_but_the_last_are_chains():
    with torch.device("meta"):  # nothing is computed: shapes are enough
        model, x = torchvision.models.vgg16_bn(), torch.rand(1, 3, 224, 224)
    chains, refused = find_chains(model, x)
    assert len(chains) == 13 + 2
    assert sum(bool(chain.norm) for chain in chains) == 13
    assert list(refused) == ["classifier.6"]


def test_functions_and_in_place_activations_are_followed():
    def between(x):
        x = functional.relu(x, inplace=True)
        return functional.max_pool2d(functional.dropout(functional.silu(x)), 2)

    assert find_chains(Net(between), torch.rand(1, 3, 4, 4))[0] == [Chain("first", "", ("second",))]
    for flatten in (
        nn.Flatten(), lambda x: torch.flatten(x, 1), lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(len(x), -1),
    ):  # fmt: skip
        net = Net(flatten, second=nn.Linear(64, 2))
        assert len(find_chains(net, torch.rand(1, 3, 4, 4))[0]) == 1


def test_tokens_and_several_readers_are_followed():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x):
            h = functional.gelu(self.a(x))
            return {"sum": self.b(h) + self.c(h)}

    chains, refused = find_chains(Fork(), torch.rand(2, 7, 3))
    assert chains == [Chain("a", "", ("b", "c"))]
    assert refused == dict.fromkeys("bc", "its output enters add")


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (lambda x: x + x, "enters add"),
        (lambda x: torch.cat([x, x], 1)[:, 2:6], "enters cat"),
        (lambda x: x.softmax(1), "enters softmax"),
        (lambda x: x[:, [3, 2, 1, 0]], "enters __getitem__"),
        (lambda x: x.transpose(2, 3), "enters transpose"),
        (nn.PReLU(4), "enters prelu"),
        (nn.GroupNorm(2, 4), "enters group_norm"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), "enters batch_norm"),
        (nn.Conv2d(4, 4, 1, groups=4), "between is a grouped convolution"),
        (nn.ConvTranspose2d(4, 4, 1), "enters conv_transpose2d"),
    ],
)
def test_what_does_not_treat_channels_alike_ends_a_chain(between, words):
    assert words in reasons(Net(between), 1, 3, 4, 4)["first"]


def test_layers_whose_weights_are_used_elsewhere_are_refused():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), shared, nn.ReLU(), shared)
    found = reasons(model, 2, 4)
    assert "the weight of 2 is used more than once" in found["0"]
    assert "used more than once" in found["2"]

    class Tied(Net):
        def forward(self, x):
            return super().forward(x) @ self.first.weight

    net = Tied(nn.ReLU(), nn.Linear(3, 4), nn.Linear(4, 4))
    assert "used more than once" in reasons(net, 2, 3)["first"]


def test_channels_on_another_axis_are_refused():
    assert (
        "reads another axis" in reasons(Net(nn.ReLU(), second=nn.Linear(4, 2)), 1, 3, 4, 4)["first"]
    )
    tokens = nn.Sequential(nn.Linear(3, 4), nn.Flatten(), nn.Linear(20, 2))
    assert "enters flatten" in reasons(tokens, 1, 5, 3)["0"]
    by_token = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(5), nn.Linear(4, 2))
    assert "enters batch_norm" in reasons(by_token, 2, 5, 3)["0"]
    assert "without a batch axis" in reasons(Net(nn.ReLU()), 3, 4, 4)["first"]


def test_results_of_the_network_unread_and_uncalled_layers_are_refused():
    class Both(Net):
        def forward(self, x):
            h = self.first(x)
            return [h, self.second(h)]

    assert reasons(Both(nn.ReLU()), 1, 3, 4, 4)["first"] == "the network puts it out"

    class Unread(Net):
        def forward(self, x):
            self.first(x).relu()
            return x

    found = reasons(Unread(nn.ReLU()), 1, 3, 4, 4)
    assert found == {"first": "no layer reads it", "second": "it is not called by itself"}


def test_a_norm_that_does_more_is_not_taken_for_one():
    class NormAndMore(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    assert "enters batch_norm" in reasons(Net(NormAndMore(4)), 1, 3, 4, 4)["first"]


def test_flags_are_put_back_and_statistics_left_alone():
    model = SmallCNN(1, 3, width=2)
    model.bn2.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_chains(model, torch.rand(2, 1, 8, 8))
    assert [name for name, part in model.named_modules() if not part.training] == ["bn2"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_outputs_that_cannot_be_seen_are_refused():
    class Box:
        pass

    class Boxed(Net):
        def forward(self, x):
            super().forward(x)
            return Box()

    with pytest.raises(TypeError, match="find_chains: model must return tensors"):
        find_chains(Boxed(nn.ReLU()), torch.rand(1, 3, 4, 4))
