"""A user's own clouds: a folder with one sub-folder per class, or a CSV file that lists files and labels."""

import os
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from torch import Tensor

from pointpeft.data.dataset import DataError, PointCloudDataset, dropped_note
from pointpeft.data.findings import Findings
from pointpeft.data.formats.readers import EXTENSIONS, read_points
from pointpeft.data.formats.text import holds_rows
from pointpeft.data.registry import ANY_FOLDER, FORMAT, DataSet, DataSource, LoadOptions, register_data_set
from pointpeft.data.sets.csv_list import scan_csv
from pointpeft.data.sets.listing import LEVELS, SEED, TEST_FRACTION, UNUSED, Listing, make_listing

__all__ = ["SEED", "TEST_FRACTION", "UP_AXIS", "Listing", "cloud_files", "load", "other_files", "relative", "scan"]

UP_AXIS = "z"
# Folders that systems leave behind, and documents that people put beside clouds.
_SYSTEM = ("__macosx", "__pycache__", "@eadir", "lost+found", "$recycle.bin", "system volume information")
_DOCUMENTS = (
    *("readme", "license", "licence", "copying", "copyright", "notice", "note", "change", "author", "credit"),
    *("class", "label", "info", "about", "description", "content", "index", "metadata", "manifest", "todo", "citation"),
)
# Types of files that hold no clouds.
_BESIDE = (
    *("", ".md", ".rst", ".json", ".yaml", ".yml", ".toml", ".xml", ".html", ".pdf", ".doc", ".docx", ".log", ".csv"),
    *(".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".svg", ".mtl", ".py", ".sh", ".ini", ".db"),
    *(".tsv", ".cfg", ".bib", ".cls", ".sha256", ".md5"),
)


@register_data_set
class Folder(DataSet):
    """A user's own folder: PATH."""

    name = "folder"
    title = "folder of clouds"
    layout = "a folder with one sub-folder of clouds per class (optionally below train/ and test/)"
    up_axis = UP_AXIS
    precedence = ANY_FOLDER

    def matches(self, path: Path) -> bool:
        """Any folder."""
        return path.is_dir()

    def load(self, source: DataSource, split: str, options: LoadOptions) -> PointCloudDataset:
        """See the function `load`."""
        up_axis = options.up_axis or UP_AXIS
        return load(source.path, split, options.num_points, up_axis, drop_non_finite=options.drop_non_finite)

    def check(self, source: DataSource, findings: Findings, *, drop_non_finite: bool = False) -> None:
        """Checks every file, and lists files that are ignored."""
        path, dropped = source.path, {} if drop_non_finite else None
        listing = scan(path)
        findings.lines.append(f"{self.title}, up axis {UP_AXIS}")
        findings.problems += listing.problems
        for split, clouds in listing.splits.items():
            findings.counts(split, [label for _, label in clouds], listing.classes)
            if clouds or listing.problems:
                continue
            if split == "train":
                findings.lines.append("note: it has no train clouds: it is good for evaluation alone")
            else:
                findings.problems.append(f"{path}: has no test clouds; a class needs at least two for one to be tested")
        if path.is_dir() and (others := other_files(path)):
            findings.lines.append(
                f"note: {len(others)} files of other kinds are passed over, the first is {relative(others[0], path)}"
            )
        findings.notes(listing.notes)
        findings.files([file for clouds in listing.splits.values() for file, _ in clouds], listing.root, dropped)
        findings.notes(dropped_note(dropped))


@register_data_set
class CsvList(Folder):
    """A user's own list: FILE.csv."""

    name = "csv"
    title = "CSV file of clouds"
    layout = "a CSV file path,label[,split]"
    place_is = "file"
    precedence = FORMAT

    def matches(self, path: Path) -> bool:
        """A file of this type; reading it reports what is wrong."""
        return path.is_file() and path.suffix.lower() == ".csv"


def load(
    source: str | Path,
    split: str,
    num_points: int | None = None,
    up_axis: str = UP_AXIS,
    *,
    drop_non_finite: bool = False,
) -> PointCloudDataset:
    """Lists one split of a folder or CSV file; clouds are read when they are needed, and normalised.

    Without `train/` and `test/`, a fifth of every class is set aside for testing, always the same files as long as the
    files are the same; the data set's `notes` say so.

    Args:
        source: `CLASS/FILE`, `train/CLASS/FILE`, or `CLASS/train/FILE` below a folder; or a CSV file `path,label` or
            `path,label,split`, with paths relative to its folder.
        split: "train" or "test".
        num_points: Points drawn on surfaces, and the most that are kept of a cloud.
        up_axis: The axis that points up.
        drop_non_finite: Leave points out that are not finite; `notes` say how many, of the clouds read so far.

    Raises:
        DataError: No such clouds, a class seen only in the test split, a path that leaves the folder.
    """
    listing = scan(Path(source))
    if listing.problems:
        others = f" (and {len(listing.problems) - 1} more problems)" if len(listing.problems) > 1 else ""
        raise DataError(listing.problems[0] + others)
    clouds = listing.splits[split]
    if not clouds:
        raise DataError(f"{source}: has no {split} clouds" + ("; " + "; ".join(listing.notes) if listing.notes else ""))
    files = [path for path, _ in clouds]
    dropped: dict[str, int] | None = {} if drop_non_finite else None
    return PointCloudDataset(
        partial(_read, files, num_points, dropped),
        [label for _, label in clouds],
        listing.classes,
        [relative(path, listing.root) for path in files],
        up_axis=up_axis,
        normalized=True,
        notes=listing.notes,
        dropped=dropped,
    )


def scan(source: Path) -> Listing:
    """Lists the clouds of a folder or a CSV file without reading them; problems are collected, not raised."""
    return scan_csv(source) if source.is_file() else _scan_folder(source)


def cloud_files(folder: Path) -> list[Path]:
    """The files below a folder that can be read as clouds, sorted, without hidden ones and documents."""
    return [path for path in _walk(folder) if path.suffix.lower() in EXTENSIONS and not _is_document(path)]


def other_files(folder: Path) -> list[Path]:
    """The files below a folder that are not read as clouds, sorted, without hidden ones."""
    return [path for path in _walk(folder) if path.suffix.lower() not in EXTENSIONS or _is_document(path)]


def relative(path: Path, root: Path) -> str:
    """A file's name in messages."""
    return path.relative_to(root).as_posix()


def _is_document(path: Path) -> bool:
    """Whether a text file has the name of a document, and no row of numbers."""
    if path.suffix.lower() != ".txt" or not path.stem.lower().startswith(_DOCUMENTS):
        return False
    try:
        return not holds_rows(path)
    except OSError:  # reading it as a cloud says what is wrong
        return False


def _read(files: list[Path], num_points: int | None, dropped: dict[str, int] | None, index: int) -> Tensor:
    drop = False if dropped is None else dropped
    return read_points(files[index], num_points, normalized=True, drop_non_finite=drop)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def _walk(folder: Path) -> list[Path]:
    paths = []
    for place, folders, names in os.walk(folder):  # links to folders are not followed: they may lead in a circle
        folders[:] = [name for name in folders if not _is_hidden(name)]
        paths += [Path(place, name) for name in names if not _is_hidden(name)]
    return sorted(paths)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _levels(folders: Iterable[Path]) -> dict[str, Path]:
    """Split -> the folder named for it, of those given."""
    return {split: path for path in folders for split, names in LEVELS.items() if path.name.lower() in names}


def _scan_folder(root: Path) -> Listing:
    problems: list[str] = []
    notes: list[str] = []
    clouds: dict[str, list[tuple[Path, str]]] = {"train": [], "test": []}
    folders = _folders(root)
    levels, ambiguous = _split_levels(root, folders)
    problems += ambiguous
    if levels:
        used = " and ".join(f"{path.name}/" for path in levels.values())
        notes += [f"{path.name}/ is not used: it lies beside {used}" for path in folders if path not in levels.values()]
        for split, level in levels.items():
            _collect(((path, path.name) for path in _folders(level)), clouds[split], problems, notes)
            if loose := [path for path in cloud_files(level) if path.parent == level]:
                problems.append(f"{loose[0]}: lies in no class; clouds belong into {level.name}/CLASS/")
    elif not ambiguous and any(_levels(_folders(folder)) for folder in folders):
        for folder in folders:
            inner = _levels(_folders(folder))
            if not inner:
                problems.append(f"{folder}: has no train/ and test/, other classes have")
            for split, level in inner.items():
                _collect([(level, folder.name)], clouds[split], problems, notes)
    else:
        _collect(((path, path.name) for path in folders), clouds["train"], problems, notes)
        if loose := [path for path in cloud_files(root) if path.parent == root]:
            problems.append(
                f"{loose[0]}: lies in no class; clouds belong into a sub-folder per class or a CSV file path,label"
            )
    if not problems and not any(clouds.values()):
        problems.append(f"{root}: has no sub-folders with clouds ({' '.join(EXTENSIONS)})")
    if unread := [path for path in other_files(root) if path.suffix.lower() not in _BESIDE]:
        suffixes = Counter(path.suffix.lower() for path in unread)
        counted = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common())
        notes.append(
            f"{len(unread)} files are not read as clouds and passed over ({counted}), the first is "
            f"{relative(unread[0], root)}; known kinds: {' '.join(EXTENSIONS)}"
        )
    return make_listing(root, clouds, notes, problems)


def _split_levels(root: Path, folders: list[Path]) -> tuple[dict[str, Path], list[str]]:
    """The folders that are named for a split and are one, and what is wrong with them.

    A folder named Train may be a class of its own among others: it holds what they hold, be it clouds or train/ and
    test/, where a split holds folders of clouds. Where neither is clear, the folder is refused.
    """
    levels = _levels(folders)
    beside = [path for path in folders if path not in levels.values() and path.name.lower() not in UNUSED]
    classes = [path for path in beside if cloud_files(path)]
    if not levels or not classes:
        return levels, []
    inner = [path for path in levels.values() if any(cloud_files(folder) for folder in _folders(path))]
    # CLASS/train/FILE: what lies in all of these folders are splits, so that they are classes, whatever their names.
    if not inner or all(_levels(_folders(path)) for path in (*levels.values(), *classes)):
        return {}, []
    if len(levels) == len(LEVELS) and not any(file.parent in classes for path in classes for file in cloud_files(path)):
        return levels, []  # train/CLASS and test/CLASS, and something beside them, which the notes name
    names = ", ".join(f"{path.name}/" for path in classes[:3]) + (", …" if len(classes) > 3 else "")
    return {}, [
        f"{inner[0]}: holds folders of clouds, as a split does, but beside it are {len(classes)} folders of clouds, "
        f"{names}: put the classes into train/ and test/, or give the class another name"
    ]


def _collect(
    folders: Iterable[tuple[Path, str]], clouds: list[tuple[Path, str]], problems: list[str], notes: list[str]
) -> None:
    for folder, name in folders:
        files = cloud_files(folder)
        clouds += [(path, name) for path in files]
        if not files and all(_is_document(path) for path in _walk(folder)):
            notes.append(f"{folder.name}/ is empty and no class")
        elif not files:
            problems.append(f"{folder}: has no clouds; known kinds: {' '.join(EXTENSIONS)}")
