import pytest
import torch
from cv_attention.prototypes import (
    class_prototypes,
    nearest_prototype,
    pooled,
    prototype_distances,
)


def draws(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_prototypes_are_means_of_classes_in_loops():
    maps, labels = draws(9, 4, 3, 5), torch.tensor([2, 0, 2, 1, 1, 2, 0, 2, 1])
    found = class_prototypes(maps, labels, 3)
    for c in range(3):
        for k in range(4):
            rows = [n for n in range(9) if labels[n] == c]
            values = [float(v) for n in rows for v in maps[n, k].flatten()]
            assert float(found[c, k]) == pytest.approx(sum(values) / len(values))
    torch.testing.assert_close(class_prototypes(maps.mean((2, 3)), labels.int(), 3), found)


def test_half_precision_is_averaged_in_single():
    features = torch.full((3000, 1), 1.0, dtype=torch.float16)  # a half-precision sum ends at 2048
    found = class_prototypes(features, torch.zeros(3000, dtype=torch.int64), 1)
    assert found.dtype == torch.float32
    assert float(found) == 1.0
    assert pooled(torch.full((1, 1, 300, 300), 3.0, dtype=torch.float16)).item() == 3.0


def test_distances_in_loops_and_the_nearest():
    query, prototypes = draws(5, 4), draws(3, 4, seed=1)
    found = prototype_distances(query, prototypes)
    for b in range(5):
        for c in range(3):
            expected = sum(abs(float(query[b, k] - prototypes[c, k])) for k in range(4))
            assert float(found[b, c]) == pytest.approx(expected)
    assert nearest_prototype(query, prototypes).tolist() == [
        min(range(3), key=lambda c: float(row[c])) for row in found
    ]


def test_distances_have_gradients():
    query = draws(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(prototype_distances, (query, draws(2, 4, seed=1)))


def test_wrong_arguments_are_named():
    features, labels = torch.rand(4, 3), torch.tensor([0, 2, 2, 0])
    with pytest.raises(ValueError, match=r"class_prototypes: .* no sample of \[1\]"):
        class_prototypes(features, labels, 3)
    with pytest.raises(ValueError, match="class_prototypes: labels must lie in"):
        class_prototypes(features, labels, 2)
    with pytest.raises(ValueError, match="class_prototypes: labels must have shape"):
        class_prototypes(features, labels[:3], 3)
    with pytest.raises(TypeError, match="class_prototypes: labels must hold class indices"):
        class_prototypes(features, labels.float(), 3)
    with pytest.raises(ValueError, match="class_prototypes: features must have shape"):
        class_prototypes(torch.rand(4, 3, 2), labels, 3)
    with pytest.raises(ValueError, match="prototype_distances: prototypes must have shape"):
        prototype_distances(features, torch.rand(2, 4))
    with pytest.raises(ValueError, match="prototype_distances: query must be finite"):
        prototype_distances(features / 0, torch.rand(2, 3))
