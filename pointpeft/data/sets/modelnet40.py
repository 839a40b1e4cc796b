"""ModelNet40 in its three widespread forms: HDF5 files, text files with normals, and the cache made of those."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pointpeft.data.dataset import DataError, PointCloudDataset, at_most
from pointpeft.data.formats.bounds import NUMBER_BYTES, is_plain, require_files, require_unpacked
from pointpeft.data.formats.hdf5 import H5Rows, list_h5, read_h5
from pointpeft.data.formats.numpy_pickle import load_arrays
from pointpeft.data.formats.readers import coordinates, in_float32, read_points
from pointpeft.data.transforms import normalize_precisely

UP_AXIS = "y"


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
    root: str | Path, split: str, num_points: int | None = None, up_axis: str = UP_AXIS, *, lazy: bool = False
) -> PointCloudDataset:
    """Reads one part of ModelNet40, every cloud centred and scaled to the unit sphere.

    HDF5 files and the cache are read into memory; text files, which take minutes, one by one as they are asked for.

    Args:
        root: `modelnet40_ply_hdf5_2048` or `modelnet40_normal_resampled`, however it is named.
        split: "train" or "test".
        num_points: The most points of a cloud that are kept, drawn with a fixed seed.
        up_axis: The axis that points up; "y" in all published forms.
        lazy: Read the clouds of HDF5 files one by one as they are asked for, too. The cache is one pickle.

    Raises:
        DataError: A file is missing or broken; says which one and how to mend it.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    kind = form(root)
    if kind is None:
        raise DataError(
            f"{root}: holds no ModelNet40: neither ply_data_{split}0.h5 … (modelnet40_ply_hdf5_2048), nor "
            f"modelnet40_{split}_8192pts_fps.dat, nor modelnet40_shape_names.txt (modelnet40_normal_resampled)"
        )
    if kind == "text":
        return _load_text(root, split, num_points, up_axis)
    classes = class_names(root)
    if kind == "hdf5" and lazy:
        return _list_h5(h5_files(root, split), classes, num_points, up_axis)
    if kind == "hdf5":
        files = h5_files(root, split)
        parts = [read_h5(path, len(classes), as_is=True) for path in files]
        for path, part in zip(files, parts, strict=True):
            _require_same(path, part[0].shape[1], files[0], parts[0][0].shape[1])
        points: Tensor | list[Tensor] = torch.cat([normalize_precisely(at_most(part[0], num_points)) for part in parts])
        labels, names = torch.cat([part[1] for part in parts]), [name for part in parts for name in part[2]]
    else:
        path = cache_file(root, split)
        clouds, labels = read_cache(path, len(classes), as_is=True)
        points = [normalize_precisely(at_most(cloud, num_points)) for cloud in clouds]
        names = [f"{path.name}[{i}]" for i in range(len(points))]
    if not len(labels):
        raise DataError(f"{root}: its {split} part has no clouds")
    return PointCloudDataset(points, labels, classes, names, up_axis=up_axis, normalized=True)


def class_names(root: Path) -> tuple[str, ...]:
    """The classes in the order of their labels."""
    return _lines(
        next((p for name in _NAMES if (p := root / name).is_file()), root / _NAMES[0]),
        "it lists the class names, one a line, in the order of the labels",
    )


_NAMES = ("shape_names.txt", "modelnet40_shape_names.txt")


def h5_files(root: Path, split: str) -> list[Path]:
    """The HDF5 files of one part.

    Those that `train_files.txt` or `test_files.txt` names, looked for beside it whatever folder it gives; without the
    list, all that are there.

    Raises:
        DataError: There is none.
    """
    found = _h5_files(root, split)
    if not found:
        raise DataError(f"{root}: has no ply_data_{split}0.h5 and no {split}_files.txt")
    return found


def _h5_files(root: Path, split: str) -> list[Path]:
    listing = root / f"{split}_files.txt"
    if listing.is_file():
        return [root / line.replace("\\", "/").rsplit("/", 1)[-1] for line in _lines(listing, "")]
    return sorted(root.glob(f"ply_data_{split}*.h5"), key=lambda p: [int(n) for n in re.findall(r"\d+", p.stem)])


def cache_file(root: Path, split: str) -> Path:
    """The cache of one part.

    Raises:
        DataError: There is none.
    """
    found = sorted(root.glob(f"modelnet40_{split}_*_fps.dat"))
    if not found:
        raise DataError(f"{root}: has no modelnet40_{split}_8192pts_fps.dat")
    return found[-1]


def read_cache(path: Path, num_classes: int, *, as_is: bool = False) -> tuple[list[Tensor], Tensor]:
    """The clouds and labels of a .dat file: a pickle of [clouds (n, 6) each, labels (1,) each].

    Args:
        path: The file.
        num_classes: Labels must be below this.
        as_is: Clouds in float64, so that they can be centred before they are rounded; else in float32.

    Raises:
        DataError: It is broken, holds anything but that, or asks to run something.
    """
    content = load_arrays(path)
    if not isinstance(content, (list, tuple)) or len(content) != 2:
        raise DataError(f"{path}: must hold a list of clouds and a list of labels")
    clouds, labels = content
    if not isinstance(clouds, (list, tuple)) or not isinstance(labels, (list, tuple)):
        raise DataError(f"{path}: must hold a list of clouds and a list of labels")
    if len(clouds) != len(labels):
        raise DataError(f"{path}: {len(clouds)} clouds have {len(labels)} labels")
    points, unpacked = [], 0
    for i, cloud in enumerate(clouds):
        try:
            if not hasattr(cloud, "__array__"):  # lists that hold one another unfold to any size
                raise DataError(f"must be an array of numbers, got {type(cloud).__name__}")
            unpacked += np.asarray(cloud).size * NUMBER_BYTES  # any number of entries may be one array
            require_unpacked(path.stat().st_size, unpacked)
            found = coordinates(np.asarray(cloud))
            points.append(torch.from_numpy(found) if as_is else in_float32(found))
        except DataError as error:
            raise DataError(f"{path}: cloud {i}: {error}") from None
    if any(
        isinstance(label, (list, tuple)) and (len(label) != 1 or isinstance(label[0], (list, tuple)))
        for label in labels
    ):
        raise DataError(f"{path}: every label must be one whole number")
    numbers = [np.asarray(label) for label in labels]
    if any(number.dtype.kind not in "iu" or number.size != 1 for number in numbers):
        raise DataError(f"{path}: every label must be one whole number")
    values = torch.tensor([int(number.reshape(())) for number in numbers], dtype=torch.int64)
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
        raise DataError(f"{path}: labels must be 0 to {num_classes - 1}, got {values.min()} to {values.max()}")
    return points, values


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
        kind = name.rsplit("_", 1)[0]
        if kind not in classes:
            raise DataError(f"{root / f'modelnet40_{split}.txt'}: {name} is of no class in {_NAMES[1]}")
        labels.append(classes.index(kind))
    return classes, [root / classes[label] / f"{name}.txt" for name, label in zip(names, labels, strict=True)], labels


def _list_h5(files: list[Path], classes: tuple[str, ...], num_points: int | None, up_axis: str) -> PointCloudDataset:
    shapes, labels, names = zip(*(list_h5(path, len(classes)) for path in files), strict=True)
    for path, (_, points) in zip(files, shapes, strict=True):
        _require_same(path, points, files[0], shapes[0][1])
    rows = H5Rows(files, [count for count, _ in shapes], as_is=True)
    if not len(rows):
        raise DataError(f"{files[0]}: has no clouds, nor have the files beside it")
    size = min(shapes[0][1], num_points or shapes[0][1])
    return PointCloudDataset(
        partial(_read_row, rows, num_points),
        torch.cat(labels),
        classes,
        [name for part in names for name in part],
        up_axis=up_axis,
        normalized=True,
        sizes=[size] * len(rows),
    )


def _read_row(rows: H5Rows, num_points: int | None, index: int) -> Tensor:
    return normalize_precisely(at_most(rows(index), num_points))


def _load_text(root: Path, split: str, num_points: int | None, up_axis: str) -> PointCloudDataset:
    classes, files, labels = text_files(root, split)
    require_files(files, f"{split} clouds")
    return PointCloudDataset(
        partial(_read_text_cloud, files, num_points),
        labels,
        classes,
        [path.stem for path in files],
        up_axis=up_axis,
        normalized=True,
    )


def _read_text_cloud(files: list[Path], num_points: int | None, index: int) -> Tensor:
    return read_points(files[index], num_points, normalized=True)


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


def _require_same(path: Path, points: int, first: Path, wanted: int) -> None:
    if points != wanted:
        raise DataError(f"{path}: has {points} points per cloud, {first.name} has {wanted}")
