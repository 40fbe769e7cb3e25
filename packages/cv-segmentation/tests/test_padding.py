import pytest
import torch
from cv_core.models.unet import UNet
from cv_core.random import seeded
from cv_segmentation.padding import Padded
from torch import nn
from torch.nn import functional


def draw(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(2, 3, 9, 14), (1, 3, 1, 2), (1, 3, 8, 5)])
def test_pads_by_the_border_and_crops_back(shape):
    seen = []
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1))
    model.register_forward_hook(lambda *called: seen.append(called[1][0]))
    x = draw(*shape)
    found = Padded(model, 4)(x)
    height, width = shape[2:]
    tall, wide = -(-height // 4) * 4, -(-width // 4) * 4
    rows, columns = (
        torch.arange(tall).clamp(max=height - 1),
        torch.arange(wide).clamp(max=width - 1),
    )
    expected = x[:, :, rows][:, :, :, columns]
    assert torch.equal(seen[0], expected)
    assert torch.equal(found, model(expected)[:, :, :height, :width])


def test_sides_that_fit_go_through_untouched():
    model = nn.Conv2d(3, 2, 3, padding=1)
    x = draw(1, 3, 8, 12)
    assert torch.equal(Padded(model, 4)(x), model(x))


def test_volumes():
    x = draw(1, 2, 3, 5, 6)
    model = nn.Sequential(nn.AvgPool3d(2), nn.Upsample(scale_factor=2))
    wide = functional.pad(x, (0, 0, 0, 1, 0, 1), mode="replicate")
    assert torch.equal(Padded(model, 2)(x), model(wide)[:, :, :3, :5])


def test_it_is_what_the_unet_does_itself():
    with seeded(0, "unet"):
        model = UNet(3, 2, widths=(4, 8, 8)).eval()
    x = draw(2, 3, 13, 10)
    torch.testing.assert_close(Padded(model, 4)(x), model(x))


def test_gradients_reach_the_input_and_the_network():
    model = Padded(nn.Sequential(nn.AvgPool2d(4), nn.Upsample(scale_factor=4)), 4).double()
    x = draw(1, 1, 3, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(model, (x,))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="Padded: multiple must be at least 1"):
        Padded(nn.Identity(), 0)
    with pytest.raises(ValueError, match="Padded: x must have shape"):
        Padded(nn.Identity(), 2)(draw(3, 4, 4).view(3, 16))
    with pytest.raises(ValueError, match="must return a tensor with the sides"):
        Padded(nn.AvgPool2d(2), 2)(draw(1, 1, 3, 3))
