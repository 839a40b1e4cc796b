"""HDF5 and NumPy files of clouds whose points are labelled: one file of many clouds, or a folder of files."""

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.coordinates import as_stored, keep_finite, require_in_range
from pointpeft.data.formats.hdf5 import OpenFiles
from pointpeft.data.formats.labelled_points import COORDINATES, FORM, PARTS, LabelledFile, Rows, read_labelled
from pointpeft.data.registry import FORMAT, DataSet, DataSource, LoadOptions, register_data_set
from pointpeft.data.segments import SegmentDataset
from pointpeft.data.sets.listing import SEED, TEST_FRACTION
from pointpeft.data.splits import split_validation
from pointpeft.data.transforms import normalize_precisely

SUFFIXES = (".h5", ".hdf5", ".npz")
UP_AXIS = "y"
# Name of a folder, or a word in the name of a file -> its split.
_NAMED = {"train": "train", "training": "train", "val": "train", "test": "test", "testing": "test"}


@register_data_set
class PartFiles(DataSet):
    """A user's own files whose points have parts: PATH."""

    name = "part_files"
    title = "files of clouds with parts"
    layout = f"files {' '.join(SUFFIXES)} with {FORM}"
    labels = "parts"
    up_axis = UP_AXIS
    place_is = "file or folder"
    precedence = FORMAT

    def matches(self, path: Path) -> bool:
        """Any path; reading it reports what is wrong."""
        return True

    def load(self, source: DataSource, split: str, options: LoadOptions) -> SegmentDataset:
        """See the function `load`."""
        return load(
            source.path,
            split,
            options.up_axis or UP_AXIS,
            lazy=options.lazy,
            drop_non_finite=options.drop_non_finite,
        )


def load(
    source: str | Path,
    split: str,
    up_axis: str = UP_AXIS,
    *,
    lazy: bool = False,
    drop_non_finite: bool = False,
) -> SegmentDataset:
    """Reads one split, every cloud centred and scaled to the unit sphere.

    In a folder, files or sub-folders named for train and test are these splits; other sub-folders name the category of
    the clouds in them. Without any such names a fifth of the clouds, drawn once, category by category, is the test
    split. The parts that a category can have are those that occur in it anywhere in the data set.

    Args:
        source: A file or a folder.
        split: "train" or "test".
        up_axis: The axis that points up.
        lazy: Leave the clouds in their files, and read each when it is needed; its part numbers alone are looked at
            before. A NumPy file of many clouds is read into memory all the same, as its format allows no less.
        drop_non_finite: Leave points out that are not finite, with their parts; `notes` say how many, of the clouds
            read so far.

    Raises:
        DataError: No such files, or one that is broken; names it and says what is needed.
    """
    source = Path(source)
    files = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES) if source.is_dir() else [source]
    if not files:
        raise DataError(f"{source}: has no files {' '.join(SUFFIXES)} with {FORM}")
    opened = OpenFiles(files, (*COORDINATES, *PARTS)) if lazy else None
    listed = _list_files(files, source if source.is_dir() else None, opened, drop_non_finite)
    places, contents, part_names = listed.places, listed.contents, listed.part_names
    if not places:
        raise DataError(f"{source}: has no clouds")
    labels, classes = _number(listed.category, listed.classes, source)
    parts_of: list[set[int]] = [set() for _ in classes]
    for present, label in zip((numbers for content in contents for numbers in content.present), labels, strict=True):
        parts_of[label].update(present.astype(int).tolist())
    highest = max(map(max, filter(None, parts_of)))
    if part_names and highest >= len(part_names):
        raise DataError(f"{source}: has {len(part_names)} part_names, but a point of part {highest}")
    chosen, notes = _choose(torch.tensor(labels), listed.splits, split, source)
    if lazy and any(content.kept for content in contents):
        notes += (f"{source.name}: NumPy files of many clouds are in memory; HDF5 files could stay on disk",)
    dropped: dict[str, int] | None = {} if drop_non_finite else None
    return SegmentDataset(
        partial(_cloud, [content.rows for content in contents], [places[i] for i in chosen], files, dropped),
        [labels[i] for i in chosen],
        classes,
        part_names or [str(i) for i in range(highest + 1)],
        [sorted(each) for each in parts_of],
        [listed.names[i] for i in chosen],
        up_axis=up_axis,
        notes=notes,
        sizes=[contents[places[i][0]].points for i in chosen] if dropped is None else None,
        dropped=dropped,
    )


@dataclass
class _Listed:
    """All files of a data set, cloud by cloud."""

    contents: list[LabelledFile] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)  # file and row of each cloud
    category: list[Any] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    part_names: tuple[str, ...] = ()


def _list_files(files: list[Path], root: Path | None, opened: OpenFiles | None, drop_non_finite: bool) -> _Listed:
    """Reads the files of a folder, or one that stands alone where `root` is None."""
    listed = _Listed()
    for number, path in enumerate(files):
        content = read_labelled(path, opened, number, drop_non_finite=drop_non_finite)
        place = path.relative_to(root or path.parent)
        named = _split_of(place) if root is not None else ""
        folders = [part for part in place.parts[:-1] if part.lower() not in _NAMED]
        listed.contents.append(content)
        count = len(content.present)
        listed.places += [(number, row) for row in range(count)]
        listed.names += content.names if len(content.names) == count else [place.as_posix()] * count
        unnumbered = [folders[-1] if folders else ""] * count
        listed.category += list(content.category) if content.category is not None else unnumbered
        listed.splits += content.split or [named] * count
        listed.classes = content.classes or listed.classes
        listed.part_names = content.part_names or listed.part_names
    return listed


def _cloud(
    rows: list[Rows], places: list[tuple[int, int]], files: list[Path], dropped: dict[str, int] | None, index: int
) -> tuple[Tensor, Tensor]:
    number, row = places[index]
    points, parts = rows[number](row)
    if dropped is not None:
        place = f"{files[number]}[{row}]"
        try:
            points, finite = keep_finite(points, dropped, place)
            require_in_range(points)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        parts = parts if finite is None else parts[finite]
    return normalize_precisely(as_stored(points)), torch.from_numpy(parts.astype(np.int64))


def _split_of(place: Path) -> str:
    """The split in the name of a path: train, test or none."""
    folders = (part for part in place.parts[:-1] if part.lower() in _NAMED)
    words = (word for word in re.split(r"[^a-z]+", place.stem.lower()) if word in _NAMED)
    return next((_NAMED[word.lower()] for word in (*folders, *words)), "")


def _choose(labels: Tensor, splits: list[str], split: str, source: Path) -> tuple[list[int], tuple[str, ...]]:
    if set(splits) == {""}:
        train, test = split_validation(labels, TEST_FRACTION, SEED)
        note = f"{source.name} has no test split: a fifth of its clouds, drawn once with a fixed seed, is used"
        return (train if split == "train" else test).tolist(), (note,)
    unnamed = sum(name == "" for name in splits)
    if unnamed:
        raise DataError(f"{source}: {unnamed} of {len(splits)} clouds belong neither to train nor to test, others do")
    chosen = [i for i, name in enumerate(splits) if name == split]
    if not chosen:
        raise DataError(f"{source}: has no {split} clouds")
    return chosen, ()


def _number(category: list[Any], classes: tuple[str, ...], source: Path) -> tuple[list[int], tuple[str, ...]]:
    """Categories as numbers, and their names."""
    if all(isinstance(value, str) for value in category):
        names = tuple(sorted(set(category)))
        return [names.index(value) for value in category], tuple(name or "cloud" for name in names)
    if any(isinstance(value, str) for value in category):
        raise DataError(f"{source}: some files number their categories, others do not")
    labels = [int(value) for value in category]
    if min(labels) < 0 or (classes and max(labels) >= len(classes)):
        raise DataError(f"{source}: categories must be 0 to {len(classes) - 1}, got {min(labels)} to {max(labels)}")
    return labels, classes or tuple(str(i) for i in range(max(labels) + 1))
