"""One HDF5 or NumPy file of clouds whose points are labelled."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.bounds import MAX_CLASSES, brief, read_texts, require_h5, require_zip
from pointpeft.data.formats.coordinates import CLI_WAY_OUT, as_stored
from pointpeft.data.formats.hdf5 import OpenFiles

FORM = (
    "coordinates `xyz` (or `data`, `points`) and one part number per point `label` (or `seg`, `pid`), of one cloud "
    "[N, 3] and [N], or of many [M, N, 3] and [M, N]; optional: `category` (or `label` beside `seg`) [M], `classes`, "
    "`part_names`, `name` [M], `split` [M] of train and test"
)
COORDINATES = ("xyz", "data", "points")
PARTS = ("seg", "pid", "label")
_CATEGORIES = ("category", "label")
_BLOCK = 256  # clouds whose part numbers are looked at together

# A cloud of a file by its row, as (coordinates [N, 3], parts [N]).
Rows = Callable[[int], tuple[np.ndarray, np.ndarray]]


@dataclass
class LabelledFile:
    """One file's content, checked."""

    rows: Rows
    points: int  # N, of each cloud
    present: list[np.ndarray]  # the parts of each cloud. [M]
    category: np.ndarray | list[str] | None  # [M]
    classes: tuple[str, ...]
    part_names: tuple[str, ...]
    names: list[str]
    split: list[str] | None
    kept: bool  # whether its clouds are in memory


@dataclass
class _Kept:
    """Clouds in memory."""

    points: np.ndarray  # [M, N, 3]
    parts: np.ndarray  # [M, N]

    def __call__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return self.points[row], self.parts[row]


@dataclass
class _OnDisk:
    """Clouds of an HDF5 file, read one by one."""

    files: OpenFiles
    number: int
    key: str
    part_key: str
    drop: bool

    def __call__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        place = f"{self.files.paths[self.number]}[{row}]"
        try:
            file = self.files[self.number]
            is_single = file[self.key].ndim == 2
            points = file[self.key][:, :3] if is_single else file[self.key][row, :, :3]
            parts = file[self.part_key][()] if is_single else file[self.part_key][row]
            if not self.drop:
                if not np.isfinite(points).all():
                    raise DataError(f"has points that are not finite{CLI_WAY_OUT}")
                as_stored(points)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        except Exception as error:  # whatever the library makes of a broken chunk, the user needs its place
            raise DataError(f"{place}: cannot be read: {error or type(error).__name__}") from error
        return points, parts


@dataclass
class _ReadAgain:
    """The only cloud of a NumPy file."""

    path: Path
    drop: bool

    def __call__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return read_labelled(self.path, drop_non_finite=self.drop).rows(row)


def read_labelled(
    path: Path, opened: OpenFiles | None = None, number: int = 0, *, drop_non_finite: bool = False
) -> LabelledFile:
    """Reads a file.

    Args:
        path: The file.
        opened: Where it is one of these, the clouds of an HDF5 file stay in it.
        number: Its number among those.
        drop_non_finite: Points that are not finite are no error, but given as they are.

    Raises:
        DataError: The file is missing or broken; names it and says what is needed.
    """
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file")
    try:
        if path.suffix.lower() == ".npz":
            require_zip(path)
            with np.load(path, allow_pickle=False) as archive:
                content = _check(path, {key: archive[key] for key in archive.files}, drop_non_finite)
            if opened is not None and len(content.present) == 1:
                content.rows, content.kept = _ReadAgain(path, drop_non_finite), False
            return content
        with h5py.File(path, "r") as file:
            require_h5(path, file)
            items = {key: item for key, item in file.items() if isinstance(item, h5py.Dataset)}
            return _check(path, items, drop_non_finite, opened, number)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # whatever a library makes of a broken file, the user needs its name
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from error


def _check(
    path: Path, arrays: Mapping[str, Any], drop: bool, opened: OpenFiles | None = None, number: int = 0
) -> LabelledFile:
    """The content of arrays or HDF5 datasets."""
    key = next((key for key in COORDINATES if key in arrays), None)
    if key is None:
        raise DataError(f"has none of {', '.join(COORDINATES)}, only {', '.join(arrays) or 'nothing'}; needed: {FORM}")
    shape, dtype = arrays[key].shape, arrays[key].dtype
    if len(shape) not in (2, 3) or shape[-1] < 3 or not shape[-2] or dtype.kind not in "fiu":
        raise DataError(f"{key} must be numbers [N, 3] or [M, N, 3], got {dtype} {list(shape)}")
    part_key = next((k for k in PARTS if k in arrays and arrays[k].shape == shape[:-1]), None)
    if part_key is None:
        shapes = ", ".join(f"{k} {list(arrays[k].shape)}" for k in PARTS if k in arrays) or "none of them"
        raise DataError(f"needs a part number per point, {list(shape[:-1])}, in {', '.join(PARTS)}; has {shapes}")
    is_single = len(shape) == 2
    count = 1 if is_single else shape[0]
    present: list[np.ndarray] = []
    for start in range(0, count, _BLOCK):
        block = arrays[part_key][()][None] if is_single else arrays[part_key][start : start + _BLOCK]
        present += map(np.unique, _numbers(part_key, block))
    rows: Rows
    if opened is None:
        points, parts = arrays[key][..., :3], arrays[part_key][()]
        rows = _Kept(points[None], parts[None]) if is_single else _Kept(points, parts)
        if not drop:
            _require_finite(rows.points)
    else:
        rows = _OnDisk(opened, number, key, part_key, drop)
    category_key = next((k for k in _CATEGORIES if k != part_key and k in arrays and arrays[k].size == count), None)
    category: np.ndarray | list[str] | None = None
    if category_key is not None:
        item = arrays[category_key]
        if item.dtype.kind in "SUO":
            category = _texts(path, item)
        else:
            category = _numbers(category_key, np.asarray(item[()]).reshape(-1))
    texts = {name: _texts(path, arrays[name]) for name in ("split", "name", "classes", "part_names") if name in arrays}
    split = texts.get("split")
    if split is not None and (len(split) != count or set(split) - {"train", "test"}):
        raise DataError(
            f"split must name train or test for each of {count} clouds, got {len(split)}: {brief(set(split))}"
        )
    names = texts.get("name", [])
    return LabelledFile(
        rows,
        shape[-2],
        present,
        category,
        tuple(texts.get("classes", ())),
        tuple(texts.get("part_names", ())),
        names if len(names) == count else [f"{path.name}[{i}]" for i in range(count)],
        split,
        opened is None,
    )


def _require_finite(points: np.ndarray) -> None:
    wrong = np.flatnonzero(~np.isfinite(points).all((1, 2)))
    if len(wrong):
        raise DataError(
            f"{len(wrong)} clouds have points that are not finite, the first is cloud {wrong[0]}{CLI_WAY_OUT}"
        )
    as_stored(points)


def _numbers(key: str, array: np.ndarray) -> np.ndarray:
    """Numbers of parts or categories: every one up to the highest gets a name, so the highest is bounded."""
    if array.dtype.kind not in "iu" and not (array.dtype.kind == "f" and (array == np.floor(array)).all()):
        raise DataError(f"{key} must be whole numbers, got {array.dtype}")
    if array.size and not 0 <= array.min() <= array.max() < MAX_CLASSES:
        raise DataError(f"{key} must be at least 0 and below {MAX_CLASSES}, got {array.min()} to {array.max()}")
    return array


def _texts(path: Path, item: np.ndarray | h5py.Dataset) -> list[str]:
    if isinstance(item, h5py.Dataset) and item.dtype.kind in "SO":
        return read_texts(path, item)
    return [v.decode() if isinstance(v, bytes) else str(v) for v in np.asarray(item[()]).reshape(-1).tolist()]
