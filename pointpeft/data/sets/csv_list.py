"""A CSV file that lists clouds and their labels."""

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.text import decode, split_lines
from pointpeft.data.sets.listing import LEVELS, UNUSED, Listing, make_listing

_PATH_COLUMN, _LABEL_COLUMN, _SPLIT_COLUMN = _COLUMNS = ("path", "label", "split")
# Other common names of these columns: a first line of such words is a header.
_OTHER_NAMES = {
    *("file", "files", "filename", "filepath", "file_name", "file_path"),
    *("cloud", "pointcloud", "point_cloud", "name", "id"),
    *("class", "classname", "class_name", "class_id", "category", "target", "type", "y", "label_id", "object"),
    *("set", "subset", "partition", "fold"),
}
_SEPARATORS = ";\t|,"
_FORM = "path,label[,split]"
_MAX_PROBLEMS_EACH = 3  # of one kind, if they are all that there is


def scan_csv(path: Path) -> Listing:
    """Lists the clouds that a CSV file names; problems are collected, not raised."""
    root = path.parent
    notes: list[str] = []
    clouds: dict[str, list[tuple[Path, str]]] = {"train": [], "test": [], "val": []}
    try:
        columns, rows = _table(path)
        problems = [f"{path}: {error}" for error in _collect(root, columns, rows, clouds)]
        _require_classes([name for split in clouds.values() for _, name in split])
    except (csv.Error, DataError) as error:
        clouds, problems = {split: [] for split in clouds}, [f"{path}: {error}"]
    if unused := len(clouds.pop("val")):
        notes.append(f"{unused} clouds of split val are not used")
    return make_listing(root, clouds, notes, problems)


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and the numbered rows; blank lines and comments are left out.

    Raises:
        DataError: It is no list of clouds, whatever its rows say.
        csv.Error: A quoted cell has no end.
    """
    try:
        text = decode(path.read_bytes())
    except DataError as error:
        raise DataError(f"is not a CSV file: {error}") from None
    lines = [(i, line) for i, line in enumerate(split_lines(text), 1) if line.strip() and not line.startswith("#")]
    separator = ","
    if lines and (match := re.fullmatch(r"sep=(.)\s*", lines[0][1])):  # as spreadsheets write it
        separator = match[1]
        del lines[0]
    elif lines:
        separator = next((mark for mark in _SEPARATORS if mark in lines[0][1]), ",")
        if separator not in lines[0][1] and not os.path.isfile(path.parent / lines[0][1].strip()):
            raise DataError(f"is not a CSV file: its lines have one column, {lines[0][1][:60]!r}, not {_FORM}")
    if not lines:
        raise DataError("lists no clouds")
    try:
        cells = list(csv.reader([line for _, line in lines], delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise DataError(f"is not a CSV file: {error}") from None
    rows = [(i, [cell.strip() for cell in row]) for (i, _), row in zip(lines, cells, strict=False)]
    first = [cell.lower() for cell in rows[0][1]]
    if _PATH_COLUMN not in first:
        if {"x", "y", "z"} <= set(first) or all(re.fullmatch(r"[-+.\deE]+", cell) for cell in first):
            raise DataError(f"is a table of points, not a list of clouds {_FORM}; a cloud is named .txt or .xyz")
        if set(first) & (_OTHER_NAMES | set(_COLUMNS)) and not os.path.isfile(path.parent / rows[0][1][0]):
            raise DataError(f"its first line names {', '.join(first)}: its columns must be {_FORM}")
        return list(_COLUMNS), rows
    if _LABEL_COLUMN not in first:
        raise DataError(f"its first line names {', '.join(first)}: its columns must be {_FORM}")
    if len(rows) == 1:
        raise DataError("lists no clouds")
    return first, rows[1:]


def _collect(
    root: Path, columns: Sequence[str], rows: Sequence[tuple[int, list[str]]], clouds: dict[str, list[tuple[Path, str]]]
) -> list[str]:
    """Finds the clouds of all rows; returns the problems of the others, in one line where all have the same."""
    problems: list[tuple[str, str]] = []  # what it is, and where
    splits = _SPLIT_COLUMN in columns and any(len(row) > columns.index(_SPLIT_COLUMN) for _, row in rows)
    first: dict[Path, int] = {}
    for line, row in rows:
        try:
            cells = dict(zip(columns, row, strict=False))
            cloud = _cloud_of_row(root, cells)
            split = _split_of_row(cells) if splits else "train"
            if cloud in first:
                raise DataError(f"{cells[_PATH_COLUMN]} is already in line {first[cloud]}")
            first[cloud] = line
            clouds[split].append((cloud, cells[_LABEL_COLUMN]))
        except DataError as error:
            text = str(error)
            problems.append((re.sub(r"^.*?(?=: no such|lies outside)", "", text), f"line {line}: {text}"))
    if (
        len(problems) > _MAX_PROBLEMS_EACH
        and len({problem for problem, _ in problems}) == 1
        and len(problems) == len(rows)
    ):
        return [f"{problems[0][1]}; so are all {len(rows)} lines"]
    return [text for _, text in problems]


def _require_classes(labels: Sequence[str]) -> None:
    """Refuses numbers with fractions, which are measurements and no classes.

    Raises:
        DataError: All labels are numbers, and one has a fraction.
    """
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return
    broken = [label for label, number in zip(labels, numbers, strict=True) if number != round(number, 0)]
    if broken:
        raise DataError(
            f"label must be the name or the number of a class, got {broken[0]}: {len(set(labels))} different numbers "
            f"for {len(labels)} clouds are measurements, for which there is no task"
        )


def _cloud_of_row(root: Path, cells: dict[str, str]) -> Path:
    for name in (_PATH_COLUMN, _LABEL_COLUMN):
        if not cells.get(name):
            raise DataError(f"has no {name}; a line is {_FORM}")
    text = cells[_PATH_COLUMN]
    if PureWindowsPath(text).drive:
        raise DataError(f"{text} lies outside the folder of the list: paths must be relative to that folder")
    path = Path(text)
    try:
        if "\\" in text and not (root / path).is_file():  # as Windows separates folders
            path = Path(text.replace("\\", "/"))
        if path.is_absolute():
            path = _relative(path, root)
        cloud = root / path
        # Resolved, so that neither .. nor a link leads outside: a list from elsewhere must not read any file there is.
        inside = not path.is_absolute() and cloud.resolve().is_relative_to(root.resolve())
        cloud = root / os.path.normpath(path)
        exists = inside and cloud.is_file()
    except (OSError, ValueError) as error:  # no name that a file can have
        raise DataError(f"{str(path)[:80]!r} cannot be looked for: {error.args[-1]}") from None
    if not inside:
        raise DataError(f"{path} lies outside the folder of the list")
    if not exists:
        raise DataError(f"{path}: no such file")
    return cloud


def _relative(path: Path, root: Path) -> Path:
    """An absolute path as one below the folder of the list, where it is; else as it is."""
    for folder in (root.absolute(), root.resolve()):
        if path.is_relative_to(folder):
            return path.relative_to(folder)
    return path


def _split_of_row(cells: dict[str, str]) -> str:
    value = cells.get(_SPLIT_COLUMN, "").lower()
    for split, names in (*LEVELS.items(), ("val", UNUSED)):
        if value in names:
            return split
    raise DataError(f"split must be train, test or val, got {value!r}")
