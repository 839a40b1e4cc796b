"""The .pcd format of the Point Cloud Library: ascii, binary and binary_compressed."""

from pathlib import Path

import numpy as np

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.bounds import NUMBER_BYTES, require_unpacked
from pointpeft.data.formats.columns import coordinate_columns
from pointpeft.data.formats.text import decode, split_lines

_HEADER_BYTES = 65536  # a header is a dozen lines; a file without a DATA line in here is none
_REQUIRED = ("FIELDS", "SIZE", "TYPE")


def read_pcd(path: Path) -> np.ndarray:
    """The points of a .pcd file, float64. [n, 3]

    Source: https://pointclouds.org/documentation/tutorials/pcd_file_format.html
    """
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    header, body = _split_header(content)
    encoding = header["DATA"][0].lower()
    record, count = _record(header)
    points = _read_points(encoding, body, record, count)
    if header.get("WIDTH") and header.get("HEIGHT") and len(points):
        width, height = int(header["WIDTH"][0]), int(header["HEIGHT"][0])
        if width * height != count:
            raise DataError(f"its header announces {count} POINTS, but WIDTH and HEIGHT of {width} x {height}")
    return points


def _read_points(encoding: str, body: bytes, record: np.dtype, count: int) -> np.ndarray:
    if encoding == "ascii":
        return _read_ascii(body, record, count)
    if encoding == "binary":
        _require(len(body), record.itemsize * count)
        if count and len(body) >= record.itemsize * (count + 1):
            raise DataError(f"has {len(body) // record.itemsize} points, {count} announced")
        table = np.frombuffer(body, record, count)
        return np.stack([_column(table[axis]) for axis in _axes(record)], 1)
    if encoding == "binary_compressed":
        return _read_compressed(body, record, count)
    raise DataError(f"DATA must be ascii, binary or binary_compressed, got {encoding}")


def _split_header(content: bytes) -> tuple[dict[str, list[str]], bytes]:
    header: dict[str, list[str]] = {}
    start = 0
    while "DATA" not in header:
        end = content.find(b"\n", start, _HEADER_BYTES)
        if end < 0:
            raise DataError("has no header that ends with a DATA line")
        words = content[start:end].decode("ascii", "replace").split()
        if words and not words[0].startswith("#"):
            header[words[0].upper()] = words[1:]
        start = end + 1
    for name in (*_REQUIRED, "DATA"):
        if not header.get(name):
            raise DataError(f"its header has no {name}")
    if not header.get("POINTS") and not (header.get("WIDTH") and header.get("HEIGHT")):
        raise DataError("its header has neither POINTS nor WIDTH and HEIGHT")
    return header, content[start:]


def _record(header: dict[str, list[str]]) -> tuple[np.dtype, int]:
    """The layout of one point, and how many there are."""
    fields, counts = header["FIELDS"], header.get("COUNT", ["1"] * len(header["FIELDS"]))
    if not len(fields) == len(header["SIZE"]) == len(header["TYPE"]) == len(counts):
        raise DataError("FIELDS, SIZE, TYPE and COUNT of its header differ in length")
    columns_of = []
    for i, (name, size, type_letter, count) in enumerate(
        zip(fields, header["SIZE"], header["TYPE"], counts, strict=True)
    ):
        letter = {"F": "f", "I": "i", "U": "u"}.get(type_letter.upper())
        if letter is None or size not in ("1", "2", "4", "8"):
            raise DataError(f"field {name} has the unknown type {type_letter}{size}")
        # Padding fields share the name "_", which a record refuses twice.
        columns_of.append((f"_{i}" if name == "_" else name, f"<{letter}{size}", (int(count),)))
    if coordinate_columns(fields) is None:
        raise DataError(f"its points have no x, y and z, only {', '.join(fields)}")
    count = int(header["POINTS"][0]) if header.get("POINTS") else int(header["WIDTH"][0]) * int(header["HEIGHT"][0])
    if count < 0:
        raise DataError(f"POINTS must not be negative, got {count}")
    return np.dtype(columns_of), count


def _axes(record: np.dtype) -> list[str]:
    """The fields of x, y and z."""
    names = list(record.names or ())
    return [names[i] for i in coordinate_columns(names) or ()]


def _column(values: np.ndarray) -> np.ndarray:
    return values[:, 0].astype(np.float64)


def _require(got: int, need: int) -> None:
    if got < need:
        raise DataError(f"is cut off: {got} bytes of points, {need} announced")


def _read_ascii(body: bytes, record: np.dtype, count: int) -> np.ndarray:
    rows = [line for line in split_lines(decode(body)) if line.strip() and not line.startswith("#")]
    if len(rows) < count:
        raise DataError(f"is cut off: {len(rows)} points, {count} announced")
    if len(rows) > count > 0:
        raise DataError(f"has {len(rows)} points, {count} announced")
    if not count:
        return np.empty((0, 3))
    table = np.loadtxt(rows, np.float64, ndmin=2)
    starts, width = {}, 0
    for name in record.names or ():
        starts[name] = width
        width += record[name].shape[0]
    if table.shape[1] != width:
        raise DataError(f"its points have {table.shape[1]} columns, {width} announced")
    return table[:, [starts[axis] for axis in _axes(record)]]


def _read_compressed(body: bytes, record: np.dtype, count: int) -> np.ndarray:
    """Two sizes, then an LZF block that holds all values of the first field, then all of the second, and so on."""
    _require(len(body), 8)
    packed, unpacked = (int(n) for n in np.frombuffer(body, "<u4", 2))
    _require(len(body) - 8, packed)
    if unpacked != record.itemsize * count:
        raise DataError(f"its {count} points need {record.itemsize * count} bytes, {unpacked} announced")
    require_unpacked(len(body), max(unpacked, count * 3 * NUMBER_BYTES))
    raw = decompress_lzf(body[8 : 8 + packed], unpacked)
    columns, start = {}, 0
    for name in record.names or ():
        dtype = record[name]
        columns[name] = np.frombuffer(raw, dtype, count, start)
        start += dtype.itemsize * count
    return np.stack([_column(columns[axis]) for axis in _axes(record)], 1)


def decompress_lzf(packed: bytes, size: int) -> bytes:
    """Undoes LZF compression.

    Args:
        packed: Runs of literal bytes and references to bytes already written.
        size: Bytes that must come out.

    Raises:
        DataError: The block is damaged.
    """
    out = bytearray()
    i = 0
    try:
        while i < len(packed) and len(out) <= size:
            control = packed[i]
            i += 1
            if control < 32:
                out += packed[i : i + control + 1]
                i += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += packed[i]
                i += 1
            distance = ((control & 31) << 8 | packed[i]) + 1
            i += 1
            if distance > len(out):
                raise DataError("its compressed block is damaged: it refers to bytes before its start")
            start = len(out) - distance
            piece = out[start : start + length + 2]  # shorter than `length` where the copy overlaps itself: it repeats
            out += (piece * (-(-(length + 2) // len(piece))))[: length + 2]
    except IndexError:
        raise DataError("its compressed block is cut off") from None
    if len(out) != size:
        raise DataError(f"its compressed block is damaged: {len(out)} bytes came out, {size} announced")
    return bytes(out)
