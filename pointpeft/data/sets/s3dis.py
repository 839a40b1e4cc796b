"""S3DIS as published scene code reads it: one .npy file per room, Area_5_office_1.npy, of x y z r g b class."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pointpeft.data.dataset import DataError, require_axis
from pointpeft.data.formats.readers import coordinates
from pointpeft.data.loading import SPLITS

UP_AXIS = "z"
TEST_AREA = 5  # papers report it
CLASSES = (
    *("ceiling", "floor", "wall", "beam", "column", "window", "door"),
    *("table", "chair", "sofa", "bookcase", "board", "clutter"),
)
_ROOM = re.compile(r"Area_(\d+)_.+")
_COLUMNS = 7


class RoomDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Rooms whose points have a class each; items are (points [n, 3], classes [n]), room by room.

    Args:
        read: Gives room i as (points float32 [n_i, 3] in metres, classes int64 [n_i]).
        areas: Which area each room lies in. [M]
        names: What messages call a room.
        classes: Class names.
        notes: Sentences worth telling the user.
    """

    normalized = False

    def __init__(
        self,
        read: Callable[[int], tuple[Tensor, Tensor]],
        areas: Sequence[int],
        names: Sequence[str],
        classes: Sequence[str] = CLASSES,
        *,
        up_axis: str = UP_AXIS,
        notes: Sequence[str] = (),
    ) -> None:
        self.labels = torch.tensor(areas, dtype=torch.int64)
        self.names, self.classes = list(names), tuple(classes)
        self.up_axis, self.notes = require_axis(up_axis), tuple(notes)
        self._read = read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be between 0 and {len(self) - 1}, got {index}")
        return self._read(index)


def load(source: str | Path, split: str, up_axis: str | None = None) -> RoomDataset:
    """Lists the rooms of one part; they are read one by one as they are asked for.

    Args:
        source: `stanford_indoor3d`, however it is named; PATH:AREA tests on another area than 5.
        split: "train" for the rooms of all other areas, or "test".
        up_axis: Must be "z" or None: blocks are columns along it.

    Raises:
        DataError: No such folder or rooms.
        ValueError: Another split or axis.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    if up_axis not in (None, UP_AXIS):
        raise ValueError(f'up_axis must be "z" for rooms, which are cut into columns along it, got {up_axis!r}')
    path, area = _place(str(source))
    files = sorted(file for file in path.glob("Area_*.npy") if _ROOM.fullmatch(file.stem))
    if not files:
        raise DataError(
            f"{path}: has no rooms named Area_5_office_1.npy and the like, [N, {_COLUMNS}] x y z r g b class"
        )
    areas = [_area(file) for file in files]
    if area not in areas:
        raise DataError(
            f"{path}: has no rooms of the test area {area}, only of {', '.join(map(str, sorted(set(areas))))}"
        )
    chosen = [i for i, one in enumerate(areas) if (one == area) == (split == "test")]
    if not chosen:
        raise DataError(f"{path}: has no {split} rooms: all are of the test area {area}; name another one: {path}:AREA")
    return RoomDataset(
        partial(_read, [files[i] for i in chosen]),
        [areas[i] for i in chosen],
        [files[i].stem for i in chosen],
        notes=(f"test rooms: area {area}",),
    )


def _place(text: str) -> tuple[Path, int]:
    before, colon, last = text.rpartition(":")
    path, area = (Path(before), int(last)) if colon and last.isdecimal() else (Path(text), TEST_AREA)
    path = path.expanduser()
    if not path.is_dir():
        raise DataError(
            f"{path}: no such folder; semantic segmentation needs a folder of rooms, given as PATH or PATH:AREA"
        )
    return path, area


def _area(file: Path) -> int:
    match = _ROOM.fullmatch(file.stem)
    assert match is not None
    return int(match[1])


def _read(files: list[Path], index: int) -> tuple[Tensor, Tensor]:
    path = files[index]
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
        if table.ndim != 2 or table.shape[1] != _COLUMNS or not len(table) or table.dtype.kind not in "fiu":
            raise DataError(
                f"must be numbers [N, {_COLUMNS}], x y z r g b class, got {table.dtype} {list(table.shape)}"
            )
        xyz, labels = coordinates(table), np.asarray(table[:, -1])
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # whatever the library makes of a broken file, the user needs its name
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from error
    if (labels != np.floor(labels)).any() or not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise DataError(f"{path}: classes must be 0 to {len(CLASSES) - 1}, got {labels.min()} to {labels.max()}")
    # The published files start at 0 already; others may lie far from it, where float32 is coarse.
    return torch.from_numpy((xyz - xyz.min(0)).astype(np.float32)), torch.from_numpy(labels.astype(np.int64))
