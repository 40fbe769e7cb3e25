import copy

import numpy as np
import pytest
import torch
from cv_core.explain.attribution import GradCAM, InputGradients, Occlusion
from cv_core.explain.robustness import (
    linear_imputation,
    max_sensitivity,
    randomization_similarity,
    road,
)
from cv_core.models.small import SmallCNN
from cv_core.random import seeded, torch_generator
from scipy.stats import spearmanr
from torch import nn


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, dtype=dtype, generator=generator)


# ------------------------------------------------------------------------------------------- ROAD


def dense_imputation(image, holes):
    """Write down every equation in a full matrix."""
    _, height, width = image.shape
    pixels = [(i, j) for i in range(height) for j in range(width)]
    A = np.zeros((len(pixels), len(pixels)))
    b = np.zeros((len(pixels), len(image)))
    for row, (i, j) in enumerate(pixels):
        if not holes[i, j]:
            A[row, row], b[row] = 1.0, image[:, i, j].numpy()
            continue
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                there = (i + down, j + right)
                if (down or right) and there in pixels:
                    weight = 1 / 12 if down and right else 1 / 6
                    A[row, row] += weight
                    A[row, pixels.index(there)] -= weight
    return torch.from_numpy(np.linalg.solve(A, b).T.reshape(image.shape))


@pytest.mark.parametrize("size", [(5, 6), (1, 7), (4, 1)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_imputation_equals_a_dense_solve(size, share):
    images = draw(3, 2, *size)
    missing = draw(3, *size, seed=1) < share
    missing[:, 0, 0] = False
    found = linear_imputation(images, missing)
    for b in range(3):
        torch.testing.assert_close(found[b], dense_imputation(images[b], missing[b]))
    assert torch.equal(
        found[~missing[:, None].expand_as(found)], images[~missing[:, None].expand_as(found)]
    )


def test_imputation_keeps_what_is_constant_and_never_leaves_the_range():
    missing = draw(2, 9, 8, seed=1) < 0.7
    constant = torch.full((2, 3, 9, 8), 0.4)
    found = linear_imputation(constant, missing)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, constant)
    images = draw(2, 3, 9, 8)
    found = linear_imputation(images, missing)
    assert found.amin() >= images.amin() - 1e-12
    assert found.amax() <= images.amax() + 1e-12
    images[missing[:, None].expand_as(images)] = torch.nan  # what stands there does not matter
    torch.testing.assert_close(linear_imputation(images, missing), found)


class Weighted(nn.Module):
    """Two classes whose log-odds are a weighted sum of the pixels."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        odds = (x[:, 0] * self.weight).sum((1, 2))
        return torch.stack([torch.zeros_like(odds), odds], dim=1)


@pytest.fixture
def case():
    weight = torch.zeros(6, 6, dtype=torch.float64)
    weight[1:3, 3:5] = 4.0  # the object
    images = 0.1 * draw(4, 1, 6, 6)
    images[:, :, 1:3, 3:5] += 1.0
    return Weighted(weight), images


def test_road_by_loops(case):
    model, images = case
    maps = draw(4, 6, 6, seed=5)
    options = {"target": 1, "noise": 0.05, "seed": 3}
    found = road(model, images, maps, fractions=(0.2, 0.75), batch_size=3, **options)
    generator = torch_generator(3, "ROAD")
    total = [0.0] * 4
    for fraction in (0.2, 0.75):
        noise = torch.randn(4, 1, 6, 6, dtype=torch.float64, generator=generator)
        for b in range(4):
            for order, sign in ((False, 1.0), (True, -1.0)):
                ranked = sorted(range(36), key=lambda p, b=b: maps[b].flatten()[p], reverse=order)
                holes = torch.zeros(36, dtype=torch.bool)
                holes[ranked[: round(fraction * 36)]] = True
                filled = dense_imputation(images[b], holes.view(6, 6))
                filled = filled + 0.05 * noise[b] * holes.view(6, 6)
                total[b] += sign * float(model(filled[None]).softmax(1)[0, 1]) / 2
    torch.testing.assert_close(found, torch.tensor(total))


def test_road_knows_the_object(case):
    model, images = case
    truth = model.weight.expand(4, 6, 6)
    best = road(model, images, truth)
    assert (best > 0.2).all()
    torch.testing.assert_close(road(model, images, -truth), -best)
    assert not road(model, images, torch.ones(4, 6, 6)).any()  # both orders are the same
    for seed in range(5):
        assert (road(model, images, draw(4, 6, 6, seed=seed)) < best).all()


def test_road_refuses_bad_use(case):
    model, images = case
    maps, missing = torch.zeros(4, 6, 6), torch.zeros(4, 6, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match="must leave at least one pixel"):
        linear_imputation(images, ~missing)
    with pytest.raises(TypeError, match="missing must be of type bool"):
        linear_imputation(images, maps)
    with pytest.raises(ValueError, match="missing must have shape"):
        linear_imputation(images, missing[:3])
    with pytest.raises(ValueError, match="maps must have shape"):
        road(model, images, maps[:3])
    with pytest.raises(ValueError, match="maps must be finite"):
        road(model, images, maps / 0.0)
    with pytest.raises(ValueError, match=r"fractions must lie in \[0, 1\)"):
        road(model, images, maps, fractions=(0.5, 1.0))
    with pytest.raises(ValueError, match="fractions must hold at least one"):
        road(model, images, maps, fractions=())
    with pytest.raises(ValueError, match=r"target must lie in \[0, 1\]; got 2"):
        road(model, images, maps, target=2)
    with pytest.raises(TypeError, match="got a function"):
        road(model, images, maps, target=lambda logits: logits[:, 0])


# ------------------------------------------------------------------------------------ sensitivity


class Constant:
    """An explainer that does not look."""

    def __init__(self, model, value=None):
        self.model = model
        self.value = value

    def attribute(self, inputs, _target=None):
        shape = (len(inputs), *inputs.shape[2:])
        return torch.zeros(shape) if self.value is None else self.value[: len(inputs)]


def test_sensitivity_of_a_constant_and_of_a_linear_explainer(case):
    model, images = case
    assert not max_sensitivity(Constant(model), images).any()
    gradients = InputGradients(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double())
    assert not max_sensitivity(gradients, images).any()

    class Itself(Constant):  # its map is the image
        def attribute(self, inputs, _target=None):
            return inputs[:, 0].float()

    found = max_sensitivity(Itself(model), images, radius=0.1, samples=200)
    norm = images[:, 0].flatten(1).norm(dim=1).float()
    # a uniform draw from the cube has a root mean square of r / sqrt 3, and never more than r
    assert (found <= 0.1 * 6 / norm).all()
    assert (found >= 0.1 * 6 / norm / 3**0.5).all()


def test_sensitivity_by_a_loop():
    with seeded(0):
        model = SmallCNN(1, 3, width=4).eval()
    x = draw(3, 1, 10, 12, dtype=torch.float32)
    explainer = GradCAM(model, "relu3", relu=False)
    found = max_sensitivity(explainer, x, radius=0.3, samples=4, seed=2)
    classes, maps = model(x).argmax(1), explainer.attribute(x)
    generator, worst = torch_generator(2, "max sensitivity"), [0.0] * 3
    for _ in range(4):
        delta = 0.3 * (2 * torch.rand(x.shape, generator=generator) - 1)
        for b in range(3):
            moved = explainer.attribute(x[b : b + 1] + delta[b], classes[b : b + 1])[0]
            change = float((moved - maps[b]).norm() / maps[b].norm())
            worst[b] = max(worst[b], change)
    torch.testing.assert_close(found, torch.tensor(worst), rtol=1e-4, atol=1e-6)
    more = max_sensitivity(explainer, x, radius=0.3, samples=8, seed=2)
    assert (more >= found).all()  # the first draws are the same


# ----------------------------------------------------------------------------------- randomisation


def network():
    with seeded(0):
        return SmallCNN(1, 3, width=4).eval()


def test_an_explainer_that_ignores_the_network_outlives_it():
    model, x = network(), draw(3, 1, 8, 8, dtype=torch.float32)
    value = draw(3, 8, 8, seed=4)
    for constant in (None, value):
        found = randomization_similarity(model, lambda m, c=constant: Constant(m, c), x)
        torch.testing.assert_close(found, torch.ones(3))


def test_randomisation_by_hand():
    model, x = network(), draw(3, 1, 8, 8, dtype=torch.float32)
    states, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    names, built = ["fc", "conv2"], []

    def build(changed):
        built.append(changed)
        return Occlusion(changed, window=2)

    found = randomization_similarity(model, build, x, layers=names, seed=7)
    assert built[0] is model
    assert all(other is built[1] and other is not model for other in built[1:])
    assert all(torch.equal(states[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)

    classes = model(x).argmax(1)
    before = Occlusion(model, window=2).attribute(x, classes)
    other, generator, total = copy.deepcopy(model), torch_generator(7, "randomisation"), np.zeros(3)
    for name in names:
        for parameter in other.get_submodule(name).parameters():
            values = parameter.detach().clone()
            noise = torch.randn(values.shape, generator=generator)
            parameter.data = values.mean() + values.std(correction=0) * noise
        after = Occlusion(other, window=2).attribute(x, classes)
        pairs = zip(before, after, strict=True)
        total += [spearmanr(a.flatten(), b.flatten()).statistic for a, b in pairs]
    torch.testing.assert_close(found, torch.from_numpy(total / 2).float())


def test_randomisation_inside_inference_mode_is_the_same():
    model, x = network(), draw(2, 1, 8, 8, dtype=torch.float32)
    expected = randomization_similarity(model, InputGradients, x, layers=["fc"])
    with torch.inference_mode():
        found = randomization_similarity(model, InputGradients, x, layers=["fc"])
    assert torch.equal(found, expected)


def test_the_default_goes_through_every_layer_from_the_output_to_the_input():
    model, changes = network(), []
    layers = [name for name, m in model.named_modules() if list(m.parameters(recurse=False))]
    original = copy.deepcopy(model.state_dict())

    def build(changed):
        states = changed.state_dict()
        changes.append(
            {n for n in layers if not torch.equal(states[f"{n}.weight"], original[f"{n}.weight"])}
        )
        return Constant(changed)

    randomization_similarity(model, build, draw(1, 1, 8, 8, dtype=torch.float32))
    convolutions = [name for name in layers if original[f"{name}.weight"].ndim > 1]
    assert len(changes) == len(layers) + 1
    for index, changed in enumerate(changes):  # norms, whose weights are all 1, stay 1
        last = layers[len(layers) - index :]
        assert changed == {name for name in last if name in convolutions}


def test_a_map_of_the_weights_does_not_outlive_them():
    """The gradient of a linear network is its weights; new ones are uncorrelated with them."""
    with seeded(0):
        model = nn.Sequential(nn.Flatten(), nn.Linear(400, 3))
    x = draw(2, 1, 20, 20, dtype=torch.float32)
    found = randomization_similarity(model, InputGradients, x)
    assert (found.abs() < 4 / 400**0.5).all()


class OnceBroken(Constant):
    """Its first map is not finite."""

    def attribute(self, inputs, target=None):
        maps, self.value = super().attribute(inputs, target), None
        return maps

    def __init__(self, model):
        super().__init__(model, torch.full((2, 8, 8), torch.nan))


def test_other_bad_use_is_refused():
    model, x = network(), draw(2, 1, 8, 8, dtype=torch.float32)
    explainer = InputGradients(model)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        max_sensitivity(explainer, x, samples=0)
    with pytest.raises(ValueError, match="radius must lie in"):
        max_sensitivity(explainer, x, radius=-1.0)
    with pytest.raises(ValueError, match="max_sensitivity: maps must be finite"):
        max_sensitivity(OnceBroken(model), x)
    with pytest.raises(ValueError, match=r"max_sensitivity: target must lie in \[0, 2\]"):
        max_sensitivity(explainer, x, target=3)
    with pytest.raises(ValueError, match="layers must hold parameters"):
        randomization_similarity(model, InputGradients, x, layers=["relu1"])
    with pytest.raises(ValueError, match="Nearest: 'fc'"):
        randomization_similarity(model, InputGradients, x, layers=["fcc"])
    with pytest.raises(TypeError, match="layers must be a list"):
        randomization_similarity(model, InputGradients, x, layers="fc")
    with pytest.raises(ValueError, match="maps must be finite"):
        randomization_similarity(model, lambda m: Constant(m, torch.full((2, 8, 8), torch.nan)), x)
