"""The .las format of laser scans, and its compressed form .laz."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.bounds import NUMBER_BYTES, require_unpacked
from pointpeft.data.formats.meshes import optional

_MOST_CHUNK_BYTES = 1 << 30  # of one chunk of points, unpacked; usual chunks have 50 000 points
_VLR_HEADER = 54


@dataclass(frozen=True)
class _Header:
    """The fields of the public header block that are used."""

    start: int
    """Byte of the first point, or of the compressed points."""
    end_of_header: int
    num_vlrs: int
    point_format: int
    record_length: int
    count: int
    scale: np.ndarray
    offset: np.ndarray


def read_las(path: Path) -> np.ndarray:
    """The points of a .las or .laz file, float64. [n, 3]

    Source: ASPRS, "LAS specification 1.4 R15", 2019, Table 3; the LASzip record: M. Isenburg, "LASzip", 2013.
    """
    if path.suffix.lower() == ".laz":
        optional("laspy")
        optional("lazrs")  # without it laspy names no package to install
    content = path.read_bytes()
    header = _header(content)
    if header.point_format & 0xC0:  # LASzip marks its points so
        return _read_compressed(path, content, header)
    need, got = header.count * header.record_length, len(content) - header.start
    if got < need:
        raise DataError(f"is cut off: {max(0, got)} bytes of points, {need} announced")
    record = np.dtype({"names": ["xyz"], "formats": [("<i4", 3)], "offsets": [0], "itemsize": header.record_length})
    raw = np.frombuffer(content, record, header.count, header.start)["xyz"]
    return raw * header.scale + header.offset


def _header(content: bytes) -> _Header:
    if len(content) < 227 or content[:4] != b"LASF":
        raise DataError("is not a LAS file")
    major, minor = content[24], content[25]
    if major != 1 or minor > 4:
        raise DataError(f"has the unknown LAS version {major}.{minor}")
    size, start, num_vlrs, point_format, length, count = struct.unpack_from("<HIIBHI", content, 94)
    if minor == 4:
        if len(content) < 375:
            raise DataError("is cut off: its header has 375 bytes")
        count = struct.unpack_from("<Q", content, 247)[0]
    numbers = np.frombuffer(content, "<f8", 6, 131)
    # Nothing below is looked for outside the file: libraries that believe a header run for hours, or end the process.
    if not 227 <= size <= start <= len(content) or num_vlrs * _VLR_HEADER > start - size:
        raise DataError(f"has a damaged header: {num_vlrs} records in bytes {size} to {start} of {len(content)}")
    if length < 12 + 8:  # x, y, z, and what every format has besides
        raise DataError(f"has a damaged header: a point of {length} bytes")
    if not (np.isfinite(numbers).all() and numbers[:3].all()):
        scale, offset = numbers[:3].tolist(), numbers[3:].tolist()
        raise DataError(f"has a damaged header: its coordinates have the scale {scale} and the offset {offset}")
    return _Header(start, size, num_vlrs, point_format, length, count, numbers[:3], numbers[3:])


def _read_compressed(path: Path, content: bytes, header: _Header) -> np.ndarray:
    laspy = optional("laspy")
    optional("lazrs")
    chunk = _chunk_size(content, header)
    chunks = -(-header.count // chunk)
    # The first point of a chunk is stored as it is: more chunks than fit so cannot be in the file. lazrs believes these
    # numbers, and a process that asks for too much memory there is ended.
    chunks = max(chunks, _chunks_in_table(content, header))
    if chunk * header.record_length > _MOST_CHUNK_BYTES or chunks * header.record_length > len(content):
        raise DataError(f"has a damaged header: {header.count} points in chunks of {chunk}, in {len(content)} bytes")
    if not header.count:
        return np.empty((0, 3))
    require_unpacked(len(content), header.count * (header.record_length + 3 * NUMBER_BYTES))
    try:
        # Not in parallel: that way believes the table of chunks, and a damaged one asks for any amount of memory.
        return np.asarray(laspy.read(path, laz_backend=laspy.LazBackend.Lazrs).xyz, np.float64)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what lazrs raises is no Exception
            raise
        raise DataError(f"its compressed points are damaged: {error}") from None


def _chunks_in_table(content: bytes, header: _Header) -> int:
    """How many chunks the table behind the compressed points announces."""
    if header.start + 8 > len(content):
        raise DataError("is cut off: it has no compressed points")
    table = struct.unpack_from("<q", content, header.start)[0]
    if table == -1:  # a writer that could not go back left the place at the end of the file
        table = struct.unpack_from("<q", content, len(content) - 8)[0]
    if not header.start + 8 <= table <= len(content) - 8:
        raise DataError(f"is damaged or cut off: its table of chunks is at byte {table} of {len(content)}")
    return struct.unpack_from("<4xI", content, table)[0]


def _chunk_size(content: bytes, header: _Header) -> int:
    """Points of a chunk, after the LASzip record's other entries have been found sound."""
    offset = header.end_of_header
    for _ in range(header.num_vlrs):
        if offset + _VLR_HEADER > header.start:
            break
        user, record_id, length = struct.unpack_from("<2x16sHH", content, offset)
        offset += _VLR_HEADER
        if user.rstrip(b"\0") == b"laszip encoded" and record_id == 22204:
            if length < 34 or offset + length > header.start:
                break
            chunk, num_items = struct.unpack_from("<12xI16xH", content, offset)
            if length < 34 + 6 * num_items:
                break
            sizes = [struct.unpack_from("<2xH2x", content, offset + 34 + 6 * i)[0] for i in range(num_items)]
            if sum(sizes) != header.record_length or not chunk:
                break
            return header.count or 1 if chunk == 0xFFFFFFFF else chunk  # chunks of their own sizes
        offset += length
    raise DataError("has no sound LASzip record")
