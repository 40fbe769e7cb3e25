import numpy as np
import pytest
from cv_core.data.readers.shapes import parse_obj, parse_off, triangulate
from cv_core.data.root import CorruptData

SQUARE = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]


def test_obj():
    text = "# a square\nv 0 0 0\nv 1 0 0\nvn 0 0 1\nv 1 1 0 1.0\nv 0 1 0\nf 1/1 2//3 3/1/1 -1\n"
    vertices, polygons = parse_obj(text, "square")
    assert vertices.tolist() == SQUARE
    assert polygons == [[0, 1, 2, 3]]


@pytest.mark.parametrize("head", ["OFF\n4 1 0\n", "OFF4 1 0\n", "# made\nOFF\n# counts\n4 1 0\n"])
def test_off(head):
    text = head + "0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3 255 0 0\n"
    vertices, polygons = parse_off(text, "square")
    assert vertices.tolist() == SQUARE
    assert polygons == [[0, 1, 2, 3]]


def area(vertices, faces):
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


def test_triangles_keep_the_area_of_a_regular_polygon():
    angles = 2 * np.pi * np.arange(7) / 7
    vertices = np.stack([np.cos(angles), np.sin(angles), np.zeros(7)], axis=1)
    faces = triangulate([list(range(7))])
    assert len(faces) == 5
    assert area(vertices, faces) == pytest.approx(7 / 2 * np.sin(2 * np.pi / 7))


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_obj, "v 0 0 0\nf 1 2 3\n"),
        (parse_obj, "v 0 0\n"),
        (parse_obj, "v a b c\n"),
        (parse_obj, "v 0 0 0\nf 1 1\n"),
        (parse_obj, "v 0 0 0\nf -1 -1 -2\n"),
        (parse_off, "4 1 0\n"),
        (parse_off, "OFF\n2 1 0\n0 0 0\n1 1 1\n3 0 1 2\n"),
        (parse_off, "OFF\n3 2 0\n0 0 0\n1 1 1\n0 1 0\n3 0 1 2\n"),
        (parse_off, "OFF\n"),
    ],
)
def test_broken_meshes_are_refused_by_name(parse, text):
    with pytest.raises(CorruptData, match="broken"):
        parse(text, "broken")
