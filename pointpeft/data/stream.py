"""Clouds one after another from files, folders, tar and HDF5 shards: never more than a batch of them in memory."""

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import h5py
from torch import Tensor

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.bounds import NUMBER_BYTES, require_h5, require_unpacked
from pointpeft.data.formats.coordinates import CLI_WAY_OUT, as_stored, keep_finite
from pointpeft.data.formats.readers import EXTENSIONS, read_bytes, read_points
from pointpeft.data.formats.tar import LARGEST_MEMBER, Member, require_end
from pointpeft.data.sets.folder import cloud_files
from pointpeft.data.transforms import move_to_origin, normalize_precisely

TAR = (".tar", ".tar.gz", ".tgz")
HDF5 = (".h5", ".hdf5")
GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Source:
    """A cloud that has not been read yet.

    Attributes:
        name: Unique in its stream: the file, with the member or the row where it is one of many.
        read: Gives its points, float32 [n, 3]; raises DataError. Called before the stream goes on.
    """

    name: str
    read: Callable[[], Tensor]


def is_many(path: Path) -> bool:
    """Whether a path holds more than one cloud: a folder or a shard."""
    return os.path.isdir(path) or path.name.lower().endswith(TAR + HDF5)


def stream(paths: list[Path], normalized: bool, drop_non_finite: bool | dict[str, int] = False) -> Iterator[Source]:
    """The clouds of files, folders and shards, in the order of the paths and of the names in each.

    A tar shard, such as WebDataset's, gives its members of a known kind; an HDF5 shard the rows of `data` [M, N, 3].

    Args:
        paths: What to read.
        normalized: Centre the points on their mean and scale them to the unit sphere; else they stay as they are, but
            for clouds far from the origin, which are moved there.
        drop_non_finite: As in `read_points`; of an HDF5 shard, by file and row.

    Raises:
        DataError: A shard that cannot be opened, or a folder without clouds. What is wrong with one cloud is raised by
            its `read`.
    """
    for path in paths:
        name = path.name.lower()
        if os.path.isdir(path):
            files = cloud_files(path)
            if not files:
                raise DataError(f"{path}: has no file of a known kind: {' '.join(EXTENSIONS)}")
            for file in files:
                yield _file(file, normalized, drop_non_finite)
        elif name.endswith(TAR):
            yield from _tar(path, normalized, drop_non_finite)
        elif name.endswith(HDF5):
            yield from _hdf5(path, normalized, drop_non_finite)
        else:
            yield _file(path, normalized, drop_non_finite)


def _file(path: Path, normalized: bool, drop: bool | dict[str, int]) -> Source:
    return Source(str(path), lambda: _read_file(path, normalized, drop))


def _read_file(path: Path, normalized: bool, drop: bool | dict[str, int]) -> Tensor:
    return read_points(path, normalized=normalized, near_origin=not normalized, drop_non_finite=drop)


def _tar(path: Path, normalized: bool, drop: bool | dict[str, int]) -> Iterator[Source]:
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file")
    stored = path.stat().st_size
    try:
        # Other compressions than the documented one unpack any amount of a few bytes at once.
        with open(path, "rb") as file:
            packed = file.read(2) == GZIP
        with tarfile.open(path, "r|gz" if packed else "r|", tarinfo=Member) as shard:
            for member in shard:
                if packed:
                    require_end(member, stored)
                suffix = PurePosixPath(member.name).suffix.lower()
                if not member.isfile() or suffix not in EXTENSIONS:
                    continue
                name = f"{path}/{member.name}"
                yield Source(name, partial(_member, shard, member, name, suffix, stored, packed, normalized, drop))
                # A stream cannot go back: what was not kept is gone.
                shard.members = []  # pyrefly: ignore[missing-attribute]: typeshed leaves it out
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # headers that were made to harm raise nearly anything
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from error


def _member(
    shard: tarfile.TarFile,
    member: tarfile.TarInfo,
    name: str,
    suffix: str,
    stored: int,
    packed: bool,
    normalized: bool,
    drop: bool | dict[str, int],
) -> Tensor:
    if member.size > LARGEST_MEMBER:
        raise DataError(f"{name}: {member.size:,} bytes, at most {LARGEST_MEMBER:,} are read")
    try:
        for size in (member.size, member.size * NUMBER_BYTES):  # a byte of it may become a number
            if packed:
                require_unpacked(stored, size)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    file = shard.extractfile(member)
    assert file is not None
    return read_bytes(
        file.read(), suffix, name, normalized=normalized, near_origin=not normalized, drop_non_finite=drop
    )


def _hdf5(path: Path, normalized: bool, drop: bool | dict[str, int]) -> Iterator[Source]:
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    with file:
        try:
            require_h5(path, file)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        data = file.get("data")
        if not isinstance(data, h5py.Dataset):
            raise DataError(f"{path}: has no data, only {', '.join(file) or 'nothing'}")
        if data.ndim != 3 or data.shape[2] < 3 or not data.shape[1] or data.dtype.kind not in "fiu":
            raise DataError(f"{path}: data must be numbers [M, N, 3], got {data.dtype} {list(data.shape)}")
        for row in range(data.shape[0]):
            yield Source(f"{path}[{row}]", lambda row=row: _row(data, path, row, normalized, drop))


def _row(data: h5py.Dataset, path: Path, row: int, normalized: bool, drop: bool | dict[str, int]) -> Tensor:
    place = f"{path}[{row}]"
    try:
        array = data[row, :, :3]
    except Exception as error:  # whatever the library makes of a broken chunk, the user needs its place
        raise DataError(f"{place}: cannot be read: {error or type(error).__name__}") from error
    try:
        points = as_stored(keep_finite(array, drop, place, CLI_WAY_OUT)[0])
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    return normalize_precisely(points) if normalized else move_to_origin(points)
