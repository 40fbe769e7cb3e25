"""Readers of tables: votes and simulated outcomes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cv_core.data.kinds import CausalReplications, Replication, Votes
from cv_core.data.origin import Origin
from cv_core.data.readers.images import CIFAR10, classes
from cv_core.data.root import CorruptData

_IHDP_COLUMNS = 30


def ferplus(origin: Origin, paths: Sequence[Path]) -> Votes:
    """Read the votes of FER+.

    Raises:
        CorruptData: If the table has other columns.
    """
    with paths[0].open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    if header[:2] != ["Usage", "Image name"]:
        raise CorruptData(f"{paths[0]}: expected the columns Usage, Image name; got {header[:2]}.")
    return Votes(
        counts=torch.tensor([[int(votes) for votes in row[2:]] for row in rows]),
        names=tuple(header[2:]),
        usage=tuple(row[0] for row in rows),
        items=tuple(row[1] for row in rows),
        origin=origin,
    )


def cifar10h_votes(origin: Origin, paths: Sequence[Path]) -> Votes:
    """Read the votes of CIFAR-10H on the test images of CIFAR-10, in their original order."""
    with np.load(paths[0], allow_pickle=False) as archive:
        counts, y = classes(archive["counts"]), classes(archive["labels"])
    return Votes(
        counts=counts,
        names=CIFAR10,
        usage=("test",) * len(y),
        items=tuple(f"{number:05d}" for number in range(len(y))),
        origin=origin,
        y=y,
    )


def ihdp(origin: Origin, paths: Sequence[Path]) -> CausalReplications:
    """Read replications of IHDP.

    Raises:
        CorruptData: If a table has not 30 columns.
    """
    return CausalReplications(tuple(_replication(path) for path in paths), origin)


def _replication(path: Path) -> Replication:
    table = np.loadtxt(path, delimiter=",", ndmin=2)
    if table.shape[1] != _IHDP_COLUMNS:
        raise CorruptData(f"{path}: expected {_IHDP_COLUMNS} columns; got {table.shape[1]}.")
    t, yf, ycf, mu0, mu1 = table[:, :5].T
    return Replication(x=table[:, 5:], t=t.astype(np.int64), yf=yf, ycf=ycf, mu0=mu0, mu1=mu1)
