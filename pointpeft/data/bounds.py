"""What a file from elsewhere may make us do: unpack to a bounded size, and read nothing but itself."""

import zipfile
from pathlib import Path
from typing import Any

import h5py

from pointpeft.data.dataset import DataError

# Arrays may be so large without a question, and beyond that so many times the size of their file. Clouds compress to a
# third or so; a file of zeros made to fill the memory, to a thousandth.
FREE = 256 << 20
MOST_GROWTH = 100


def require_unpacked(path: Path, size: int) -> None:
    """Refuses `size` bytes of arrays from a small file.

    Raises:
        DataError: They are more than `FREE` and more than `MOST_GROWTH` times the file.
    """
    have = path.stat().st_size
    if size > max(FREE, MOST_GROWTH * have):
        raise DataError(f"refused: it would unpack to {size} bytes, {size // max(1, have)} times its size")


def is_plain(name: str) -> bool:
    """Whether a name that a list from elsewhere gives stays in its folder: one part of a path, and not `..`."""
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
    """Refuses a zip archive, such as a .npz file, that announces too much; what it does not announce it cannot give.

    Raises:
        DataError: As in `require_unpacked`.
    """
    with zipfile.ZipFile(path) as archive:
        require_unpacked(path, sum(entry.file_size for entry in archive.infolist()))


def require_h5(path: Path, file: h5py.File) -> None:
    """Refuses an HDF5 file whose datasets announce too much, or lie in other files.

    Raises:
        DataError: As in `require_unpacked`, or a link or a dataset leads out of the file.
    """
    total = 0
    for key in file:
        link: Any = file.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise DataError(f"refused: {key} lies in another file, {link.filename}")
        item = file.get(key)
        if isinstance(item, h5py.Dataset):
            # An external dataset would pass any file of the machine off as numbers.
            if item.external or item.is_virtual:
                raise DataError(f"refused: {key} lies in other files")
            total += item.size * item.dtype.itemsize
    require_unpacked(path, total)
