"""Sub-categories: one per image and class, whatever the order; the loss in loops."""

import math
from itertools import pairwise

import pytest
import torch
from cv_segmentation import subcategories
from cv_segmentation.subcategories import (
    assign_subcategories,
    subcategory_centres,
    subcategory_labels,
    subcategory_loss,
)
from torch.nn import functional

N, C, D = 60, 4, 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def features():
    return torch.randn(N, D, generator=generator(), dtype=torch.float64)


@pytest.fixture
def labels():
    shown = torch.rand(N, C, generator=generator(1)) < 0.5
    shown[:, 3] = False  # a class without images
    return shown.long()


def inertia(points, centres):
    return float(torch.cdist(points, centres).square().amin(1).sum())


def test_property_2_one_sub_category_is_the_class(features, labels):
    assert torch.equal(subcategory_labels(features, labels, 1, seed=0), labels.float())


@pytest.mark.parametrize("k", [2, 7])
def test_property_2_one_active_sub_label_for_each_class_that_is_shown(features, labels, k):
    found = subcategory_labels(features, labels, k, seed=0).view(N, C, k)
    assert torch.equal(found.sum(2), labels.float())
    assert found.unique().tolist() == [0, 1]
    used = found.sum(0)[:3]
    assert (used > 0).all()
    same = subcategory_labels(features, labels.bool(), k, seed=0)
    assert torch.equal(same.view(N, C, k), found)


def test_property_3_iterations_do_not_raise_the_inertia_and_centres_are_their_end(features, labels):
    centres = subcategory_centres(features, labels, 4, seed=0)
    for c in range(3):
        own = features[labels[:, c] == 1]
        means = own[:4].clone()
        values = [inertia(own, means)]
        for _ in range(20):
            nearest = torch.cdist(own, means).argmin(1)
            means = torch.stack([own[nearest == j].mean(0) for j in range(4)])
            values.append(inertia(own, means))
        assert all(b <= a + 1e-9 for a, b in pairwise(values))
        assert inertia(own, centres[c]) < values[0]
        # one more iteration changes nothing
        nearest = torch.cdist(own, centres[c]).argmin(1)
        again = torch.stack([own[nearest == j].mean(0) for j in range(4)])
        torch.testing.assert_close(again, centres[c])


def test_property_3_the_order_of_images_does_not_count_for_fixed_centres(features, labels):
    centres = subcategory_centres(features, labels, 3, seed=0)
    order = torch.randperm(N, generator=generator(2))
    found = assign_subcategories(features, labels, centres)
    moved = assign_subcategories(features[order], labels[order], centres)
    assert torch.equal(moved, found[order])
    assert not torch.equal(moved, found)


def test_the_nearest_centre_in_loops(features, labels):
    centres = torch.randn(C, 3, D, generator=generator(3), dtype=torch.float64)
    found = assign_subcategories(features, labels, centres)
    for n in range(N):
        for c in range(C):
            distances = [math.dist(features[n].tolist(), centre.tolist()) for centre in centres[c]]
            expected = [0.0] * 3
            if labels[n, c]:
                expected[distances.index(min(distances))] = 1.0
            assert found[n, 3 * c : 3 * c + 3].tolist() == expected


def test_many_images_are_assigned_in_parts(features, labels, monkeypatch):
    centres = subcategory_centres(features, labels, 3, seed=0)
    whole = assign_subcategories(features, labels, centres)
    monkeypatch.setattr(subcategories, "_AT_ONCE", 7)
    assert torch.equal(assign_subcategories(features, labels, centres), whole)


def test_clear_clusters_are_found():
    centre = 100.0 * torch.arange(3.0)
    features = (centre[:, None] + torch.arange(5.0)).flatten()[:, None]
    found = subcategory_labels(features, torch.ones(15, 1), 3, seed=0)
    groups = found.view(3, 5, 3)
    assert torch.equal(groups.amax(1), groups.amin(1))
    assert groups[:, 0].sum(0).tolist() == [1, 1, 1]


def test_fewer_images_than_sub_categories_leave_some_unused():
    features = torch.tensor([[0.0], [0.0], [1.0], [4.0]])
    labels = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1]])
    centres = subcategory_centres(features, labels, 3, seed=0)
    assert centres.isinf().sum(1)[:, 0].tolist() == [1, 2]
    found = subcategory_labels(features, labels, 3, seed=0)
    assert torch.equal(found.view(4, 2, 3).sum(2), labels.float())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_seed_decides():
    features = torch.rand(200, 2, generator=generator(4))
    ones = torch.ones(200, 1)
    first = subcategory_labels(features, ones, 5, seed=0)
    assert torch.equal(first, subcategory_labels(features, ones, 5, seed=0))
    assert not torch.equal(first, subcategory_labels(features, ones, 5, seed=1))


def test_the_loss_in_loops():
    logits, sub = (torch.randn(3, n, generator=generator(n)) for n in (4, 8))
    y, y_sub = (torch.randint(2, (3, n), generator=generator(n + 1)) for n in (4, 8))

    def term(z, t):
        p = 1 / (1 + math.exp(-z))
        return -math.log(p if t else 1 - p)

    each = []
    for b in range(3):
        parent = sum(term(float(logits[b, c]), int(y[b, c])) for c in range(4)) / 4
        child = sum(term(float(sub[b, c]), int(y_sub[b, c])) for c in range(8)) / 8
        each.append(parent + 5.0 * child)
    expected = torch.tensor(each)
    torch.testing.assert_close(subcategory_loss(logits, sub, y, y_sub, reduction="none"), expected)
    torch.testing.assert_close(subcategory_loss(logits, sub, y, y_sub), expected.mean())
    summed = subcategory_loss(logits, sub, y, y_sub, reduction="sum")
    torch.testing.assert_close(summed, expected.sum())
    without = subcategory_loss(logits, sub, y, y_sub, gamma=0.0)
    torch.testing.assert_close(without, functional.multilabel_soft_margin_loss(logits, y.float()))


def test_wrong_arguments_are_named(features, labels):
    with pytest.raises(ValueError, match="labels must have shape"):
        subcategory_labels(features, labels[:5], 2, seed=0)
    with pytest.raises(ValueError, match="labels must be 0 or 1"):
        subcategory_labels(features, 2 * labels, 2, seed=0)
    with pytest.raises(ValueError, match="features must be finite"):
        subcategory_labels(features / 0.0, labels, 2, seed=0)
    with pytest.raises(ValueError, match="k must be at least 1"):
        subcategory_labels(features, labels, 0, seed=0)
    with pytest.raises(ValueError, match="centres must have shape"):
        assign_subcategories(features, labels, torch.zeros(C, 2, D + 1))
    zeros = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="sub_logits and y_sub must have the same shape"):
        subcategory_loss(zeros, zeros, zeros, torch.zeros(2, 6))
    with pytest.raises(ValueError, match="subcategory_loss: gamma"):
        subcategory_loss(zeros, zeros, zeros, zeros, gamma=-1.0)
