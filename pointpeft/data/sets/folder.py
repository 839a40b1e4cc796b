"""Clouds of one's own: a folder with one sub-folder per class, or a CSV file that lists files and labels."""

import csv
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pointpeft.data.dataset import DataError, PointCloudDataset
from pointpeft.data.formats.readers import EXTENSIONS, read_points
from pointpeft.data.splits import split_validation

UP_AXIS = "z"
TEST_FRACTION = 0.2
SEED = 0
_LEVELS = {"train": ("train", "training"), "test": ("test", "testing")}
_UNUSED = ("val", "valid", "validation")
_PATH_COLUMN, _LABEL_COLUMN, _SPLIT_COLUMN = _COLUMNS = ("path", "label", "split")


@dataclass(frozen=True)
class Listing:
    """The files of a data set before any is read.

    Attributes:
        root: The folder that names are relative to.
        classes: Class names, sorted.
        parts: (file, label) of "train" and "test".
        notes: What the user should know.
        problems: What makes the data set unusable.
    """

    root: Path
    classes: tuple[str, ...]
    parts: dict[str, list[tuple[Path, int]]]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def load(source: str | Path, split: str, num_points: int | None = None, up_axis: str = UP_AXIS) -> PointCloudDataset:
    """Lists one part of a folder or CSV file; clouds are read as they are asked for, and normalised.

    Without `train/` and `test/`, a fifth of every class is set aside for testing, always the same files as long as the
    files are the same; the data set's `notes` say so.

    Args:
        source: `CLASS/FILE`, `train/CLASS/FILE`, or `CLASS/train/FILE` below a folder; or a CSV file `path,label` or
            `path,label,split`, with paths relative to its folder.
        split: "train" or "test".
        num_points: Points drawn on surfaces, and the most that are kept of a cloud.
        up_axis: The axis that points up.

    Raises:
        DataError: No such clouds, a class seen only in the test part, a path that leaves the folder.
    """
    listing = scan(Path(source))
    if listing.problems:
        more = f" (and {len(listing.problems) - 1} more problems)" if len(listing.problems) > 1 else ""
        raise DataError(listing.problems[0] + more)
    part = listing.parts[split]
    if not part:
        raise DataError(f"{source}: has no {split} clouds" + ("; " + "; ".join(listing.notes) if listing.notes else ""))
    files = [path for path, _ in part]
    return PointCloudDataset(
        partial(_read, files, num_points),
        [label for _, label in part],
        listing.classes,
        [relative(path, listing.root) for path in files],
        up_axis=up_axis,
        normalized=True,
        notes=listing.notes,
    )


def scan(source: Path) -> Listing:
    """Lists the clouds of a folder or a CSV file without reading them; problems are collected, not raised."""
    return _scan_csv(source) if source.is_file() else _scan_folder(source)


def cloud_files(folder: Path) -> list[Path]:
    """The files below a folder whose kind can be read, sorted; hidden ones are left out."""
    return [path for path in _walk(folder) if path.suffix.lower() in EXTENSIONS]


def other_files(folder: Path) -> list[Path]:
    """The files below a folder whose kind cannot be read, sorted; hidden ones are left out."""
    return [path for path in _walk(folder) if path.suffix.lower() not in EXTENSIONS]


def relative(path: Path, root: Path) -> str:
    """A file's name in messages."""
    return path.relative_to(root).as_posix()


def _read(files: list[Path], num_points: int | None, index: int) -> Tensor:
    return read_points(files[index], num_points, normalized=True)


def _walk(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):  # links to folders are not followed: they may lead in a circle
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _levels(folders: Iterable[Path]) -> dict[str, Path]:
    """Split -> the folder named for it, of those given."""
    return {split: path for path in folders for split, names in _LEVELS.items() if path.name.lower() in names}


def _scan_folder(root: Path) -> Listing:
    problems: list[str] = []
    notes: list[str] = []
    found: dict[str, list[tuple[Path, str]]] = {"train": [], "test": []}
    folders = _folders(root)
    levels = _levels(folders)
    if levels:
        used = " and ".join(f"{path.name}/" for path in levels.values())
        notes += [f"{path.name}/ is not used: it lies beside {used}" for path in folders if path not in levels.values()]
        for split, level in levels.items():
            _collect(((path, path.name) for path in _folders(level)), found[split], problems)
            if loose := [path for path in cloud_files(level) if path.parent == level]:
                problems.append(f"{loose[0]}: lies in no class; clouds belong into {level.name}/CLASS/")
    elif any(_levels(_folders(folder)) for folder in folders):
        for folder in folders:
            inner = _levels(_folders(folder))
            if not inner:
                problems.append(f"{folder}: has no train/ and test/, other classes have")
            for split, level in inner.items():
                _collect([(level, folder.name)], found[split], problems)
    else:
        _collect(((path, path.name) for path in folders), found["train"], problems)
        if loose := [path for path in cloud_files(root) if path.parent == root]:
            problems.append(
                f"{loose[0]}: lies in no class; clouds belong into a sub-folder per class or a CSV file path,label"
            )
    if not problems and not any(found.values()):
        problems.append(f"{root}: has no sub-folders with clouds ({' '.join(EXTENSIONS)})")
    return _listing(root, found, notes, problems)


def _collect(folders: Iterable[tuple[Path, str]], found: list[tuple[Path, str]], problems: list[str]) -> None:
    for folder, name in folders:
        files = cloud_files(folder)
        found += [(path, name) for path in files]
        if not files:
            problems.append(f"{folder}: has no clouds; known kinds: {' '.join(EXTENSIONS)}")


def _scan_csv(path: Path) -> Listing:
    root = path.parent
    problems: list[str] = []
    notes: list[str] = []
    found: dict[str, list[tuple[Path, str]]] = {"train": [], "test": [], "val": []}
    try:
        rows = list(csv.reader(path.read_text("utf-8-sig").splitlines(), skipinitialspace=True, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        return _listing(root, found, notes, [f"{path}: is not a CSV file: {error}"])
    numbered = [(i, [cell.strip() for cell in row]) for i, row in enumerate(rows, 1) if any(row)]
    columns = list(_COLUMNS)
    if numbered and _PATH_COLUMN in (cells := [cell.lower() for cell in numbered[0][1]]):
        columns = cells
        del numbered[0]
        if _LABEL_COLUMN not in columns:
            return _listing(root, found, notes, [f"{path}: its columns must be path,label[,split]"])
    if not numbered:
        problems.append(f"{path}: lists no clouds")
    splits = _SPLIT_COLUMN in columns and any(len(row) > columns.index(_SPLIT_COLUMN) for _, row in numbered)
    first: dict[Path, int] = {}
    for line, row in numbered:
        try:
            cells = dict(zip(columns, row, strict=False))
            cloud = _cloud_of_row(root, cells)
            split = _split_of_row(cells) if splits else "train"
            if cloud in first:
                raise DataError(f"{cells[_PATH_COLUMN]} is already in line {first[cloud]}")
            first[cloud] = line
            found[split].append((cloud, cells[_LABEL_COLUMN]))
        except DataError as error:
            problems.append(f"{path}, line {line}: {error}")
    if unused := len(found.pop("val")):
        notes.append(f"{unused} clouds of split val are not used")
    return _listing(root, found, notes, problems)


def _cloud_of_row(root: Path, cells: dict[str, str]) -> Path:
    for name in (_PATH_COLUMN, _LABEL_COLUMN):
        if not cells.get(name):
            raise DataError(f"has no {name}; a line is path,label[,split]")
    given = Path(cells[_PATH_COLUMN])
    cloud = root / given
    try:
        # Resolved, so that neither .. nor a link leads outside: a list from elsewhere must not read any file there is.
        inside = not given.is_absolute() and cloud.resolve().is_relative_to(root.resolve())
        cloud = root / os.path.normpath(given)
        there = inside and cloud.is_file()
    except (OSError, ValueError) as error:  # no name that a file can have
        raise DataError(f"{str(given)[:80]!r} cannot be looked for: {error.args[-1]}") from None
    if not inside:
        raise DataError(f"{given} lies outside the folder of the list")
    if not there:
        raise DataError(f"{given}: no such file")
    return cloud


def _split_of_row(cells: dict[str, str]) -> str:
    value = cells.get(_SPLIT_COLUMN, "").lower()
    for split, names in (*_LEVELS.items(), ("val", _UNUSED)):
        if value in names:
            return split
    raise DataError(f"split must be train, test or val, got {value!r}")


def _listing(root: Path, found: dict[str, list[tuple[Path, str]]], notes: list[str], problems: list[str]) -> Listing:
    seen = {split: {name for _, name in part} for split, part in found.items()}
    if found["train"] and (unseen := sorted(seen["test"] - seen["train"])):
        problems.append(f"{root}: classes only in the test part: {', '.join(unseen)}; nothing can be learnt about them")
    classes = tuple(sorted(seen["train"] or seen["test"]))
    number = {name: i for i, name in enumerate(classes)}
    parts = {s: [(path, number[name]) for path, name in found[s] if name in number] for s in ("train", "test")}
    if parts["train"] and not parts["test"]:
        parts, note = _draw_test(parts["train"], classes)
        notes.append(note)
    return Listing(root, classes, parts, tuple(notes), tuple(problems))


def _draw_test(
    clouds: list[tuple[Path, int]], classes: tuple[str, ...]
) -> tuple[dict[str, list[tuple[Path, int]]], str]:
    """Sets a part of every class aside."""
    train, test = split_validation(torch.tensor([label for _, label in clouds]), TEST_FRACTION, SEED)
    note = f"no test part is given: {len(test)} of {len(clouds)} clouds were drawn as one, class by class, seed {SEED}"
    counts = Counter(clouds[i][1] for i in test.tolist())
    untested = [name for label, name in enumerate(classes) if not counts[label]]
    if untested:
        note += f"; none of {', '.join(untested)}"
    return {"train": [clouds[i] for i in train.tolist()], "test": [clouds[i] for i in test.tolist()]}, note
