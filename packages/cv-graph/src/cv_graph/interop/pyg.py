"""torch-geometric: ``HyperGraphData`` and ``Data``."""

from __future__ import annotations

from typing import Any

import torch
from cv_core.optional import require
from torch import Tensor

from cv_graph.hypergraph import Hypergraph


def to_pyg(hypergraph: Hypergraph, *, x: Tensor | None = None, y: Tensor | None = None) -> Any:
    """Return a ``torch_geometric.data.HyperGraphData`` that shares the memberships.

    Its ``edge_index`` holds the memberships, as its convention has it; weights become
    ``hyperedge_weight`` and ``incidence_weight``. ``num_nodes`` is set: isolated nodes stay.

    Args:
        hypergraph: The hypergraph.
        x: Features of the nodes.
        y: Classes of the nodes.

    Raises:
        ImportError: If torch-geometric is not installed.
    """
    pyg = require(
        "torch_geometric.data.hypergraph_data", package="cv-graph", extra="pyg", purpose="to_pyg"
    )
    data = pyg.HyperGraphData(x=x, y=y, edge_index=hypergraph.hyperedge_index)
    data.num_nodes = hypergraph.num_nodes
    data.num_hyperedges = hypergraph.num_hyperedges
    for name in ("hyperedge_weight", "incidence_weight"):
        value = getattr(hypergraph, name)
        if value is not None:
            data[name] = value
    return data


def from_pyg(data: Any) -> Hypergraph:
    """Return the hypergraph of a ``HyperGraphData``, or of a ``Data`` with ``hyperedge_index``.

    A plain ``Data`` has pairwise edges and no hyperedges: build some with
    :func:`cv_graph.neighborhood_hypergraph` or :func:`cv_graph.clique_hypergraph`.

    Args:
        data: The PyG object.

    Raises:
        TypeError: If it holds a plain graph.
        ValueError: If an index is out of range.
    """
    index = data.get("hyperedge_index")
    if index is None and type(data).__name__ == "HyperGraphData":
        index = data.edge_index
    if index is None:
        raise TypeError(
            f"from_pyg: {type(data).__name__} holds no hyperedges; build them from its edges with "
            "neighborhood_hypergraph(data.edge_index, num_nodes=data.num_nodes)."
        )
    return Hypergraph(
        index,
        num_nodes=_number(data, index),
        num_hyperedges=data.get("num_hyperedges"),
        hyperedge_weight=data.get("hyperedge_weight"),
        incidence_weight=data.get("incidence_weight"),
    )


def _number(data: Any, index: Tensor) -> int:
    for name in ("x", "y"):
        value = data.get(name)
        if isinstance(value, Tensor):
            return int(value.shape[0])
    if "num_nodes" in data:
        return int(data["num_nodes"])
    return int(torch.cat([index[0], index.new_tensor([-1])]).max()) + 1
