"""Prototypes, distances, parts and boxes are those of scikit-learn, scipy and torchvision."""

import pytest
import torch
from cv_attention.localization import heatmap_to_box, localization_error
from cv_attention.prototypes import class_prototypes, nearest_prototype, prototype_distances


def draws(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_distances_and_the_nearest_are_scikit_learns():
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    neighbors = pytest.importorskip("sklearn.neighbors")
    query, gallery = draws(40, 16), draws(70, 16, seed=1)
    expected = torch.from_numpy(pairwise.manhattan_distances(query.numpy(), gallery.numpy()))
    torch.testing.assert_close(prototype_distances(query, gallery), expected)
    search = neighbors.NearestNeighbors(n_neighbors=1, p=1).fit(gallery.numpy())
    nearest = search.kneighbors(query.numpy(), return_distance=False)[:, 0]
    assert nearest_prototype(query, gallery).tolist() == nearest.tolist()


def test_prototypes_are_scikit_learns_centroids():
    neighbors = pytest.importorskip("sklearn.neighbors")
    features, labels = draws(60, 5), torch.arange(60) % 4
    centroids = neighbors.NearestCentroid().fit(features.numpy(), labels.numpy()).centroids_
    found = class_prototypes(features, labels, 4)
    torch.testing.assert_close(found, torch.from_numpy(centroids))


def test_boxes_are_torchvisions():
    ops = pytest.importorskip("torchvision.ops")
    heat = draws(30, 12, 10)
    found = heatmap_to_box(heat, 0.9, largest_component=False)
    low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
    expected = ops.masks_to_boxes((heat - low) / (high - low) >= 0.9)  # right and bottom inclusive
    torch.testing.assert_close(found, expected.float() + torch.tensor([0.0, 0, 1, 1]))


def test_errors_are_those_of_torchvisions_overlap():
    ops = pytest.importorskip("torchvision.ops")
    corner = 5 * draws(100, 2)
    boxes = torch.cat([corner, corner + 4 * draws(100, 2, seed=1)], 1)
    truth = boxes + draws(100, 4, seed=2) * torch.tensor([0.0, 0, 3, 3])
    overlap = ops.box_iou(boxes, truth).diagonal()
    assert (overlap - 0.5).abs().min() > 1e-6
    assert localization_error(boxes, truth).tolist() == (overlap < 0.5).double().tolist()
    assert 0.1 < float((overlap < 0.5).double().mean()) < 0.9
