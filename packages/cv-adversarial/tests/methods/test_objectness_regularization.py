"""Objectness regularization: what it keeps, its slope, the attack, the vanishing rate."""

import math

import pytest
import torch
from cv_adversarial.methods.objectness_regularization import (
    ObjectnessRegularization,
    VanishingPatchAttack,
    foreground_objectness,
    patch_mask,
    vanishing_rate,
)
from cv_core.random import torch_generator
from torch import nn

GRID = torch.linspace(-20, 20, 40_001, dtype=torch.float64) + 1e-5


@pytest.mark.parametrize("tau", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("eps", [0.1, 0.01, 0.001])
def test_survivors_are_those_of_a_lower_threshold(tau, eps):
    """Property 1."""
    defence = ObjectnessRegularization(tau, eps)
    survivors = defence(GRID).sigmoid() > tau
    assert torch.equal(survivors, GRID.sigmoid() > defence.equivalent_threshold)
    assert 0 < int(survivors.sum()) < len(GRID)
    assert defence.equivalent_threshold == pytest.approx(4 * tau * (1 - tau) * eps)


@pytest.mark.parametrize("tau", [0.001, 0.3, 0.5, 0.9])
def test_the_map_increases_within_its_band(tau):
    """Property 2."""
    defence = ObjectnessRegularization(tau, 0.01)
    inside = GRID[GRID.abs() < 15]
    mapped = defence(inside)
    assert bool((mapped.diff() > 0).all())
    floor = math.log(tau / (1 - tau)) - 0.01
    assert floor < float(mapped[0]) < float(mapped[-1]) < floor + 1 / (4 * tau * (1 - tau))
    assert float(torch.tensor(floor).sigmoid()) < tau


def test_without_a_margin_every_location_passes():
    """Property 2, the other half: down to where float64 rounds."""
    logits = torch.linspace(-30, 30, 1001, dtype=torch.float64)
    assert bool((ObjectnessRegularization(0.5, 0.0)(logits).sigmoid() > 0.5).all())


def test_scale_is_least_in_the_middle_and_symmetric():
    """Property 3."""
    scales = [ObjectnessRegularization(tau / 100).scale for tau in range(1, 100)]
    assert min(scales) == scales[49] == 1.0
    assert scales == pytest.approx(scales[::-1])


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.8])
def test_slope(tau):
    """Property 4: r S (1 - S), a quarter at the threshold; gaps shrink, and the gain falls."""
    defence = ObjectnessRegularization(tau, 0.01)
    logits = torch.tensor([-2.0, math.log(tau / (1 - tau)), 3.0], dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(lambda f: defence(f).sum(), logits)
    s = logits.sigmoid()
    torch.testing.assert_close(slope, defence.scale * s * (1 - s))
    assert float(slope[1]) == pytest.approx(0.25)
    assert bool((defence(GRID).diff() < GRID.diff()).all()), "every gap shrinks"
    gain = defence(GRID).sigmoid() - GRID.sigmoid()
    assert bool((gain.diff() < 0).all()), "what lay lower gains more, against the paper"


def test_the_layer_goes_behind_a_foreign_detectors_head():
    head = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1))
    x = torch.randn(2, 1, 3, 3)
    plain, defence = head(x), ObjectnessRegularization()
    with defence.attached(head, "1"):
        assert torch.equal(head(x), defence(plain))
    assert torch.equal(head(x), plain)
    with pytest.raises(ValueError, match="nowhere"), defence.attached(head, "nowhere"):
        pass


def test_foreground_objectness_is_the_logit_of_the_foreground():
    logits = torch.randn(4, 5, 3, dtype=torch.float64)
    for background in (0, 2):
        foreground = 1 - logits.softmax(1)[:, background]
        got = foreground_objectness(logits, background=background).sigmoid()
        torch.testing.assert_close(got, foreground)


class Toy(nn.Module):
    """Four cells of 4 x 4 pixels each; objectness is a smooth function of a cell's pixels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, stride=4).double()
        self.head = nn.Conv2d(6, 1, 1).double()
        for item in self.parameters():
            item.data = 0.3 * torch.randn(
                item.shape, generator=torch_generator(0, *item.shape), dtype=torch.float64
            )

    def forward(self, x):
        return self.head(self.conv(x).tanh())


IMAGES = torch.rand(3, 3, 8, 8, generator=torch_generator(1), dtype=torch.float64)
BOXES = [
    torch.tensor([[0.0, 0.0, 4.0, 4.0], [4.0, 4.0, 8.0, 8.0]]),
    torch.tensor([[2.0, 1.0, 7.0, 8.0]]),
    torch.zeros(0, 4),
]
OPTIONS = {"pixels": 18, "steps": 20, "step_size": 0.05, "milestones": (5, 12)}


def slow(model, image, mask, *, steps, step_size, milestones, pixels):
    """One image, its best iterate, by the paper's equations."""
    patch, best, least = image.clone(), image, math.inf
    for step in range(steps + 1):
        patch.requires_grad_()
        x = image * ~mask + patch * mask
        logits = model(x[None]).flatten()
        greatest = logits[max(range(len(logits)), key=lambda index: logits[index].item())]
        if greatest.item() < least:
            best, least = x.detach(), greatest.item()
        (gradient,) = torch.autograd.grad(greatest, patch)
        size = step_size * 0.5 ** len([end for end in milestones if step >= end])
        patch = (patch.detach() - size * gradient.sign()).clamp(0, 1)
    return best


def test_attack_against_a_slow_loop():
    """Property 5: nothing changes outside the mask, and the objectness does not rise."""
    model = Toy()
    adv, mask = VanishingPatchAttack(model, lambda _: BOXES, **OPTIONS)(IMAGES)
    assert mask.sum((1, 2)).tolist() == [18, 16, 0]
    where = mask[:, None].expand_as(IMAGES)
    assert torch.equal(adv[~where], IMAGES[~where])
    for image, part, got in zip(IMAGES, mask, adv, strict=True):
        torch.testing.assert_close(got, slow(model, image, part, **OPTIONS))
    with torch.no_grad():
        before, after = (model(x).flatten(1).amax(1) for x in (IMAGES, adv))
    assert bool((after <= before).all())
    assert float(after[1]) < float(before[1]) - 0.1


@pytest.mark.parametrize("tau", [0.3, 0.5])
def test_through_the_defence_the_patch_is_the_same(tau):
    """Property 7, to the bit: same arg-max, and a gradient times a positive number."""
    model, defence = Toy(), ObjectnessRegularization(tau, 0.01)
    _, mask = VanishingPatchAttack(model, lambda _: BOXES, **OPTIONS)(IMAGES)
    adv = VanishingPatchAttack(model, lambda _: BOXES, **OPTIONS).attack(IMAGES, mask)
    with defence.attached(model, "head"):
        through = VanishingPatchAttack(model, lambda _: BOXES, **OPTIONS).attack(IMAGES, mask)
    assert torch.equal(adv, through)
    assert not torch.equal(adv, IMAGES)


def test_attack_leaves_detector_and_draws_as_they_were():
    model, state = Toy(), torch.get_rng_state()
    weights = [item.clone() for item in model.parameters()]
    given = IMAGES.clone()
    with torch.no_grad():
        adv, _ = VanishingPatchAttack(model, lambda _: BOXES, **OPTIONS)(IMAGES)
    assert not adv.requires_grad
    assert torch.equal(IMAGES, given)
    assert torch.equal(state, torch.get_rng_state())
    assert all(item.grad is None and item.requires_grad for item in model.parameters())
    assert all(map(torch.equal, weights, model.parameters()))


def test_squares_lie_at_centres_and_inside():
    boxes = [torch.tensor([[0.0, 0.0, 2.0, 2.0], [10.0, 4.0, 14.0, 10.0]])]
    (mask,) = patch_mask(boxes, (12, 20), 32)
    expected = torch.zeros(12, 20, dtype=torch.bool)
    expected[0:4, 0:4] = True  # around (1, 1), moved inside
    expected[5:9, 10:14] = True  # around (12, 7)
    assert torch.equal(mask, expected)
    (mask,) = patch_mask(boxes, (12, 20), 28, share="area")
    assert int(mask.sum()) == 2**2 + 4**2  # of 28 pixels 4 are the small box's, 24 the large one's


def test_more_boxes_than_pixels_get_no_square():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).repeat(5, 1)
    assert not bool(patch_mask([boxes], (8, 8), 4).any())


def test_vanishing_rate_by_hand():
    """Property 6, and the rules of matching."""
    clean = [torch.tensor([[0.0, 0.0, 4.0, 4.0], [8.0, 8.0, 12.0, 12.0]]), torch.zeros(0, 4)]
    none = [torch.zeros(0, 4), torch.zeros(0, 4)]
    assert vanishing_rate(clean, clean) == 0.0
    assert vanishing_rate(clean, none) == 1.0
    assert vanishing_rate(none, clean) == 0.0
    twice = [clean[0][:1].repeat(2, 1), clean[0]]
    assert vanishing_rate(clean, twice) == 0.5, "one box for one box, in its own image"
    moved = [clean[0] + torch.tensor([2.0, 0.0, 2.0, 0.0]), clean[1]]
    assert vanishing_rate(clean, moved) == 1.0
    assert vanishing_rate(clean, moved, iou=0.3) == 0.0


def test_a_relabelled_object_vanishes_only_where_classes_count():
    boxes = [torch.tensor([[0.0, 0.0, 4.0, 4.0], [8.0, 8.0, 12.0, 12.0]])]
    labels, other = [torch.tensor([1, 2])], [torch.tensor([1, 3])]
    assert vanishing_rate(boxes, boxes) == 0.0
    assert vanishing_rate(boxes, boxes, clean_labels=labels, adv_labels=other) == 0.5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ObjectnessRegularization(tau=1.0), "ObjectnessRegularization: tau must lie in"),
        (lambda: ObjectnessRegularization(eps=1.0), "ObjectnessRegularization: eps must lie in"),
        (lambda: ObjectnessRegularization(eps=-0.1), "ObjectnessRegularization: eps must lie in"),
        (lambda: VanishingPatchAttack(abs, abs, pixels=0), "pixels must be at least 1"),
        (lambda: VanishingPatchAttack(abs, abs, decay=0.0), "decay must lie in"),
        (lambda: VanishingPatchAttack(abs, abs)(torch.full((1, 3, 8, 8), 2.0)), "pixels in"),
        (lambda: vanishing_rate([], [torch.zeros(0, 4)]), "as many images"),
        (
            lambda: vanishing_rate([], [], clean_labels=[]),
            "clean_labels and adv_labels must be given together",
        ),
        (lambda: foreground_objectness(torch.zeros(1, 3), background=3), "background"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
