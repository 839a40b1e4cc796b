"""HDF5 files of many labelled clouds: `data` [M, N, 3 or more] and `label` [M] or [M, 1]."""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.bounds import read_texts, require_h5
from pointpeft.data.formats.coordinates import CLI_WAY_OUT, as_stored, in_float32, keep_finite

OPEN_FILES = 64  # of one reader; a data set may have thousands
# The chunks of one row that HDF5 keeps unpacked, so that neighbouring rows need not unpack them again; its own 1 MiB
# does not hold them all.
MOST_CACHE = 64 << 20


def read_h5(path: Path, num_classes: int | None, *, as_is: bool = False) -> tuple[Tensor, Tensor, list[str]]:
    """Reads one file.

    Args:
        path: The file.
        num_classes: Labels must be below this; None: at least 0.
        as_is: Keep float64 where the file has it or whole numbers, so that clouds can be centred before they are
            rounded.

    Returns:
        Points float32 [M, N, 3]; labels int64 [M]; names, those of `name` where the file has them, else file and row.

    Raises:
        DataError: The file is missing, broken, or its content is not as above; names the file and the reason.
    """
    with open_h5(path) as file:
        _, labels, names = _entries(path, file, num_classes)
        points = file["data"][:, :, :3]
        wrong = np.flatnonzero(~np.isfinite(points).all((1, 2)))
        if len(wrong):
            raise DataError(
                f"{len(wrong)} clouds have points that are not finite, the first is cloud {wrong[0]}{CLI_WAY_OUT}"
            )
        tensor = as_stored(points) if as_is else in_float32(points)
    return tensor, labels, names


def list_h5(path: Path, num_classes: int | None) -> tuple[tuple[int, int], Tensor, list[str]]:
    """Everything in a file except its points, which `H5Rows` reads.

    Returns:
        (M, N), clouds and points of each; labels and names as by `read_h5`.

    Raises:
        DataError: As `read_h5`, but for points that are not finite.
    """
    with open_h5(path) as file:
        return _entries(path, file, num_classes)


class H5Rows:
    """Clouds of several files, read one by one when they are needed.

    A data set may send this to the workers of a loader, by fork or by spawn: every process opens files of its own.

    Args:
        files: Files that `list_h5` has accepted.
        counts: Clouds in each of them.
        as_is: As in `read_h5`.
        dropped: Points that are not finite are left out, and counted here by the name of their cloud; None refuses
            them.
    """

    def __init__(
        self,
        files: Sequence[Path],
        counts: Sequence[int],
        *,
        as_is: bool = False,
        dropped: dict[str, int] | None = None,
    ) -> None:
        self.as_is, self.dropped = as_is, dropped
        self.files = OpenFiles(files, ("data",))
        self.starts = [0, *accumulate(counts)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __call__(self, index: int) -> Tensor:
        """Cloud `index` of all files in a row. [N, 3], or fewer points where some are left out

        Raises:
            DataError: It cannot be read, or has points that are not finite and must not be left out.
        """
        number = bisect_right(self.starts, index) - 1
        row = index - self.starts[number]
        place = f"{self.files.paths[number]}[{row}]"
        try:
            points = self.files[number]["data"][row, :, :3]
        except DataError:
            raise
        except Exception as error:  # whatever the library makes of a broken chunk, the user needs its place
            raise DataError(f"{place}: cannot be read: {error or type(error).__name__}") from error
        try:
            if self.dropped is not None:
                points, _ = keep_finite(points, self.dropped, place)
            elif not np.isfinite(points).all():
                raise DataError(f"has points that are not finite{CLI_WAY_OUT}")
            return as_stored(points) if self.as_is else in_float32(points)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None


class OpenFiles:
    """HDF5 files that are opened on demand; few stay open, and every process has handles of its own.

    Args:
        paths: The files.
        keys: Datasets whose rows will be read.
    """

    def __init__(self, paths: Sequence[Path], keys: Sequence[str]) -> None:
        self.paths, self.keys = list(paths), tuple(keys)
        self._process = os.getpid()
        self._open: OrderedDict[int, h5py.File] = OrderedDict()

    def __getitem__(self, number: int) -> h5py.File:
        if self._process != os.getpid():  # a fork inherits handles that are its parent's
            self._process, self._open = os.getpid(), OrderedDict()
        if number not in self._open:
            path = self.paths[number]
            with h5py.File(path, "r") as file:
                cache = max(_row_cache(file[key]) for key in self.keys if key in file)
            self._open[number] = h5py.File(path, "r", rdcc_nbytes=cache)
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": OrderedDict()}


def _row_cache(data: h5py.Dataset) -> int:
    """Bytes of the chunks that one row lies in."""
    if data.chunks is None:
        return 1 << 20
    across = [-(-size // chunk) for size, chunk in zip(data.shape[1:], data.chunks[1:], strict=True)]
    return min(MOST_CACHE, max(1 << 20, 2 * int(np.prod(data.chunks)) * data.dtype.itemsize * int(np.prod(across))))


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Opens the file; errors within the block name it."""
    if not os.path.isfile(path):  # of a name too long for any file, too
        raise DataError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            require_h5(path, file)
            yield file
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # whatever the library makes of a broken file, the user needs its name
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from error


def _entries(path: Path, file: h5py.File, num_classes: int | None) -> tuple[tuple[int, int], Tensor, list[str]]:
    missing = [key for key in ("data", "label") if not isinstance(file.get(key), h5py.Dataset)]
    if missing:
        raise DataError(f"has no {' and no '.join(missing)}, only {', '.join(file) or 'nothing'}")
    data, label = file["data"], file["label"]
    if data.ndim != 3 or data.shape[2] < 3 or not data.shape[1] or data.dtype.kind not in "fiu":
        raise DataError(f"data must be numbers [M, N, 3], got {data.dtype} {list(data.shape)}")
    if label.dtype.kind not in "iu" and not _whole(label):
        raise DataError(f"label must be whole numbers, got {label.dtype}")
    labels = label[()].reshape(-1).astype(np.int64)
    if len(labels) != len(data):
        raise DataError(f"{len(data)} clouds have {len(labels)} labels")
    if len(labels) and (labels.min() < 0 or (num_classes is not None and labels.max() >= num_classes)):
        upper = "" if num_classes is None else f" to {num_classes - 1}"
        raise DataError(f"labels must be 0{upper}, got {labels.min()} to {labels.max()}")
    names = read_texts(path, file["name"]) if isinstance(file.get("name"), h5py.Dataset) else None
    if names is None or len(names) != len(labels):
        names = [f"{path.name}[{i}]" for i in range(len(labels))]
    return (data.shape[0], data.shape[1]), torch.from_numpy(labels), names


def _whole(label: h5py.Dataset) -> bool:
    return label.dtype.kind == "f" and bool((label[()] == np.floor(label[()])).all())
