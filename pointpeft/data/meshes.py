"""Surfaces: files that may hold triangles, and points drawn on them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pointpeft.data.dataset import DataError


@dataclass(frozen=True)
class Mesh:
    """A triangle surface.

    Attributes:
        vertices: Coordinates, float64. [V, 3]
        faces: Corners as positions in `vertices`, int64. [F, 3]
    """

    vertices: np.ndarray
    faces: np.ndarray


def optional(library: str) -> Any:
    """Imports a library of the `mesh` extra.

    Raises:
        DataError: It is not installed; says how to install it.
    """
    from importlib import import_module

    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        raise DataError(f"needs {error.name}, which is not installed: pip install 'pointpeft[mesh]'") from error


def read_ply(path: Path) -> Mesh | np.ndarray:
    """A .ply file: a mesh where it has faces, else its vertices as points. [n, 3]"""
    ply = optional("plyfile").PlyData.read(str(path))
    names = [element.name for element in ply.elements]
    if "vertex" not in names:
        raise DataError(f"has no element 'vertex', only {', '.join(names) or 'nothing'}")
    vertex = ply["vertex"]
    columns = [property.name for property in vertex.properties]
    if not {"x", "y", "z"} <= set(columns):
        raise DataError(f"its vertices have no x, y and z, only {', '.join(columns)}")
    points = np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], 1)
    if "face" not in names or not len(ply["face"]):
        return points
    face = ply["face"]
    lists = [p.name for p in face.properties if p.name in ("vertex_indices", "vertex_index")]
    if not lists:
        raise DataError("its faces have neither vertex_indices nor vertex_index")
    return Mesh(points, triangulate(face[lists[0]]))


def read_off(path: Path) -> Mesh | np.ndarray:
    """A .off file: a mesh where it has faces, else its vertices as points. [n, 3]

    Colours and normals are passed over. Many files of ModelNet40 lack the line break after "OFF".

    Source: http://www.geomview.org/docs/html/OFF.html
    """
    head = re.match(r"\s*(?:#[^\n]*\n\s*)*(?:ST|C|N)*OFF", text := path.read_text())
    if head is None:
        raise DataError("does not start with OFF")
    lines = (line.split("#")[0].strip() for line in text[head.end() :].splitlines())
    rows = [line for line in lines if line]
    counts = rows[0].split() if rows else []
    if len(counts) not in (2, 3) or not all(count.isdecimal() for count in counts):
        raise DataError("does not say how many vertices and faces it has")
    num_vertices, num_faces = int(counts[0]), int(counts[1])
    if len(rows) - 1 < num_vertices + num_faces:
        raise DataError(
            f"is cut off: {len(rows) - 1} lines of vertices and faces, {num_vertices} + {num_faces} announced"
        )
    if not num_vertices:
        return np.empty((0, 3))
    vertices = np.loadtxt(rows[1 : 1 + num_vertices], np.float64, usecols=(0, 1, 2), ndmin=2)
    if not num_faces:
        return vertices
    polygons = []
    for row in rows[1 + num_vertices : 1 + num_vertices + num_faces]:
        size, *rest = row.split()
        if len(rest) < int(size):
            raise DataError(f"a face announces {size} corners, it has {len(rest)}")
        polygons.append(np.array(rest[: int(size)], np.int64))
    return Mesh(vertices, triangulate(polygons))


def read_surface(path: Path) -> Mesh | np.ndarray:
    """A .obj or .stl file: a mesh where it has faces, else its vertices as points. [n, 3]"""
    trimesh = optional("trimesh")
    # Vertices stay as they are in the file; pictures and materials are not looked for.
    options = {"skip_materials": True} if path.suffix.lower() == ".obj" else {}
    loaded = trimesh.load(str(path), process=False, **options)
    if isinstance(loaded, trimesh.Scene):
        loaded = loaded.to_mesh()
    faces = np.asarray(getattr(loaded, "faces", ()), np.int64)
    vertices = np.asarray(loaded.vertices, np.float64).reshape(-1, 3)
    return Mesh(vertices, faces.reshape(-1, 3)) if faces.size else vertices


def triangulate(polygons: Any) -> np.ndarray:
    """Cuts polygons into fans of triangles; those of fewer than 3 corners are left out. [F, 3]"""
    sizes = np.array([len(polygon) for polygon in polygons])
    parts = [np.empty((0, 3), np.int64)]
    for size in np.unique(sizes[sizes >= 3]):
        same = np.stack([polygons[i] for i in np.flatnonzero(sizes == size)]).astype(np.int64)
        first = same[:, :1].repeat(size - 2, 1)
        parts.append(np.stack([first, same[:, 1:-1], same[:, 2:]], -1).reshape(-1, 3))
    return np.concatenate(parts)


def sample_surface(mesh: Mesh, num_points: int, generator: torch.Generator) -> np.ndarray:
    """Draws points uniformly on the surface.

    Args:
        mesh: The surface.
        num_points: How many points to draw.
        generator: Source of the draw, on the CPU.

    Returns:
        Points, float64. [num_points, 3]

    Raises:
        DataError: A face names a vertex that is not there, or the surface has no area.
    """
    if not len(mesh.faces):
        raise DataError("it has no face of at least 3 corners")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise DataError(f"a face names a vertex outside 0 to {len(mesh.vertices) - 1}")
    corners = mesh.vertices[mesh.faces]  # [F, 3, 3]
    if not np.isfinite(corners).all():
        raise DataError("a corner of a face is not finite")
    sides = corners[:, 1:] - corners[:, :1]
    reached = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1).cumsum()
    if not 0 < reached[-1] < np.inf:
        raise DataError(f"its surface has no area ({len(mesh.faces)} faces)")
    drawn = torch.rand((3, num_points), generator=generator, dtype=torch.float64).numpy()
    # side="right" never gives a face without area: its sum equals the one before it. Rounding of the product may reach
    # the total itself, which belongs to the last face with an area.
    last = np.searchsorted(reached, reached[-1])
    chosen = np.minimum(np.searchsorted(reached, drawn[0] * reached[-1], side="right"), last)
    root = np.sqrt(drawn[1])
    weights = np.stack([root * (1 - drawn[2]), root * drawn[2]], 1)
    return corners[chosen, 0] + (weights[:, :, None] * sides[chosen]).sum(1)
