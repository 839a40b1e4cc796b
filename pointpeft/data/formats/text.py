"""Text files of one cloud: a point a line, columns named by a header or in the order x, y, z."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.columns import coordinate_columns, is_other, shown, without_units

_MOST_HEADER = 64  # lines before the first point; a text with more is no cloud
_LOOKED_AT = 1000  # rows by which the separator is found
_COMMENTS = ("#", "//", "%", "!")
_NAN = r"[+-]?nan\(\w*\)|[+-]?1\.#\w+"  # how some systems write what is not a number
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf|infinity)|" + _NAN, re.IGNORECASE)
_WITH_COMMA = re.compile(r"[+-]?\d*,\d+(?:e[+-]?\d+)?", re.IGNORECASE)
_COUNT = re.compile(
    r"(?:(?:number|num|no|nr)\.?\s*(?:of|_)?\s*)?(?:points?|pts|vertices|count|size|n)?\s*[:=]?\s*(\d+)\s*(?:points?|pts|vertices)?\.?",
    re.IGNORECASE,
)
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
         (b"\xfe\xff", "utf-16"))  # fmt: skip
_COMMA_WAY_OUT = "write decimal points, or separate the columns by semicolons or tabs"


@dataclass(frozen=True)
class _Form:
    """How rows are written.

    Attributes:
        separator: Between columns; None for any blanks.
        decimal_comma: Whether numbers are written 0,5.
    """

    separator: str | None
    decimal_comma: bool = False

    def cells(self, line: str) -> list[str]:
        """The columns of a row, without quotes and without empty ones at its end."""
        if '"' in line:
            line = line if self.separator else " ".join(line.split())
            mark = (self.separator or " ").strip(" ") or " "
            cells = next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])
        else:
            cells = line.split(self.separator)
        cells = [cell.strip().strip("'") for cell in cells]
        while cells and not cells[-1]:
            cells.pop()
        return cells

    def is_number(self, cell: str) -> bool:
        return _NUMBER.fullmatch(cell.replace(",", ".", 1) if self.decimal_comma else cell) is not None


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
        DataError: It cannot be told which columns the coordinates are, or one of them is no number.
    """
    header, rows = _split(split_lines(decode(path.read_bytes())))
    if not rows:
        raise DataError("it has no points" if not header else f"it has no points, only: {header[-1][1][:60]!r}")
    form = _form([line for _, line in rows[:_LOOKED_AT]])
    announced = [count for is_comment, line in header if not is_comment and (count := _count(line)) is not None]
    if announced and announced[-1] != len(rows):
        raise DataError(f"its first line announces {announced[-1]} points, it has {len(rows)}")
    columns = _named_columns(header, form, rows)
    if columns is None and (columns := _numbered_columns(rows, form)) is not None:
        del rows[0]
    elif columns is None:
        columns = (0, 1, 2)
        _require_no_decimal_commas([line for _, line in rows[:_LOOKED_AT]], form)
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
    numeric = [_NUMBER.fullmatch(word) is not None for word in words if word]
    most = len(numeric) >= 3 and 3 * sum(numeric) >= 2 * len(numeric)
    return sum(numeric) >= 3 or most or (bool(numeric) and all(numeric))


def _count(line: str) -> int | None:
    match = _COUNT.fullmatch(line.strip().strip(",;"))
    return int(match[1]) if match and len(match[1]) < 19 else None


def _form(rows: Sequence[str]) -> _Form:
    """How the columns are separated, by the first rows.

    Raises:
        DataError: Decimal commas and points are mixed.
    """
    for mark in (";", "|"):
        if all(mark in row for row in rows):
            return _Form(mark, _has_decimal_commas(rows, mark))
    tabs = [row.strip().count("\t") for row in rows]
    if min(tabs) >= 2 and not all(",\t" in row for row in rows) and not _has_empty_column(rows):
        return _Form("\t", _has_decimal_commas(rows, "\t"))
    if not any("," in row for row in rows):
        return _Form(None)
    if any('"' in row for row in rows):
        quoted = _Form("," if all("," in row for row in rows) else None)
        return _Form(quoted.separator, _has_decimal_commas(rows, quoted.separator))
    words = [row.split() for row in rows]
    # "0,25, 1,5, 2,75": what is separated by a comma and a blank has commas of its own.
    if all(len(row) >= 3 and all(_WITH_COMMA.fullmatch(word.rstrip(",")) for word in row[:3]) for row in words):
        return _Form(", " if all(word.endswith(",") for row in words for word in row[:2]) else None, True)
    if all(len(row) >= 3 and all("," not in w or _WITH_COMMA.fullmatch(w) for w in row[:3]) for row in words):
        return _Form(None, _has_decimal_commas(rows, None))
    return _Form(",")


def _has_empty_column(rows: Sequence[str]) -> bool:
    """Whether tabs align columns instead of separating them: two of them stand between the same columns of all rows."""
    table = [row.split("\t") for row in rows]
    return any(not any(row[i].strip() for row in table) for i in range(min(map(len, table)) - 1))


def _has_decimal_commas(rows: Sequence[str], separator: str | None) -> bool:
    cells = [cell for row in rows for cell in _Form(separator).cells(row)]
    commas = [cell for cell in cells if _WITH_COMMA.fullmatch(cell)]
    points = [cell for cell in cells if "." in cell and _NUMBER.fullmatch(cell)]
    if commas and points:
        raise DataError(f"cannot be read: some numbers have decimal commas ({commas[0]}), others points ({points[0]})")
    return bool(commas)


def _require_no_decimal_commas(rows: Sequence[str], form: _Form) -> None:
    """Refuses 0,25,1,5,2,75: three numbers with decimal commas, or six whole ones.

    Raises:
        DataError: It cannot be told.
    """
    if form.separator != ",":
        return
    table = [form.cells(row) for row in rows]
    width = len(table[0])
    if width < 6 or any(len(row) < 6 for row in table):
        return
    if all(re.fullmatch(r"[+-]?\d+", cell) for row in table for cell in row[:6]) and all(
        cell.isdecimal() for row in table for cell in row[1:6:2]
    ):
        raise DataError(
            f"cannot be read: {rows[0][:40]!r} may begin with 6 whole numbers or with 3 that have decimal commas; "
            f"{_COMMA_WAY_OUT}, or name all {width} columns in a first line such as x,y,z,red,green,blue"
        )


def _named_columns(
    header: Sequence[tuple[bool, str]], form: _Form, rows: Sequence[tuple[int, str]]
) -> tuple[int, int, int] | None:
    """The coordinates by the last line of the header that names them; None where no line names any column.

    Raises:
        DataError: The names do not fit the rows, or say that the first columns are no coordinates.
    """
    first = form.cells(rows[0][1])
    unknown: list[str] = []
    for is_comment, line in reversed(header):
        # A comment that is separated as the rows are is no sentence.
        is_table = (form.separator or "").strip(" ") not in ("", ",") and line.count(form.separator) == len(first) - 1
        is_table = is_table or (form.separator == "," and re.fullmatch(r"[^\s,]+(,\s*[^\s,]+){2,}", line) is not None)
        for names in _names(line, form, len(first)):
            if is_comment and len(names) > len(first):  # a sentence
                continue
            try:
                columns = coordinate_columns(names)
            except DataError:
                if is_comment and len(names) != len(first):
                    continue
                raise
            if columns is None:
                named = len(names) == len(first) and not any(_NUMBER.fullmatch(name) for name in names)
                if named and (not is_comment or is_table or all(map(is_other, names[:3]))):
                    unknown = unknown or names
                continue
            if len(names) * 2 == len(first):
                _require_no_decimal_commas([line for _, line in rows[:_LOOKED_AT]], form)
            if len(names) == len(first) - 1 and _counts_rows(rows, form):
                return (columns[0] + 1, columns[1] + 1, columns[2] + 1)
            if len(names) > len(first) and columns != (0, 1, 2):
                raise DataError(
                    f"cannot be read: its header names {len(names)} columns ({shown(names)}), "
                    f"its rows have {len(first)}"
                )
            return columns
    if others := [name for name in unknown[:3] if is_other(name)]:
        raise DataError(
            f"its header names no x, y and z, and its first columns are {shown(unknown[:3])}: say by a header which "
            f"columns are coordinates; {shown(others)} {'are' if len(others) > 1 else 'is'} none"
        )
    return None


def _counts_rows(rows: Sequence[tuple[int, str]], form: _Form) -> bool:
    """Whether the first column counts the rows: R writes it so, without a name."""
    numbers = [form.cells(line)[0] for _, line in rows]
    return numbers in ([str(i) for i in range(1, len(rows) + 1)], [str(i) for i in range(len(rows))])


def _names(line: str, form: _Form, width: int) -> list[list[str]]:
    """What a line may name: split as the rows are, and at anything that separates words."""
    line = without_units(line)
    line = re.sub(r"^\w[\w ]+:\s+", "", line)  # "Fields: x y z"
    found = []
    if form.separator and form.separator.strip(" ") and form.separator.strip(" ") in line:
        found.append(_Form(form.separator.strip(" ")).cells(line))
    words = [word.strip("\"'") for word in re.split(r"[\s,;|]+", line.strip())]
    if found and len(found[0]) == width:
        return found
    return [*found, [word for word in words if word]]


def _numbered_columns(rows: Sequence[tuple[int, str]], form: _Form) -> tuple[int, int, int] | None:
    """The coordinates below a first line 0,1,2, as tables without names are written by pandas; None for other lines."""
    if len(rows) < 2 or form.separator is None:
        return None
    names, cells = form.cells(rows[0][1]), form.cells(rows[1][1])
    index = bool(names) and not names[0]
    numbers = [str(i) for i in range(len(names) - index)]
    if len(numbers) < 3 or names[index:] != numbers or len(cells) != len(names):
        return None
    if not index and any(re.fullmatch(r"[+-]?\d+", cell) for cell in cells[:3]):
        return None
    return (index, index + 1, index + 2)


def _numbers(rows: Sequence[tuple[int, str]], form: _Form, columns: tuple[int, int, int]) -> np.ndarray:
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


def _value(cell: str, form: _Form, line: int, column: int) -> float:
    if re.fullmatch(_NAN, cell, re.IGNORECASE):
        return np.nan
    if form.is_number(cell):
        return float(cell.replace(",", ".", 1) if form.decimal_comma else cell)
    if re.fullmatch(r"[+-]?[\d.]*,[\d.,]*\d", cell):
        raise DataError(f"cannot be read: line {line}: {cell[:40]!r} seems to have a decimal comma; {_COMMA_WAY_OUT}")
    raise DataError(
        f"cannot be read: line {line}: column {column + 1} is {cell[:40]!r}, not a number; a first line that names the "
        "columns, such as label x y z, says which of them are coordinates"
    )
