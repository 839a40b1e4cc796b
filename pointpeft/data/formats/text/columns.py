"""Which columns of a text file hold the coordinates, by the lines before the first point."""

import re
from collections.abc import Sequence

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.columns import coordinate_columns, is_other, shown, without_units
from pointpeft.data.formats.text.rows import LOOKED_AT, NUMBER, RowFormat, require_no_decimal_commas


def named_columns(
    header: Sequence[tuple[bool, str]], form: RowFormat, rows: Sequence[tuple[int, str]]
) -> tuple[int, int, int] | None:
    """The coordinates by the last line of the header that names them; None where no line names any column.

    Raises:
        DataError: The names do not fit the rows, or say that the first columns are no coordinates.
    """
    first = form.cells(rows[0][1])
    unknown: list[str] = []
    for is_comment, line in reversed(header):
        # A comment that is separated as the rows are is no sentence.
        separator = form.separator or ""
        is_table = separator.strip(" ") not in ("", ",") and line.count(separator) == len(first) - 1
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
                named = len(names) == len(first) and not any(NUMBER.fullmatch(name) for name in names)
                if named and (not is_comment or is_table or all(map(is_other, names[:3]))):
                    unknown = unknown or names
                continue
            if len(names) * 2 == len(first):
                require_no_decimal_commas([line for _, line in rows[:LOOKED_AT]], form)
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


def _counts_rows(rows: Sequence[tuple[int, str]], form: RowFormat) -> bool:
    """Whether the first column counts the rows: R writes it so, without a name."""
    numbers = [form.cells(line)[0] for _, line in rows]
    return numbers in ([str(i) for i in range(1, len(rows) + 1)], [str(i) for i in range(len(rows))])


def _names(line: str, form: RowFormat, width: int) -> list[list[str]]:
    """Candidate column names of a line: split as the rows are, and at anything that separates words."""
    line = without_units(line)
    line = re.sub(r"^\w[\w ]+:\s+", "", line)  # "Fields: x y z"
    names = []
    if form.separator and form.separator.strip(" ") and form.separator.strip(" ") in line:
        names.append(RowFormat(form.separator.strip(" ")).cells(line))
    words = [word.strip("\"'") for word in re.split(r"[\s,;|]+", line.strip())]
    if names and len(names[0]) == width:
        return names
    return [*names, [word for word in words if word]]


def numbered_columns(rows: Sequence[tuple[int, str]], form: RowFormat) -> tuple[int, int, int] | None:
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
