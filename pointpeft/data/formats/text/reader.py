"""Text files of one cloud: a point a line, columns named by a header or in the order x, y, z."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.text.columns import named_columns, numbered_columns
from pointpeft.data.formats.text.rows import (
    COMMA_WAY_OUT,
    LOOKED_AT,
    NAN,
    NUMBER,
    RowFormat,
    find_row_format,
    require_no_decimal_commas,
)

_MOST_HEADER = 64  # lines before the first point; a text with more is no cloud
_COMMENTS = ("#", "//", "%", "!")
_COUNT = re.compile(
    r"(?:(?:number|num|no|nr)\.?\s*(?:of|_)?\s*)?(?:points?|pts|vertices|count|size|n)?\s*[:=]?\s*(\d+)\s*(?:points?|pts|vertices)?\.?",
    re.IGNORECASE,
)
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
         (b"\xfe\xff", "utf-16"))  # fmt: skip


def decode(content: bytes) -> str:
    """Text in UTF-8, in what its byte order mark says, or else in Latin-1, in which every byte is a character.

    Raises:
        DataError: It is no text.
    """
    for mark, encoding in _BOMS:
        if content.startswith(mark):
            try:
                return content.decode(encoding).removeprefix("\ufeff")
            except UnicodeDecodeError as error:
                raise DataError(f"cannot be read: it begins as {encoding} and is none: {error.reason}") from None
    if b"\0" in content:
        raise DataError("cannot be read: it holds NUL bytes, so it is no text, or UTF-16 without a byte order mark")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def split_lines(text: str) -> list[str]:
    """The lines of a text of any system, and no others: characters that Python takes for ends of lines are none."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_text(path: Path) -> np.ndarray:
    """The points of a text file, float64. [n, 3]

    Columns are separated by blanks, tabs, commas, semicolons or bars. A header, which may be a comment, names the
    columns; without names the first three are taken. A line before the points may say how many follow (.pts). Other
    columns may hold anything.

    Raises:
        DataError: It is ambiguous which columns hold the coordinates, or one of them is not numeric.
    """
    header, rows = _split(split_lines(decode(path.read_bytes())))
    if not rows:
        raise DataError("it has no points" if not header else f"it has no points, only: {header[-1][1][:60]!r}")
    form = find_row_format([line for _, line in rows[:LOOKED_AT]])
    announced = [count for is_comment, line in header if not is_comment and (count := _count(line)) is not None]
    if announced and announced[-1] != len(rows):
        raise DataError(f"its first line announces {announced[-1]} points, it has {len(rows)}")
    columns = named_columns(header, form, rows)
    if columns is None and (columns := numbered_columns(rows, form)) is not None:
        del rows[0]
    elif columns is None:
        columns = (0, 1, 2)
        require_no_decimal_commas([line for _, line in rows[:LOOKED_AT]], form)
    return _numbers(rows, form, columns)


def holds_rows(path: Path) -> bool:
    """Whether the beginning of a text has a row of numbers, as a cloud has and a document has not."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    try:
        lines = split_lines(decode(head))[:_MOST_HEADER]
    except DataError:  # no text: it is for the reader to say why
        return True
    return any(_is_row(line) for line in lines if line.strip())


def _split(lines: list[str]) -> tuple[list[tuple[bool, str]], list[tuple[int, str]]]:
    """The lines before the first point, each with whether it is a comment, and the numbered lines of points."""
    header: list[tuple[bool, str]] = []
    rows: list[tuple[int, str]] = []
    for number, raw in enumerate(lines, 1):
        line = raw.strip(" \x0b\x0c\x1a\ufeff")
        if not line.strip():
            continue
        if line.lstrip().startswith(_COMMENTS):
            if not rows:
                header.append((True, line.lstrip().lstrip("#/%!").strip(" \t")))
        elif rows or _is_row(line):
            line = line.split("#", 1)[0].rstrip(" ") if "#" in line else line
            rows.append((number, line))
        else:
            if not header and line.lower().split()[0] == "ncols":
                raise DataError("is a raster (Esri ASCII grid), not a cloud: export it as x y z")
            header.append((False, line))
            if len(header) > _MOST_HEADER:
                raise DataError(f"cannot be read: its first {_MOST_HEADER} lines hold no row of numbers")
    # One number alone says how many points follow, where they have more columns than one.
    if len(rows) > 1 and rows[0][1].strip().isdecimal() and len(re.split(r"[\s,;|]+", rows[1][1].strip())) > 1:
        header.append((False, rows.pop(0)[1]))
    return header, rows


def _is_row(line: str) -> bool:
    """Whether a line holds a point: numbers alone, at least three of them, or mostly numbers."""
    words = [word.strip("\"'") for word in re.split(r"[\s,;|]+", line)]
    numeric = [NUMBER.fullmatch(word) is not None for word in words if word]
    is_numeric = len(numeric) >= 3 and 3 * sum(numeric) >= 2 * len(numeric)
    return sum(numeric) >= 3 or is_numeric or (bool(numeric) and all(numeric))


def _count(line: str) -> int | None:
    match = _COUNT.fullmatch(line.strip().strip(",;"))
    return int(match[1]) if match and len(match[1]) < 19 else None


def _numbers(rows: Sequence[tuple[int, str]], form: RowFormat, columns: tuple[int, int, int]) -> np.ndarray:
    """The columns of all rows, float64. [n, 3]"""
    lines = [line for _, line in rows]
    if form.separator != ", " and not any(mark in line for line in lines for mark in "\"'"):
        text = [line.replace(",", ".") for line in lines] if form.decimal_comma else lines
        widths = {line.rstrip().count(form.separator) if form.separator else len(line.split()) for line in text}
        if len(widths) == 1:
            try:
                return np.loadtxt(text, np.float64, delimiter=form.separator, usecols=columns, ndmin=2, comments=None)
            except ValueError:
                pass  # the slow way below says in which line and why
    table = np.empty((len(rows), 3))
    width = len(form.cells(lines[0]))
    for i, (number, line) in enumerate(rows):
        cells = form.cells(line)
        if len(cells) != width and (len(cells) <= max(columns) or all(form.is_number(cell) for cell in cells)):
            raise DataError(f"cannot be read: line {number} has {len(cells)} columns, the first point has {width}")
        for k, column in enumerate(columns):
            if column >= len(cells):
                raise DataError(f"points must be rows of at least 3 columns, got {len(cells)} in line {number}")
            table[i, k] = _value(cells[column], form, number, column)
    return table


def _value(cell: str, form: RowFormat, line: int, column: int) -> float:
    if re.fullmatch(NAN, cell, re.IGNORECASE):
        return np.nan
    if form.is_number(cell):
        return float(cell.replace(",", ".", 1) if form.decimal_comma else cell)
    if re.fullmatch(r"[+-]?[\d.]*,[\d.,]*\d", cell):
        raise DataError(f"cannot be read: line {line}: {cell[:40]!r} seems to have a decimal comma; {COMMA_WAY_OUT}")
    raise DataError(
        f"cannot be read: line {line}: column {column + 1} is {cell[:40]!r}, not a number; a first line that names the "
        "columns, such as label x y z, says which of them are coordinates"
    )
