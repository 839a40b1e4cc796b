"""HDF5 and NumPy files of clouds whose points are labelled: one file of many clouds, or a folder of files."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.bounds import MAX_CLASSES, brief, read_texts, require_h5, require_zip
from pointpeft.data.formats.hdf5 import OpenFiles
from pointpeft.data.formats.readers import as_stored
from pointpeft.data.segments import SegmentDataset
from pointpeft.data.sets.folder import SEED, TEST_FRACTION
from pointpeft.data.splits import split_validation
from pointpeft.data.transforms import normalize_precisely

SUFFIXES = (".h5", ".hdf5", ".npz")
UP_AXIS = "y"
FORM = (
    "coordinates `xyz` (or `data`, `points`) and one part number per point `label` (or `seg`, `pid`), of one cloud "
    "[N, 3] and [N], or of many [M, N, 3] and [M, N]; optional: `category` (or `label` beside `seg`) [M], `classes`, "
    "`part_names`, `name` [M], `split` [M] of train and test"
)
_COORDINATES = ("xyz", "data", "points")
_PARTS = ("seg", "pid", "label")
_CATEGORIES = ("category", "label")
# What a folder is named, or a word in the name of a file, -> the part of the data it holds.
_NAMED = {"train": "train", "training": "train", "val": "train", "test": "test", "testing": "test"}
_BLOCK = 256  # clouds whose part numbers are looked at together

# A cloud of a file by its row, as (coordinates [N, 3], parts [N]).
_Rows = Callable[[int], tuple[np.ndarray, np.ndarray]]


@dataclass
class _File:
    """One file's content, checked."""

    rows: _Rows
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

    def __call__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        place = f"{self.files.paths[self.number]}[{row}]"
        try:
            file = self.files[self.number]
            one = file[self.key].ndim == 2
            points = file[self.key][:, :3] if one else file[self.key][row, :, :3]
            parts = file[self.part_key][()] if one else file[self.part_key][row]
            if not np.isfinite(points).all():
                raise DataError("has points that are not finite")
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

    def __call__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return _read(self.path).rows(row)


def load(source: str | Path, split: str, up_axis: str = UP_AXIS, *, lazy: bool = False) -> SegmentDataset:
    """Reads one part, every cloud centred and scaled to the unit sphere.

    In a folder, files or sub-folders named for train and test are these parts; other sub-folders name the category of
    the clouds in them. Without any such names a fifth of the clouds is the test part, drawn once, category by category.
    The parts that a category can have are those that occur in it anywhere in the data set.

    Args:
        source: A file or a folder.
        split: "train" or "test".
        up_axis: The axis that points up.
        lazy: Leave the clouds in their files, and read each as it is asked for; its part numbers alone are looked at
            before. A NumPy file of many clouds is read into memory all the same, as its format allows no less.

    Raises:
        DataError: No such files, or one that is broken; names it and says what is needed.
    """
    source = Path(source)
    root = source if source.is_dir() else source.parent
    files = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES) if source.is_dir() else [source]
    if not files:
        raise DataError(f"{source}: has no files {' '.join(SUFFIXES)} with {FORM}")
    opened = OpenFiles(files, (*_COORDINATES, *_PARTS)) if lazy else None
    contents: list[_File] = []
    places: list[tuple[int, int]] = []  # file and row of each cloud
    category: list[Any] = []
    names: list[str] = []
    splits: list[str] = []
    classes: tuple[str, ...] = ()
    part_names: tuple[str, ...] = ()
    for number, path in enumerate(files):
        content = _read(path, opened, number)
        place = path.relative_to(root)
        named = _split_of(place) if source.is_dir() else ""
        kinds = [part for part in place.parts[:-1] if part.lower() not in _NAMED]
        contents.append(content)
        count = len(content.present)
        places += [(number, row) for row in range(count)]
        names += content.names if len(content.names) == count else [place.as_posix()] * count
        category += list(content.category) if content.category is not None else [kinds[-1] if kinds else ""] * count
        splits += content.split or [named] * count
        classes, part_names = content.classes or classes, content.part_names or part_names
    if not places:
        raise DataError(f"{source}: has no clouds")
    labels, classes = _number(category, classes, source)
    parts_of: list[set[int]] = [set() for _ in classes]
    for present, label in zip((one for content in contents for one in content.present), labels, strict=True):
        parts_of[label].update(present.astype(int).tolist())
    highest = max(map(max, filter(None, parts_of)))
    if part_names and highest >= len(part_names):
        raise DataError(f"{source}: has {len(part_names)} part_names, but a point of part {highest}")
    chosen, notes = _choose(torch.tensor(labels), splits, split, source)
    if lazy and any(content.kept for content in contents):
        notes += (f"{source.name}: NumPy files of many clouds are in memory; HDF5 files could stay on disk",)
    return SegmentDataset(
        partial(_cloud, [content.rows for content in contents], [places[i] for i in chosen]),
        [labels[i] for i in chosen],
        classes,
        part_names or [str(i) for i in range(highest + 1)],
        [sorted(each) for each in parts_of],
        [names[i] for i in chosen],
        up_axis=up_axis,
        notes=notes,
        sizes=[contents[places[i][0]].points for i in chosen],
    )


def _cloud(rows: list[_Rows], places: list[tuple[int, int]], index: int) -> tuple[Tensor, Tensor]:
    number, row = places[index]
    points, parts = rows[number](row)
    return normalize_precisely(as_stored(points)), torch.from_numpy(parts.astype(np.int64))


def _split_of(place: Path) -> str:
    """The part that a path is named for: train, test or none."""
    folders = (part for part in place.parts[:-1] if part.lower() in _NAMED)
    words = (word for word in re.split(r"[^a-z]+", place.stem.lower()) if word in _NAMED)
    return next((_NAMED[word.lower()] for word in (*folders, *words)), "")


def _choose(labels: Tensor, splits: list[str], split: str, source: Path) -> tuple[list[int], tuple[str, ...]]:
    if set(splits) == {""}:
        train, test = split_validation(labels, TEST_FRACTION, SEED)
        note = f"{source.name} has no test part: a fifth of its clouds, drawn once with a fixed seed, is it"
        return (train if split == "train" else test).tolist(), (note,)
    lost = sum(one == "" for one in splits)
    if lost:
        raise DataError(f"{source}: {lost} of {len(splits)} clouds belong neither to train nor to test, others do")
    chosen = [i for i, one in enumerate(splits) if one == split]
    if not chosen:
        raise DataError(f"{source}: has no {split} clouds")
    return chosen, ()


def _number(category: list[Any], classes: tuple[str, ...], source: Path) -> tuple[list[int], tuple[str, ...]]:
    """Categories as numbers, and their names."""
    if all(isinstance(one, str) for one in category):
        found = tuple(sorted(set(category)))
        return [found.index(one) for one in category], tuple(name or "cloud" for name in found)
    if any(isinstance(one, str) for one in category):
        raise DataError(f"{source}: some files number their categories, others do not")
    labels = [int(one) for one in category]
    if min(labels) < 0 or (classes and max(labels) >= len(classes)):
        raise DataError(f"{source}: categories must be 0 to {len(classes) - 1}, got {min(labels)} to {max(labels)}")
    return labels, classes or tuple(str(i) for i in range(max(labels) + 1))


def _read(path: Path, opened: OpenFiles | None = None, number: int = 0) -> _File:
    """A file's content; the clouds of an HDF5 file stay in it where it is one of those `opened`."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        if path.suffix.lower() == ".npz":
            require_zip(path)
            with np.load(path, allow_pickle=False) as archive:
                content = _check(path, {key: archive[key] for key in archive.files})
            if opened is not None and len(content.present) == 1:
                content.rows, content.kept = _ReadAgain(path), False
            return content
        with h5py.File(path, "r") as file:
            require_h5(path, file)
            items = {key: item for key, item in file.items() if isinstance(item, h5py.Dataset)}
            return _check(path, items, opened, number)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # whatever a library makes of a broken file, the user needs its name
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from error


def _check(path: Path, arrays: Mapping[str, Any], opened: OpenFiles | None = None, number: int = 0) -> _File:
    """The content of arrays or HDF5 datasets."""
    key = next((key for key in _COORDINATES if key in arrays), None)
    if key is None:
        raise DataError(f"has none of {', '.join(_COORDINATES)}, only {', '.join(arrays) or 'nothing'}; needed: {FORM}")
    shape, kind = arrays[key].shape, arrays[key].dtype
    if len(shape) not in (2, 3) or shape[-1] < 3 or not shape[-2] or kind.kind not in "fiu":
        raise DataError(f"{key} must be numbers [N, 3] or [M, N, 3], got {kind} {list(shape)}")
    part_key = next((k for k in _PARTS if k in arrays and arrays[k].shape == shape[:-1]), None)
    if part_key is None:
        shapes = ", ".join(f"{k} {list(arrays[k].shape)}" for k in _PARTS if k in arrays) or "none of them"
        raise DataError(f"needs a part number per point, {list(shape[:-1])}, in {', '.join(_PARTS)}; has {shapes}")
    one = len(shape) == 2
    count = 1 if one else shape[0]
    present: list[np.ndarray] = []
    for start in range(0, count, _BLOCK):
        block = arrays[part_key][()][None] if one else arrays[part_key][start : start + _BLOCK]
        present += map(np.unique, _numbers(part_key, block))
    rows: _Rows
    if opened is None:
        points, parts = arrays[key][..., :3], arrays[part_key][()]
        rows = _Kept(points[None], parts[None]) if one else _Kept(points, parts)
        _require_finite(rows.points)
    else:
        rows = _OnDisk(opened, number, key, part_key)
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
    return _File(
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
        raise DataError(f"{len(wrong)} clouds have points that are not finite, the first is cloud {wrong[0]}")
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
