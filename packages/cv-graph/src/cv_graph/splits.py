"""Splits of nodes: seeded random ones, and those that were published with the data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from cv_core.checks import check_integer
from cv_core.data.kinds import Graph, Hypergraph
from cv_core.data.splits import few_shot_split
from cv_core.random import numpy_generator
from jaxtyping import Int64
from torch import Tensor


class NodeSplit(NamedTuple):
    """Nodes for training, for selection and for the result.

    Args:
        train: Ascending indices of the training nodes.
        val: Of the validation nodes; may be empty.
        test: Of the test nodes.
    """

    train: Int64[Tensor, " _"]
    val: Int64[Tensor, " _"]
    test: Int64[Tensor, " _"]


def random_node_split(
    y: Int64[Tensor, " n"], *, per_class: int, validation: int = 0, seed: int
) -> NodeSplit:
    """Draw equally many training nodes of every class, then validation nodes; the rest is test.

    Args:
        y: (n,) classes; nodes of class -1 are in no part.
        per_class: Training nodes of every class.
        validation: Validation nodes, drawn from all classes together.
        seed: Seed of the split.

    Raises:
        ValueError: If a class has fewer than ``per_class`` nodes, or no test node is left.

    Example:
        >>> import torch
        >>> split = random_node_split(torch.arange(100) % 4, per_class=5, validation=30, seed=0)
        >>> [len(part) for part in split]
        [20, 30, 50]
    """
    owner = "random_node_split"
    train, rest = few_shot_split(y, per_class, seed)
    check_integer(owner, "validation", validation, low=0)
    if validation >= len(rest):
        raise ValueError(
            f"{owner}: validation must leave a test node; got {validation} of the {len(rest)} "
            "nodes that are not for training."
        )
    rest = numpy_generator(seed, "validation nodes").permutation(rest)
    val, test = torch.from_numpy(rest[:validation]), torch.from_numpy(rest[validation:])
    return NodeSplit(torch.from_numpy(train), val.sort().values, test.sort().values)


def published_node_split(data: Graph | Hypergraph, number: int = 0) -> NodeSplit:
    """Return a split that was published with the data.

    Args:
        data: A graph has one split; a hypergraph may have several, without validation nodes.
        number: Which one, from 0.

    Raises:
        ValueError: If there are not so many.

    Example:
        >>> from cv_core.data.sources import load
        >>> [len(part) for part in published_node_split(load("karate-club"))]
        [2, 0, 32]
    """
    owner = "published_node_split"
    count = 1 if isinstance(data, Graph) else len(data.splits)
    check_integer(owner, "number", number, low=0, high=count - 1)
    if isinstance(data, Graph):
        masks = (data.train_mask, data.val_mask, data.test_mask)
        return NodeSplit(*(mask.nonzero().flatten() for mask in masks))
    train, test = (part.sort().values for part in data.splits[number])
    return NodeSplit(train, train[:0], test)
