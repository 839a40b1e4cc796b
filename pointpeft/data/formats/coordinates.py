"""Tables of numbers as coordinates: three columns, finite, within the range of float32."""

import numpy as np
import torch
from torch import Tensor

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.columns import coordinate_columns, plain_name, shown

LARGEST = 1e18  # coordinate: float32 still holds its square
# How an error on points that are not finite ends, where every command that may meet it has the option.
CLI_WAY_OUT = "; --drop-non-finite (drop_non_finite=True) leaves them out"
# Names under which an .npz may hold its points, first match first.
POINT_KEYS = (
    *("points", "xyz", "pos", "coords", "coord", "data", "vertices", "pc", "pointcloud", "positions", "position"),
    *("coordinates", "cloud", "verts", "v"),
)
# Coordinates, normal, colour, labels and the like. A table with more columns than this and fewer rows than columns is
# taken for a transposed one.
_MOST_COLUMNS = 12


def keep_finite(
    points: np.ndarray, drop: bool | dict[str, int], name: str, way_out: str = CLI_WAY_OUT
) -> tuple[np.ndarray, np.ndarray | None]:
    """The points of a cloud that are finite.

    Args:
        points: Numbers of any type. [n, 3]
        drop: Whether others are left out; a dict receives how many, by the name of the cloud.
        name: Of the cloud, in that dict.
        way_out: What an error says of leaving them out.

    Returns:
        The finite points [m, 3], of the same type, and which those are, bool [n]; None where all are.

    Raises:
        DataError: Some are not finite and must not be left out, or none is.
    """
    finite = np.atleast_1d(np.isfinite(points).all(1))
    count = len(points) - int(finite.sum())
    if not count:
        return points, None
    if drop is False:
        raise DataError(
            f"{count} of {len(points)} points are not finite, the first is point {finite.argmin()}{way_out}"
        )
    if count == len(points):
        raise DataError(f"none of its {count} points is finite")
    if isinstance(drop, dict):
        drop[name] = count
    return points[finite], finite


def in_float32(points: np.ndarray) -> Tensor:
    """Finite coordinates as a tensor.

    Raises:
        DataError: They are larger than `LARGEST`.
    """
    require_in_range(points)
    return torch.from_numpy(points.astype(np.float32, copy=False))


def as_stored(points: np.ndarray) -> Tensor:
    """Finite coordinates in float32, or in float64 where float32 could round them.

    Raises:
        DataError: They are larger than `LARGEST`.
    """
    require_in_range(points)
    narrow = points.dtype.kind == "f" and points.dtype.itemsize <= 4
    return torch.from_numpy(points.astype(np.float32 if narrow else np.float64, copy=False))


def require_in_range(points: np.ndarray) -> None:
    """Refuses coordinates whose squares float32 cannot hold.

    Raises:
        DataError: They are larger than `LARGEST`.
    """
    largest = max(float(points.max(initial=0)), -float(points.min(initial=0)))
    if not largest <= LARGEST:
        raise DataError(f"coordinates up to {largest:.3g} are too large for float32: its squares end at {LARGEST:g}²")


def coordinates(table: np.ndarray, *, finite: bool = True) -> np.ndarray:
    """The fields x, y and z of a table, else its first three columns, float64. [n, C] -> [n, 3]

    Args:
        table: Rows of numbers, or of fields with names.
        finite: Refuse numbers that are not finite or too large.

    Raises:
        DataError: They are no coordinates, or too large.
    """
    table = _without_names(table)
    if table.ndim == 3 and len(table) == 1:  # a batch of one cloud
        table = table[0]
    if table.dtype.kind not in "fiu":
        raise DataError(f"coordinates must be numbers, got {table.dtype}")
    if table.ndim != 2 or table.shape[1] < 3:
        raise DataError(f"points must be rows of at least 3 columns, got shape {list(table.shape)}")
    if not len(table):
        raise DataError("it has no points")
    if table.shape[1] > max(_MOST_COLUMNS, len(table)):
        raise DataError(f"points must be rows, got shape {list(table.shape)}: it seems to be transposed")
    points = table[:, :3].astype(np.float64)
    if not finite:
        return points
    keep_finite(points, False, "", "")
    require_in_range(points)
    return points


def _without_names(table: np.ndarray) -> np.ndarray:
    """A table of named fields as one of columns, x, y and z first; others as they are. [...] -> [n, 3]"""
    names = table.dtype.names
    if not names:
        return table
    columns = coordinate_columns(names)
    if columns is not None:
        return np.stack([table[names[i]].reshape(-1) for i in columns], 1)
    vectors = [name for name in names if plain_name(name) in POINT_KEYS and table.dtype[name].shape == (3,)]
    if len(vectors) != 1:
        raise DataError(f"coordinates must be numbers in fields x, y and z, got the fields {shown(names)}")
    return table[vectors[0]].reshape(-1, 3)
