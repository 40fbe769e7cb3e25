"""Readers of graphs and hypergraphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cv_core.data.kinds import Graph, Hypergraph
from cv_core.data.origin import Origin
from cv_core.data.pickles import load_arrays
from cv_core.data.readers.images import DIGITS
from cv_core.data.root import CorruptData
from cv_core.data.splits import few_shot_split

_PUBLIC_VALIDATION = 500  # nodes after the training nodes, by convention of the public split
_NEIGHBOURS = 5
_SPLITS = 10
_SHOTS = 10


def planetoid_raw(origin: Origin, paths: Sequence[Path]) -> Graph:
    """Read the original files of Planetoid.

    Args:
        origin: Where the data come from.
        paths: ``ind.NAME.`` with x, y, tx, ty, allx, ally, graph and test.index, in this order.

    Raises:
        CorruptData: If a file holds other types than arrays, or the files do not fit together.
    """
    x, y, tx, ty, allx, ally, neighbours = (load_arrays(path) for path in paths[:7])
    test = np.loadtxt(paths[7], dtype=np.int64)
    first, last = int(test.min()), int(test.max())
    if len(test) != tx.shape[0] or first != allx.shape[0]:
        raise CorruptData(f"{paths[7]}: the test nodes do not fit the other files.")
    features = np.zeros((last + 1, allx.shape[1]), dtype=np.float32)
    onehot = np.zeros((last + 1, ally.shape[1]), dtype=np.int64)
    features[:first], onehot[:first] = allx.toarray(), ally
    features[test], onehot[test] = tx.toarray(), ty  # nodes without a row stay isolated and zero
    labels = np.where(onehot.any(1), onehot.argmax(1), -1)
    train = np.arange(len(y))
    val = np.arange(len(y), len(y) + _PUBLIC_VALIDATION)
    if x.shape[0] != len(y):
        raise CorruptData(f"{paths[0]}: x and y have different lengths.")
    edges = _edges_of(neighbours, len(labels), paths[6])
    return _graph(origin, features, edges, labels, train, val, np.sort(test))


def planetoid_npz(origin: Origin, paths: Sequence[Path]) -> Graph:
    """Read a citation graph that was assembled as npz."""
    with np.load(paths[0], allow_pickle=False) as archive:
        return _graph(
            origin,
            _dense(archive),
            archive["edge_index"],
            archive["labels"],
            archive["train_idx"],
            archive["val_idx"],
            archive["test_idx"],
        )


def hypergraph_npz(origin: Origin, paths: Sequence[Path]) -> Hypergraph:
    """Read a hypergraph of HyperGCN with its ten published splits."""
    with np.load(paths[0], allow_pickle=False) as archive:
        splits = tuple(
            (torch.from_numpy(train), torch.from_numpy(test))
            for train, test in zip(archive["train_idx"], archive["test_idx"], strict=True)
        )
        y = torch.from_numpy(archive["labels"])
        return Hypergraph(
            x=torch.from_numpy(_dense(archive)),
            hyperedge_index=torch.from_numpy(archive["incidence"]),
            y=y,
            splits=splits,
            class_names=_numbered(y),
            origin=origin,
        )


def karate_club(origin: Origin) -> Graph:
    """Read Zachary's karate club; the leaders of the two clubs are the training nodes."""
    import networkx as nx

    club = nx.karate_club_graph()
    labels = np.array([int(club.nodes[node]["club"] != "Mr. Hi") for node in club])
    edges = _symmetric(np.array(club.edges, dtype=np.int64).T)
    leaders = np.array([0, len(labels) - 1])
    others = np.setdiff1d(np.arange(len(labels)), leaders)
    features = np.eye(len(labels), dtype=np.float32)
    graph = _graph(origin, features, edges, labels, leaders, leaders[:0], others)
    return _renamed(graph, ("Mr. Hi", "Officer"))


def digits_graph(origin: Origin) -> Graph:
    """Read scikit-learn's digits as the graph of nearest neighbours, 10 + 20 + rest per class."""
    features, labels, nearest = _digits_neighbours()
    edges = _symmetric(np.stack([np.repeat(np.arange(len(labels)), _NEIGHBOURS), nearest.ravel()]))
    train, rest = few_shot_split(labels, _SHOTS, seed=0)
    val, test = few_shot_split(labels[rest], 2 * _SHOTS, seed=1)
    graph = _graph(origin, features, edges, labels, train, rest[val], rest[test])
    return _renamed(graph, DIGITS)


def digits_hypergraph(origin: Origin) -> Hypergraph:
    """Read scikit-learn's digits as a hypergraph: every image with its nearest neighbours."""
    features, labels, nearest = _digits_neighbours()
    count = len(labels)
    members = np.concatenate([np.arange(count)[:, None], nearest], axis=1)
    hyperedges = np.repeat(np.arange(count), members.shape[1])
    splits = tuple(few_shot_split(labels, _SHOTS, seed) for seed in range(_SPLITS))
    return Hypergraph(
        x=torch.from_numpy(features),
        hyperedge_index=torch.from_numpy(np.stack([members.ravel(), hyperedges])),
        y=torch.from_numpy(labels),
        splits=tuple((torch.from_numpy(train), torch.from_numpy(test)) for train, test in splits),
        class_names=DIGITS,
        origin=origin,
    )


def _digits_neighbours() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits
    from sklearn.neighbors import NearestNeighbors

    bunch = load_digits()
    search = NearestNeighbors(n_neighbors=_NEIGHBOURS, algorithm="brute").fit(bunch.data)
    nearest = search.kneighbors(return_distance=False)  # of the training points: without themselves
    return (bunch.data / 16.0).astype(np.float32), bunch.target.astype(np.int64), nearest


def _edges_of(neighbours: Mapping[int, Sequence[int]], nodes: int, path: Path) -> np.ndarray:
    pairs = [(node, other) for node, others in neighbours.items() for other in others]
    edges = np.array(pairs, dtype=np.int64).T
    if edges.size and (edges.min() < 0 or edges.max() >= nodes):
        raise CorruptData(f"{path}: an edge leads to a node that does not exist.")
    return _symmetric(edges)


def _symmetric(edges: np.ndarray) -> np.ndarray:
    """Return every edge once in each direction, sorted, without self loops."""
    both = np.concatenate([edges, edges[::-1]], axis=1)
    unique: np.ndarray = np.unique(both[:, both[0] != both[1]], axis=1)
    return unique


def _dense(archive: Any) -> np.ndarray:
    from scipy.sparse import csr_matrix

    parts = (archive["feat_data"], archive["feat_indices"], archive["feat_indptr"])
    dense: np.ndarray = csr_matrix(parts, shape=tuple(archive["feat_shape"])).toarray()
    return dense


def _graph(
    origin: Origin,
    features: np.ndarray,
    edges: np.ndarray,
    labels: np.ndarray,
    *parts: np.ndarray,
) -> Graph:
    masks = []
    for part in parts:
        mask = torch.zeros(len(labels), dtype=torch.bool)
        mask[torch.from_numpy(part)] = True
        masks.append(mask)
    y = torch.from_numpy(labels.astype(np.int64))
    return Graph(
        x=torch.from_numpy(features),
        edge_index=torch.from_numpy(np.ascontiguousarray(edges)),
        y=y,
        train_mask=masks[0],
        val_mask=masks[1],
        test_mask=masks[2],
        class_names=_numbered(y),
        origin=origin,
    )


def _renamed(graph: Graph, class_names: tuple[str, ...]) -> Graph:
    from dataclasses import replace

    return replace(graph, class_names=class_names)


def _numbered(y: Tensor) -> tuple[str, ...]:
    return tuple(str(label) for label in range(int(y.max()) + 1))
