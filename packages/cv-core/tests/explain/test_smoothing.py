import pytest
import torch
from cv_core.explain.attribution import InputGradients, IntegratedGradients
from cv_core.explain.smoothing import InputXGradient, SmoothGrad
from cv_core.random import seeded, torch_generator
from torch import nn


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 2, 5, 6, dtype=torch.float64, generator=generator)


def network(*, bias=True):
    with seeded(0):
        layers = [nn.Conv2d(2, 4, 3, bias=bias), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(48, 4, bias=bias)).double()


def test_input_x_gradient_is_complete_without_biases(images):
    model = network(bias=False)
    maps = InputXGradient(model).attribute(images)
    torch.testing.assert_close(maps.sum((1, 2)), model(images).amax(1).detach().float())


def test_input_x_gradient_of_a_linear_model(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(60, 3)).double()
    weight = model[1].weight.detach().unflatten(1, (2, 5, 6))
    images.requires_grad_()
    maps = InputXGradient(model).attribute(images, target=2)
    torch.testing.assert_close(maps, (weight[2] * images.detach()).sum(1).float())
    assert not maps.requires_grad
    assert images.grad is None
    line = IntegratedGradients(model, steps=1).attribute(images, target=2)
    torch.testing.assert_close(maps, line)  # in a linear model the path does not matter


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_smoothgrad_by_a_loop(images, batch_size):
    model = network()
    explainer = SmoothGrad(
        InputGradients(model), samples=5, noise=0.2, seed=3, batch_size=batch_size
    )
    found = explainer.attribute(images)
    generator = torch_generator(3, "SmoothGrad")
    classes = model(images).argmax(1)
    total = torch.zeros(3, 5, 6)
    for _ in range(5):
        for b in range(3):
            sigma = 0.2 * float(images[b].max() - images[b].min())
            noise = torch.randn(2, 5, 6, generator=generator)
            x = (images[b] + sigma * noise.double())[None].requires_grad_()
            (gradient,) = torch.autograd.grad(model(x)[0, classes[b]], x)
            total[b] += gradient[0].abs().amax(0).float()
    torch.testing.assert_close(found, total / 5)
    assert torch.equal(found, explainer.attribute(images))  # the same noise in every call


def test_smoothgrad_changes_nothing_in_a_linear_model_or_without_noise(images):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(60, 3)).double()
    plain = InputGradients(linear)
    torch.testing.assert_close(
        SmoothGrad(plain, samples=3).attribute(images, 1), plain.attribute(images, 1)
    )
    curved = IntegratedGradients(network(), steps=3)
    torch.testing.assert_close(
        SmoothGrad(curved, samples=2, noise=0.0).attribute(images), curved.attribute(images)
    )


def test_smoothgrad_explains_the_decision_on_the_clean_image():
    """With so much noise the copies are judged differently; the class must not follow them."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1, 1, 1], [-3.0, -3, -3, -3]]))
    x = torch.tensor([[[[0.5, 1.0], [1.0, 1.5]]]])
    maps = SmoothGrad(InputGradients(model), samples=50, noise=20.0).attribute(x)
    torch.testing.assert_close(maps, torch.ones(1, 2, 2))


def test_global_state_stays(images):
    model = network().train()
    states = torch.get_rng_state()
    for explainer in (InputXGradient(model), SmoothGrad(InputGradients(model), samples=2)):
        expected = explainer.attribute(images, torch.tensor([1, 0, 2]))
        assert expected.dtype == torch.float32
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                found = explainer.attribute(images.clone(), torch.tensor([1, 0, 2]))
            assert torch.equal(found, expected)
    assert torch.equal(torch.get_rng_state(), states)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bad_use_is_refused(images):
    gradients = InputGradients(network())
    with pytest.raises(ValueError, match="SmoothGrad: samples must be at least 1"):
        SmoothGrad(gradients, samples=0)
    with pytest.raises(ValueError, match="SmoothGrad: noise must lie in"):
        SmoothGrad(gradients, noise=-0.1)
    with pytest.raises(ValueError, match=r"SmoothGrad: target must lie in \[0, 3\]; got 4"):
        SmoothGrad(gradients).attribute(images, 4)
    with pytest.raises(ValueError, match=r"InputXGradient: target must lie in \[0, 3\]; got 4"):
        InputXGradient(gradients.model).attribute(images, 4)
    with pytest.raises(ValueError, match="SmoothGrad: inputs must have shape"):
        SmoothGrad(gradients).attribute(images[0])
