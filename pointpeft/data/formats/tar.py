"""Labelled clouds in a tar file, as WebDataset writes them: members of one key are one sample."""

import json
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from torch import Tensor

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.readers import EXTENSIONS, read_bytes

LARGEST_MEMBER = 2**30  # bytes of one cloud: a header can promise more than a disk holds
LARGEST_LABEL = 2**16
_LABELS = (".cls", ".json")
_KEYS = ("label", "cls", "class")  # of a label in JSON


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
        """What messages call it."""
        return f"{self.shard.name}/{self.member}"


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
        with tarfile.open(path, "r:") as shard:
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
    except (tarfile.TarError, EOFError, OSError, UnicodeError) as error:
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from error
    bare = [member.name for key, member in clouds.items() if key not in labels]
    if bare:
        raise DataError(
            f"{path}: {len(bare)} of {len(clouds)} clouds have no label beside them (KEY.cls or KEY.json), the first "
            f"is {bare[0]}"
        )
    return [Sample(path, m.name, m.offset_data, m.size, labels[key]) for key, m in clouds.items()]


def read_sample(sample: Sample, num_points: int | None = None, *, normalized: bool = False) -> Tensor:
    """The points of a sample. It opens the tar file anew: what holds samples can go to any process.

    Args:
        sample: Of `list_tar`.
        num_points: As in `read_points`.
        normalized: As in `read_points`.

    Returns:
        Points, float32. [n, 3]

    Raises:
        DataError: As `read_points`.
    """
    suffix = PurePosixPath(sample.member).suffix.lower()
    return read_bytes(_content(sample, sample.size), suffix, sample.name, num_points, normalized=normalized)


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
        raise DataError(f"refused: the member {name!r} leads out of the shard")
    if not member.isreg() or member.sparse is not None:
        raise DataError(f"refused: the member {name!r} is a link or no plain file")
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
    if isinstance(value, str) and value.lstrip("-").isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"{name}: a label is a number or a name, got {str(value)[:40]!r}")
    return value
