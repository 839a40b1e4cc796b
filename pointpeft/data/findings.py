"""The report of `pointpeft data check`, file by file."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.hdf5 import H5Rows, list_h5, read_h5
from pointpeft.data.formats.readers import read_points

# Clouds below this are noted: the smallest shipped backbone looks at 32 neighbours.
FEW_POINTS = 32


@dataclass(frozen=True)
class CheckReport:
    """Result of a check.

    Attributes:
        lines: The findings, for people; problems start with "BROKEN".
        ok: Whether the data set can be used as it is.
    """

    lines: tuple[str, ...]
    ok: bool


@dataclass
class Findings:
    """Findings so far; data sets add to them.

    Attributes:
        lines: What is there.
        problems: What makes the data set unusable.
        sizes: (cloud, points) of every cloud that was read.
    """

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    sizes: list[tuple[str, int]] = field(default_factory=list)

    def report(self) -> CheckReport:
        """All of it in lines."""
        lines = list(self.lines)
        if self.sizes:
            smallest, largest = min(self.sizes, key=lambda s: s[1]), max(self.sizes, key=lambda s: s[1])
            lines.append(f"points per cloud: {smallest[1]} ({smallest[0]}) to {largest[1]} ({largest[0]})")
            few = [name for name, size in self.sizes if size < FEW_POINTS]
            if few:
                lines.append(f"note: {len(few)} clouds have fewer than {FEW_POINTS} points, the first is {few[0]}")
        lines += [f"BROKEN {problem}" for problem in self.problems]
        lines.append(f"{len(self.problems)} problems: not usable as it is" if self.problems else "usable")
        return CheckReport(tuple(lines), not self.problems)

    def counts(self, split: str, labels: Iterable[int], classes: Sequence[str]) -> None:
        """Adds how many clouds a split has, class by class."""
        count = Counter(labels)
        each = ", ".join(f"{name} {count[i]}" for i, name in enumerate(classes))
        self.lines.append(f"{split}: {count.total()} clouds: {each}")

    def notes(self, notes: Iterable[str]) -> None:
        """Adds what the user should know, each once."""
        lines = [f"note: {note}" for note in notes]
        self.lines += [line for line in lines if line not in self.lines]

    def clouds(self, names: Sequence[str], clouds: Iterable[Tensor]) -> None:
        """Adds the sizes of clouds, and those that are one point alone."""
        for name, points in zip(names, clouds, strict=True):
            self.sizes.append((name, len(points)))
            if len(points) > 1 and bool((points == points[0]).all()):
                self.problems.append(f"{name}: all its {len(points)} points are one and the same")

    def dataset(self, split: str, dataset: Any, *, by_class: bool = True) -> None:
        """Adds one split of a data set, and reads all its clouds.

        Args:
            split: Its name.
            dataset: The clouds.
            by_class: Whether the labels of clouds are classes, which are counted.
        """
        if by_class:
            self.counts(split, dataset.labels.tolist(), dataset.classes)
        else:
            self.lines.append(f"{split}: {len(dataset)} clouds")
        for i, name in enumerate(dataset.names):
            try:
                self.clouds([name], [dataset[i][0]])
            except DataError as error:
                self.problems.append(str(error))
        self.notes(dataset.notes)

    def files(self, files: Sequence[Path], root: Path, dropped: dict[str, int] | None = None) -> None:
        """Adds files of one cloud each.

        Args:
            files: Below `root`.
            root: The folder that names are relative to.
            dropped: Receives how many points of which file are not finite; None counts such a file as broken.
        """
        drop = False if dropped is None else dropped
        for file in files:
            try:
                # As it is trained on: map coordinates keep their detail.
                points = read_points(file, normalized=True, drop_non_finite=drop)
            except DataError as error:
                self.problems.append(str(error))
                continue
            self.clouds([file.relative_to(root).as_posix()], [points])

    def hdf5(
        self, split: str, files: Sequence[Path], classes: Sequence[str], dropped: dict[str, int] | None = None
    ) -> None:
        """Adds HDF5 files of many clouds each; `dropped` as in `files`."""
        labels, sizes = [], set()
        for path in files:
            try:
                if dropped is None:
                    points, cloud_labels, names = read_h5(path, len(classes), as_is=True)
                    count, size = points.shape[:2]
                    clouds: Iterable[Tensor] = points
                else:
                    (count, size), cloud_labels, names = list_h5(path, len(classes))
                    rows = H5Rows([path], [count], as_is=True, dropped=dropped)
                    clouds = [rows(row) for row in range(count)]
            except DataError as error:
                self.problems.append(str(error))
                continue
            self.lines.append(f"{path.name}: {count} clouds of {size} points")
            self.clouds([f"{path.name}: {name}" for name in names], clouds)
            labels.append(cloud_labels)
            sizes.add(size)
        if len(sizes) > 1:
            self.problems.append(f"{split}: the files have different numbers of points per cloud: {sorted(sizes)}")
        if labels:
            self.counts(split, torch.cat(labels).tolist(), classes)
