"""Limits on untrusted files: they unpack to a bounded size, and refer to no other file."""

import math
import reprlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from pointpeft.data.dataset import DataError

# The arrays made of a file may be so large without a question, and beyond that so many times the size of the file.
# Clouds compress to a third or so; a file of zeros made to fill the memory, to a thousandth.
FREE = 64 << 20
MOST_GROWTH = 100
# Every coordinate becomes a float64 and every label an int64, however small its stored type is.
NUMBER_BYTES = 8
MAX_CLASSES = 10_000  # every number up to the highest label gets a name
_BRIEF = 300  # letters of a value in a message
_MAX_NPY_HEADER = 1 << 16
_MAX_LINKS = 40  # of a path inside an HDF5 file, as the system allows of one outside
_limit: ContextVar[int | None] = ContextVar("limit", default=None)


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Within it no file may unpack to more than `size` bytes, whatever its own size is."""
    token = _limit.set(size)
    try:
        yield
    finally:
        _limit.reset(token)


def require_unpacked(stored: int, size: int) -> None:
    """Refuses `size` bytes of arrays from a file of `stored` bytes.

    Raises:
        DataError: They are more than `FREE` and more than `MOST_GROWTH` times the file, or more than `limited` allows.
    """
    limit = _limit.get()
    if size > max(FREE, MOST_GROWTH * stored):
        raise DataError(f"refused: it would unpack to {size} bytes, {size // max(1, stored)} times its size")
    if limit is not None and size > limit:
        raise DataError(f"refused: it would unpack to {size} bytes, at most {limit} are allowed here")


def brief(value: object) -> str:
    """`repr` of a value from a file, cut to a length that fits into a message."""
    cut = reprlib.Repr()
    cut.maxlevel, cut.maxstring, cut.maxother, cut.maxlong = 2, 80, 80, 40
    text = cut.repr(value)
    return text if len(text) <= _BRIEF else text[: _BRIEF - 3] + "..."


def is_plain(name: str) -> bool:
    """Whether a name from an untrusted list stays in its folder: one component of a path, and not `..`."""
    return name not in ("", ".", "..") and not any(mark in name for mark in "/\\\0")


def require_files(files: list[Path], what: str) -> None:
    """Refuses a list of which some files are missing.

    Raises:
        DataError: Names the first one, and says how many there are.
    """

    def there(path: Path) -> bool:
        try:
            return path.is_file()
        except OSError:  # a name that is too long for any file
            return False

    missing = [path for path in files if not there(path)]
    if missing:
        raise DataError(f"{missing[0]}: no such file; {len(missing)} of {len(files)} {what} are missing")


def require_zip(path: Path) -> None:
    """Refuses an archive of arrays, a .npz file, that announces too much; what it does not announce it cannot give.

    Raises:
        DataError: As in `require_unpacked`, or it is packed by a method whose output cannot be bounded.
    """
    total = 0
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            # Python unpacks a whole piece of the others at once, whatever size the entry announces.
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(
                    f"refused: {brief(entry.filename)} is packed by method {entry.compress_type}, not deflate"
                )
            total += entry.file_size
        require_unpacked(path.stat().st_size, total)
        total = 0
        for entry in archive.infolist():
            with archive.open(entry) as file:
                total += max(entry.file_size, _npy_bytes(file, entry.file_size))
    require_unpacked(path.stat().st_size, total)


def require_npy(file: IO[bytes], stored: int) -> None:
    """Refuses a .npy file whose header announces more numbers than it holds; reads the header alone.

    Raises:
        DataError: It is cut off, or as in `require_unpacked`.
    """
    require_unpacked(stored, _npy_bytes(file, stored))


def _npy_bytes(file: IO[bytes], stored: int) -> int:
    """Bytes that the numbers of a .npy file take once they are float64 or int64; 0 where it is no such file."""
    start = file.read(12)
    if start[:6] != np.lib.format.MAGIC_PREFIX or len(start) < 12:
        return 0
    long = start[6] > 1  # version 1.0 has two bytes for the length of its header, later ones have four
    length = int.from_bytes(start[8:12] if long else start[8:10], "little")
    if length > _MAX_NPY_HEADER:
        raise DataError(f"has a damaged header: its length is {length} bytes")
    header = BytesIO((start + file.read(length))[8:])
    read = np.lib.format.read_array_header_2_0 if long else np.lib.format.read_array_header_1_0
    shape, _, dtype = read(header)
    size = math.prod(shape)
    if not dtype.hasobject and size * dtype.itemsize > stored:
        need = size * dtype.itemsize
        raise DataError(f"cannot be read: it is cut off, {dtype} {list(shape)} needs {need} bytes, {stored} are there")
    return size * max(NUMBER_BYTES, dtype.itemsize)


def require_h5(path: Path, file: h5py.File) -> None:
    """Refuses an HDF5 file whose datasets announce too much, have too few bytes, or lie in other files.

    Raises:
        DataError: As in `require_unpacked`, a dataset is cut short, or a link or a dataset leads out of the file.
    """
    stored = made = 0
    for key in file:
        other = _other_file(file, key)
        if other is not None:
            raise DataError(f"refused: {key} lies in another file, {other}")
        item = file.get(key)
        if item is None:  # a link to nothing
            continue
        if h5py.h5g.get_objinfo(item.id).fileno != h5py.h5g.get_objinfo(file.id).fileno:
            raise DataError(f"refused: {key} lies in another file, {item.file.filename}")
        if isinstance(item, h5py.Dataset):
            # An external dataset would pass any file of the machine off as numbers.
            if item.external or item.is_virtual:
                raise DataError(f"refused: {key} lies in other files")
            count = math.prod(item.shape or (0,))
            _require_stored(key, item, count)
            # One value of a compressed chunk cannot be read without unpacking all of it.
            chunk = math.prod(item.chunks or (0,)) * item.dtype.itemsize
            stored += count * item.dtype.itemsize
            made += max(count * max(NUMBER_BYTES, item.dtype.itemsize), chunk)
    for size in (stored, made):
        require_unpacked(path.stat().st_size, size)


def _require_stored(key: str, item: h5py.Dataset, count: int) -> None:
    """Refuses a dataset without chunks whose stored bytes do not suffice: the library fills rows with other numbers.

    Raises:
        DataError: It says how many there are.
    """
    if item.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
        return
    size, needed = item.id.get_storage_size(), count * item.id.get_type().get_size()
    if 0 < size < needed:  # 0: nothing was written, so that all are the fill value
        raise DataError(f"is damaged: {key} has {size:,} bytes, its {count:,} values need {needed:,}")


def _other_file(file: h5py.File, path: str) -> str | None:
    """The file that a path inside an HDF5 file leads to; None where it stays inside. It opens no other file."""
    group, components, links = file, path.split("/")[::-1], 0
    while components and isinstance(group, h5py.Group):
        component = components.pop()
        if component in ("", "."):
            continue
        link: Any = group.get(component, getlink=True) if component in group else None
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            return link.filename
        if isinstance(link, h5py.SoftLink):
            links += 1
            if links > _MAX_LINKS:
                raise DataError(f"refused: {path} is a chain of more than {_MAX_LINKS} links")
            if link.path.startswith("/"):
                group = file
            components += link.path.split("/")[::-1]
        else:
            group = group[component]
    return None


def read_texts(path: Path, item: h5py.Dataset) -> list[str]:
    """The strings of an HDF5 dataset, in its order.

    Strings of variable length are stored beside the dataset, and any number of its entries may point to one of them.

    Raises:
        DataError: It holds no strings, or as in `require_unpacked`.
    """
    if h5py.check_string_dtype(item.dtype) is None:
        raise DataError(f"{item.name.lstrip('/')} must be strings, got {item.dtype}")
    stored = path.stat().st_size
    step = max(1, FREE // max(1, stored))  # one string is no longer than the file, so a piece is at most FREE
    texts: list[str] = []
    total = 0
    width = item.shape[-1] if item.ndim else 1
    for row in np.ndindex(item.shape[:-1]):
        for start in range(0, width, step):
            piece = np.atleast_1d(item[(*row, slice(start, start + step))] if item.ndim else item[()])
            texts += [value.decode() if isinstance(value, bytes) else str(value) for value in piece.tolist()]
            total += sum(map(len, texts[-len(piece) :]))
            require_unpacked(stored, total)
    return texts
