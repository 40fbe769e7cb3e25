import copy
import math

import pytest
import torch
from cv_core.explain.attribution import Explainer, GradCAM
from cv_core.explain.cams import GradCAMPlusPlus, LayerCAM, ScoreCAM
from cv_core.models.small import SmallCNN
from cv_core.random import seeded
from torch import nn
from torch.nn import functional

CAMS = {"layer": LayerCAM, "plus-plus": GradCAMPlusPlus, "score": ScoreCAM}


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 2, 6, 7, dtype=torch.float64, generator=generator)


def small(*, relu=True):
    """One layer with maps of the images' own size, so that nothing is enlarged."""
    with seeded(0):
        conv, linear = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3 * 6 * 7, 4)
    middle = nn.ReLU() if relu else nn.Identity()
    return nn.Sequential(conv, middle, nn.Flatten(), linear).double()


def given(model, images, classes):
    """Activations of the layer and the score's gradient there, by autograd in one piece."""
    activation = model[1](model[0](images)).detach().requires_grad_()
    logits = model[3](activation.flatten(1))
    logits[torch.arange(len(images)), classes].sum().backward()
    return activation.detach(), activation.grad


def test_layercam_by_loops(images):
    model, classes = small(relu=False), torch.tensor([1, 0, 3, 2])
    activation, gradient = given(model, images, classes)
    maps = LayerCAM(model, "1").attribute(images, classes)
    signed = LayerCAM(model, "1", relu=False).attribute(images, classes)
    for b in range(4):
        for i in range(6):
            for j in range(7):
                total = 0.0
                for k in range(3):
                    weight = max(0.0, float(gradient[b, k, i, j]))
                    total += weight * float(activation[b, k, i, j])
                assert float(signed[b, i, j]) == pytest.approx(total, abs=1e-6)
                assert float(maps[b, i, j]) == pytest.approx(max(0.0, total), abs=1e-6)


def test_gradcam_plus_plus_by_loops(images):
    """The paper's quotient of second and third powers, and its exponential score."""
    model, classes = small(), torch.tensor([1, 0, 3, 2])
    activation, gradient = given(model, images, classes)
    maps = GradCAMPlusPlus(model, "1").attribute(images, classes)
    for b in range(4):
        total = torch.zeros(6, 7, dtype=torch.float64)
        for k in range(3):
            weight, area = 0.0, float(activation[b, k].sum())
            for g in gradient[b, k].flatten().tolist():
                if g != 0.0:
                    weight += g**2 / (2 * g**2 + g**3 * area) * max(0.0, g)
            total += weight * activation[b, k]
        torch.testing.assert_close(maps[b], total.relu().float())


def test_gradcam_plus_plus_has_no_pole(images):
    """Activations with a negative sum would make the paper's denominator zero for some gradient."""
    model = small(relu=False)
    with torch.no_grad():
        model[0].bias.fill_(-5.0)
        model[3].weight.abs_()
    maps = GradCAMPlusPlus(model, "1", relu=False).attribute(images, 0)
    activation, gradient = given(model, images, torch.zeros(4, dtype=torch.long))
    weights = gradient.sum((2, 3), keepdim=True) / 2.0  # what is left of the formula
    torch.testing.assert_close(maps, (weights * activation).sum(1).float())


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_scorecam_by_a_slow_loop(images, batch_size):
    with seeded(0):
        model = nn.Sequential(
            nn.Conv2d(2, 5, 3, stride=2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(30, 4)
        )
    model = model.double()
    with torch.no_grad():
        model[0].bias[2] = -100.0  # a channel that never fires
    classes = torch.tensor([1, 0, 3, 2])
    maps = ScoreCAM(model, "1", batch_size=batch_size).attribute(images, classes)
    activation = model[:2](images).detach()
    assert not bool(activation[:, 2].any())
    for b in range(4):
        scores = []
        for k in range(5):
            mask = functional.interpolate(
                activation[b, k][None, None], size=(6, 7), mode="bilinear", align_corners=False
            )[0, 0]
            low, high = float(mask.min()), float(mask.max())
            mask = (mask - low) / (high - low) if high > low else torch.zeros(6, 7)
            scores.append(model((images[b] * mask)[None])[0, classes[b]].item())
        exps = [math.exp(value - max(scores)) for value in scores]
        low_map = sum(e / sum(exps) * activation[b, k] for k, e in enumerate(exps)).relu()
        expected = functional.interpolate(
            low_map[None, None].float(), size=(6, 7), mode="bilinear", align_corners=False
        )[0, 0]
        torch.testing.assert_close(maps[b], expected, rtol=1e-5, atol=1e-6)


def test_scorecam_needs_few_passes(images):
    """One pass for the maps, one for black, and no pass for channels that are constant."""
    model, seen = small(), []
    with torch.no_grad():
        model[0].bias[0] = -100.0
    model.register_forward_pre_hook(lambda _module, args: seen.append(len(args[0])))
    ScoreCAM(model, "1", batch_size=5).attribute(images, 1)
    assert seen == [4, 1, 5, 3]


def test_scorecam_keeps_the_layout_of_the_images(images):
    model, seen = small(), []
    expected = ScoreCAM(model, "1").attribute(images, 1)
    model.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    for layout in (torch.channels_last, torch.contiguous_format):
        found = ScoreCAM(model, "1").attribute(images.contiguous(memory_format=layout), 1)
        torch.testing.assert_close(found, expected)
        assert all(x.is_contiguous(memory_format=layout) for x in seen)
        seen.clear()


def test_scorecam_takes_a_function_as_target(images):
    model = small()
    found = ScoreCAM(model, "1").attribute(images, lambda logits: logits[:, 2])
    assert torch.equal(found, ScoreCAM(model, "1").attribute(images, 2))


@pytest.mark.parametrize("kind", CAMS.values(), ids=CAMS)
def test_tokens_need_a_reshape(kind):
    class Tokens(nn.Module):
        def forward(self, x):
            return x.flatten(2).mT

    with seeded(0):
        conv, linear = nn.Conv2d(2, 3, 2), nn.Linear(90, 4)
    tokens = nn.Sequential(conv, Tokens(), Tokens(), nn.Flatten(), linear)
    maps = nn.Sequential(conv, nn.Flatten(), linear)
    x = torch.rand(2, 2, 6, 7)
    with pytest.raises(ValueError, match="the layer's output must have shape"):
        kind(tokens, "1").attribute(x)
    found = kind(tokens, "1", reshape=lambda t: t.mT.unflatten(2, (5, 6))).attribute(x)
    torch.testing.assert_close(found, kind(maps, "0").attribute(x))


@pytest.mark.parametrize("kind", CAMS.values(), ids=CAMS)
def test_the_network_stays_as_it_was(kind):
    with seeded(0):
        model = SmallCNN(1, 3, width=4).eval()
    model.pool2.train()
    states = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    x, classes = torch.rand(5, 1, 12, 10), torch.tensor([0, 1, 2, 0, 1])
    explainer: Explainer = kind(model, "relu3")
    maps = explainer.attribute(x, classes)
    assert maps.shape == (5, 12, 10)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert (maps >= 0).all()
    assert torch.equal(maps, explainer.attribute(x, classes))
    one = explainer.attribute(x[1:2], target=1)
    torch.testing.assert_close(one[0], maps[1], rtol=1e-4, atol=1e-6)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(explainer.attribute(x.clone(), classes.clone()), maps)
            assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(states[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(("key", "kind"), CAMS.items(), ids=CAMS)
def test_bad_use_is_refused_under_the_own_name(key, kind):
    model, owner = SmallCNN(1, 3, width=4).eval(), kind.__name__
    with pytest.raises(ValueError, match=rf"{owner}: layer must select one layer; 'conv\?'"):
        kind(model, "conv?")
    with pytest.raises(ValueError, match="Nearest: 'conv"):
        kind(model, "conv9")
    explainer = kind(model, "relu3")
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match=rf"{owner}: target must lie in \[0, 2\]; got 3"):
        explainer.attribute(x, target=3)
    with pytest.raises(ValueError, match=rf"{owner}: inputs must have shape"):
        explainer.attribute(x[0])
    with pytest.raises(TypeError, match=f"{owner}: inputs must be a floating-point"):
        explainer.attribute(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    shared = nn.ReLU()
    twice = nn.Sequential(shared, nn.Conv2d(1, 2, 1), shared, nn.Flatten(), nn.Linear(128, 2))
    with pytest.raises(ValueError, match=f"{owner}: layer must run once in a pass; it ran 2"):
        kind(twice, "0").attribute(x)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    if key == "score":
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            ScoreCAM(model, "relu3", batch_size=0)


def test_hooks_go_when_the_network_fails():
    class Broken(nn.Module):
        def forward(self, _x):
            raise RuntimeError("broken")

    model = nn.Sequential(nn.Conv2d(1, 2, 1), Broken())
    for kind in (*CAMS.values(), GradCAM):
        with pytest.raises(RuntimeError, match="broken"):
            kind(model, "0").attribute(torch.rand(1, 1, 4, 4), 0)
        assert torch.is_grad_enabled()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("kind", [GradCAM, *CAMS.values()])
def test_compiled_networks(kind):
    """Code compiled before knows nothing of hooks: the network runs uncompiled for them."""
    pytest.importorskip("torch", "2.6", "older torch cannot run compiled networks uncompiled")
    plain, whole, part = (small() for _ in range(3))
    x = torch.rand(2, 2, 6, 7, dtype=torch.float64)
    expected = kind(plain, "1").attribute(x, 1)
    compiled = torch.compile(whole, backend="eager")
    part.compile(backend="eager")
    for model, layer in ((compiled, "_orig_mod.1"), (part, "1")):
        with torch.no_grad():
            model(x)
        torch.testing.assert_close(kind(model, layer).attribute(x, 1), expected)
    with pytest.raises(ValueError, match=r"Nearest: .*'_orig_mod\.1'"):
        kind(compiled, "1")
