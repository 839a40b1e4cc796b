"""ModelNet40 in its three widespread forms: HDF5 files, text files with normals, and the cache made of those."""

import re
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pointpeft.data.dataset import DataError, PointCloudDataset, at_most, dropped_note
from pointpeft.data.findings import Findings
from pointpeft.data.formats.bounds import is_plain, require_files
from pointpeft.data.formats.hdf5 import H5Rows, list_h5, read_h5
from pointpeft.data.formats.labelled_pickle import read_cache
from pointpeft.data.formats.readers import read_points
from pointpeft.data.registry import SPLITS, DataSet, DataSource, LoadOptions, register_data_set
from pointpeft.data.transforms import normalize_precisely

UP_AXIS = "y"


@register_data_set
class ModelNet40(DataSet):
    """ModelNet40: PATH or modelnet40:PATH."""

    name = "modelnet40"
    title = "ModelNet40"
    layout = "modelnet40:PATH"
    up_axis = UP_AXIS

    def matches(self, path: Path) -> bool:
        """A folder that holds one of the forms."""
        return path.is_dir() and form(path) is not None

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

    def check(self, source: DataSource, findings: Findings, *, drop_non_finite: bool = False) -> None:
        """Checks every file of the form that the folder holds."""
        root = source.path
        storage = require_form(root, SPLITS[0])
        findings.lines.append(f"{self.title} ({storage}), up axis {UP_AXIS}")
        classes = class_names(root)
        dropped: dict[str, int] | None = {} if drop_non_finite else None
        for split in SPLITS:
            try:
                _CHECKS[storage](root, split, classes, findings, dropped)
            except DataError as error:
                findings.problems.append(str(error))
        findings.notes(dropped_note(dropped))

    def can_read_lazily(self, source: DataSource) -> bool:
        """All forms but the cache, which is one pickle."""
        return form(source.path) != "cache"


def form(root: Path) -> str | None:
    """Which form a folder holds: "hdf5", "cache" (.dat), "text", or None for none."""
    if _h5_files(root, "train") or _h5_files(root, "test"):
        return "hdf5"
    if any(root.glob("modelnet40_*_fps.dat")):
        return "cache"
    if (root / "modelnet40_shape_names.txt").is_file():
        return "text"
    return None


def load(
    root: str | Path,
    split: str,
    num_points: int | None = None,
    up_axis: str = UP_AXIS,
    *,
    lazy: bool = False,
    drop_non_finite: bool = False,
) -> PointCloudDataset:
    """Reads one split of ModelNet40, every cloud centred and scaled to the unit sphere.

    HDF5 files and the cache are read into memory; text files, which take minutes, one by one when they are needed.

    Args:
        root: `modelnet40_ply_hdf5_2048` or `modelnet40_normal_resampled`, however it is named.
        split: "train" or "test".
        num_points: The most points of a cloud that are kept, drawn with a fixed seed.
        up_axis: The axis that points up; "y" in all published forms.
        lazy: Read the clouds of HDF5 files one by one when they are needed, too. The cache is one pickle.
        drop_non_finite: Leave points out that are not finite; `notes` say how many, of the clouds read so far.

    Raises:
        DataError: A file is missing or broken; says which one and how to mend it.
    """
    root = Path(root)
    storage = require_form(root, split)
    dropped: dict[str, int] | None = {} if drop_non_finite else None
    if storage == "text":
        return _load_text(root, split, num_points, up_axis, dropped)
    classes = class_names(root)
    if storage == "hdf5":
        files = h5_files(root, split)
        if lazy or drop_non_finite:
            return _list_h5(files, classes, num_points, up_axis, dropped)
        contents = [read_h5(path, len(classes), as_is=True) for path in files]
        for path, content in zip(files, contents, strict=True):
            _require_same(path, content[0].shape[1], files[0], contents[0][0].shape[1])
        points: Tensor | list[Tensor] = torch.cat(
            [normalize_precisely(at_most(content[0], num_points)) for content in contents]
        )
        labels, names = (
            torch.cat([content[1] for content in contents]),
            [name for content in contents for name in content[2]],
        )
    else:
        path = cache_file(root, split)
        clouds, labels = read_cache(path, len(classes), as_is=True, dropped=dropped)
        points = [normalize_precisely(at_most(cloud, num_points)) for cloud in clouds]
        names = [f"{path.name}[{i}]" for i in range(len(points))]
    if not len(labels):
        raise DataError(f"{root}: its {split} split has no clouds")
    return PointCloudDataset(points, labels, classes, names, up_axis=up_axis, normalized=True, dropped=dropped)


def require_form(root: Path, split: str) -> str:
    """The form that a folder holds.

    Raises:
        DataError: It is no folder, or holds none; says what a form is known by.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    storage = form(root)
    if storage is None:
        raise DataError(
            f"{root}: holds no ModelNet40: neither ply_data_{split}0.h5 … (modelnet40_ply_hdf5_2048), nor "
            f"modelnet40_{split}_8192pts_fps.dat, nor modelnet40_shape_names.txt (modelnet40_normal_resampled)"
        )
    return storage


def class_names(root: Path) -> tuple[str, ...]:
    """The classes in the order of their labels."""
    return _lines(
        next((p for name in _NAMES if (p := root / name).is_file()), root / _NAMES[0]),
        "it lists the class names, one a line, in the order of the labels",
    )


_NAMES = ("shape_names.txt", "modelnet40_shape_names.txt")


def h5_files(root: Path, split: str) -> list[Path]:
    """The HDF5 files of one split.

    Those that `train_files.txt` or `test_files.txt` names, looked for beside it whatever folder it gives; without the
    list, all that are there.

    Raises:
        DataError: There is none.
    """
    files = _h5_files(root, split)
    if not files:
        raise DataError(f"{root}: has no ply_data_{split}0.h5 and no {split}_files.txt")
    return files


def _h5_files(root: Path, split: str) -> list[Path]:
    listing = root / f"{split}_files.txt"
    if listing.is_file():
        return [root / line.replace("\\", "/").rsplit("/", 1)[-1] for line in _lines(listing, "")]
    return sorted(root.glob(f"ply_data_{split}*.h5"), key=lambda p: [int(n) for n in re.findall(r"\d+", p.stem)])


def cache_file(root: Path, split: str) -> Path:
    """The cache of one split.

    Raises:
        DataError: There is none.
    """
    files = sorted(root.glob(f"modelnet40_{split}_*_fps.dat"))
    if not files:
        raise DataError(f"{root}: has no modelnet40_{split}_8192pts_fps.dat")
    return files[-1]


def text_files(root: Path, split: str) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """The classes, files and labels that the lists of `modelnet40_normal_resampled` name.

    Raises:
        DataError: A list is missing or names an unknown class.
    """
    classes = class_names(root)
    names = _lines(root / f"modelnet40_{split}.txt", "it lists the clouds, such as airplane_0001, one a line")
    labels = []
    for name in (*classes, *names):
        if not is_plain(name):  # a list from elsewhere must not read any file of the machine
            raise DataError(f"{root}: refused: its lists name {name!r}, which leads out of the folder")
    for name in names:
        name_of_class = name.rsplit("_", 1)[0]
        if name_of_class not in classes:
            raise DataError(f"{root / f'modelnet40_{split}.txt'}: {name} is of no class in {_NAMES[1]}")
        labels.append(classes.index(name_of_class))
    return classes, [root / classes[label] / f"{name}.txt" for name, label in zip(names, labels, strict=True)], labels


def _list_h5(
    files: list[Path],
    classes: tuple[str, ...],
    num_points: int | None,
    up_axis: str,
    dropped: dict[str, int] | None,
) -> PointCloudDataset:
    """The clouds of HDF5 files, read row by row on demand."""
    shapes, labels, names = zip(*(list_h5(path, len(classes)) for path in files), strict=True)
    for path, (_, points) in zip(files, shapes, strict=True):
        _require_same(path, points, files[0], shapes[0][1])
    rows = H5Rows(files, [count for count, _ in shapes], as_is=True, dropped=dropped)
    if not len(rows):
        raise DataError(f"{files[0]}: has no clouds, nor have the files beside it")
    size = min(shapes[0][1], num_points or shapes[0][1])
    return PointCloudDataset(
        partial(_read_row, rows, num_points),
        torch.cat(labels),
        classes,
        [name for of_file in names for name in of_file],
        up_axis=up_axis,
        normalized=True,
        sizes=[size] * len(rows) if dropped is None else None,
        dropped=dropped,
    )


def _read_row(rows: H5Rows, num_points: int | None, index: int) -> Tensor:
    return normalize_precisely(at_most(rows(index), num_points))


def _load_text(
    root: Path, split: str, num_points: int | None, up_axis: str, dropped: dict[str, int] | None
) -> PointCloudDataset:
    classes, files, labels = text_files(root, split)
    require_files(files, f"{split} clouds")
    return PointCloudDataset(
        partial(_read_text_cloud, files, num_points, dropped),
        labels,
        classes,
        [path.stem for path in files],
        up_axis=up_axis,
        normalized=True,
        dropped=dropped,
    )


def _read_text_cloud(files: list[Path], num_points: int | None, dropped: dict[str, int] | None, index: int) -> Tensor:
    drop = False if dropped is None else dropped
    return read_points(files[index], num_points, normalized=True, drop_non_finite=drop)


def _lines(path: Path, meaning: str) -> tuple[str, ...]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; {meaning}")
    try:
        lines = tuple(line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text: {error}") from None
    if not lines:
        raise DataError(f"{path}: the file is empty")
    return lines


def _require_same(path: Path, points: int, first: Path, expected: int) -> None:
    if points != expected:
        raise DataError(f"{path}: has {points} points per cloud, {first.name} has {expected}")


def _check_h5(
    root: Path, split: str, classes: tuple[str, ...], findings: Findings, dropped: dict[str, int] | None
) -> None:
    findings.hdf5(split, h5_files(root, split), classes, dropped)


def _check_cache(
    root: Path, split: str, classes: tuple[str, ...], findings: Findings, dropped: dict[str, int] | None
) -> None:
    path = cache_file(root, split)
    clouds, labels = read_cache(path, len(classes), as_is=True, dropped=dropped)
    findings.counts(split, labels.tolist(), classes)
    findings.clouds([f"{path.name}[{i}]" for i in range(len(clouds))], clouds)


def _check_text(
    root: Path, split: str, classes: tuple[str, ...], findings: Findings, dropped: dict[str, int] | None
) -> None:
    _, files, numbers = text_files(root, split)
    findings.counts(split, numbers, classes)
    findings.files(files, root, dropped)


_CHECKS = {"hdf5": _check_h5, "cache": _check_cache, "text": _check_text}
