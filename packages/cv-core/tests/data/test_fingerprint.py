import numpy as np
import pytest
import torch
from cv_core.data.fingerprint import fingerprint
from cv_core.data.kinds import FeatureMatrix
from cv_core.data.origin import Origin


def matrix(X, y=None, title="a"):
    return FeatureMatrix(X, y, Origin("n", title))


def test_equal_data_equal_fingerprint_whatever_the_origin():
    X = np.arange(6.0).reshape(2, 3)
    assert fingerprint(matrix(X)) == fingerprint(matrix(X.copy(order="F"), title="b"))


@pytest.mark.parametrize(
    "other",
    [
        np.arange(6.0).reshape(3, 2),
        np.arange(6.0).reshape(2, 3) + 1e-12,
        np.arange(6).reshape(2, 3),
        np.arange(6.0, dtype=np.float32).reshape(2, 3),
    ],
)
def test_value_shape_and_type_count(other):
    assert fingerprint(np.arange(6.0).reshape(2, 3)) != fingerprint(other)


def test_structure_counts():
    assert fingerprint([[1, 2], [3]]) != fingerprint([[1], [2, 3]])
    assert fingerprint({"a": 1}) != fingerprint({"b": 1})
    assert fingerprint(torch.tensor([1, 2])) == fingerprint(np.array([1, 2]))
    assert fingerprint(None) != fingerprint("None")


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="plain values"):
        fingerprint(object())
    with pytest.raises(TypeError, match="not objects"):
        fingerprint(np.array([object()]))
