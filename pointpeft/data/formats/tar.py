"""Labelled clouds in a tar file, as WebDataset writes them: members of one key are one sample."""

import json
import re
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from torch import Tensor

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.bounds import MOST_GROWTH, brief
from pointpeft.data.formats.readers import EXTENSIONS, read_bytes

LARGEST_MEMBER = 2**30  # bytes of one cloud: a header can promise more than a disk holds
LARGEST_LABEL = 2**16
_MAX_HEADER = 2**16  # bytes of a long name, or of a member's further attributes
_MAX_GLOBAL = 2**20  # bytes of the attributes of all members, together
_MAX_UNPACKED = 2**30  # bytes of a whole compressed archive, and beyond that MOST_GROWTH times its size
_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_ATTRIBUTES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_DIGITS = re.compile(rb"[0-9]{257}")
_LABELS = (".cls", ".json")
_KEYS = ("label", "cls", "class")  # of a label in JSON
_NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Sample:
    """A cloud that has not been read yet, and its label.

    Attributes:
        shard: The tar file.
        member: Its name in it.
        offset: Of its first byte in the tar file.
        size: Bytes.
        label: Number or name of its class.
    """

    shard: Path
    member: str
    offset: int
    size: int
    label: int | str

    @property
    def name(self) -> str:
        """The name in messages."""
        return f"{self.shard.name}/{self.member}"


class Member(tarfile.TarInfo):
    """An entry of a tar file whose headers are bounded, for `tarfile.open(tarinfo=)`.

    The library reads a long name or an attribute into memory whatever size is announced, and unpacks a sparse member,
    a few bytes and the size of the gaps between them.
    """

    def _proc_member(self, archive: Any) -> tarfile.TarInfo:
        if self.type == tarfile.XGLTYPE:
            total = getattr(archive, "global_bytes", 0) + self.size
            archive.global_bytes = total
            if self.size < 0 or total > _MAX_GLOBAL:
                raise DataError(f"refused: {total:,} bytes of global attributes, at most {_MAX_GLOBAL:,} are read")
        elif self.type in _HEADERS and not 0 <= self.size <= _MAX_HEADER:
            raise DataError(f"refused: a header of {self.size:,} bytes, at most {_MAX_HEADER:,} are read")
        elif self.type == tarfile.GNUTYPE_SPARSE:
            raise _sparse(self.name)
        if self.type in _ATTRIBUTES:
            content = archive.fileobj.read(-(-self.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            if _DIGITS.search(content):  # some versions of the library take quadratic time for them
                raise DataError("refused: its attributes hold a number of more than 256 digits")
            archive.fileobj = _ReadAgain(archive, content)
        member = super()._proc_member(archive)  # pyrefly: ignore[missing-attribute]: typeshed leaves it out
        if member.size < 0:
            raise DataError(f"is damaged: {brief(member.name)} has {member.size} bytes")
        return member

    def _proc_gnusparse_00(self, member: tarfile.TarInfo, *ignored: Any) -> None:
        raise _sparse(member.name)

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00


class _ReadAgain:
    """Stands for the file of an archive once, to give what has been read of it already."""

    def __init__(self, archive: Any, content: bytes) -> None:
        self.archive, self.file, self.content = archive, archive.fileobj, content

    def read(self, size: int) -> bytes:
        self.archive.fileobj = self.file
        return self.content


def _sparse(name: str) -> DataError:
    return DataError(f"refused: {brief(name)} is a sparse member, which announces more than it holds; pack it plainly")


def require_end(member: tarfile.TarInfo, stored: int) -> None:
    """Refuses a member of a compressed archive of `stored` bytes where too much was unpacked at the member's end.

    Raises:
        DataError: It says how much; members that are passed over count, too.
    """
    end = member.offset_data + member.size
    if end > max(_MAX_UNPACKED, MOST_GROWTH * stored):
        raise DataError(f"refused: it would unpack to {end} bytes or more, {end // max(1, stored)} times its size")


def list_tar(path: Path) -> list[Sample]:
    """The samples of an uncompressed tar file in its order, without reading the clouds.

    A sample is `KEY.npy`, or another kind of cloud, and its label: `KEY.cls`, a number or a name, or `KEY.json`, one of
    these or an object with a `label`. Members of other kinds are passed over. The key ends at the first dot.

    Raises:
        DataError: It is broken or compressed, a member leads out of it, a cloud has no label or a key two clouds.
    """
    clouds: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int | str] = {}
    try:
        if not path.is_file():
            raise DataError("no such file")
        length = path.stat().st_size
        with tarfile.open(path, "r:", tarinfo=Member) as shard:
            for member in shard:
                suffix = PurePosixPath(member.name).suffix.lower()
                if suffix not in (*EXTENSIONS, *_LABELS) or member.isdir():
                    continue
                key = _checked(member, length)
                if suffix not in _LABELS:
                    if key in clouds:
                        raise DataError(f"{member.name} and {clouds[key].name} are two clouds of one key")
                    clouds[key] = member
                elif key not in labels:
                    if member.size > LARGEST_LABEL:
                        raise DataError(f"{member.name} has {member.size:,} bytes, too many for a label")
                    file = shard.extractfile(member)
                    assert file is not None
                    label = _label(file.read(), suffix, member.name)
                    if label is not None:
                        labels[key] = label
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # headers that were made to harm raise nearly anything
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from error
    bare = [member.name for key, member in clouds.items() if key not in labels]
    if bare:
        raise DataError(
            f"{path}: {len(bare)} of {len(clouds)} clouds have no label beside them (KEY.cls or KEY.json), the first "
            f"is {bare[0]}"
        )
    return [Sample(path, m.name, m.offset_data, m.size, labels[key]) for key, m in clouds.items()]


def read_sample(
    sample: Sample,
    num_points: int | None = None,
    *,
    normalized: bool = False,
    drop_non_finite: bool | dict[str, int] = False,
) -> Tensor:
    """The points of a sample. It opens the tar file anew: what holds samples can go to any process.

    Args:
        sample: Of `list_tar`.
        num_points: As in `read_points`.
        normalized: As in `read_points`.
        drop_non_finite: As in `read_points`.

    Returns:
        Points, float32. [n, 3]

    Raises:
        DataError: As `read_points`.
    """
    suffix = PurePosixPath(sample.member).suffix.lower()
    return read_bytes(
        _content(sample, sample.size),
        suffix,
        sample.name,
        num_points,
        normalized=normalized,
        drop_non_finite=drop_non_finite,
    )


def point_count(sample: Sample) -> int | None:
    """Points of a sample, from the header of a .npy member alone; None for other kinds."""
    if not sample.member.lower().endswith(".npy"):
        return None
    head = BytesIO(_content(sample, min(sample.size, 4096)))
    try:
        version = np.lib.format.read_magic(head)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape = read(head)[0]
        return int(shape[0]) if len(shape) == 2 else None
    except (ValueError, KeyError, IndexError):  # reading it will say what is wrong
        return None


def _content(sample: Sample, size: int) -> bytes:
    try:
        with open(sample.shard, "rb") as file:
            file.seek(sample.offset)
            content = file.read(size)
    except OSError as error:
        raise DataError(f"{sample.name}: cannot be read: {error}") from error
    if len(content) < size:
        raise DataError(f"{sample.name}: the shard ends within it")
    return content


def _checked(member: tarfile.TarInfo, length: int) -> str:
    """The key of a member that may be read."""
    name = member.name
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.is_absolute() or windows.drive or ".." in windows.parts:
        raise DataError(f"refused: the member {brief(name)} leads out of the shard")
    if not member.isreg() or member.sparse is not None:
        raise DataError(f"refused: the member {brief(name)} is a link or no plain file")
    if member.size > LARGEST_MEMBER:
        raise DataError(f"{name} has {member.size:,} bytes, at most {LARGEST_MEMBER:,} are read")
    if member.offset_data + member.size > length:
        raise DataError(f"cannot be read: it ends within {name}")
    place = PurePosixPath(name)
    return (place.parent / place.name.split(".", 1)[0]).as_posix()


def _label(content: bytes, suffix: str, name: str) -> int | str | None:
    """A number or a name; None where JSON has no label."""
    try:
        text = content.decode().strip()
        value: Any = json.loads(text) if suffix == ".json" else text
    except ValueError as error:  # a UnicodeDecodeError is one
        raise DataError(f"{name}: is no label: {error}") from None
    if isinstance(value, dict):
        value = next((value[key] for key in _KEYS if key in value), None)
        if value is None:
            return None
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"{name}: a label is a number or a name, got {brief(value)}")
    return value
