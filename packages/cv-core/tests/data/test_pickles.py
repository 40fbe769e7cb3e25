import collections
import os
import pickle

import numpy as np
import pytest
from cv_core.data.pickles import load_arrays
from cv_core.data.root import CorruptData
from scipy.sparse import csr_matrix


@pytest.fixture
def save(tmp_path):
    def write(value, protocol=2):
        path = tmp_path / "value.pickle"
        path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
        return path

    return write


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_and_containers_pass(save, protocol):
    value = {"a": np.arange(6.0).reshape(2, 3), "b": [np.int64(4), (1, "x", None, 2.5)]}
    loaded = load_arrays(save(value, protocol))
    assert np.array_equal(loaded["a"], value["a"])
    assert loaded["b"] == value["b"]
    lists = collections.defaultdict(list, {0: [1, 2], 1: [0]})
    assert load_arrays(save(lists, protocol)) == lists
    ordered = collections.OrderedDict(b=1, a=2)
    assert list(load_arrays(save(ordered, protocol))) == ["b", "a"]


def test_sparse_matrices_pass(save):
    dense = np.diag([1.0, 0.0, 2.0])
    assert np.array_equal(load_arrays(save(csr_matrix(dense), 4)).toarray(), dense)


def test_a_pickle_of_python_2_passes(save):
    # as written by Python 2 with protocol 0: a dict of lists
    text = (
        b"ccollections\ndefaultdict\np0\n(c__builtin__\nlist\np1\ntp2\nRp3\nI7\n(lp4\nI3\naI9\nas."
    )
    assert load_arrays(save(text)) == {7: [3, 9]}


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_functions_are_refused_by_name_and_not_called(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(Evil())
    with pytest.raises(CorruptData, match=r"(posix|nt)\.system, which is not admitted"):
        load_arrays(path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["builtins eval", "numpy load", "builtins getattr", "os system"])
def test_dangerous_names_are_refused(save, name):
    module, attribute = name.split()
    with pytest.raises(CorruptData, match=f"{module}.{attribute}"):
        load_arrays(save(f"c{module}\n{attribute}\n.".encode()))


def test_dotted_names_do_not_reach_further(save):
    # protocol 4 may name numpy's ndarray.dump
    payload = b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93."
    with pytest.raises(CorruptData, match=r"ndarray\.dump"):
        load_arrays(save(payload))


def test_sparse_matrix_with_indices_out_of_range_is_refused(save):
    matrix = csr_matrix(np.eye(3))
    matrix.indices[1] = 1_000_000
    with pytest.raises(CorruptData, match="not a readable pickle"):
        load_arrays(save(matrix, 4))


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps(np.arange(9), 2)[:-20]])
def test_damaged_pickles_are_refused_by_name(save, content):
    with pytest.raises(CorruptData, match=r"value\.pickle"):
        load_arrays(save(content))
