"""A look at a data set file by file: what is there, what is missing, what is broken."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pointpeft.data.dataset import DataError, PointCloudDataset, dropped_note
from pointpeft.data.formats.hdf5 import read_h5
from pointpeft.data.formats.readers import read_points
from pointpeft.data.loading import EMBEDDED, SPLITS, load_dataset, resolve
from pointpeft.data.sets import folder, modelnet40, scanobjectnn, shards

# Clouds below this are told of: the smallest shipped backbone looks at 32 neighbours.
FEW_POINTS = 32


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        lines: The findings, for people; problems start with "BROKEN".
        ok: Whether the data set can be used as it is.
    """

    lines: tuple[str, ...]
    ok: bool


@dataclass
class _Findings:
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    sizes: list[tuple[str, int]] = field(default_factory=list)  # (cloud, points)

    def report(self) -> CheckReport:
        if self.sizes:
            least, most = min(self.sizes, key=lambda s: s[1]), max(self.sizes, key=lambda s: s[1])
            self.lines.append(f"points per cloud: {least[1]} ({least[0]}) to {most[1]} ({most[0]})")
            few = [name for name, size in self.sizes if size < FEW_POINTS]
            if few:
                self.lines.append(f"note: {len(few)} clouds have fewer than {FEW_POINTS} points, the first is {few[0]}")
        lines = [*self.lines, *(f"BROKEN {problem}" for problem in self.problems)]
        lines.append(f"{len(self.problems)} problems: not usable as it is" if self.problems else "usable")
        return CheckReport(tuple(lines), not self.problems)

    def clouds(self, names: Sequence[str], clouds: Iterable[Tensor]) -> None:
        for name, points in zip(names, clouds, strict=True):
            self.sizes.append((name, len(points)))
            if len(points) > 1 and bool((points == points[0]).all()):
                self.problems.append(f"{name}: all its {len(points)} points are one and the same")

    def counts(self, split: str, labels: Iterable[int], classes: Sequence[str]) -> None:
        count = Counter(labels)
        each = ", ".join(f"{name} {count[i]}" for i, name in enumerate(classes))
        self.lines.append(f"{split}: {count.total()} clouds: {each}")


def check(path: str | Path, *, drop_non_finite: bool = False) -> CheckReport:
    """Reads every file of a data set and lists all that is wrong with it.

    Args:
        path: A source as `load_dataset` takes it.
        drop_non_finite: Points that are not finite in files of folders and lists are counted, and no problem.
    """
    findings = _Findings()
    try:
        layout, place, variant = resolve(path)
        if layout == EMBEDDED:
            _check_embedded(findings)
        elif layout == "modelnet40":
            _check_modelnet40(place, findings)
        elif layout == "scanobjectnn":
            chosen = [variant] if str(path).startswith("scanobjectnn:") else scanobjectnn.variants(place)
            _check_scanobjectnn(place, chosen, findings)
        elif layout == "shards":
            _check_shards(place, findings)
        else:
            _check_folder(place, findings, {} if drop_non_finite else None)
    except DataError as error:
        findings.problems.append(str(error))
    return findings.report()


def _check_embedded(findings: _Findings) -> None:
    for split in SPLITS:
        dataset = load_dataset(EMBEDDED, split)
        findings.lines.append(f"embedded furniture, up axis {dataset.up_axis}")
        _check_dataset(dataset, split, findings)


def _check_dataset(dataset: PointCloudDataset, split: str, findings: _Findings) -> None:
    findings.counts(split, dataset.labels.tolist(), dataset.classes)
    findings.clouds(dataset.names, (dataset[i][0] for i in range(len(dataset))))


def _check_modelnet40(root: Path, findings: _Findings) -> None:
    kind = modelnet40.form(root)
    if kind is None:
        modelnet40.load(root, "train")  # says what is missing
    findings.lines.append(f"ModelNet40 ({kind}), up axis {modelnet40.UP_AXIS}")
    classes = modelnet40.class_names(root)
    for split in SPLITS:
        try:
            if kind == "hdf5":
                _check_h5(split, modelnet40.h5_files(root, split), classes, findings)
            elif kind == "cache":
                path = modelnet40.cache_file(root, split)
                clouds, labels = modelnet40.read_cache(path, len(classes), as_is=True)
                findings.counts(split, labels.tolist(), classes)
                findings.clouds([f"{path.name}[{i}]" for i in range(len(clouds))], clouds)
            else:
                _, files, numbers = modelnet40.text_files(root, split)
                findings.counts(split, numbers, classes)
                _check_files(files, root, findings)
        except DataError as error:
            findings.problems.append(str(error))


def _check_scanobjectnn(root: Path, variants: Sequence[str], findings: _Findings) -> None:
    for variant in variants:
        findings.lines.append(f"ScanObjectNN {variant}, up axis {scanobjectnn.UP_AXIS}")
        for split in SPLITS:
            path = scanobjectnn.find(root, split, variant)
            _check_h5(f"{variant} {split}", [path], scanobjectnn.CLASSES, findings)


def _check_shards(path: Path, findings: _Findings) -> None:
    findings.lines.append(f"shards, up axis {shards.UP_AXIS}")
    for split in SPLITS:
        dataset = shards.load(path, split, lazy=True)
        findings.counts(split, dataset.labels.tolist(), dataset.classes)
        if split == SPLITS[0]:
            findings.lines += [f"note: {note}" for note in dataset.notes]
        for i, name in enumerate(dataset.names):
            try:
                findings.clouds([name], [dataset[i][0]])
            except DataError as error:
                findings.problems.append(str(error))


def _check_h5(split: str, files: Sequence[Path], classes: Sequence[str], findings: _Findings) -> None:
    read, sizes = [], set()
    for path in files:
        try:
            points, labels, names = read_h5(path, len(classes), as_is=True)
        except DataError as error:
            findings.problems.append(str(error))
            continue
        findings.lines.append(f"{path.name}: {len(points)} clouds of {points.shape[1]} points")
        findings.clouds([f"{path.name}: {name}" for name in names], points)
        read.append(labels)
        sizes.add(points.shape[1])
    if len(sizes) > 1:
        findings.problems.append(f"{split}: the files have different numbers of points per cloud: {sorted(sizes)}")
    if read:
        findings.counts(split, torch.cat(read).tolist(), classes)


def _check_folder(path: Path, findings: _Findings, dropped: dict[str, int] | None) -> None:
    listing = folder.scan(path)
    findings.lines.append(f"{'CSV file' if path.is_file() else 'folder'} of clouds, up axis {folder.UP_AXIS}")
    findings.problems += listing.problems
    for split in SPLITS:
        findings.counts(split, [label for _, label in listing.parts[split]], listing.classes)
        if not listing.parts[split] and not listing.problems:
            if split == "train":
                findings.lines.append("note: it has no train clouds: it is good for evaluation alone")
            else:
                findings.problems.append(f"{path}: has no test clouds; a class needs at least two for one to be tested")
    if path.is_dir() and (others := folder.other_files(path)):
        findings.lines.append(
            f"note: {len(others)} files of other kinds are passed over, the first is {folder.relative(others[0], path)}"
        )
    findings.lines += [f"note: {note}" for note in listing.notes]
    _check_files([file for split in SPLITS for file, _ in listing.parts[split]], listing.root, findings, dropped)
    findings.lines += [f"note: {note}" for note in dropped_note(dropped)]


def _check_files(files: Sequence[Path], root: Path, findings: _Findings, dropped: dict[str, int] | None = None) -> None:
    drop = False if dropped is None else dropped
    for file in files:
        try:
            # As it is trained on: map coordinates keep their detail.
            points = read_points(file, normalized=True, drop_non_finite=drop)
        except DataError as error:
            findings.problems.append(str(error))
            continue
        findings.clouds([folder.relative(file, root)], [points])
