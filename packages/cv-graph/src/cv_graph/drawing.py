"""Pictures of graphs and hypergraphs.

Every function draws into the matplotlib ``Axes`` it is given, or into those of a new ``Figure``,
and returns them; ``axes.figure.savefig`` writes the picture. No window opens, and pyplot, its
current figure and its backend stay as they are. Matplotlib comes with
``pip install "cv-graph[lab]"``; without positions given, networkx, which comes with torch, finds
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from cv_core.checks import check_finite, check_indices, check_integer, check_range, check_shape
from cv_core.optional import require
from jaxtyping import Int
from torch import Tensor

from cv_graph.hypergraph import check_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UNLABELLED = "0.75"
_CORNERS = 24
_ABOVE = 3
"""Drawing order: areas, lines, nodes."""


def draw_graph(
    edge_index: Int[Tensor, "2 e"],
    *,
    y: Int[Tensor, " n"] | None = None,
    pos: Any = None,
    ax: Axes | None = None,
    num_nodes: int | None = None,
    class_names: Sequence[str] = (),
    node_size: float = 60.0,
    seed: int = 0,
) -> Axes:
    """Draw a graph: a line for an edge listed in both directions, an arrow for one listed in one.

    Args:
        edge_index: The edges, row 0 the source and row 1 the target. Self-loops are left out.
        y: One class per node, shown as colour; -1, grey, for none.
        pos: (n, 2) positions, array or tensor; by default networkx's spring layout.
        ax: Where to draw; by default the axes of a new figure.
        num_nodes: Number of nodes; by default that of ``y`` or ``pos``, or one more than the
            highest that occurs.
        class_names: Names of the classes for a legend.
        node_size: Area of a node in square points.
        seed: Of the layout.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is missing, with the install line.
        TypeError: If indices or labels are no integers.
        ValueError: If an index is out of range, or ``y`` or ``pos`` do not fit the nodes.
    """
    owner = "draw_graph"
    nodes = _node_count(owner, y, pos, num_nodes)
    sizes = {"source node": nodes, "target node": nodes}
    nodes = max(check_pairs(owner, "edge_index", edge_index, sizes))
    _check_style(owner, y, class_names, node_size)
    listed = {(u, v) for u, v in edge_index.T.tolist() if u != v}
    both = sorted((u, v) for u, v in listed if u < v and (v, u) in listed)
    one = sorted((u, v) for u, v in listed if (v, u) not in listed)
    places = _layout(nodes, listed, seed) if pos is None else _positions(owner, pos, nodes)
    axes = _axes(owner, ax)
    _draw_lines(axes, places, both)
    for u, v in one:
        _draw_arrow(axes, places[u], places[v], node_size)
    _draw_nodes(axes, places, y, class_names, node_size)
    return axes


def draw_hypergraph(
    hyperedge_index: Int[Tensor, "2 nnz"],
    *,
    y: Int[Tensor, " n"] | None = None,
    pos: Any = None,
    ax: Axes | None = None,
    num_nodes: int | None = None,
    class_names: Sequence[str] = (),
    node_size: float = 60.0,
    padding: float = 0.04,
    seed: int = 0,
) -> Axes:
    """Draw a hypergraph: every hyperedge a coloured area, the rounded convex hull of its members.

    For more than about twenty hyperedges ``draw_bipartite`` is clearer.

    Args:
        hyperedge_index: The memberships, row 0 the node and row 1 the hyperedge.
        y: One class per node, shown as colour; -1, grey, for none.
        pos: (n, 2) positions, array or tensor; by default networkx's spring layout of the nodes
            together with one point per hyperedge.
        ax: Where to draw; by default the axes of a new figure.
        num_nodes: Number of nodes; by default that of ``y`` or ``pos``, or one more than the
            highest that occurs.
        class_names: Names of the classes for a legend.
        node_size: Area of a node in square points.
        padding: By how much an area goes beyond its members, as a share of the picture's width;
            it differs a little between areas, so that outlines do not coincide.
        seed: Of the layout.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is missing, with the install line.
        TypeError: If indices or labels are no integers.
        ValueError: If an index is out of range, or ``y`` or ``pos`` do not fit the nodes.
    """
    owner = "draw_hypergraph"
    nodes, hyperedges = _sizes(owner, hyperedge_index, y, pos, num_nodes)
    _check_style(owner, y, class_names, node_size)
    check_range(owner, "padding", padding, low=0, low_open=True)
    if pos is None:
        places = _star_layout(hyperedge_index, nodes, hyperedges, seed)[:nodes]
    else:
        places = _positions(owner, pos, nodes)
    members = [
        np.unique(hyperedge_index[0, hyperedge_index[1] == e].cpu().numpy())
        for e in range(hyperedges)
    ]
    axes = _axes(owner, ax)
    hues = _matplotlib(owner, "matplotlib").colormaps["Set2"].colors  # not those of the classes
    radius = padding * max(float(np.ptp(places, axis=0).max()), 1e-9)
    for e in sorted(range(hyperedges), key=lambda e: -len(members[e])):  # small areas on top
        if len(members[e]):
            outline = _hull(places[members[e]], radius * (1 + 0.3 * (e % 3)))
            _draw_area(axes, outline, hues[e % len(hues)])
    _draw_nodes(axes, places, y, class_names, node_size)
    return axes


def draw_bipartite(
    hyperedge_index: Int[Tensor, "2 nnz"],
    *,
    y: Int[Tensor, " n"] | None = None,
    pos: Any = None,
    ax: Axes | None = None,
    num_nodes: int | None = None,
    class_names: Sequence[str] = (),
    node_size: float = 60.0,
    seed: int = 0,
) -> Axes:
    """Draw a hypergraph as the graph of its memberships: a black square for every hyperedge.

    Args:
        hyperedge_index: The memberships, row 0 the node and row 1 the hyperedge.
        y: One class per node, shown as colour; -1, grey, for none.
        pos: (n, 2) positions of the nodes, array or tensor, a hyperedge being put in the middle of
            its members; by default networkx's spring layout of both.
        ax: Where to draw; by default the axes of a new figure.
        num_nodes: Number of nodes; by default that of ``y`` or ``pos``, or one more than the
            highest that occurs.
        class_names: Names of the classes for a legend.
        node_size: Area of a node in square points.
        seed: Of the layout.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is missing, with the install line.
        TypeError: If indices or labels are no integers.
        ValueError: If an index is out of range, or ``y`` or ``pos`` do not fit the nodes.
    """
    owner = "draw_bipartite"
    nodes, hyperedges = _sizes(owner, hyperedge_index, y, pos, num_nodes)
    _check_style(owner, y, class_names, node_size)
    pairs = sorted({(u, nodes + e) for u, e in hyperedge_index.T.tolist()})
    if pos is None:
        places = _star_layout(hyperedge_index, nodes, hyperedges, seed)
    else:
        given = _positions(owner, pos, nodes)
        middles = [
            given[[u for u, e in pairs if e == nodes + each]].mean(axis=0)
            for each in sorted({e - nodes for _, e in pairs})
        ]
        places = np.full((nodes + hyperedges, 2), np.nan)  # an empty hyperedge lies nowhere
        places[:nodes] = given
        places[sorted({e for _, e in pairs})] = middles
    axes = _axes(owner, ax)
    _draw_lines(axes, places, pairs)
    x_e, y_e = places[nodes:].T
    axes.scatter(x_e, y_e, s=0.5 * node_size, color="black", marker="s", zorder=_ABOVE)
    _draw_nodes(axes, places[:nodes], y, class_names, node_size)
    return axes


def _sizes(
    owner: str, hyperedge_index: Tensor, y: Tensor | None, pos: Any, num_nodes: int | None
) -> tuple[int, int]:
    nodes = _node_count(owner, y, pos, num_nodes)
    sizes = {"node": nodes, "hyperedge": None}
    return check_pairs(owner, "hyperedge_index", hyperedge_index, sizes)


def _node_count(owner: str, y: Tensor | None, pos: Any, num_nodes: int | None) -> int | None:
    """Return the number of nodes if anything but the indices says it."""
    known = {"num_nodes": num_nodes} if num_nodes is not None else {}
    known |= {name: len(each) for name, each in (("y", y), ("pos", pos)) if each is not None}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in known.items())
        raise ValueError(f"{owner}: the number of nodes must be one; {listed}.")
    return next(iter(known.values()), None)


def _check_style(
    owner: str, y: Tensor | None, class_names: Sequence[str], node_size: float
) -> None:
    check_range(owner, "node_size", node_size, low=0, low_open=True)
    if y is not None:
        check_shape(owner, "y", y, "n")
        check_indices(owner, "y", y, high=int(y.max()) + 1, ignore=-1)
        if class_names:
            check_integer(owner, "number of class_names", len(class_names), low=int(y.max()) + 1)


def _positions(owner: str, pos: Any, nodes: int) -> np.ndarray:
    places = np.asarray(pos.detach().cpu() if isinstance(pos, Tensor) else pos, dtype=np.float64)
    check_shape(owner, "pos", places, "n 2", n=nodes)
    check_finite(owner, "pos", places)
    return places


def _layout(nodes: int, edges: set[tuple[int, int]], seed: int) -> np.ndarray:
    import networkx as nx

    graph = nx.Graph()
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(sorted(edges))
    places = nx.spring_layout(graph, seed=seed)
    return np.array([places[node] for node in range(nodes)], dtype=np.float64).reshape(-1, 2)


def _star_layout(hyperedge_index: Tensor, nodes: int, hyperedges: int, seed: int) -> np.ndarray:
    """Lay out the nodes and, after them, one point for every hyperedge."""
    pairs = {(u, nodes + e) for u, e in hyperedge_index.T.tolist()}
    return _layout(nodes + hyperedges, pairs, seed)


def _matplotlib(owner: str, module: str) -> Any:
    return require(module, package="cv-graph", extra="lab", purpose=owner)


def _axes(owner: str, ax: Axes | None) -> Axes:
    if ax is None:
        figure = _matplotlib(owner, "matplotlib.figure").Figure
        ax = figure(figsize=(5, 5), layout="constrained").add_subplot()
    ax.set_aspect("equal")
    ax.axis("off")
    return ax


def _hull(points: np.ndarray, radius: float) -> np.ndarray:
    """Return the corners of the convex hull of discs around the points."""
    from scipy.spatial import ConvexHull

    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    circle = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    rim = (points[:, None] + circle).reshape(-1, 2)
    corners: np.ndarray = rim[ConvexHull(rim).vertices]
    return corners


def _draw_area(axes: Axes, outline: np.ndarray, colour: Any) -> None:
    axes.fill(*outline.T, facecolor=colour, alpha=0.18, edgecolor="none", zorder=1)
    axes.fill(*outline.T, facecolor="none", edgecolor=colour, linewidth=1.2, zorder=2)


def _draw_lines(axes: Axes, places: np.ndarray, pairs: Sequence[tuple[int, int]]) -> None:
    """Draw all lines as one, with gaps: one artist, and thousands of edges are no trouble."""
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    path = np.full((len(ends), 3, 2), np.nan)
    path[:, :2] = places[ends]
    axes.plot(*path.reshape(-1, 2).T, color="0.55", linewidth=0.8, zorder=2)


def _draw_arrow(axes: Axes, start: np.ndarray, end: np.ndarray, node_size: float) -> None:
    radius = (node_size / np.pi) ** 0.5
    style = {"arrowstyle": "-|>", "color": "0.55", "linewidth": 0.8, "shrinkA": 0}
    axes.annotate(
        "",
        (end[0], end[1]),
        (start[0], start[1]),
        arrowprops={**style, "shrinkB": radius},
        annotation_clip=False,
        zorder=2,
    )


def _draw_nodes(
    axes: Axes,
    places: np.ndarray,
    y: Tensor | None,
    class_names: Sequence[str],
    node_size: float,
) -> None:
    labels = torch.zeros(len(places), dtype=torch.long) if y is None else y.cpu()
    for label in labels.unique().tolist():
        left, up = places[(labels == label).numpy()].T
        colour = _UNLABELLED if label < 0 else f"C{label % 10}"
        name = class_names[label] if class_names and label >= 0 else None
        axes.scatter(
            left, up, s=node_size, color=colour, edgecolors="white", linewidths=0.6, label=name,
            zorder=_ABOVE,
        )  # fmt: skip
    if y is not None and class_names:
        axes.legend(frameon=False)
