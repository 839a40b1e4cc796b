"""How the rows of a text file are written: the separator of columns, and points or commas in decimal numbers."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pointpeft.data.dataset import DataError

LOOKED_AT = 1000  # rows by which the separator is found
NAN = r"[+-]?nan\(\w*\)|[+-]?1\.#\w+"  # how some systems write what is not a number
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf|infinity)|" + NAN, re.IGNORECASE)
WITH_COMMA = re.compile(r"[+-]?\d*,\d+(?:e[+-]?\d+)?", re.IGNORECASE)
COMMA_WAY_OUT = "write decimal points, or separate the columns by semicolons or tabs"


@dataclass(frozen=True)
class RowFormat:
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
        """Whether a cell holds a number, in the way these rows write numbers."""
        return NUMBER.fullmatch(cell.replace(",", ".", 1) if self.decimal_comma else cell) is not None


def find_row_format(rows: Sequence[str]) -> RowFormat:
    """How the columns are separated, by the first rows.

    Raises:
        DataError: Decimal commas and points are mixed.
    """
    for mark in (";", "|"):
        if all(mark in row for row in rows):
            return RowFormat(mark, _has_decimal_commas(rows, mark))
    tabs = [row.strip().count("\t") for row in rows]
    if min(tabs) >= 2 and not all(",\t" in row for row in rows) and not _has_empty_column(rows):
        return RowFormat("\t", _has_decimal_commas(rows, "\t"))
    if not any("," in row for row in rows):
        return RowFormat(None)
    if any('"' in row for row in rows):
        quoted = RowFormat("," if all("," in row for row in rows) else None)
        return RowFormat(quoted.separator, _has_decimal_commas(rows, quoted.separator))
    words = [row.split() for row in rows]
    # "0,25, 1,5, 2,75": what is separated by a comma and a blank has commas of its own.
    if all(len(row) >= 3 and all(WITH_COMMA.fullmatch(word.rstrip(",")) for word in row[:3]) for row in words):
        return RowFormat(", " if all(word.endswith(",") for row in words for word in row[:2]) else None, True)
    if all(len(row) >= 3 and all("," not in w or WITH_COMMA.fullmatch(w) for w in row[:3]) for row in words):
        return RowFormat(None, _has_decimal_commas(rows, None))
    return RowFormat(",")


def _has_empty_column(rows: Sequence[str]) -> bool:
    """Whether tabs align columns instead of separating them: two of them stand between the same columns of all rows."""
    table = [row.split("\t") for row in rows]
    return any(not any(row[i].strip() for row in table) for i in range(min(map(len, table)) - 1))


def _has_decimal_commas(rows: Sequence[str], separator: str | None) -> bool:
    cells = [cell for row in rows for cell in RowFormat(separator).cells(row)]
    commas = [cell for cell in cells if WITH_COMMA.fullmatch(cell)]
    points = [cell for cell in cells if "." in cell and NUMBER.fullmatch(cell)]
    if commas and points:
        raise DataError(f"cannot be read: some numbers have decimal commas ({commas[0]}), others points ({points[0]})")
    return bool(commas)


def require_no_decimal_commas(rows: Sequence[str], form: RowFormat) -> None:
    """Refuses 0,25,1,5,2,75: three numbers with decimal commas, or six whole ones.

    Raises:
        DataError: It is ambiguous.
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
            f"{COMMA_WAY_OUT}, or name all {width} columns in a first line such as x,y,z,red,green,blue"
        )
