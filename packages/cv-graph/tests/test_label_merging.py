"""Merged labels: each label in one super class, clusters as they should be."""

import pytest
import torch
from cv_core.random import torch_generator
from cv_graph.label_merging import cluster_objects, merge_label_matrix, object_embedding

TRIPLETS = torch.tensor([[0, 0], [2, 3], [0, 1], [1, 2], [0, 3], [2, 1], [2, 2], [1, 0]])


@pytest.mark.parametrize("clusters", [[0, 0, 1, 1], [0, 1, 0, 2], [5, 5, 5, 9]])
def test_every_label_lies_in_one_super_class(clusters):
    """Property 1."""
    T = merge_label_matrix(TRIPLETS, torch.tensor(clusters))
    assert torch.equal(T.sum(0), torch.ones(len(TRIPLETS)))
    members = {}
    for label, (predicate, target) in enumerate(TRIPLETS.tolist()):
        members.setdefault((predicate, clusters[target]), []).append(label)
    assert T.sum(1).tolist() == [len(members[key]) for key in sorted(members)]
    for row, key in enumerate(sorted(members)):
        marked = T.T @ torch.eye(len(T))[row]
        assert marked.nonzero()[:, 0].tolist() == members[key]


def test_the_two_extremes_are_triplets_and_predicates():
    """Property 2."""
    single = merge_label_matrix(TRIPLETS, torch.arange(4))
    assert torch.equal(single @ single.T, torch.eye(len(TRIPLETS))), "a permutation"
    assert single.shape == (8, 8)
    some = TRIPLETS[TRIPLETS[:, 0] != 1]
    assert len(merge_label_matrix(some, torch.zeros(4, dtype=torch.long))) == 2


def test_embedding_has_blocks_of_length_one():
    generator = torch_generator(0)
    first, second = torch.randn(5, 3, generator=generator), torch.randn(5, 9, generator=generator)
    second[2] = 0.0
    found = object_embedding(first, second)
    torch.testing.assert_close(found[:, :3], first / first.norm(dim=1, keepdim=True))
    assert found[:, 3:].norm(dim=1).tolist() == pytest.approx([1, 1, 0, 1, 1])


def test_clusters_are_found_and_numbered_as_they_occur():
    centres = torch.tensor([[0.0, 9.0], [9.0, 0.0], [9.0, 9.0]])
    group = torch.tensor([2, 0, 2, 1, 0, 1, 1])
    points = centres[group] + 0.1 * torch.randn(7, 2, generator=torch_generator(0))
    assert cluster_objects(points, 3).tolist() == [0, 1, 0, 2, 1, 2, 2]
    assert cluster_objects(points, 1).tolist() == [0] * 7
    assert cluster_objects(points, 7).tolist() == list(range(7))
    state = torch.get_rng_state()
    assert torch.equal(cluster_objects(points, 2, seed=4), cluster_objects(points, 2, seed=4))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: merge_label_matrix(TRIPLETS, torch.zeros(3).long()), ValueError, "objects must"),
        (lambda: merge_label_matrix(TRIPLETS.float(), torch.zeros(4).long()), TypeError, "int64"),
        (lambda: merge_label_matrix(TRIPLETS[[0, 0]], torch.zeros(4).long()), ValueError, "twice"),
        (lambda: merge_label_matrix(TRIPLETS[0], torch.zeros(4).long()), ValueError, "shape"),
        (lambda: cluster_objects(torch.zeros(4, 2), 2), ValueError, "cluster_objects: k must be"),
        (lambda: cluster_objects(torch.rand(4, 2), 0), ValueError, "cluster_objects: k must be"),
        (object_embedding, ValueError, "object_embedding: blocks"),
        (lambda: object_embedding(torch.rand(3, 2), torch.rand(2, 2)), ValueError, "shape"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
