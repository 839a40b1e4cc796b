"""S3DIS as published scene code reads it: one .npy file per room, Area_5_office_1.npy, of x y z r g b class."""

import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.coordinates import CLI_WAY_OUT, coordinates, keep_finite, require_in_range
from pointpeft.data.registry import (
    ANY_FOLDER,
    SPLITS,
    DataSet,
    DataSource,
    LoadOptions,
    register_data_set,
    split_variant,
)
from pointpeft.data.segments import SceneDataset

UP_AXIS = "z"
TEST_AREA = 5  # papers report it
CLASSES = (
    *("ceiling", "floor", "wall", "beam", "column", "window", "door"),
    *("table", "chair", "sofa", "bookcase", "board", "clutter"),
)
_ROOM = re.compile(r"Area_(\d+)_.+")
_COLUMNS = 7


@register_data_set
class S3DIS(DataSet):
    """S3DIS: PATH, or PATH:AREA for another test area than 5."""

    name = "s3dis"
    title = "S3DIS"
    layout = "a folder of rooms, given as PATH or PATH:AREA"
    labels = "scenes"
    up_axis = UP_AXIS
    variant_pattern = r"\d+"
    precedence = ANY_FOLDER  # its error says what rooms are called

    def matches(self, path: Path) -> bool:
        """Any folder."""
        return path.is_dir()

    def load(self, source: DataSource, split: str, options: LoadOptions) -> SceneDataset:
        """See `load_area`."""
        area = int(source.variant or TEST_AREA)
        return load_area(source.path, area, split, options.up_axis, drop_non_finite=options.drop_non_finite)


def load(source: str | Path, split: str, up_axis: str | None = None) -> SceneDataset:
    """Lists the rooms of one split; they are read one by one when they are needed.

    Args:
        source: `stanford_indoor3d`, however it is named; PATH:AREA tests on another area than 5.
        split: "train" for the rooms of all other areas, or "test".
        up_axis: As in `load_area`.

    Raises:
        DataError: No such folder or rooms.
        ValueError: Another split or axis.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    place, area = split_variant(str(source), S3DIS.variant_pattern)
    path = Path(place).expanduser()
    if not os.path.isdir(path):
        raise DataError(f"{path}: no such folder; semantic segmentation needs {S3DIS.layout}")
    return load_area(path, int(area or TEST_AREA), split, up_axis)


def load_area(
    path: Path, area: int, split: str, up_axis: str | None = None, *, drop_non_finite: bool = False
) -> SceneDataset:
    """Lists the rooms of one area or of all others.

    Args:
        path: `stanford_indoor3d`, however it is named.
        area: The area whose rooms are the test split.
        split: "train" for the rooms of all other areas, or "test".
        up_axis: Must be "z" or None: blocks are columns along it.
        drop_non_finite: Leave points out that are not finite; `notes` say how many, of the rooms read so far.

    Raises:
        DataError: No such folder or rooms.
        ValueError: Another split or axis.
    """
    if up_axis not in (None, UP_AXIS):
        raise ValueError(f'up_axis must be "z" for rooms, which are cut into columns along it, got {up_axis!r}')
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
    chosen = [i for i, name in enumerate(areas) if (name == area) == (split == "test")]
    if not chosen:
        raise DataError(f"{path}: has no {split} rooms: all are of the test area {area}; name another one: {path}:AREA")
    dropped: dict[str, int] | None = {} if drop_non_finite else None
    return SceneDataset(
        partial(_read, [files[i] for i in chosen], dropped),
        [areas[i] for i in chosen],
        [files[i].stem for i in chosen],
        CLASSES,
        up_axis=UP_AXIS,
        dropped=dropped,
        notes=(f"test rooms: area {area}",),
    )


def _area(file: Path) -> int:
    match = _ROOM.fullmatch(file.stem)
    assert match is not None
    return int(match[1])


def _read(files: list[Path], dropped: dict[str, int] | None, index: int) -> tuple[Tensor, Tensor]:
    path = files[index]
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
        if table.ndim != 2 or table.shape[1] != _COLUMNS or not len(table) or table.dtype.kind not in "fiu":
            raise DataError(
                f"must be numbers [N, {_COLUMNS}], x y z r g b class, got {table.dtype} {list(table.shape)}"
            )
        drop = False if dropped is None else dropped
        xyz, finite = keep_finite(coordinates(table, finite=False), drop, str(path), CLI_WAY_OUT)
        require_in_range(xyz)
        labels = np.asarray(table[:, -1] if finite is None else table[finite, -1])
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # whatever the library makes of a broken file, the user needs its name
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from error
    if (labels != np.floor(labels)).any() or not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise DataError(f"{path}: classes must be 0 to {len(CLASSES) - 1}, got {labels.min()} to {labels.max()}")
    # The published files start at 0 already; others may lie far from it, where float32 is coarse.
    return torch.from_numpy((xyz - xyz.min(0)).astype(np.float32)), torch.from_numpy(labels.astype(np.int64))
