"""Node classification problems over hypergraphs, made from data of several kinds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from cv_core.data.kinds import FeatureMatrix, Graph
from cv_core.data.kinds import Hypergraph as HypergraphData
from cv_core.experiment.trial import Trial
from torch import Tensor
from torch.nn import functional

from cv_graph.construction import knn_hypergraph, neighborhood_hypergraph
from cv_graph.hypergraph import Hypergraph
from cv_graph.methods.hybrid_hgcn import Rule, sparse_features
from cv_graph.propagation import Propagation
from cv_graph.splits import NodeSplit, published_node_split, random_node_split


@dataclass(frozen=True, eq=False)
class Problem:
    """What all arms are given: features, classes, a hypergraph and how its powers are made."""

    x: Tensor
    inputs: Tensor | Propagation
    y: Tensor
    hypergraph: Hypergraph
    rule: Rule


def split_of(trial: Trial, problem: Problem) -> NodeSplit:
    """Return the published split of the seed's number, or one drawn by the seed."""
    data, settings = trial.data, trial.settings
    is_hypergraph = isinstance(data, HypergraphData) and len(data.splits) > 0
    if not (is_hypergraph or (settings.published and isinstance(data, Graph))):
        return random_node_split(problem.y, per_class=settings.per_class, seed=trial.seed)
    if len(problem.y) != len(data.y):
        trial.skip("the published split counts nodes that were left out")
    if is_hypergraph and trial.seed >= len(data.splits):
        trial.skip(f"there are {len(data.splits)} published splits")
    return published_node_split(data, trial.seed if is_hypergraph else 0)


def problem_of(trial: Trial) -> Problem:
    """Return the problem of the trial's data and settings."""
    data, settings = trial.data, trial.settings
    if isinstance(data, FeatureMatrix) and data.y is None:
        trial.skip("nodes need classes")
    if not isinstance(data, FeatureMatrix | Graph | HypergraphData):
        trial.skip("a graph, a hypergraph or a matrix of features is needed")
    return _problem(data, settings.neighbours, settings.nodes)


@lru_cache(maxsize=2)
def _problem(data: Any, neighbours: int, nodes: int) -> Problem:
    """Make features and hypergraph, kept for the arms of one case.

    Args:
        data: The data set, told apart by its identity.
        neighbours: Members of the hyperedges of nearest neighbours; 0 for what the data have.
        nodes: How many nodes of a matrix are taken, to save time; 0 for all.
    """
    if isinstance(data, FeatureMatrix):
        x, y = torch.from_numpy(data.X).float(), torch.from_numpy(data.y).long()
        x, y = x[: nodes or None], y[: nodes or None]
        return _finished(x, y, knn_hypergraph(x, neighbours or 10), "power")
    if neighbours:
        return _of_features(data.x, data.y, neighbours)
    if isinstance(data, Graph):
        hypergraph = neighborhood_hypergraph(data.edge_index, num_nodes=len(data.y))
        return _finished(data.x, data.y, hypergraph, "power")
    hypergraph = Hypergraph(data.hyperedge_index, num_nodes=len(data.y))
    whole = with_nobody_left_out(hypergraph)
    counts = {hypergraph.num_hyperedges, whole.num_hyperedges, whole.num_nodes}
    rule: Rule = "power" if len(counts) == 1 else "gram"  # hyperedges that were added end it
    return _finished(data.x, data.y, whole, rule)


def _of_features(x: Tensor, y: Tensor, neighbours: int) -> Problem:
    kept = x.any(dim=1)  # a bag without words is nearer to most others than any with words
    hypergraph = knn_hypergraph(functional.normalize(x[kept]), neighbours)
    return _finished(x[kept], y[kept], hypergraph, "power")


def _finished(x: Tensor, y: Tensor, hypergraph: Hypergraph, rule: Rule) -> Problem:
    """Divide bags of words by their number of words, and keep them sparse."""
    if not bool(((x == 0) | (x == 1)).all()):
        return Problem(x, x, y, hypergraph, rule)
    x = x / x.sum(dim=1, keepdim=True).clamp(min=1)
    return Problem(x, sparse_features(x), y, hypergraph, rule)


def with_nobody_left_out(hypergraph: Hypergraph) -> Hypergraph:
    """Give every node in no hyperedge one of its own, so that it keeps its own features."""
    node, edge = hypergraph.hyperedge_index
    alone = (torch.bincount(node, minlength=hypergraph.num_nodes) == 0).nonzero().flatten()
    own = hypergraph.num_hyperedges + torch.arange(len(alone))
    pairs = torch.stack([torch.cat([node, alone]), torch.cat([edge, own])])
    return Hypergraph(
        pairs,
        num_nodes=hypergraph.num_nodes,
        num_hyperedges=hypergraph.num_hyperedges + len(alone),
    )


def edges_of(problem: Problem) -> Tensor:
    """Return the hypergraph as a graph: member and centre joined, without centres all members."""
    node, edge = problem.hypergraph.hyperedge_index
    if problem.rule != "power":
        H = problem.hypergraph.scipy_incidence()
        node, edge = (torch.from_numpy(part).long() for part in (H @ H.T).nonzero())
    pairs = torch.stack([torch.cat([node, edge]), torch.cat([edge, node])])
    return pairs[:, pairs[0] != pairs[1]].unique(dim=1)
