import pytest
import torch
from cv_core.explain.faithfulness import (
    area_under_curve,
    deletion_curve,
    energy_in_mask,
    insertion_curve,
    pointing_game,
)
from torch import nn


def test_energy_by_loops():
    maps = torch.randn(3, 4, 5, dtype=torch.float64)
    masks = torch.rand(3, 4, 5) > 0.5
    found = energy_in_mask(maps, masks)
    for b in range(3):
        inside = total = 0.0
        for i in range(4):
            for j in range(5):
                value = max(0.0, float(maps[b, i, j]))
                total += value
                inside += value * float(masks[b, i, j])
        assert float(found[b]) == pytest.approx(inside / total)


def test_energy_of_simple_maps():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[:, :2, :2] = True
    maps = torch.stack([masks[0].float(), torch.ones(4, 4), -torch.ones(4, 4)])
    assert energy_in_mask(maps, masks).tolist() == [1.0, 0.25, 0.0]


def test_pointing_game_shares_ties():
    masks = torch.zeros(4, 2, 3, dtype=torch.bool)
    masks[:, 0] = True
    maps = torch.tensor(
        [
            [[0.0, 2.0, 0.0], [1.0, 1.0, 1.0]],  # a hit
            [[0.0, 1.0, 0.0], [1.0, 2.0, 1.0]],  # a miss
            [[3.0, 0.0, 0.0], [3.0, 3.0, 3.0]],  # one in four
            [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],  # a constant map: chance
        ]
    )
    assert pointing_game(maps, masks).tolist() == [1.0, 0.0, 0.25, 0.5]


class Count(nn.Module):
    """Two classes whose log-odds are a weighted sum of the pixels."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        odds = (x[:, 0] * self.weight).sum((1, 2))
        return torch.stack([torch.zeros_like(odds), odds], dim=1)


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    images = torch.rand(2, 1, 3, 4, dtype=torch.float64, generator=generator)
    return Count(weight), images


@pytest.mark.parametrize("steps", [1, 4, 5, 12])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_curves_by_loops(case, steps, batch_size):
    model, images = case
    maps = torch.randn(2, 3, 4)
    options = {"target": 1, "reference": 0.25, "steps": steps, "batch_size": batch_size}
    deletion = deletion_curve(model, images, maps, **options)
    insertion = insertion_curve(model, images, maps, **options)
    for b in range(2):
        order = sorted(range(12), key=lambda p, b=b: -float(maps[b].flatten()[p]))
        for step in range(steps + 1):
            # pixel number r of the order is gone once r / 12 < step / steps
            gone = [pixel for rank, pixel in enumerate(order) if rank * steps < step * 12]
            left = images[b, 0].flatten().clone()
            left[gone] = 0.25
            come = torch.full_like(left, 0.25)
            come[gone] = images[b, 0].flatten()[gone]
            for curve, pixels in ((deletion, left), (insertion, come)):
                odds = (pixels.view(3, 4) * model.weight).sum()
                assert float(curve[b, step]) == pytest.approx(float(odds.sigmoid()), abs=1e-12)


def test_curves_begin_and_end_at_the_image_and_the_reference(case):
    model, images = case
    reference = torch.rand_like(images)
    maps = torch.zeros(2, 3, 4)  # a constant map: reading order
    deletion = deletion_curve(model, images, maps, reference=reference, steps=7)
    insertion = insertion_curve(model, images, maps, reference=reference, steps=7)
    classes = model(images).argmax(1, keepdim=True)
    ends = [model(x).softmax(1).gather(1, classes)[:, 0] for x in (images, reference)]
    torch.testing.assert_close(deletion[:, [0, -1]], torch.stack(ends, dim=1))
    torch.testing.assert_close(insertion[:, [-1, 0]], torch.stack(ends, dim=1))


def test_the_true_order_beats_every_other(case):
    model, images = case
    truth = images[:, 0] * model.weight
    best = area_under_curve(deletion_curve(model, images, truth, target=1, steps=12))
    most = area_under_curve(insertion_curve(model, images, truth, target=1, steps=12))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.randn(2, 3, 4, generator=generator)
        deletion = deletion_curve(model, images, other, target=1, steps=12)
        insertion = insertion_curve(model, images, other, target=1, steps=12)
        assert (area_under_curve(deletion) > best).all()
        assert (area_under_curve(insertion) < most).all()


def test_area():
    curves = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(area_under_curve(curves), torch.tensor([1.0, 0.5, 0.25]))


def test_bad_input_is_refused(case):
    model, images = case
    maps = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="maps and masks must have the same shape"):
        energy_in_mask(maps, torch.ones(2, 3, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"masks must be of type bool; got torch\.float32"):
        pointing_game(maps, maps)
    broken = maps.clone()
    broken[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="must be finite; 1 of 24"):
        energy_in_mask(broken, maps.bool())
    with pytest.raises(ValueError, match="maps must have shape"):
        deletion_curve(model, images, maps[:1])
    with pytest.raises(ValueError, match="steps must be at least 1"):
        insertion_curve(model, images, maps, steps=0)
    with pytest.raises(TypeError, match="got a function"):
        deletion_curve(model, images, maps, target=lambda logits: logits[:, 0])
