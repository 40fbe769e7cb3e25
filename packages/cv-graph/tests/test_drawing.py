"""The pictures show what they were given, and leave matplotlib as it was."""

import io
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from cv_graph.drawing import draw_bipartite, draw_graph, draw_hypergraph
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.path import Path

POS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [3.0, 2.0]])
EDGES = torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 3, 2, 4]])  # 0-1, 1 to 2, 2-3, a loop
MEMBERS = torch.tensor([[0, 1, 2, 2, 3, 4], [0, 0, 0, 1, 1, 3]])  # hyperedge 2 is empty
Y = torch.tensor([0, 1, 1, -1, 0])


def nodes(axes):
    """The nodes by position, with their colours."""
    return {
        tuple(place): tuple(each.get_facecolor()[0])
        for each in axes.collections
        for place in each.get_offsets().tolist()
    }


def lines(axes):
    (line,) = axes.lines
    path = line.get_xydata().reshape(-1, 3, 2)
    assert np.isnan(path[:, 2]).all()
    return path[:, :2]


def test_edges_in_both_directions_are_lines_and_others_arrows():
    axes = draw_graph(EDGES, pos=POS, y=Y)
    np.testing.assert_array_equal(lines(axes), POS[torch.tensor([[0, 1], [2, 3]])])
    (arrow,) = axes.texts
    assert (arrow.xy, arrow.get_position()) == ((1.0, 1.0), (1.0, 0.0))
    grey = to_rgba("0.75")
    expected = [to_rgba("C0"), to_rgba("C1"), to_rgba("C1"), grey, to_rgba("C0")]
    assert nodes(axes) == {
        tuple(place): colour for place, colour in zip(POS.tolist(), expected, strict=True)
    }
    assert axes.get_aspect() == 1


def test_numbers_of_nodes():
    assert len(nodes(draw_graph(EDGES))) == 5
    assert len(nodes(draw_graph(EDGES, num_nodes=8))) == 8
    assert len(nodes(draw_graph(torch.empty(2, 0, dtype=torch.long), num_nodes=3))) == 3
    assert len(nodes(draw_hypergraph(MEMBERS, num_nodes=6))) == 6


def test_layout_depends_on_the_seed_alone():
    first, second, other = (nodes(draw_graph(EDGES, seed=seed)) for seed in (3, 3, 4))
    assert first == second != other


def test_areas_hold_their_members_and_no_others():
    padding = 0.04
    axes = draw_hypergraph(MEMBERS, pos=POS, y=Y, padding=padding)
    filled, outlines = axes.patches[::2], axes.patches[1::2]
    assert len(filled) == len(outlines) == 3
    inside = {
        tuple(np.flatnonzero(Path(patch.get_xy()).contains_points(POS.numpy()))): patch
        for patch in filled
    }
    assert set(inside) == {(0, 1, 2), (2, 3), (4,)}
    lonely = inside[(4,)].get_xy() - POS[4].numpy()  # a disc; hyperedge 3 has the plain padding
    np.testing.assert_allclose(np.linalg.norm(lonely, axis=1), padding * 3, rtol=1e-9)
    assert len({tuple(patch.get_facecolor()) for patch in filled}) == 3


def test_members_on_a_line_or_at_one_place_have_areas():
    members = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1]])
    for places in (torch.tensor([[0.0, 0], [1, 1], [2, 2], [0, 1]]), torch.zeros(4, 2)):
        for patch in draw_hypergraph(members, pos=places).patches:
            assert np.ptp(patch.get_xy(), axis=0).min() > 0


def test_bipartite_view_joins_nodes_and_hyperedges():
    axes = draw_bipartite(MEMBERS, pos=POS)
    centres = {0: POS[:3].mean(dim=0), 1: POS[2:4].mean(dim=0), 3: POS[4]}
    expected = [[POS[u].tolist(), centres[e].tolist()] for u, e in sorted(MEMBERS.T.tolist())]
    np.testing.assert_allclose(lines(axes), expected, rtol=1e-6)
    squares, circles = axes.collections
    assert len(circles.get_offsets()) == 5
    places = np.ma.getdata(squares.get_offsets())
    assert np.isnan(places[2]).all() or squares.get_offsets().mask[2].all()
    laid_out = draw_bipartite(MEMBERS)
    assert np.isfinite(np.asarray(laid_out.collections[0].get_offsets())).all()
    assert len(lines(laid_out)) == 6


def test_classes_have_a_legend_where_they_have_names():
    texts = draw_graph(EDGES, y=Y, class_names=("cat", "dog")).get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["cat", "dog"]
    assert draw_graph(EDGES, y=Y).get_legend() is None


@pytest.mark.parametrize("draw", [draw_graph, draw_hypergraph, draw_bipartite])
def test_pictures_are_the_callers_alone(draw):
    before = dict(mpl.rcParams)
    figure = Figure()
    axes = figure.add_subplot()
    assert draw(MEMBERS, ax=axes) is axes
    alone = draw(MEMBERS)
    assert alone.figure is not figure
    stream = io.BytesIO()
    alone.figure.savefig(stream, format="png")
    assert stream.getvalue().startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before


def test_pyplot_is_never_imported():
    code = (
        "import sys, torch; from cv_graph.drawing import draw_graph, draw_hypergraph; "
        "assert 'matplotlib' not in sys.modules; "
        "e = torch.tensor([[0, 1], [1, 2]]); draw_graph(e); draw_hypergraph(e); "
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: draw_graph(EDGES, num_nodes=4), r"edge_index\[0, 5\] is source node 4"),
        (lambda: draw_graph(EDGES, y=Y[:4]), r"edge_index\[0, 5\] is source node 4"),
        (lambda: draw_graph(EDGES, y=Y, num_nodes=6), "num_nodes has 6, y has 5"),
        (lambda: draw_graph(EDGES, y=Y - 1), r"y must lie in .* got -2"),
        (lambda: draw_graph(EDGES, y=Y, class_names=("a",)), "class_names must be at least 2"),
        (lambda: draw_graph(EDGES, pos=POS[:, :1]), r"pos must have shape \(n, 2\)"),
        (lambda: draw_graph(EDGES, pos=POS * torch.nan), "pos must be finite"),
        (lambda: draw_graph(EDGES, node_size=0), "node_size must lie in"),
        (lambda: draw_graph(EDGES[0]), r"edge_index must have shape \(2, e\)"),
        (lambda: draw_hypergraph(MEMBERS, padding=0), "padding must lie in"),
        (lambda: draw_hypergraph(MEMBERS, pos=POS[:3]), r"\[0, 4\] is node 3, but there are 3"),
        (lambda: draw_bipartite(-MEMBERS), r"hyperedge_index\[0, 1\] is node -1"),
    ],
)
def test_bad_input_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
