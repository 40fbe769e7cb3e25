import copy

import pytest
import torch
from cv_core.losses.image import (
    CharbonnierLoss,
    PerceptualLoss,
    charbonnier_loss,
    gram_matrix,
    total_variation,
)
from torch import nn
from torch.nn import functional


def test_charbonnier_is_quadratic_near_and_linear_far():
    x = torch.randn(2, 3, dtype=torch.float64)
    assert charbonnier_loss(x, x).item() == 0.0
    near = charbonnier_loss(x + 1e-5, x, eps=1e-2, reduction="none")
    torch.testing.assert_close(near, torch.full_like(x, 1e-10 / (2 * 1e-2)), rtol=1e-4, atol=0)
    far = charbonnier_loss(x + 100.0, x, eps=1e-2)
    assert far.item() == pytest.approx(100.0 - 1e-2, rel=1e-6)


def test_charbonnier_values_gradients_and_module():
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    y = torch.randn(4, dtype=torch.float64)
    expected = ((x - y) ** 2 + 0.01).sqrt() - 0.1
    for reduction, value in (
        ("none", expected),
        ("sum", expected.sum()),
        ("mean", expected.mean()),
    ):
        loss = CharbonnierLoss(0.1, reduction=reduction)
        torch.testing.assert_close(loss(x, y), value)
        torch.testing.assert_close(charbonnier_loss(x, y, eps=0.1, reduction=reduction), value)
    assert torch.autograd.gradcheck(lambda x: charbonnier_loss(x, y), x)
    assert torch.autograd.grad(charbonnier_loss(y.requires_grad_(), y), y)[0].abs().sum() == 0
    assert repr(CharbonnierLoss()) == "CharbonnierLoss(eps=0.001, reduction='mean')"
    with pytest.raises(ValueError, match="prediction and target must have the same"):
        charbonnier_loss(torch.zeros(2), torch.zeros(1))
    bytes_ = torch.zeros(2, dtype=torch.uint8)
    with pytest.raises(TypeError, match="prediction must be a floating-point"):
        charbonnier_loss(bytes_, bytes_ + 255)  # the difference would wrap around to 1
    with pytest.raises(ValueError, match="prediction is empty"):
        charbonnier_loss(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"eps must lie in \(0, inf\)"):
        CharbonnierLoss(0.0)


def test_total_variation_by_loops():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    found = total_variation(x, reduction="none")
    for b in range(2):
        down = [abs(float(x[b, c, i + 1, j] - x[b, c, i, j]))
                for c in range(3) for i in range(3) for j in range(5)]  # fmt: skip
        across = [abs(float(x[b, c, i, j + 1] - x[b, c, i, j]))
                  for c in range(3) for i in range(4) for j in range(4)]  # fmt: skip
        expected = sum(down) / len(down) + sum(across) / len(across)
        assert float(found[b]) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(total_variation(x), found.mean())
    torch.testing.assert_close(total_variation(x, reduction="sum"), found.sum())


def test_total_variation_of_simple_images():
    assert total_variation(torch.ones(1, 1, 4, 4)).item() == 0.0
    assert total_variation(torch.rand(1, 1, 1, 1)).item() == 0.0
    ramp = torch.arange(5.0).expand(1, 1, 3, 5)
    assert total_variation(ramp).item() == 1.0
    assert total_variation(ramp.mT).item() == 1.0


def test_gram_matrix_by_loops():
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    gram = gram_matrix(x)
    for b in range(2):
        for i in range(3):
            for j in range(3):
                expected = float((x[b, i] * x[b, j]).sum()) / (3 * 2 * 4)
                assert float(gram[b, i, j]) == pytest.approx(expected, abs=1e-12)
    assert (torch.linalg.eigvalsh(gram) > -1e-12).all()
    torch.testing.assert_close(gram_matrix(x.flip(3)), gram)  # positions do not matter


def test_gram_matrix_of_a_large_map_in_half_precision():
    x = torch.full((1, 2, 256, 512), 2.0, dtype=torch.float16)  # 4 * 131072 is beyond 65504
    torch.testing.assert_close(gram_matrix(x), torch.full((1, 2, 2), 2.0).half(), rtol=2e-2, atol=0)


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        first = self.bn(self.conv1(x))
        return {"first": first, "second": self.conv2(first.relu())}


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(2, 3, 8, 8, generator=generator) for _ in range(2))


@pytest.mark.parametrize(
    ("distance", "compare"), [("l1", functional.l1_loss), ("l2", functional.mse_loss)]
)
def test_perceptual_loss_is_a_weighted_sum_over_maps(images, distance, compare):
    network = Pyramid()
    loss = PerceptualLoss(network, (0.5, 2.0), distance=distance)
    x, y = images
    network.eval()
    mine, other = network(x), network(y)
    expected = 0.5 * compare(mine["first"], other["first"])
    expected = expected + 2.0 * compare(mine["second"], other["second"])
    torch.testing.assert_close(loss(x, y), expected.detach())
    style = PerceptualLoss(network, (0.5, 2.0), distance=distance, transform=gram_matrix)
    expected = 0.5 * compare(gram_matrix(mine["first"]), gram_matrix(other["first"]))
    expected += 2.0 * compare(gram_matrix(mine["second"]), gram_matrix(other["second"]))
    torch.testing.assert_close(style(x, y), expected.detach())


def test_perceptual_loss_trains_the_prediction_only(images):
    network = Pyramid()
    loss = PerceptualLoss(network)
    states = copy.deepcopy(network.state_dict())
    x, y = (image.clone().requires_grad_() for image in images)
    loss(x, y).backward()
    assert x.grad.abs().sum() > 0
    assert y.grad is None
    assert not list(loss.parameters())
    assert not loss.state_dict()
    assert all(torch.equal(states[key], value) for key, value in network.state_dict().items())
    assert loss(images[0], images[0]).item() == 0.0


def test_any_callable_extracts(images):
    x, y = images
    loss = PerceptualLoss(lambda image: functional.avg_pool2d(image, 2))
    expected = (functional.avg_pool2d(x, 2) - functional.avg_pool2d(y, 2)).abs().mean()
    torch.testing.assert_close(loss(x, y), expected)
    twice = PerceptualLoss(lambda image: [image, image], (1.0, 1.0), distance="l2")
    torch.testing.assert_close(twice(x, y), 2 * functional.mse_loss(x, y))
    with pytest.raises(ValueError, match="got 3 weights and 2 maps"):
        PerceptualLoss(lambda image: [image, image], (1.0, 1.0, 1.0))(x, y)
    with pytest.raises(ValueError, match="at least one map"):
        PerceptualLoss(lambda _: [])(x, y)
    with pytest.raises(ValueError, match="prediction is empty"):
        loss(x[:0], y[:0])
    with pytest.raises(ValueError, match="distance must be one of"):
        PerceptualLoss(nn.Identity(), distance="l3")
    with pytest.raises(ValueError, match="same shape"):
        loss(x, y[:1])
