import pickle

import numpy as np
import pytest
from cv_core.data.origin import Origin
from cv_core.data.readers.graphs import planetoid_raw
from cv_core.data.root import CorruptData
from scipy.sparse import csr_matrix

ORIGIN = Origin("made", "Made for the test")
PARTS = ("x", "y", "tx", "ty", "allx", "ally", "graph", "test.index")


@pytest.fixture
def save(tmp_path):
    """Nodes 0 to 599 are no test nodes; 603, 600 and 602 are, in this order; 601 has no row."""
    onehot = np.eye(3, dtype=np.int32)
    rows = csr_matrix(np.eye(600, 8, dtype=np.float32))
    content = {
        "x": rows[:4],
        "y": onehot[[0, 1, 2, 0]],
        "allx": rows,
        "ally": onehot[np.arange(600) % 3],
        "tx": csr_matrix(
            np.diag([3.0, 1.0, 2.0]).astype(np.float32) @ np.eye(3, 8, dtype=np.float32)
        ),
        "ty": onehot[[2, 1, 0]],
        "graph": {0: [1, 1, 0, 603], 1: [0], 603: [0, 2]},
    }

    def write(**changes):
        paths = []
        for part in PARTS[:-1]:
            path = tmp_path / f"ind.made.{part}"
            path.write_bytes(pickle.dumps(changes.get(part, content[part]), 4))
            paths.append(path)
        (tmp_path / "ind.made.test.index").write_text(changes.get("index", "603\n600\n602\n"))
        return [*paths, tmp_path / "ind.made.test.index"]

    return write


def test_test_rows_go_to_their_nodes_and_gaps_stay_empty(save):
    graph = planetoid_raw(ORIGIN, save())
    assert graph.x.shape == (604, 8)
    assert graph.x[603].nonzero().tolist() == [[0]]
    assert [graph.x[node].max().item() for node in (603, 600, 602, 601)] == [3, 1, 2, 0]
    assert graph.y[[603, 600, 602, 601]].tolist() == [2, 1, 0, -1]
    assert graph.train_mask.nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert graph.val_mask.nonzero().flatten().tolist() == list(range(4, 504))
    assert graph.test_mask.nonzero().flatten().tolist() == [600, 602, 603]


def test_edges_are_symmetric_once_and_without_loops(save):
    graph = planetoid_raw(ORIGIN, save())
    assert graph.edge_index.T.tolist() == [
        [0, 1],
        [0, 603],
        [1, 0],
        [2, 603],
        [603, 0],
        [603, 2],
    ]


def test_files_that_do_not_fit_are_refused(save):
    with pytest.raises(CorruptData, match="test nodes do not fit"):
        planetoid_raw(ORIGIN, save(index="603\n602\n"))
    with pytest.raises(CorruptData, match=r"graph: an edge leads to a node"):
        planetoid_raw(ORIGIN, save(graph={0: [604]}))
    with pytest.raises(CorruptData, match=r"ind\.made\.x"):
        planetoid_raw(ORIGIN, save(y=np.eye(3)))
