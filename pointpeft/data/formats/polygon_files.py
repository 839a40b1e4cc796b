"""The .obj, .stl and .off formats of surfaces: geometry alone, in whatever encoding names and comments are."""

import re
from pathlib import Path

import numpy as np

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.meshes import Mesh, triangulate
from pointpeft.data.formats.text import decode, split_lines

_OBJ_VERTEX_WORDS = ("v", "vt", "vn", "vp", "vc")
_OBJ_FREE_FORM = ("curv", "curv2", "surf", "cstype")
_STL_HEADER, _STL_TRIANGLE = 84, 50  # bytes
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?nan|[+-]?inf(?:inity)?"
_STL_VERTEX = re.compile(rf"\bvertex\s+({_NUMBER})\s+({_NUMBER})\s+({_NUMBER})(?=\s|$)", re.IGNORECASE)
_OFF_HEAD = re.compile(r"(ST)?(C)?(N)?(4)?(n)?OFF(?=[\s\d]|$)", re.IGNORECASE)


def read_obj(path: Path) -> Mesh | np.ndarray:
    """A .obj file of one or many objects: a mesh where it has faces, else its vertices as points. [n, 3]

    A negative index counts back from the vertices before its face. Colours behind coordinates are passed over.

    Raises:
        DataError: A line of vertices or faces that is none, or free-form surfaces alone.

    Source: Alias|Wavefront, "Advanced Visualizer Manual", appendix B1, "Object Files".
    """
    vertices: list[tuple[float, ...]] = []
    polygons: list[list[int]] = []
    free_form = False
    text = decode(path.read_bytes()).replace("\r\n", "\n").replace("\\\n", " ")
    for number, line in enumerate(split_lines(text), 1):
        word, *values = line.split("#", 1)[0].split() or [""]
        word = word.lower()
        if word == "v":
            vertices.append(_vertex(values, number))
        elif word in ("f", "fo"):
            polygons.append([_corner(value, len(vertices), number) for value in values])
        elif word in _OBJ_FREE_FORM:
            free_form = True
        elif word[:1] in ("v", "f") and word not in _OBJ_VERTEX_WORDS:
            raise DataError(f"cannot be read: line {number} begins with {word[:40]!r}")
    points = np.array(vertices, np.float64).reshape(-1, 3)
    if polygons:
        return Mesh(points, triangulate(polygons))
    if free_form:
        raise DataError("holds free-form curves or surfaces and no faces: export it as a mesh of polygons")
    return points


def _vertex(values: list[str], line: int) -> tuple[float, ...]:
    try:
        if len(values) < 3 or any("_" in value for value in values[:3]):
            raise ValueError
        return tuple(float(value) for value in values[:3])
    except ValueError:
        raise DataError(f"cannot be read: line {line} must hold three numbers, got {' '.join(values)[:60]!r}") from None


def _corner(value: str, count: int, line: int) -> int:
    index = value.split("/", 1)[0]
    if not re.fullmatch(r"[+-]?\d{1,18}", index) or not int(index):
        raise DataError(f"cannot be read: line {line}: {value[:40]!r} is no index of a vertex, which count from 1")
    if int(index) < -count:
        raise DataError(f"line {line}: a face names vertex {index} of the {count} before it")
    return int(index) - 1 if int(index) > 0 else count + int(index)


def read_stl(path: Path) -> Mesh:
    """A .stl file, binary or text, of one or many solids.

    A binary file that lacks the end of its last triangle gives the others and a warning.

    Raises:
        DataError: It is cut off before that, or announces another number of triangles than it has.

    Source: 3D Systems, "Stereolithography Interface Specification", 1989.
    """
    content = path.read_bytes()
    count = int.from_bytes(content[80:84], "little") if len(content) >= _STL_HEADER else -1
    size = _STL_HEADER + _STL_TRIANGLE * count
    warning = ""
    is_text = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(b"solid")
    if len(content) != size and is_text and re.search(rb"facet|endsolid", content, re.IGNORECASE):
        corners = _stl_text(decode(content))
    else:
        if count < 0:
            raise DataError("is no STL file: neither text that begins with solid, nor the 84 bytes of a binary header")
        present = (len(content) - _STL_HEADER) / _STL_TRIANGLE
        if present < count and (int(present) < count - 1 or count == 1):
            raise DataError(f"is cut off: {present:g} triangles, {count} announced")
        if present >= count + 1 and present == int(present):
            raise DataError(f"its header announces {count} triangles, it has {int(present)}")
        if present < count:
            count -= 1
            warning = f"is cut off: the last of its {count + 1} triangles is left out"
        record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
        corners = np.frombuffer(content, record, count, _STL_HEADER)["corners"].astype(np.float64)
    return Mesh(corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3), warning)


def _stl_text(text: str) -> np.ndarray:
    """The corners of all triangles. [F, 3, 3]"""
    # Names of solids, which may be any words, end with their line.
    solids = len(re.findall(r"^\s*solid\b", text, re.IGNORECASE | re.MULTILINE))
    ends = len(re.findall(r"^\s*endsolid\b", text, re.IGNORECASE | re.MULTILINE))
    body = re.sub(r"^\s*(?:end)?solid\b[^\n\r]*", "", text, flags=re.IGNORECASE | re.MULTILINE)
    facets = re.split(r"\bendfacet\b", body, flags=re.IGNORECASE)
    if facets.pop().strip() or ends < solids:
        raise DataError("is cut off: its last solid has no end")
    corners = [_STL_VERTEX.findall(facet) for facet in facets]
    wrong = [len(each) for each, facet in zip(corners, facets, strict=True)
             if len(each) != 3 or len(re.findall(r"\bvertex\b", facet, re.IGNORECASE)) != 3]  # fmt: skip
    if wrong:
        raise DataError(f"cannot be read: {len(wrong)} facets have no 3 corners, the first {wrong[0]}")
    return np.array(corners, np.float64).reshape(-1, 3, 3)


def read_off(path: Path) -> Mesh | np.ndarray:
    """A .off file: a mesh where it has faces, else its vertices as points. [n, 3]

    Colours and normals are passed over. Many files of ModelNet40 lack the line break after "OFF". Where vertices
    have three numbers, lines may break anywhere.

    Raises:
        DataError: It is cut off, or has points of four and more dimensions.

    Source: http://www.geomview.org/docs/html/OFF.html
    """
    rows = [line.split("#", 1)[0].strip() for line in split_lines(decode(path.read_bytes()))]
    rows = [row for row in rows if row]
    head = _OFF_HEAD.match(rows[0]) if rows else None
    if head is None:
        raise DataError("does not start with OFF")
    if head[4] or head[5] or "nOFF" in head[0]:
        raise DataError(f"holds points of other than three dimensions ({head[0]})")
    rows[0] = rows[0][head.end() :].strip()
    if rows[0].upper().startswith("BINARY"):
        raise DataError("is a binary OFF file: save it as text")
    rows = rows[1:] if not rows[0] else rows
    counts = rows[0].split() if rows else []
    if len(counts) not in (2, 3) or not all(re.fullmatch(r"\d{1,15}", count) for count in counts):
        raise DataError("does not say how many vertices and faces it has")
    num_vertices, num_faces = int(counts[0]), int(counts[1])
    rows = rows[1:]
    if len(rows) < num_vertices + num_faces:
        rows = _off_rows(rows, num_vertices, num_faces, bool(head[1] or head[2] or head[3]))
    if len(rows) > num_vertices + num_faces:
        raise DataError(f"has {len(rows)} lines of vertices and faces, {num_vertices} + {num_faces} announced")
    if not num_vertices:
        return np.empty((0, 3))
    vertices = np.loadtxt(rows[:num_vertices], np.float64, usecols=(0, 1, 2), ndmin=2)
    if not num_faces:
        return vertices
    polygons = []
    for row in rows[num_vertices:]:
        size, *rest = row.split()
        if not size.isdecimal() or len(rest) < int(size):
            raise DataError(f"a face announces {size[:20]} corners, it has {len(rest)}")
        polygons.append(np.array(rest[: int(size)], np.int64))
    return Mesh(vertices, triangulate(polygons))


def _off_rows(rows: list[str], num_vertices: int, num_faces: int, has_more: bool) -> list[str]:
    """A row for every vertex and face, of a file that breaks its lines elsewhere."""
    cut_off = DataError(f"is cut off: {len(rows)} lines of vertices and faces, {num_vertices} + {num_faces} announced")
    words = " ".join(rows).split()
    if has_more or len(words) < 3 * num_vertices + num_faces:
        raise cut_off
    result = [" ".join(words[i : i + 3]) for i in range(0, 3 * num_vertices, 3)]
    position = 3 * num_vertices
    for _ in range(num_faces):
        if position >= len(words) or not words[position].isdecimal() or len(words) <= position + int(words[position]):
            raise cut_off
        result.append(" ".join(words[position : position + 1 + int(words[position])]))
        position += 1 + int(words[position])
    if position < len(words):
        raise DataError(f"has {len(words) - position} numbers behind its last face")
    return result
