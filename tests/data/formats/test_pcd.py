import numpy as np
import pytest
import torch

from pointpeft.data import DataError, read_points
from pointpeft.data.formats.pcd import decompress_lzf


def compress_lzf(data):
    """A plain compressor: the longest match among the last 300 bytes, else a literal."""
    out, literals, i = bytearray(), bytearray(), 0

    def flush():
        for start in range(0, len(literals), 32):
            run = literals[start : start + 32]
            out.append(len(run) - 1)
            out.extend(run)
        literals.clear()

    while i < len(data):
        best, distance = 0, 0
        for d in range(1, min(i, 300) + 1):
            length = 0
            while length < 264 and i + length < len(data) and data[i + length - d] == data[i + length]:
                length += 1
            if length > best:
                best, distance = length, d
        if best < 3:
            literals.append(data[i])
            i += 1
            continue
        flush()
        code, back = best - 2, distance - 1
        out.append(min(code, 7) << 5 | back >> 8)
        if code >= 7:
            out.append(code - 7)
        out.append(back & 255)
        i += best
    flush()
    return bytes(out)


# Padding, a field before x, a field of several values, and two types of float.
RECORD = np.dtype([("rgb", "<u4"), ("x", "<f4"), ("y", "<f8"), ("z", "<f4"), ("_", "<u1", (3,)), ("fpfh", "<f4", (2,))])
HEADER = """# .PCD v0.7
VERSION 0.7
FIELDS rgb x y z _ fpfh
SIZE 4 4 8 4 1 4
TYPE U F F F U F
COUNT 1 1 1 1 3 2
WIDTH {n}
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS {n}
DATA {kind}
"""


def write_pcd(path, points, kind):
    table = np.zeros(len(points), RECORD)
    table["rgb"] = 7
    table["fpfh"] = 99
    for i, axis in enumerate("xyz"):
        table[axis] = points[:, i]
    if kind == "ascii":
        flat = [[r["rgb"], f"{r['x']:.9g}", f"{r['y']:.9g}", f"{r['z']:.9g}", *r["_"], *r["fpfh"]] for r in table]
        body = "\n".join(" ".join(map(str, row)) for row in flat).encode()
    elif kind == "binary":
        body = table.tobytes()
    else:
        raw = b"".join(np.ascontiguousarray(table[name]).tobytes() for name in RECORD.names)
        packed = compress_lzf(raw)
        body = np.array([len(packed), len(raw)], "<u4").tobytes() + packed
    path.write_bytes(HEADER.format(n=len(points), kind=kind).encode() + body)


KINDS = ("ascii", "binary", "binary_compressed")


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(37, 3)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cloud_comes_back_as_written(kind, points, tmp_path):
    write_pcd(tmp_path / "a.pcd", points, kind)
    assert torch.equal(read_points(tmp_path / "a.pcd"), torch.from_numpy(points))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_off_is_refused(kind, points, tmp_path):
    path = tmp_path / "a.pcd"
    write_pcd(path, points, kind)
    content = path.read_bytes()
    for part in (0.1, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(DataError, match=r"a\.pcd: "):
            read_points(path)


@pytest.mark.parametrize("kind", KINDS)
def test_invalid_points_of_a_depth_camera_are_named(kind, points, tmp_path):
    points[5] = np.nan
    write_pcd(tmp_path / "a.pcd", points, kind)
    with pytest.raises(DataError, match="1 of 37 points are not finite, the first is point 5"):
        read_points(tmp_path / "a.pcd")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("DATA binary", "DATA zip", "got zip"),
        ("DATA binary\n", "", "DATA line"),
        ("FIELDS rgb x y z", "FIELDS rgb x y w", "no x, y and z"),
        ("SIZE 4 4 8 4 1 4", "SIZE 4 4 8 4 1", "differ in length"),
        ("TYPE U F", "TYPE Q F", "unknown type Q4"),
        ("SIZE 4 4 8 4 1 4\n", "", "no SIZE"),
        ("POINTS 37", "POINTS 38", "cut off"),
        ("POINTS 37", "POINTS 0", "no points"),
        ("POINTS 37", "POINTS -1", "negative"),
        ("POINTS 37", "POINTS many", "cannot be read"),
        ("POINTS 37", "POINTS 36", "has 37 points, 36 announced"),  # the last one was lost
        ("WIDTH 37", "WIDTH 36", "announces 37 POINTS, but WIDTH and HEIGHT of 36 x 1"),
    ],
)
def test_a_wrong_header_is_refused(old, new, words, points, tmp_path):
    path = tmp_path / "a.pcd"
    write_pcd(path, points, "binary")
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), 1))
    with pytest.raises(DataError, match=words):
        read_points(path)


def test_a_point_more_than_announced_is_refused_in_text_too(points, tmp_path):
    path = tmp_path / "a.pcd"
    write_pcd(path, points, "ascii")
    path.write_bytes(path.read_bytes().replace(b"POINTS 37", b"POINTS 36").replace(b"WIDTH 37", b"WIDTH 36"))
    with pytest.raises(DataError, match="has 37 points, 36 announced"):
        read_points(path)


def test_comments_and_names_in_any_letters(points, tmp_path):
    path = tmp_path / "a.pcd"
    write_pcd(path, points, "ascii")
    content = path.read_bytes().replace(b"FIELDS rgb x y z", b"FIELDS rgb X Y Z").replace(b"\n", b"\r\n")
    path.write_bytes(b"\xef\xbb\xbf# caf\xe9\r\n" + content)
    assert torch.equal(read_points(path), torch.from_numpy(points))


def test_points_follow_from_width_and_height_and_count_defaults_to_one(points, tmp_path):
    header = "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 37\nHEIGHT 1\nDATA binary\n"
    (tmp_path / "a.pcd").write_bytes(header.encode() + points.tobytes())
    assert torch.equal(read_points(tmp_path / "a.pcd"), torch.from_numpy(points))


@pytest.mark.parametrize("data", [b"", b"a", b"ab" * 500, bytes(1000), bytes(range(256)) * 3])
def test_lzf_undoes_compression(data):
    packed = compress_lzf(data)
    if len(data) > 900:
        assert len(packed) < len(data) / 5  # references were used
    assert decompress_lzf(packed, len(data)) == data


@pytest.mark.parametrize(
    ("packed", "size"),
    [(b"\x00a\x20\x05", 4), (b"\x00a\x20", 4), (b"\x00a", 2), (b"\x01ab", 1), (b"\xe0", 3), (b"\x05ab", 6)],
)
def test_a_damaged_block_is_refused(packed, size):
    with pytest.raises(DataError, match="compressed block"):
        decompress_lzf(packed, size)
