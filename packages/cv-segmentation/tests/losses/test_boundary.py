import math

import pytest
import torch
from cv_segmentation.losses.boundary import BoundaryLoss, boundary_loss, signed_distance


def draw(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) < 0.4


def loops(mask, known, sides):
    """The nearest known pixel of the other side, found by asking all."""
    places = [tuple(int(v) for v in p) for p in torch.ones_like(mask).nonzero()]
    result = torch.zeros(mask.shape)
    for here in places:
        if not known[here]:
            continue
        others = [p for p in places if known[p] and mask[p] != mask[here]]
        far = min(
            (math.dist([a * s for a, s in zip(here, sides, strict=True)],
                       [b * s for b, s in zip(p, sides, strict=True)]) for p in others),
            default=None,
        )  # fmt: skip
        if far is not None:
            result[here] = min(sides) - far if mask[here] else far
    return result


@pytest.mark.parametrize(("shape", "sides"), [((6, 7), (1, 1)), ((3, 4, 5), (2.0, 1.0, 0.5))])
def test_distance_pixel_by_pixel(shape, sides):
    mask, known = draw(2, *shape), ~draw(2, *shape).flip(0)
    found = signed_distance(mask, known, spacing=sides)
    for n in range(2):
        torch.testing.assert_close(found[n], loops(mask[n], known[n], sides))


def test_distance_of_a_disc_is_that_to_its_circle():
    rows = torch.arange(41.0)
    radius = ((rows[:, None] - 20) ** 2 + (rows - 20) ** 2).sqrt()
    found = signed_distance((radius <= 10.0)[None])[0]
    assert float((found - (radius - 10.0)).abs().max()) < 1.0


def test_no_boundary_no_distance():
    for mask in (torch.ones(1, 3, 3), torch.zeros(1, 3, 3)):
        assert not bool(signed_distance(mask.bool()).any())


def test_loss_is_the_mean_of_probability_times_distance():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 6, generator=rng, dtype=torch.float64)
    target = torch.randint(0, 2, (2, 5, 6), generator=rng)
    target[1, 0] = 2
    target[0, :, 0] = 255
    p, known = logits.softmax(1), target != 255
    total, count = 0.0, 0
    for n, c in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2)):  # class 2 is absent from image 0
        phi = loops(target[n] == c, known[n], (1, 1))
        total += float((p[n, c] * phi).sum())
        count += int(known[n].sum())
    found = boundary_loss(logits, target, "multiclass", ignore_index=255)
    assert float(found) == pytest.approx(total / count)


def test_the_true_mask_is_the_least():
    target = draw(1, 8, 8).long()
    sure = 50.0 * (2.0 * target.float() - 1.0).unsqueeze(1)
    least = float(boundary_loss(sure, target, "binary"))
    rng = torch.Generator().manual_seed(1)
    for _ in range(10):
        other = 5.0 * torch.randn(1, 1, 8, 8, generator=rng)
        assert float(boundary_loss(other, target, "binary")) > least


def test_far_false_alarms_cost_more():
    target = torch.zeros(1, 1, 20, dtype=torch.int64)
    target[0, 0, :3] = 1
    costs = []
    for place in (3, 8, 19):
        logits = torch.full((1, 1, 1, 20), -50.0)
        logits[..., place] = 50.0
        costs.append(float(boundary_loss(logits, target, "binary")))
    assert costs == sorted(costs)
    assert costs[2] > costs[0]


def test_what_does_not_fit_is_refused():
    mask = draw(1, 4, 4)
    with pytest.raises(TypeError, match="signed_distance: mask and known must be boolean"):
        signed_distance(mask.long())
    with pytest.raises(ValueError, match="one shape"):
        signed_distance(mask, mask[:, 1:])
    with pytest.raises(ValueError, match="spacing must be one number or 2"):
        signed_distance(mask, spacing=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="BoundaryLoss: spacing"):
        BoundaryLoss("binary", spacing=(1.0, 0.0))


def test_a_batch_of_none_has_no_distances():
    assert signed_distance(torch.zeros(0, 4, 5, dtype=torch.bool)).shape == (0, 4, 5)
