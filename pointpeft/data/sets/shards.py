"""Shards of many labelled clouds: tar files as WebDataset writes them, and HDF5 files."""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import h5py
import torch
from torch import Tensor

from pointpeft.data.dataset import DataError, PointCloudDataset, at_most
from pointpeft.data.formats.bounds import MAX_CLASSES, read_texts
from pointpeft.data.formats.hdf5 import H5Rows, list_h5, open_h5, read_h5
from pointpeft.data.formats.tar import Sample, list_tar, point_count, read_sample
from pointpeft.data.registry import FORMAT, DataSet, DataSource, LoadOptions, register_data_set
from pointpeft.data.sets.listing import SEED, TEST_FRACTION
from pointpeft.data.splits import split_validation
from pointpeft.data.transforms import normalize_precisely

UP_AXIS = "z"
TAR, PACKED, HDF5 = (".tar",), (".tar.gz", ".tgz"), (".h5", ".hdf5")
CLASSES = ("classes.txt", "shape_names.txt")
FORM = (
    f"train*.tar and test*.tar, or .h5, in one folder or below train/ and test/, and the names of the classes, one a "
    f"line, in {CLASSES[0]}; in a tar KEY.npy (or another kind of cloud) beside KEY.cls or KEY.json with its label, in "
    "an HDF5 file data [M, N, 3] and label [M]"
)
_LEVELS = {"train": "train", "training": "train", "test": "test", "testing": "test"}


@register_data_set
class Shards(DataSet):
    """Shards: PATH, one file or a folder of them."""

    name = "shards"
    title = "shards"
    layout = "shards (.tar or .h5)"
    up_axis = UP_AXIS
    place_is = "file or folder"
    precedence = FORMAT

    def matches(self, path: Path) -> bool:
        """See `is_shards`."""
        return is_shards(path)

    def load(self, source: DataSource, split: str, options: LoadOptions) -> PointCloudDataset:
        """See the function `load`."""
        return load(
            source.path,
            split,
            options.num_points,
            options.up_axis or UP_AXIS,
            lazy=options.lazy,
            drop_non_finite=options.drop_non_finite,
        )


def is_shards(path: Path) -> bool:
    """Whether a path is a shard or a folder of shards, and not one of classes."""
    if path.is_file():
        return _is_shard(path)
    folders = [place for place in path.iterdir() if place.is_dir() and not place.name.startswith(".")]
    return all(place.name.lower() in _LEVELS for place in folders) and bool(_shards(path))


def load(
    source: str | Path,
    split: str,
    num_points: int | None = None,
    up_axis: str = UP_AXIS,
    *,
    lazy: bool = False,
    drop_non_finite: bool = False,
) -> PointCloudDataset:
    """Lists one split of a set of shards; clouds are centred and scaled to the unit sphere.

    Clouds of tar files are read when they are needed, those of HDF5 files into memory, unless `lazy`. Without shards
    named for a test split, a fifth of every class is set aside for testing, always the same clouds; the data set's
    `notes` say so.

    Args:
        source: One shard, or a folder of them laid out as in `FORM`.
        split: "train" or "test".
        num_points: Points drawn on surfaces, and the most that are kept of a cloud.
        up_axis: The axis that points up.
        lazy: Leave the clouds of HDF5 files on disk, too.
        drop_non_finite: Leave points out that are not finite; `notes` say how many, of the clouds read so far.

    Raises:
        DataError: A shard is missing, broken, compressed, or asks for files outside it; a cloud without a label.
    """
    source = Path(source)
    files_of = _parts(source)
    classes = _classes(source, files_of)
    files = files_of[split] or (files_of["train"] if not files_of["test"] else [])
    if not files:
        raise DataError(f"{source}: has no {split} shards; shards are {FORM}")
    dropped: dict[str, int] | None = {} if drop_non_finite else None
    if all(_ends(path, TAR) for path in files):
        dataset = _of_tar(files, classes, num_points, up_axis, dropped)
    elif all(_ends(path, HDF5) for path in files):
        dataset = _of_hdf5(files, classes, num_points, up_axis, lazy, dropped)
    else:
        raise DataError(f"{source}: its {split} split mixes .tar and HDF5 shards")
    if not len(dataset):
        raise DataError(f"{source}: its {split} shards have no clouds")
    return dataset if files_of["test"] else _drawn(dataset, split)


def _is_shard(path: Path) -> bool:
    return _ends(path, TAR + PACKED + HDF5)


def _ends(path: Path, endings: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(endings)


def _shards(folder: Path) -> list[Path]:
    places = [folder, *(place for place in folder.iterdir() if place.is_dir() and place.name.lower() in _LEVELS)]
    return sorted(path for place in places for path in place.iterdir() if path.is_file() and _is_shard(path))


def _parts(source: Path) -> dict[str, list[Path]]:
    """The shards of each split; all are of "train" where none is named."""
    if source.is_file():
        return {"train": [source], "test": []}
    files_of: dict[str, list[Path]] = {"train": [], "test": [], "": []}
    for path in _shards(source):
        inner = path.parent.name.lower() if path.parent != source else ""
        word = next(
            (word for word in ("training", "train", "testing", "test") if path.name.lower().startswith(word)), ""
        )
        files_of[_LEVELS.get(inner or word, "")].append(path)
    unnamed = files_of.pop("")
    if unnamed and any(files_of.values()):
        raise DataError(f"{unnamed[0]}: is named neither for train nor for test, other shards are; shards are {FORM}")
    return {"train": unnamed, "test": []} if unnamed else files_of


def _classes(source: Path, files_of: dict[str, list[Path]]) -> tuple[str, ...]:
    """Class names by label: those of the list, else those in the shards, else the numbers."""
    for name in CLASSES:
        listing = source / name
        if source.is_dir() and listing.is_file():
            names = tuple(line.strip() for line in listing.read_text("utf-8-sig").splitlines() if line.strip())
            if not names or len(set(names)) < len(names):
                raise DataError(f"{listing}: must name every class once, one a line")
            return names
    files = [path for of_split in files_of.values() for path in of_split]
    labels: set[int | str] = set()
    for path in files:
        if _ends(path, HDF5):
            (_, known, _) = list_h5(path, None)
            if named := _classes_in(path):
                return named
            labels.update(known.unique().tolist())
        else:
            labels.update(sample.label for sample in _samples(path))
    if any(isinstance(label, str) for label in labels):
        if not all(isinstance(label, str) for label in labels):
            raise DataError(f"{source}: some labels are numbers, others names")
        return tuple(sorted(map(str, labels)))
    highest = max((int(label) for label in labels), default=-1)
    if highest >= MAX_CLASSES:
        raise DataError(f"{source}: labels must be below {MAX_CLASSES}, got {highest}")
    return tuple(str(i) for i in range(highest + 1))


def _classes_in(path: Path) -> tuple[str, ...]:
    with open_h5(path) as file:
        names = file.get("classes")
        if not isinstance(names, h5py.Dataset) or names.dtype.kind not in "SO":
            return ()
        return tuple(read_texts(path, names))


def _samples(path: Path) -> list[Sample]:
    if _ends(path, PACKED):
        raise DataError(f"{path}: is compressed, so that its clouds cannot be read in any order; unpack it: gunzip")
    facts = path.stat()
    return _listed(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=4096)  # both parts of a set, and a second look, ask for the same shards
def _listed(path: Path, size: int, time: int) -> list[Sample]:
    return list_tar(path)


def _of_tar(
    files: Sequence[Path],
    classes: tuple[str, ...],
    num_points: int | None,
    up_axis: str,
    dropped: dict[str, int] | None,
) -> PointCloudDataset:
    samples = [sample for path in files for sample in _samples(path)]
    number = {name: i for i, name in enumerate(classes)}
    labels = []
    for sample in samples:
        label = number.get(sample.label, -1) if isinstance(sample.label, str) else sample.label
        if not 0 <= label < len(classes):
            raise DataError(f"{sample.name}: its label {sample.label!r} is none of the {len(classes)} classes")
        labels.append(label)
    sizes = [point_count(sample) if dropped is None else None for sample in samples]
    known = [size for size in sizes if size is not None]
    return PointCloudDataset(
        partial(_read_sample, samples, num_points, dropped),
        labels,
        classes,
        [sample.name for sample in samples],
        up_axis=up_axis,
        normalized=True,
        sizes=[min(size, num_points or size) for size in known] if len(known) == len(samples) else None,
        dropped=dropped,
    )


def _read_sample(samples: list[Sample], num_points: int | None, dropped: dict[str, int] | None, index: int) -> Tensor:
    drop = False if dropped is None else dropped
    return read_sample(samples[index], num_points, normalized=True, drop_non_finite=drop)


def _of_hdf5(
    files: list[Path],
    classes: tuple[str, ...],
    num_points: int | None,
    up_axis: str,
    lazy: bool,
    dropped: dict[str, int] | None,
) -> PointCloudDataset:
    shapes, labels, names = zip(*(list_h5(path, len(classes)) for path in files), strict=True)
    sizes = [min(size, num_points or size) for count, size in shapes for _ in range(count)]
    if lazy or dropped is not None:
        rows = H5Rows(files, [count for count, _ in shapes], as_is=True, dropped=dropped)
        clouds = partial(_read_row, rows, num_points)
    else:
        clouds = [
            cloud
            for path in files
            for cloud in normalize_precisely(at_most(read_h5(path, len(classes), as_is=True)[0], num_points)).unbind()
        ]
    return PointCloudDataset(
        clouds,
        torch.cat(labels),
        classes,
        [name for of_file in names for name in of_file],
        up_axis=up_axis,
        normalized=True,
        sizes=sizes if dropped is None else None,
        dropped=dropped,
    )


def _read_row(rows: H5Rows, num_points: int | None, index: int) -> Tensor:
    return normalize_precisely(at_most(rows(index), num_points))


def _drawn(dataset: PointCloudDataset, split: str) -> PointCloudDataset:
    train, test = split_validation(dataset.labels, TEST_FRACTION, SEED)
    dataset.notes = (
        *dataset.notes,
        f"no test split is given: {len(test)} of {len(dataset)} clouds were drawn for it, class by class, seed {SEED}",
    )
    return dataset.subset(train if split == "train" else test)
