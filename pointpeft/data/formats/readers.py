"""Files of one cloud or one surface, read into points."""

import os
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.bounds import require_npy, require_zip
from pointpeft.data.formats.columns import coordinate_columns, plain_name
from pointpeft.data.formats.coordinates import (
    CLI_WAY_OUT,
    POINT_KEYS,
    coordinates,
    in_float32,
    keep_finite,
    require_in_range,
)
from pointpeft.data.formats.las import read_las
from pointpeft.data.formats.meshes import Mesh, read_ply, sample_surface, triangulate
from pointpeft.data.formats.pcd import read_pcd
from pointpeft.data.formats.polygon_files import read_obj, read_off, read_stl
from pointpeft.data.formats.text import read_text
from pointpeft.data.transforms import move_to_origin

# Points drawn on a surface by default: as many as published clouds of ShapeNet and ModelNet40 have.
MESH_POINTS = 8192
_FACES = ("faces", "face", "triangles", "triangle", "tri", "tris", "f")
_MAYBE_FACES = re.compile(
    r"(mesh)?(f|faces?|tri|tris|triangles?|polygons?|quads?|cells?)?(v|vertices|indices|index|idx|ids?)?"
)


def read_points(
    path: str | Path,
    num_points: int | None = None,
    generator: torch.Generator | None = None,
    *,
    normalized: bool = False,
    from_corner: bool = False,
    near_origin: bool = False,
    drop_non_finite: bool | dict[str, int] | None = False,
) -> Tensor:
    """Reads one file.

    The columns or fields named for x, y and z are the coordinates, without names the first three columns; others are
    ignored. A file with faces is a surface and gives points drawn uniformly on it; without faces its vertices are the
    points.

    Args:
        path: A file of one of the `EXTENSIONS`.
        num_points: Points drawn on a surface, by default 8192. Of a cloud, the most that are kept: a larger cloud is
            cut to as many, drawn at random without repetition. None keeps a cloud whole.
        generator: Source of the draw, on the CPU; None for a fresh one with seed 0, so that a file always gives the
            same points.
        normalized: Centre the points on their mean and scale them to the unit sphere, in float64: scans in map
            coordinates keep their detail.
        from_corner: Move the least coordinate of each axis to 0, in float64 too: for scenes, whose size matters.
        near_origin: Move the mean of a cloud that lies far from the origin there, in float64 too, and leave others as
            they are: for models of clouds that are not normalised.
        drop_non_finite: Leave points out whose coordinates are not finite, as depth cameras mark what they did not
            see. A dict receives how many, by the name of the file. None refuses them as False does, with an error
            that names no option, for those who have none.

    Returns:
        Points, float32. [n, 3]

    Warns:
        UserWarning: A surface lacks its end, and the rest is read; names the file and what is missing.

    Raises:
        DataError: The file is missing, broken, empty, of unknown kind, has no three columns or a coordinate that is
            not finite; names the file and the reason.
    """
    path = Path(path)
    if num_points is not None and num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}")
    reader = _reader_of(path.suffix, path)
    if not os.path.isfile(path):
        raise DataError(f"{path}: {'not a file' if os.path.exists(path) else 'no such file'}")
    size = path.stat().st_size
    placement = _Placement(normalized, from_corner, near_origin)
    return _read(reader, path, path, size, num_points, generator, placement, drop_non_finite)


def read_bytes(
    content: bytes,
    suffix: str,
    name: str,
    num_points: int | None = None,
    *,
    normalized: bool = False,
    near_origin: bool = False,
    drop_non_finite: bool | dict[str, int] = False,
) -> Tensor:
    """Reads a file's content, such as a member of an archive.

    Args:
        content: All of it.
        suffix: One of the `EXTENSIONS`.
        name: What messages call it; it never becomes a path.
        num_points: As in `read_points`.
        normalized: As in `read_points`.
        near_origin: As in `read_points`.
        drop_non_finite: As in `read_points`.

    Returns:
        Points, float32. [n, 3]

    Raises:
        DataError: As `read_points`.
    """
    reader, placement = _reader_of(suffix, name), _Placement(normalized, near_origin=near_origin)
    others = (name, len(content), num_points, None, placement, drop_non_finite)
    if suffix == ".npy":  # no way by the disk for the kind that shards are made of
        return _read(_read_npy, BytesIO(content), *others)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"cloud{suffix}")
        path.write_bytes(content)
        try:
            return _read(reader, path, *others)
        except DataError as error:  # libraries name the file that they read
            raise DataError(str(error).replace(str(path), name)) from error


def _reader_of(suffix: str, name: Path | str) -> Callable[[Any], Mesh | np.ndarray]:
    reader = _READERS.get(suffix.lower())
    if reader is None:
        raise DataError(f"{name}: unknown kind of file {suffix!r}; known: {' '.join(EXTENSIONS)}")
    return reader


@dataclass(frozen=True)
class _Placement:
    """How points are shifted before they are rounded to float32; arguments of `read_points`."""

    normalized: bool = False
    from_corner: bool = False
    near_origin: bool = False

    def apply(self, points: np.ndarray) -> Tensor:
        """Moved points, float32. [n, 3]"""
        if self.from_corner:
            points = points - points.min(0)
        if self.normalized:
            points = points - points.mean(0)
            points = points / max(np.linalg.norm(points, axis=1).max(), np.finfo(np.float64).tiny)
        elif self.near_origin:
            require_in_range(points)
            return move_to_origin(torch.from_numpy(points))
        return in_float32(points)


def _read(
    reader: Callable[[Any], Mesh | np.ndarray],
    file: Path | BytesIO,
    name: Path | str,
    size: int,
    num_points: int | None,
    generator: torch.Generator | None,
    placement: _Placement,
    drop_non_finite: bool | dict[str, int] | None,
) -> Tensor:
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    try:
        if not size:
            raise DataError("the file is empty")
        content = reader(file)
        if not isinstance(content, Mesh):
            drop, way_out = (False, "") if drop_non_finite is None else (drop_non_finite, CLI_WAY_OUT)
            content, _ = keep_finite(coordinates(content, finite=False), drop, str(name), way_out)
            require_in_range(content)
        elif content.warning:
            warnings.warn(f"{name} {content.warning}", stacklevel=3)
        points = _draw(content, num_points, generator)
        result = placement.apply(points)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error.__cause__
    except Exception as error:  # whatever a library makes of a broken file, the user needs its name
        raise DataError(f"{name}: cannot be read: {error or type(error).__name__}") from error
    return result


def _draw(content: Mesh | np.ndarray, num_points: int | None, generator: torch.Generator) -> np.ndarray:
    if isinstance(content, Mesh):
        return sample_surface(content, num_points or MESH_POINTS, generator)
    points = content
    if num_points is not None and len(points) > num_points:
        points = points[torch.randperm(len(points), generator=generator)[:num_points].numpy()]
    return points


def _read_npy(file: Path | BytesIO) -> np.ndarray:
    if isinstance(file, Path):
        with open(file, "rb") as head:
            require_npy(head, file.stat().st_size)
    else:
        require_npy(file, len(file.getbuffer()))
        file.seek(0)
    array = np.load(file, allow_pickle=False)  # an object array is a pickle, which could run anything
    if not isinstance(array, np.ndarray):
        raise DataError("is not a .npy file but a .npz one")
    return array


def _read_npz(path: Path) -> Mesh | np.ndarray:
    if not zipfile.is_zipfile(path):
        raise DataError("is not a .npz file")
    require_zip(path)
    with np.load(path, allow_pickle=False) as file:
        plain = {plain_name(name): name for name in reversed(file.files)}
        key = next((plain[key] for key in POINT_KEYS if key in plain), None)
        axes = coordinate_columns(file.files) if key is None and len(file.files) > 2 else None
        if axes is not None:
            columns = [file[file.files[axis]].reshape(-1) for axis in axes]
            if len({len(column) for column in columns}) > 1:
                raise DataError(f"its x, y and z have different lengths: {', '.join(str(len(c)) for c in columns)}")
            return np.stack(columns, 1)
        if key is None and len(file.files) != 1:
            raise DataError(f"has none of {', '.join(POINT_KEYS)}, only {', '.join(file.files) or 'nothing'}")
        faces = _faces_of(file, plain, key)
        others = [plain[name] for name in ("vertices", "verts", "v") if name in plain and plain[name] != key]
        if faces is None or key is None or others:  # points beside a surface are its points
            return file[key or file.files[0]]
        return _mesh(coordinates(file[key]), file[faces], faces)


def _faces_of(file: Any, plain: dict[str, str], key: str | None) -> str | None:
    """The array that lists the corners of faces, or None; under a rare name its values must be plausible, too."""
    for name in _FACES:
        if name in plain and plain[name] != key:
            return plain[name]
    for name in (
        candidate for simple, candidate in plain.items() if _MAYBE_FACES.fullmatch(simple) and candidate != key
    ):
        array, count = file[name], len(file[key]) if key else 0
        if array.dtype.kind in "iu" and array.ndim == 2 and array.shape[1] in (3, 4) and 0 <= array.min(initial=0):
            if array.max(initial=0) < count:
                return name
    return None


def _mesh(vertices: np.ndarray, faces: np.ndarray, name: str) -> Mesh | np.ndarray:
    """The surface of arrays; the vertices as points where there are no faces."""
    if faces.dtype.kind not in "iu" or faces.ndim != 2 or faces.shape[1] not in (3, 4):
        raise DataError(f"{name} must be indices of vertices [F, 3] or [F, 4], got {faces.dtype} {list(faces.shape)}")
    return Mesh(vertices, triangulate(faces)) if len(faces) else vertices


_READERS: dict[str, Callable[[Path], Mesh | np.ndarray]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".ply": read_ply,
    ".off": read_off,
    ".obj": read_obj,
    ".stl": read_stl,
    ".xyz": read_text,
    ".txt": read_text,
    ".pts": read_text,
    ".asc": read_text,
    ".pcd": read_pcd,
    ".las": read_las,
    ".laz": read_las,
}

EXTENSIONS: tuple[str, ...] = tuple(_READERS)
