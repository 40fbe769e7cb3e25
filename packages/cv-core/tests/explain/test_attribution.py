import copy

import pytest
import torch
from cv_core.explain.attribution import (
    Explainer,
    GradCAM,
    InputGradients,
    IntegratedGradients,
    Occlusion,
    normalize_maps,
)
from cv_core.models.small import SmallCNN
from cv_core.random import seeded
from torch import nn
from torch.nn import functional

SHAPE = (2, 6, 7)


class Linear(nn.Module):
    """Scores that are linear in the image: every attribution has a closed form."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, *SHAPE, dtype=torch.float64, generator=generator))

    def forward(self, x):
        return torch.einsum("bchw,kchw->bk", x, self.weight) + 1.0


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, *SHAPE, dtype=torch.float64, generator=generator)


def test_integrated_gradients_of_a_linear_model(images):
    model = Linear()
    weight = model.weight.detach()
    learned = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    for start in (0.0, 0.3, learned):
        maps = IntegratedGradients(model, baseline=start, steps=3).attribute(images, target=1)
        assert not maps.requires_grad
        start = start.detach() if isinstance(start, torch.Tensor) else start  # noqa: PLW2901 - as it counts
        torch.testing.assert_close(maps, (weight[1] * (images - start)).sum(1).float())
    classes = torch.tensor([0, 1, 2, 0])
    maps = IntegratedGradients(model, steps=1).attribute(images, target=classes)
    torch.testing.assert_close(maps, (weight[classes] * images).sum(1).float())


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_integrated_gradients_are_complete(images, batch_size):
    with seeded(0):
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(80, 3))
    model = model.double()
    maps = IntegratedGradients(model, baseline=0.1, batch_size=batch_size).attribute(images)
    classes = model(images).argmax(1)
    rows = torch.arange(4)
    difference = model(images)[rows, classes] - model(torch.full_like(images, 0.1))[rows, classes]
    torch.testing.assert_close(maps.sum((1, 2)), difference.detach().float(), rtol=1e-5, atol=1e-6)


def test_input_gradients_of_a_linear_model(images):
    model = Linear()
    weight = model.weight.detach()
    explainer = InputGradients(model)
    torch.testing.assert_close(explainer.gradients(images, 2), weight[2].expand_as(images))
    expected = weight[2].abs().amax(0).float().expand(4, 6, 7)
    torch.testing.assert_close(explainer.attribute(images, target=2), expected)
    classes = model(images).argmax(1)
    torch.testing.assert_close(explainer.gradients(images), weight[classes])
    margin = explainer.gradients(images, lambda logits: logits[:, 0] - logits[:, 1])
    torch.testing.assert_close(margin, (weight[0] - weight[1]).expand_as(images))


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (3, 2), (3, 3), (6, 4)])
@pytest.mark.parametrize("fill", [0.0, 0.5, torch.tensor([0.2, -0.1])])
def test_occlusion_by_loops(images, window, stride, fill):
    model = Linear()
    maps = Occlusion(model, window=window, stride=stride, fill=fill, batch_size=5).attribute(
        images, target=1
    )
    height, width = SHAPE[1:]
    values = fill.double().view(-1, 1, 1) if isinstance(fill, torch.Tensor) else fill
    # in a linear model covering pixels costs their own terms
    cost = (model.weight.detach()[1] * (images - values)).sum(1)
    total, count = torch.zeros(4, height, width), torch.zeros(height, width)
    for i in sorted({*range(0, height - window, stride), height - window}):
        for j in sorted({*range(0, width - window, stride), width - window}):
            drop = cost[:, i : i + window, j : j + window].sum((1, 2)).float()
            total[:, i : i + window, j : j + window] += drop.view(-1, 1, 1)
            count[i : i + window, j : j + window] += 1
    assert (count > 0).all()
    torch.testing.assert_close(maps, total / count, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relu", [True, False])
def test_gradcam_by_loops(images, relu):
    with seeded(0):
        conv, linear = nn.Conv2d(2, 3, 2).double(), nn.Linear(3 * 5 * 6, 4).double()
    model = nn.Sequential(conv, nn.Sigmoid(), nn.Flatten(), linear)
    maps = GradCAM(model, "1", relu=relu).attribute(images, target=2)
    activation = conv(images).sigmoid().detach()
    slope = linear.weight.detach()[2].view(3, 5, 6)  # of the score, with respect to the activation
    for b in range(4):
        small = torch.zeros(5, 6, dtype=torch.float64)
        for k in range(3):
            alpha = sum(float(slope[k, i, j]) for i in range(5) for j in range(6)) / 30
            for i in range(5):
                for j in range(6):
                    small[i, j] += alpha * activation[b, k, i, j]
        small = small.clamp(min=0) if relu else small
        large = functional.interpolate(small[None, None].float(), size=(6, 7), mode="bilinear")
        torch.testing.assert_close(maps[b], large[0, 0])


def test_gradcam_survives_in_place_layers_and_an_outer_no_grad(images):
    with seeded(0):
        conv, linear = nn.Conv2d(2, 3, 2).double(), nn.Linear(3 * 5 * 6, 4).double()
    plain = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear)
    inplace = nn.Sequential(conv, nn.ReLU(inplace=True), nn.Flatten(), linear)
    expected = GradCAM(plain, "0").attribute(images)
    assert torch.equal(GradCAM(inplace, "0").attribute(images), expected)
    with torch.no_grad():
        assert torch.equal(GradCAM(plain, "0").attribute(images), expected)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_gradcam_stops_at_the_layer(images):
    class NoBackward(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, x):
            return x.clone()

        @staticmethod
        def backward(_ctx, _gradient):
            raise AssertionError("the backward pass went past the layer")

    class Front(nn.Module):
        def forward(self, x):
            return NoBackward.apply(x)

    layers = [nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(90, 4)]
    model = nn.Sequential(Front(), *layers).double()
    images.requires_grad_()
    assert torch.isfinite(GradCAM(model, "1").attribute(images)).all()
    assert images.grad is None


def test_gradcam_on_tokens():
    """A map laid out as tokens gives the same answer once it is told how."""
    with seeded(0):
        conv, linear = nn.Conv2d(2, 3, 2), nn.Linear(90, 4)

    class Tokens(nn.Module):
        def forward(self, x):
            return x.flatten(2).mT

    tokens = nn.Sequential(conv, Tokens(), Tokens(), nn.Flatten(), linear)  # there and back
    maps = nn.Sequential(conv, nn.Flatten(), linear)
    x = torch.rand(2, *SHAPE)
    with pytest.raises(ValueError, match="the layer's output must have shape"):
        GradCAM(tokens, "1").attribute(x)
    found = GradCAM(tokens, "1", reshape=lambda t: t.mT.unflatten(2, (5, 6))).attribute(x)
    torch.testing.assert_close(found, GradCAM(maps, "0").attribute(x))


EXPLAINERS = {
    "gradcam": lambda model: GradCAM(model, "relu3"),
    "gradients": InputGradients,
    "integrated": lambda model: IntegratedGradients(model, steps=4),
    "occlusion": lambda model: Occlusion(model, window=4),
}


@pytest.mark.parametrize("name", EXPLAINERS)
def test_explainers_leave_the_network_as_it_was(name):
    with seeded(0):
        model = SmallCNN(1, 3, width=4).eval()
    model.pool2.train()  # an odd flag that has to survive
    states = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    x = torch.rand(5, 1, 12, 10)
    explainer: Explainer = EXPLAINERS[name](model)
    maps = explainer.attribute(x, target=torch.tensor([0, 1, 2, 0, 1]))
    assert maps.shape == (5, 12, 10)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert torch.equal(maps, explainer.attribute(x, target=torch.tensor([0, 1, 2, 0, 1])))
    one = explainer.attribute(x[1:2], target=1)
    torch.testing.assert_close(one[0], maps[1], rtol=1e-4, atol=1e-6)  # images do not mix
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(states[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


class Squared(nn.Module):
    """Keeps its input for the backward pass, which torch forbids for tensors of inference mode."""

    def __init__(self):
        super().__init__()
        self.relu3, self.fc = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(1, 3)

    def forward(self, x):
        return self.fc((self.relu3(x) * x).mean((2, 3)))


@pytest.mark.parametrize("name", EXPLAINERS)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_explainers_work_where_gradients_are_off(name, context):
    explainer = EXPLAINERS[name](Squared())
    x, classes = torch.rand(2, 1, 8, 8), torch.tensor([1, 2])
    expected = explainer.attribute(x, target=classes)
    with context():
        found = explainer.attribute(x.clone(), target=classes.clone())
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_explainers_fail_cleanly(name):
    model = SmallCNN(1, 3, width=4).eval()
    explainer = EXPLAINERS[name](model)
    with pytest.raises(ValueError, match=r"target must lie in \[0, 2\]; got 3"):
        explainer.attribute(torch.rand(2, 1, 8, 8), target=3)
    with pytest.raises(ValueError, match=r"inputs must have shape \(b, c, h, w\)"):
        explainer.attribute(torch.rand(1, 8, 8))
    with pytest.raises(TypeError, match="floating-point"):
        explainer.attribute(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="empty along axis 'b'"):
        explainer.attribute(torch.zeros(0, 1, 8, 8))
    assert not any(module._forward_hooks for module in model.modules())


def test_bad_options_are_refused():
    model = SmallCNN(1, 3, width=4)
    with pytest.raises(ValueError, match=r"layer must select one layer; 'conv\?' selects"):
        GradCAM(model, "conv?")
    with pytest.raises(ValueError, match="Nearest: 'conv"):
        GradCAM(model, "conv9")
    with pytest.raises(ValueError, match="stride must be at least 1 and at most 4; got 5"):
        Occlusion(model, window=4, stride=5)
    with pytest.raises(ValueError, match="window must fit"):
        Occlusion(model, window=9).attribute(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        IntegratedGradients(model, steps=0)
    shared = nn.ReLU()
    layers = [shared, nn.Conv2d(1, 2, 1), nn.Sequential(shared), nn.Flatten(), nn.Linear(8, 2)]
    twice = nn.Sequential(*layers)
    with pytest.raises(ValueError, match="it ran 2 times"):
        GradCAM(twice, "0").attribute(torch.rand(1, 1, 2, 2))


def test_normalized_maps_span_the_unit_interval():
    maps = torch.stack([torch.arange(6.0).view(2, 3), torch.full((2, 3), 4.0)])
    expected = torch.stack([torch.arange(6.0).view(2, 3) / 5, torch.zeros(2, 3)])
    torch.testing.assert_close(normalize_maps(maps), expected)


def test_a_map_that_is_not_finite_is_not_shown_as_black():
    with pytest.raises(ValueError, match="normalize_maps: maps must be finite; 1 of 4"):
        normalize_maps(torch.tensor([[[0.0, float("nan")], [1.0, 2.0]]]))


def test_occlusion_holds_no_more_windows_than_a_pass_takes():
    class Peak(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.largest = max(self.largest, out.numel())
            return out

    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 2))
    with Peak() as peak:
        Occlusion(model, window=1, batch_size=2).attribute(torch.rand(1, 1, 32, 32), target=0)
    assert peak.largest <= 2048  # two images; all 1024 windows together are a million pixels


def test_gradcam_refuses_a_layer_that_returns_no_map():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return self.pair(x)[0].mean((2, 3))

    with pytest.raises(TypeError, match="the layer's output must be a tensor; got tuple"):
        GradCAM(Model(), "pair").attribute(torch.rand(1, 2, 4, 4))
