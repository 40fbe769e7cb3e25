"""Readers of meshes and voxels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from cv_core.data.archives import read_members
from cv_core.data.kinds import Mesh, Meshes, Voxels
from cv_core.data.origin import Origin
from cv_core.data.root import CorruptData

Polygons = list[list[int]]


def meshes(origin: Origin, paths: Sequence[Path]) -> Meshes:
    """Read an archive of Wavefront OBJ and OFF files."""
    members = read_members(paths[0], suffixes=(".obj", ".off"))
    return Meshes(_Parsed(members), origin)


class _Parsed(Mapping[str, Mesh]):
    """Meshes by the stem of their file, parsed once, when asked for."""

    def __init__(self, members: Mapping[str, bytes]) -> None:
        self._members = {PurePosixPath(name).stem: name for name in sorted(members)}
        self._content = members
        self._parsed: dict[str, Mesh] = {}

    def __getitem__(self, name: str) -> Mesh:
        if name not in self._parsed:
            file = self._members[name]
            parse = parse_obj if file.endswith(".obj") else parse_off
            vertices, polygons = parse(self._content[file].decode("latin1"), file)
            self._parsed[name] = Mesh(
                torch.from_numpy(vertices), torch.from_numpy(triangulate(polygons))
            )
        return self._parsed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def parse_obj(text: str, name: str) -> tuple[np.ndarray, Polygons]:
    """Parse vertices and faces of a Wavefront OBJ file.

    Args:
        text: Content of the file.
        name: What to call it in an error.

    Returns:
        Vertices (V, 3) float32, and the vertex indices of every face, from 0.

    Raises:
        CorruptData: If a line cannot be parsed or names a vertex that does not exist.
    """
    vertices: list[list[float]] = []
    polygons: Polygons = []
    try:
        for line in text.splitlines():
            words = line.split()
            if words and words[0] == "v":
                vertices.append([float(word) for word in words[1:4]])
            elif words and words[0] == "f":
                corners = [int(word.partition("/")[0]) for word in words[1:]]
                # from 1 on; a negative number counts back from the vertex read last
                polygons.append([c - 1 if c > 0 else len(vertices) + c for c in corners])
    except ValueError as error:
        raise CorruptData(f"{name}: not a readable OBJ file: {error}") from error
    return _checked(vertices, polygons, name)


def parse_off(text: str, name: str) -> tuple[np.ndarray, Polygons]:
    """Parse vertices and faces of an OFF file.

    Args:
        text: Content of the file.
        name: What to call it in an error.

    Returns:
        Vertices (V, 3) float32, and the vertex indices of every face.

    Raises:
        CorruptData: If it is not such a file.
    """
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    if not lines or not lines[0].startswith("OFF"):
        raise CorruptData(f"{name}: an OFF file must begin with OFF.")
    # some files of ModelNet have the counts on the first line: "OFF3514 3546 0"
    lines = [rest, *lines[1:]] if (rest := lines[0][3:].strip()) else lines[1:]
    try:
        count, faces = (int(word) for word in lines[0].split()[:2])
        vertices = [[float(word) for word in line.split()[:3]] for line in lines[1 : 1 + count]]
        polygons = []
        for line in lines[1 + count : 1 + count + faces]:
            size, *corners = (int(word) for word in line.split())
            polygons.append(corners[:size])
    except (ValueError, IndexError) as error:
        raise CorruptData(f"{name}: not a readable OFF file: {error}") from error
    if len(vertices) != count or len(polygons) != faces:
        raise CorruptData(f"{name}: the file ends before its {count} vertices and {faces} faces.")
    return _checked(vertices, polygons, name)


def triangulate(polygons: Polygons) -> np.ndarray:
    """Cut polygons into fans of triangles, (F, 3) int64."""
    fans = [
        (polygon[0], polygon[corner], polygon[corner + 1])
        for polygon in polygons
        for corner in range(1, len(polygon) - 1)
    ]
    return np.array(fans, dtype=np.int64).reshape(-1, 3)


def _checked(
    vertices: list[list[float]], polygons: Polygons, name: str
) -> tuple[np.ndarray, Polygons]:
    if any(len(vertex) != 3 for vertex in vertices):
        raise CorruptData(f"{name}: a vertex has not three coordinates.")
    corners = [corner for polygon in polygons for corner in polygon]
    if corners and (min(corners) < 0 or max(corners) >= len(vertices)):
        raise CorruptData(f"{name}: a face names a vertex that does not exist.")
    if any(len(polygon) < 3 for polygon in polygons):
        raise CorruptData(f"{name}: a face has fewer than three corners.")
    return np.array(vertices, dtype=np.float32).reshape(-1, 3), polygons


def modelnet10_voxels(origin: Origin, paths: Sequence[Path]) -> Voxels:
    """Read the chairs and monitors of ModelNet10 as occupancy."""
    with np.load(paths[0], allow_pickle=False) as archive:
        x = torch.from_numpy(archive["voxels"].astype(np.float32))
        return Voxels(x, torch.from_numpy(archive["labels"]), ("chair", "monitor"), origin)
