"""Adversarial climbing: the paper's algebra in float64, a loop, and the degenerate cases."""

import pytest
import torch
from cv_segmentation.cam_classifier import CAMClassifier
from cv_segmentation.climbing import adversarial_climb, climb_objective, own_cam
from torch import nn

RAW = {"normalise_grad": None}


def draws(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def network(classes=4):
    """A smooth backbone: gradients and their limits are clean."""
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 6, 3, stride=2)
    )
    model = CAMClassifier(backbone, classes, channels=6).double()
    nn.init.uniform_(model.head.weight, -1.0, 2.0)  # maps of either sign
    return model


@pytest.fixture
def x():
    return draws(3, 3, 9, 11) - 0.5


CLASSES = torch.tensor([2, 0, 2])


def in_loops(model, x, c, steps, step_size, delta, beta, others, *, by_max, normalise_cam):
    """The rule for one image, place by place."""

    def cam_of(image):
        features = model.backbone(image[None])[0]
        signed = sum(model.head.weight[c, k] * features[k] for k in range(len(features)))
        return signed.relu()

    model.eval()
    image = x.clone()
    for _ in range(steps):
        image = image.detach().requires_grad_()
        scores = model(image[None])[0]
        now, first = cam_of(image), cam_of(x).detach()
        top, top_first = now.max(), first.max()
        objective = scores[c] - others * sum(s for k, s in enumerate(scores) if k != c)
        for i in range(now.shape[0]):
            for j in range(now.shape[1]):
                if top > 0 and now[i, j].item() / top.item() > beta:
                    a, b = now[i, j], first[i, j]
                    if normalise_cam:
                        a, b = a / top, b / top_first
                    objective = objective - delta * (a - b).abs()
        (gradient,) = torch.autograd.grad(objective, image)
        image = image + step_size * (gradient / gradient.abs().max() if by_max else gradient)
    return image.detach(), cam_of(image).detach()


@pytest.mark.parametrize("by_max", [True, False])
@pytest.mark.parametrize("normalise_cam", [True, False])
def test_it_is_the_rule_in_loops(x, by_max, normalise_cam):
    model = network()
    options = {"steps": 4, "step_size": 0.08 if by_max else 2.0, "delta": 0.3, "beta": 0.4,
               "others": 0.5}  # fmt: skip
    climbed, cam = adversarial_climb(
        model, x, CLASSES, normalise_grad="max" if by_max else None, normalise_cam=normalise_cam,
        **options,
    )  # fmt: skip
    for row, c in enumerate(CLASSES.tolist()):
        image, own = in_loops(
            model, x[row], c, *options.values(), by_max=by_max, normalise_cam=normalise_cam
        )
        torch.testing.assert_close(climbed[row], image)
        torch.testing.assert_close(cam[row], own)
    assert (cam > 0).any()


def test_property_4_one_class_without_restraint_is_gradient_ascent(x):
    model = network(classes=1).eval()
    climbed, _ = adversarial_climb(model, x, 0, steps=5, step_size=0.7, delta=0.0, **RAW)
    image = x
    for _ in range(5):
        leaf = image.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf).sum(), leaf)
        image = leaf + 0.7 * gradient
    torch.testing.assert_close(climbed, image.detach())
    assert (model(climbed) > model(x)).all()


def test_property_4_small_steps_do_not_lower_the_objective(x):
    model = network().eval()

    def objective(image, delta):
        logits, maps = model.activations(image)
        first = own_cam(model.activations(x)[1], CLASSES)
        return climb_objective(logits, maps, first, CLASSES, delta=delta, beta=0.5)

    # the first step, at which the restraint is flat, and a smooth objective all the way
    for delta, steps in ((0.0, 6), (7.0, 1)):
        options = {"step_size": 1e-3, "delta": delta, "beta": 0.5, **RAW}
        counts = range(steps + 1)
        path = [adversarial_climb(model, x, CLASSES, steps=n, **options)[0] for n in counts]
        values = torch.stack([objective(image, 0.0) for image in path])
        assert len(values.diff(dim=0)) == steps
        assert (values.diff(dim=0) > 0).all()


@pytest.mark.parametrize("none", [{"steps": 0}, {"step_size": 0.0}])
@pytest.mark.parametrize("normalise_grad", ["max", None])
def test_property_4_no_step_gives_the_ordinary_map(x, none, normalise_grad):
    model = network()
    climbed, cam = adversarial_climb(model, x, CLASSES, normalise_grad=normalise_grad, **none)
    assert torch.equal(climbed, x)
    expected = model.cam(x)[torch.arange(3), CLASSES]
    torch.testing.assert_close(cam, expected)


def test_property_5_from_beta_1_on_nothing_is_held(x):
    model = network()
    free, _ = adversarial_climb(model, x, CLASSES, steps=4, delta=0.0)
    for beta in (1.0, 3.0):
        held, _ = adversarial_climb(model, x, CLASSES, steps=4, delta=7.0, beta=beta)
        torch.testing.assert_close(held, free)
    held, _ = adversarial_climb(model, x, CLASSES, steps=4, delta=7.0, beta=0.5)
    assert not torch.allclose(held, free)


def test_property_5_the_first_step_knows_no_restraint(x):
    model = network()
    options = [{"delta": 0.0}, {"delta": 7.0}, {"delta": 500.0, "beta": 0.0}]
    first, *rest = (
        adversarial_climb(model, x, CLASSES, steps=1, step_size=3.0, **RAW, **each)[0]
        for each in options
    )
    assert not torch.allclose(first, x)
    for other in rest:
        torch.testing.assert_close(other, first)


def test_property_5_a_linear_map_in_closed_form(x):
    model = CAMClassifier(nn.Identity(), 4, channels=3).double()
    climbed, _ = adversarial_climb(model, x, CLASSES, steps=5, step_size=2.0, delta=0.0, **RAW)
    omega = model.head.weight.detach()
    own = omega[CLASSES]
    direction = own - (omega.sum(0) - own)
    expected = x + 5 * 2.0 * direction[:, :, None, None] / (9 * 11)
    torch.testing.assert_close(climbed, expected)
    alone, _ = adversarial_climb(
        model, x, CLASSES, steps=5, step_size=2.0, delta=0.0, others=0.0, **RAW
    )
    torch.testing.assert_close(alone, x + 10.0 * own[:, :, None, None] / (9 * 11))


def test_the_restraint_holds_strong_regions(x):
    model = network().eval()
    before = model.cam(x)[torch.arange(3), CLASSES]
    strong = before > 0.5 * before.amax((1, 2), keepdim=True)
    moves = []
    for delta in (0.0, 7.0):
        _, cam = adversarial_climb(model, x, CLASSES, steps=20, step_size=0.01, delta=delta)
        moves.append(float(((cam - before).abs() * strong).sum()))
    assert moves[1] < 0.5 * moves[0]


def test_a_map_without_a_positive_place_is_not_held_and_stays_finite(x):
    model = network()
    nn.init.zeros_(model.head.weight)
    climbed, cam = adversarial_climb(model, x, 1, steps=3, normalise_cam=True)
    assert torch.equal(climbed, x)  # no gradient, and none divided by zero
    assert torch.equal(cam, torch.zeros_like(cam))


def test_score_of_the_map_is_its_mean_after_the_relu(x):
    model = network().eval()
    logits, maps = model.activations(x)
    first = own_cam(maps, CLASSES)
    means = maps.relu().mean((2, 3))
    found = climb_objective(logits, maps, first, CLASSES, score="map", others=0.5)
    for row, c in enumerate(CLASSES.tolist()):
        others = sum(means[row, k] for k in range(4) if k != c)
        torch.testing.assert_close(found[row], means[row, c] - 0.5 * others)
    climbed, _ = adversarial_climb(model, x, CLASSES, score="map", steps=2)
    assert not torch.allclose(climbed, adversarial_climb(model, x, CLASSES, steps=2)[0])


def test_the_sum_of_all_maps(x):
    model = network()
    options = {"step_size": 0.05, "delta": 0.2}
    maps = [adversarial_climb(model, x, CLASSES, steps=n, **options)[1] for n in range(4)]
    _, total = adversarial_climb(model, x, CLASSES, steps=3, aggregate="sum", **options)
    torch.testing.assert_close(total, sum(maps))


def test_the_largest_change_of_a_step_is_its_size_and_clamping_limits_it(x):
    model = network()
    climbed, _ = adversarial_climb(model, x, CLASSES, steps=1, step_size=0.08)
    change = (climbed - x).abs().amax((1, 2, 3))
    torch.testing.assert_close(change, torch.full((3,), 0.08, dtype=torch.float64))
    clamped, _ = adversarial_climb(model, x, CLASSES, steps=1, step_size=0.08, clamp=(-0.4, 0.4))
    torch.testing.assert_close(clamped, climbed.clamp(-0.4, 0.4))


def test_images_climb_alone_and_nothing_else_changes(x):
    model = network().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = x.clone()
    with torch.no_grad():
        whole = adversarial_climb(model, x, CLASSES, steps=3)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        inference = adversarial_climb(model, x, CLASSES, steps=3)
        made_there = adversarial_climb(model, x, CLASSES.int(), steps=3)
        one_for_all = adversarial_climb(model, x, 2, steps=3)
    for one, many in zip(made_there, whole, strict=True):
        assert torch.equal(one, many)
    torch.testing.assert_close(one_for_all[0][0], whole[0][0])
    for row in range(3):
        alone = adversarial_climb(model, x[row : row + 1], int(CLASSES[row]), steps=3)
        for one, many, same in zip(alone, whole, inference, strict=True):
            torch.testing.assert_close(one[0], many[row])
            torch.testing.assert_close(same[row], many[row])
    assert torch.equal(x, before)
    assert not any(result.requires_grad for result in whole)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": -1}, "steps"),
        ({"step_size": -0.1}, "step_size"),
        ({"delta": -1.0}, "delta"),
        ({"beta": float("nan")}, "beta"),
        ({"others": -1.0}, "others"),
        ({"aggregate": "mean"}, "aggregate"),
        ({"score": "softmax"}, "score"),
        ({"normalise_grad": "sign"}, "normalise_grad"),
        ({"clamp": (1.0, 0.0)}, "clamp"),
        ({"cls": 4}, "cls"),
        ({"cls": torch.tensor([0, 1])}, "cls"),
        ({"x": torch.rand(3, 4, 4)}, "x must have shape"),
    ],
)
def test_wrong_arguments_are_named(x, change, message):
    arguments = {"x": x, "cls": CLASSES, **change}
    with pytest.raises(ValueError, match=f"adversarial_climb: {message}"):
        adversarial_climb(network(), arguments.pop("x"), arguments.pop("cls"), **arguments)
    with pytest.raises(ValueError, match="adversarial_climb: score"):
        adversarial_climb(network(), x, CLASSES, steps=0, score="softmax")
    with pytest.raises(TypeError, match="adversarial_climb: x must be a floating"):
        adversarial_climb(network(), torch.ones(1, 3, 4, 4, dtype=torch.int64), 0)
