"""ShapeNetPart as published: 16 categories, 50 parts, one text file per cloud with normals and part numbers."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.bounds import is_plain, require_files
from pointpeft.data.formats.coordinates import CLI_WAY_OUT, coordinates, keep_finite, require_in_range
from pointpeft.data.registry import DataSet, DataSource, LoadOptions, register_data_set
from pointpeft.data.segments import SegmentDataset
from pointpeft.data.transforms import normalize_precisely

UP_AXIS = "y"
CATEGORIES = "synsetoffset2category.txt"
PART_COUNTS = {  # in the order of the categories' and the parts' numbers
    "Airplane": 4,
    "Bag": 2,
    "Cap": 2,
    "Car": 4,
    "Chair": 4,
    "Earphone": 3,
    "Guitar": 3,
    "Knife": 2,
    "Lamp": 4,
    "Laptop": 2,
    "Motorbike": 6,
    "Mug": 2,
    "Pistol": 3,
    "Rocket": 3,
    "Skateboard": 3,
    "Table": 3,
}
_LISTS = {"train": ("train", "val"), "test": ("test",)}  # papers train on both
_COLUMNS = 7  # x y z, normal, part


@register_data_set
class ShapeNetPart(DataSet):
    """ShapeNetPart: PATH or shapenetpart:PATH."""

    name = "shapenetpart"
    title = "ShapeNetPart"
    layout = f"ShapeNetPart's folder (with {CATEGORIES})"
    labels = "parts"
    up_axis = UP_AXIS

    def matches(self, path: Path) -> bool:
        """See `is_shapenetpart`."""
        return path.is_dir() and is_shapenetpart(path)

    def load(self, source: DataSource, split: str, options: LoadOptions) -> SegmentDataset:
        """See the function `load`; clouds are always read when they are needed."""
        return load(source.path, split, options.up_axis or UP_AXIS, drop_non_finite=options.drop_non_finite)


def is_shapenetpart(root: Path) -> bool:
    """Whether a folder has this layout."""
    return (root / CATEGORIES).is_file() and (root / "train_test_split").is_dir()


def load(root: str | Path, split: str, up_axis: str = UP_AXIS, *, drop_non_finite: bool = False) -> SegmentDataset:
    """Lists one split of ShapeNetPart; clouds are read, centred and scaled one by one when they are needed.

    Args:
        root: `shapenetcore_partanno_segmentation_benchmark_v0_normal`, however it is named.
        split: "train", which is the published train and val together, or "test".
        up_axis: The axis that points up; "y" as published.
        drop_non_finite: Leave points out that are not finite, with their parts; `notes` say how many, of the clouds
            read so far.

    Raises:
        DataError: A list or a cloud is missing or broken; says which one.
    """
    root = Path(root)
    folders = _categories(root)
    categories = tuple(PART_COUNTS)
    files, labels = [], []
    for name in _LISTS[split]:
        listing = root / "train_test_split" / f"shuffled_{name}_file_list.json"
        for entry in _entries(listing):
            synset, _, item = entry.rpartition("/")
            synset = synset.rpartition("/")[2]
            if synset not in folders or not item:
                raise DataError(f"{listing}: {entry!r} is of no category in {CATEGORIES}")
            files.append(root / synset / f"{item}.txt")
            labels.append(categories.index(folders[synset]))
    require_files(files, f"{split} clouds")
    if not files:
        raise DataError(f"{root}: its {split} split has no clouds")
    first = np.cumsum([0, *PART_COUNTS.values()])
    dropped: dict[str, int] | None = {} if drop_non_finite else None
    return SegmentDataset(
        partial(_read, files, dropped),
        labels,
        categories,
        [f"{category}/{i}" for category, count in PART_COUNTS.items() for i in range(count)],
        [range(first[i], first[i + 1]) for i in range(len(categories))],
        [path.relative_to(root).as_posix() for path in files],
        up_axis=up_axis,
        dropped=dropped,
        listed_in=root / CATEGORIES,
    )


def _categories(root: Path) -> dict[str, str]:
    """Folder of each category -> its name."""
    path = root / CATEGORIES
    if not path.is_file():
        raise DataError(f"{path}: no such file; it lists the categories, NAME FOLDER a line")
    try:
        pairs = [line.split() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text: {error}") from None
    wrong = [pair for pair in pairs if len(pair) != 2 or pair[0] not in PART_COUNTS or not is_plain(pair[1])]
    if wrong:
        raise DataError(f"{path}: {' '.join(wrong[0])!r} is none of the published categories {', '.join(PART_COUNTS)}")
    return {folder: name for name, folder in pairs}


def _entries(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; it lists the clouds, such as shape_data/02691156/1021a0914a7207af")
    try:
        entries = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise DataError(f"{path}: must hold a list of names")
    return entries


def _read(files: list[Path], dropped: dict[str, int] | None, index: int) -> tuple[Tensor, Tensor]:
    path = files[index]
    try:
        table = np.loadtxt(path, np.float64, ndmin=2)
        if table.shape[1] != _COLUMNS:
            raise DataError(f"must have {_COLUMNS} columns (point, normal, part), got {table.shape[1]}")
        drop = False if dropped is None else dropped
        xyz, finite = keep_finite(coordinates(table, finite=False), drop, str(path), CLI_WAY_OUT)
        require_in_range(xyz)
        points = torch.from_numpy(xyz)
        table = table if finite is None else table[finite]
        if (table[:, -1] != np.floor(table[:, -1])).any():
            raise DataError("its last column must hold part numbers")
    except ValueError as error:  # a DataError is one
        raise DataError(f"{path}: {error}") from error
    return normalize_precisely(points), torch.from_numpy(table[:, -1].astype(np.int64))
