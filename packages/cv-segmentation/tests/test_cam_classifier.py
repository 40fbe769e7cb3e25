"""The classifier's maps are its logits before the mean, whatever the backbone."""

import pytest
import torch
from cv_segmentation.cam_classifier import CAMClassifier
from torch import nn


def draws(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def small(n_sub=None):
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU())
    return CAMClassifier(backbone, 4, n_sub, channels=6).double()


@pytest.mark.parametrize("n_sub", [None, 3])
def test_property_1_the_mean_of_the_signed_map_and_the_bias_are_the_logit(n_sub):
    model, x = small(n_sub).eval(), draws(3, 3, 11, 9)
    logits, maps = model.activations(x)
    torch.testing.assert_close(maps.mean((2, 3)) + model.head.bias, logits)
    outputs = model(x)
    torch.testing.assert_close(outputs if n_sub is None else outputs[0], logits)
    assert maps.min() < 0  # or the ReLU below would not be seen
    torch.testing.assert_close(model.cam(x), maps.relu())
    features = model.backbone(x)
    for c in range(4):
        expected = sum(model.head.weight[c, k] * features[:, k] for k in range(6))
        torch.testing.assert_close(maps[:, c], expected)


def test_sub_categories_are_a_second_layer_on_the_same_features():
    model, x = small(3).eval(), draws(2, 3, 8, 8)
    expected = model.sub_head(model.features(x).mean((2, 3)))
    torch.testing.assert_close(model(x)[1], expected)
    assert expected.shape == (2, 12)
    before = model.cam(x)
    nn.init.zeros_(model.sub_head.weight)
    assert torch.equal(model.cam(x), before)


def test_chosen_classes_in_the_order_asked_for():
    model, x = small(), draws(2, 3, 8, 8)
    assert torch.equal(model.cam(x, [3, 0]), model.cam(x)[:, [3, 0]])
    assert model.cam(x, []).shape[1] == 0
    with pytest.raises(ValueError, match="CAMClassifier: classes"):
        model.cam(x, [4])


def test_maps_are_made_in_evaluation_mode_and_modes_are_kept():
    model, x = small(), draws(2, 3, 8, 8)
    model.backbone[0].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.cam(x)
    assert model.training
    assert model.backbone[1].training
    assert not model.backbone[0].training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    alone = torch.cat([model.cam(x[:1]), model.cam(x[1:])])
    torch.testing.assert_close(alone, model.cam(x))  # no statistics of the batch


def test_a_foreign_network_by_its_parts():
    import torchvision

    resnet = torchvision.models.resnet18(num_classes=7).eval()
    model = CAMClassifier(nn.Sequential(*list(resnet.children())[:-2]), 7, channels=512).eval()
    model.head.load_state_dict(resnet.fc.state_dict())
    x = draws(2, 3, 64, 48).float()
    torch.testing.assert_close(model(x), resnet(x), rtol=1e-4, atol=1e-4)


class Stages(nn.Module):
    """A backbone that returns several maps and knows their channels."""

    out_channels = (3, 5)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        return [x, self.conv(x)]


def test_the_last_of_several_maps_is_taken():
    backbone = Stages()
    model, x = CAMClassifier(backbone, 2), torch.rand(1, 3, 6, 6)
    assert torch.equal(model.features(x), backbone.conv(x))
    assert model.head.in_features == 5


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="CAMClassifier: channels must be given"):
        CAMClassifier(nn.Identity(), 2)
    with pytest.raises(ValueError, match="CAMClassifier: n_classes"):
        CAMClassifier(nn.Identity(), 0, channels=3)
    with pytest.raises(ValueError, match="CAMClassifier: n_sub"):
        CAMClassifier(nn.Identity(), 2, 0, channels=3)
    with pytest.raises(ValueError, match="the backbone's output must have shape"):
        CAMClassifier(nn.Identity(), 2, channels=4)(torch.rand(1, 3, 4, 4))
