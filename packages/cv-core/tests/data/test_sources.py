import subprocess
import sys

import numpy as np
import pytest
import torch
from cv_core.data import sources
from cv_core.data.fingerprint import fingerprint
from cv_core.data.root import MissingData


def test_listing_imports_neither_torch_nor_numpy():
    code = (
        "import sys; from cv_core.data import sources; sources.names(); sources.kind_of('mnist'); "
        "assert not {'torch', 'numpy', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_digits_are_those_of_scikit_learn_split_once():
    from sklearn.datasets import load_digits

    data = sources.load("digits")
    bunch = load_digits()
    assert data.train_x.shape == (1200, 1, 8, 8)
    assert data.test_x.shape == (597, 1, 8, 8)
    together = torch.cat([data.train_x, data.test_x]).flatten(1).numpy()
    labels = torch.cat([data.train_y, data.test_y]).numpy()
    rows = np.concatenate([together, labels[:, None]], axis=1)
    theirs = np.concatenate([bunch.data / 16, bunch.target[:, None]], axis=1)
    assert np.array_equal(np.sort(rows.T).sum(1), np.sort(theirs.T).sum(1))
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, theirs.tolist()))
    share = np.bincount(data.train_y) / np.bincount(bunch.target)
    assert np.abs(share - 1200 / 1797).max() < 1 / 100  # stratified: within one sample per class


def test_digits_matrix_and_views():
    matrix = sources.load("digits-matrix")
    assert matrix.X.shape == (1797, 64)
    assert matrix.num_classes == 10
    pixels, profiles, spectra = sources.load("digits-views").views
    assert np.array_equal(pixels, matrix.X)
    assert (profiles.shape[1], spectra.shape[1]) == (46, 40)
    # every profile is a partition of the pixels: rows, columns, two kinds of diagonals
    totals = [profiles[:, :8], profiles[:, 8:16], profiles[:, 16:31], profiles[:, 31:]]
    for part in totals:
        np.testing.assert_allclose(part.sum(1), pixels.sum(1))
    np.testing.assert_allclose(spectra[:, 0], pixels.sum(1))  # frequency 0


def test_digits_graphs():
    graph = sources.load("digits-graph")
    masks = graph.train_mask, graph.val_mask, graph.test_mask
    assert [int(mask.sum()) for mask in masks] == [100, 200, 1497]
    assert int(sum(mask.long() for mask in masks).max()) == 1
    assert (graph.edge_index[0] != graph.edge_index[1]).all()
    pairs = set(map(tuple, graph.edge_index.T.tolist()))
    assert all((b, a) in pairs for a, b in pairs)
    # nearest neighbours of digits mostly show the same digit
    assert (graph.y[graph.edge_index[0]] == graph.y[graph.edge_index[1]]).double().mean() > 0.95

    hyper = sources.load("digits-hypergraph")
    assert hyper.num_hyperedges == 1797
    assert hyper.hyperedge_index.shape == (2, 1797 * 6)
    nodes, edges = hyper.hyperedge_index
    assert set(edges.bincount().tolist()) == {6}
    assert all(edge in nodes[edges == edge] for edge in range(0, 1797, 97))  # holds its centre
    assert len({tuple(train.tolist()) for train, _ in hyper.splits}) == 10


def test_karate_club():
    club = sources.load("karate-club")
    assert club.edge_index.shape == (2, 2 * 78)
    assert club.y.bincount().tolist() == [17, 17]
    assert club.train_mask.nonzero().flatten().tolist() == [0, 33]
    assert club.y[[0, 33]].tolist() == [0, 1]


def test_unknown_name_shows_the_nearest():
    with pytest.raises(ValueError, match=r"'mnits' is not a known data set. Did you mean 'mnist'"):
        sources.resolve("mnits")
    with pytest.raises(ValueError, match="not a known data set"):
        sources.load("folders:/tmp")


def test_missing_data_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("CV_DATA", str(tmp_path))
    with pytest.raises(MissingData) as caught:
        sources.resolve("mnist")
    message = str(caught.value)
    assert str(tmp_path / "mnist" / "train-images-idx3-ubyte.gz") in message
    assert "CV_DATA" in message
    assert "cvlab data get mnist" in message
    with pytest.raises(MissingData) as caught:
        sources.checksum("camvid")
    assert "cvlab data get" not in str(caught.value)  # it has no stable address
    assert isinstance(caught.value, FileNotFoundError)


def test_load_keeps_the_last_ones():
    assert sources.load("digits") is sources.load("digits")


def test_names_say_where_the_data_are(tmp_path, monkeypatch):
    monkeypatch.setenv("CV_DATA", str(tmp_path))
    listed = {source.name: source for source in sources.names()}
    assert listed["digits"].where == "bundled"
    assert listed["digits"].available
    assert listed["mnist"].where == "download"
    assert not listed["mnist"].available
    assert listed["camvid"].where == "data root"
    assert listed["mnist"].size == 1602050 + 4517 + 9630610 + 28878
    assert list(listed) == sorted(listed)


def test_checksum_of_library_data_is_that_of_its_arrays():
    assert sources.checksum("digits") == fingerprint(sources.load("digits"))
    assert sources.checksum("digits") != sources.checksum("digits-matrix")


def test_checksum_of_files_changes_with_the_files(tmp_path, monkeypatch):
    monkeypatch.setenv("CV_DATA", str(tmp_path))
    (tmp_path / "planetoid").mkdir()
    for name in ("cora", "citeseer"):
        (tmp_path / "planetoid" / f"{name}.npz").touch()
    first, second = sources.checksum("cora-npz"), sources.checksum("citeseer-npz")
    assert first != second
    assert first.startswith("sha256:")
