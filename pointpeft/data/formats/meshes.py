"""Surfaces: files that may hold triangles, and points drawn on them."""

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.columns import coordinate_columns
from pointpeft.data.formats.ply_header import require_elements

_SURFACES = re.compile(r"(tri|quad|face|poly|patch|mesh)", re.IGNORECASE)  # elements that are no points


@dataclass(frozen=True)
class Mesh:
    """A triangle surface.

    Attributes:
        vertices: Coordinates, float64. [V, 3]
        faces: Corners as positions in `vertices`, int64. [F, 3]
        warning: What of the file is missing in it, for people; empty where nothing is.
    """

    vertices: np.ndarray
    faces: np.ndarray
    warning: str = ""


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
    """A .ply file: a mesh where it has faces or strips of triangles, else its vertices as points. [n, 3]

    Raises:
        DataError: It has no vertices with coordinates, or faces that are given in another way.
    """
    plyfile = optional("plyfile")
    content = _in_ascii(path.read_bytes())
    require_elements(content)
    ply = plyfile.PlyData.read(BytesIO(content))
    names = [element.name for element in ply.elements]
    if "vertex" not in names:
        raise DataError(f"has no element 'vertex', only {', '.join(names) or 'nothing'}")
    vertex = ply["vertex"]
    columns = [property.name for property in vertex.properties]
    axes = coordinate_columns(columns)
    if axes is None:
        raise DataError(f"its vertices have no x, y and z, only {', '.join(columns)}")
    points = np.stack([np.asarray(vertex[columns[axis]], np.float64) for axis in axes], 1)
    faces = []
    if "face" in names and len(ply["face"]):
        faces.append(triangulate(ply["face"][_corners_of(ply["face"])]))
    for name in ("tristrips", "tristrip"):
        if name in names and len(ply[name]):
            faces += [split_strip(np.asarray(strip)) for strip in ply[name][_corners_of(ply[name])]]
    known = ("vertex", "face", "tristrips", "tristrip", "edge")
    for element in ply.elements:
        names = [property.name for property in element.properties]
        surface = {"vertex_indices", "vertex_index"} & set(names) or _SURFACES.match(element.name)
        if element.name not in known and surface and len(element):
            raise DataError(
                f"gives its surface as {element.name} ({', '.join(names)}): export it with faces or tristrips"
            )
    if not faces:
        return points
    return Mesh(points, np.concatenate(faces))


def _in_ascii(content: bytes) -> bytes:
    """A .ply file without a byte order mark, its comments in ASCII: the format knows no other letters.

    The header's length in letters may change, as nothing refers to it.
    """
    content = content.removeprefix(b"\xef\xbb\xbf")
    end = re.search(rb"(?:^|[\r\n])[ \t]*end_header[ \t]*(?:\r\n|\r|\n)", content)
    if end is None:
        return content
    header, body = content[: end.end()], content[end.end() :]
    if re.search(rb"[\r\n]format[ \t]+ascii", header):
        body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return re.sub(rb"[^\x00-\x7f]", b"?", header.replace(b"\r\n", b"\n").replace(b"\r", b"\n")) + body


def _corners_of(element: Any) -> str:
    """The property that lists the vertices of faces or strips."""
    lists = [p.name for p in element.properties if p.name in ("vertex_indices", "vertex_index")]
    if not lists:
        what = "faces have" if element.name == "face" else f"{element.name} have"
        raise DataError(f"its {what} neither vertex_indices nor vertex_index")
    return lists[0]


def split_strip(strip: np.ndarray) -> np.ndarray:
    """The triangles of strips of vertices: any three neighbours are one; -1 stands between strips. [F, 3]"""
    strip = strip.astype(np.int64)
    triangles = np.stack([strip[:-2], strip[1:-1], strip[2:]], 1) if len(strip) > 2 else np.empty((0, 3), np.int64)
    return triangles[(triangles != -1).all(1)]


def triangulate(polygons: Any) -> np.ndarray:
    """Cuts polygons into fans of triangles; those of fewer than 3 corners are left out. [F, 3]"""
    sizes = np.array([len(polygon) for polygon in polygons])
    faces_of = [np.empty((0, 3), np.int64)]
    for size in np.unique(sizes[sizes >= 3]):
        same = np.stack([polygons[i] for i in np.flatnonzero(sizes == size)]).astype(np.int64)
        first = same[:, :1].repeat(size - 2, 1)
        faces_of.append(np.stack([first, same[:, 1:-1], same[:, 2:]], -1).reshape(-1, 3))
    return np.concatenate(faces_of)


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
