"""The registry of data sets: what a source names, and which data set reads it.

A data set is one file in `pointpeft/data/sets`: a subclass of `DataSet` with `@register_data_set`. Loading, detection,
the check and the choice between memory and disk are loops over the registry, so that nothing else names a data set.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pointpeft.data.dataset import DataError
from pointpeft.data.findings import Findings
from pointpeft.data.formats.readers import EXTENSIONS

SPLITS = ("train", "test")
EMBEDDED = "furniture"  # the data set of a source that is not given

Labels = Literal["clouds", "parts", "scenes"]
# Type of labels -> the end of a message about a source that is no data set.
_NEEDS: dict[str, str] = {
    "clouds": "a data set is",
    "parts": "part segmentation needs",
    "scenes": "semantic segmentation needs",
}

# Precedence of a data set: published layouts are tried first, then formats that a published
# layout may be made of, then what takes any folder.
PUBLISHED, FORMAT, ANY_FOLDER = range(3)


@dataclass(frozen=True)
class LoadOptions:
    """How the clouds of a data set are read.

    Attributes:
        num_points: Points drawn on surfaces, and the most that are kept of a cloud; None for 8192, and all. Sets whose
            points are labelled keep all.
        up_axis: The axis that points up; None for the data set's own.
        lazy: Leave the clouds on disk where the data set can, and read each when it is needed.
        drop_non_finite: Leave points out that are not finite, and count them in the `notes`.
    """

    num_points: int | None = None
    up_axis: str | None = None
    lazy: bool = False
    drop_non_finite: bool = False


@dataclass(frozen=True)
class DataSource:
    """The components of a source.

    Attributes:
        text: As it was given.
        data_set: Which one reads it.
        place: What stands between the name of the data set and the variant: a path, or for few-shot folds a source.
        variant: What follows the place; empty where nothing does.
    """

    text: str
    data_set: "DataSet"
    place: str
    variant: str

    @property
    def path(self) -> Path:
        """The place as a path; the home folder may be written ~."""
        return Path(os.path.expanduser(self.place))

    def load(self, split: str, options: LoadOptions) -> Any:
        """One split, see `DataSet.load`.

        Raises:
            DataError: Files are missing or broken.
            ValueError: Points that are not finite are to be left out of a data set that has none.
        """
        if options.drop_non_finite and not self.data_set.can_drop_non_finite(self):
            raise ValueError(f"drop_non_finite must not be given for {self.text}, whose points are all finite")
        return self.data_set.load(self, split, options)

    def check(self, findings: Findings, *, drop_non_finite: bool = False) -> None:
        """Reads every file and adds what it finds, see `DataSet.check`."""
        drop = drop_non_finite and self.data_set.can_drop_non_finite(self)
        self.data_set.check(self, findings, drop_non_finite=drop)

    def can_read_lazily(self) -> bool:
        """Whether its clouds can be read one by one."""
        return self.data_set.can_read_lazily(self)


class DataSet(ABC):
    """A layout of labelled clouds, or of clouds whose points are labelled.

    A subclass sets the attributes, answers `matches` and `load`, and is registered by `register_data_set`. A source
    names it as NAME:PATH, or as a PATH that it matches. Nothing else has to be edited.

    Attributes:
        name: Lower case letters, digits and underscores; unique among the data sets of the same labels.
        title: As the check calls it.
        layout: What is on disk, in the words of an error that lists all layouts.
        labels: What has a label: whole "clouds", points of "parts", or points of "scenes".
        up_axis: The axis that points up by default.
        place_is: What its place must be; "nothing" for a data set that is its name alone, "source" for one that is
            made of another.
        variant_pattern: Regular expression of what may follow a place and a colon; empty for data sets of one form.
        variants: All variants, where there are a few; another one is refused.
        precedence: When its `matches` is tried: `PUBLISHED` first, then `FORMAT`, then `ANY_FOLDER`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    layout: ClassVar[str]
    labels: ClassVar[Labels] = "clouds"
    up_axis: ClassVar[str] = "z"
    place_is: ClassVar[Literal["folder", "file", "file or folder", "nothing", "source"]] = "folder"
    variant_pattern: ClassVar[str] = ""
    variants: ClassVar[tuple[str, ...]] = ()
    precedence: ClassVar[int] = PUBLISHED

    @abstractmethod
    def matches(self, path: Path) -> bool:
        """Whether a path that exists has this layout; checks a few names and reads no file whole."""

    @abstractmethod
    def load(self, source: DataSource, split: str, options: LoadOptions) -> Any:
        """One split: a `PointCloudDataset`, `SegmentDataset` or `SceneDataset`, as `labels` says.

        Raises:
            DataError: Files are missing or broken; names the file and the reason.
        """

    def check(self, source: DataSource, findings: Findings, *, drop_non_finite: bool = False) -> None:
        """Reads every cloud and adds all that is wrong; a set of several files may list more than the first error.

        Raises:
            DataError: A fault that keeps it from being listed; it is added to the findings.
        """
        options = LoadOptions(lazy=self.can_read_lazily(source), drop_non_finite=drop_non_finite)
        for split in SPLITS:
            dataset = self.load(source, split, options)
            if split == SPLITS[0]:
                findings.lines.append(f"{self.title}, up axis {dataset.up_axis}")
            findings.dataset(split, dataset, by_class=self.labels != "scenes")

    def can_read_lazily(self, source: DataSource) -> bool:
        """Whether its clouds can be read one by one, so that a set larger than the memory is usable."""
        return True

    def can_drop_non_finite(self, source: DataSource) -> bool:
        """Whether its points may be other than finite, so that `drop_non_finite` has a meaning."""
        return True


Registered = TypeVar("Registered", bound=type[DataSet])
DATA_SETS: dict[tuple[str, str], DataSet] = {}  # (labels, name) -> data set


def register_data_set(data_set: Registered) -> Registered:
    """Adds a data set to the registry; a decorator of its class.

    Raises:
        ValueError: A name that is no word or is taken.
    """
    name, labels = data_set.name, data_set.labels
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name must be lower case letters, digits and underscores, got {name!r}")
    if labels not in _NEEDS:
        raise ValueError(f"labels must be one of {', '.join(_NEEDS)}, got {labels!r}")
    if (labels, name) in DATA_SETS:
        raise ValueError(f"name must be unique among data sets of {labels}, got {name!r} twice")
    DATA_SETS[labels, name] = data_set()
    return data_set


def data_sets(labels: Labels = "clouds") -> list[DataSet]:
    """The registered data sets in the order in which their `matches` is tried."""
    sets = [data_set for data_set in DATA_SETS.values() if data_set.labels == labels]
    return sorted(sets, key=lambda data_set: (data_set.precedence, data_set.name))


def layouts(labels: Labels = "clouds") -> str:
    """All layouts in words, that of a user's own folders first."""
    sets = sorted(data_sets(labels), key=lambda data_set: data_set.precedence != ANY_FOLDER)
    *first, last = [data_set.layout for data_set in sets]
    return f"{', '.join(first)} or {last}" if first else last


def parse_source(source: str | Path | None, labels: Labels = "clouds") -> DataSource:
    """Parses a source and finds its data set.

    A source is NAME for a data set without files, NAME:PLACE or NAME:PLACE:VARIANT, or a path, PATH or PATH:VARIANT,
    that one of the data sets matches. A path may hold colons: what exists as a whole has no variant.

    Raises:
        DataError: The source is empty, nothing is there, or what is there is no data set.
    """
    text = EMBEDDED if source is None else str(source)
    if not text.strip():
        raise DataError("the data set has an empty name")
    name, colon, rest = text.partition(":")
    for data_set in data_sets(labels):
        if data_set.name == name and (not colon if data_set.place_is == "nothing" else colon):
            return _named(text, data_set, rest)
    for data_set, place, variant in _candidates(text, labels):
        path = Path(os.path.expanduser(place))
        if os.path.exists(path) and data_set.matches(path):
            return DataSource(text, data_set, place, _checked_variant(text, data_set, variant))
    raise DataError(_no_data_set(text, labels))


def _named(text: str, data_set: DataSet, rest: str) -> DataSource:
    """The source of a data set that is given by its name.

    Raises:
        DataError: Nothing is there, or no such variant.
    """
    if data_set.place_is == "nothing":
        return DataSource(text, data_set, "", "")
    place, variant = split_variant(rest, data_set.variant_pattern)
    path = os.path.expanduser(place)
    exists = {"folder": os.path.isdir, "file": os.path.isfile, "source": bool}.get(data_set.place_is, os.path.exists)
    if not rest or not exists(path):
        raise DataError(
            f"{path or text}: no such {data_set.place_is}; {data_set.name} is given as {data_set.name}:PATH"
        )
    return DataSource(text, data_set, place, _checked_variant(text, data_set, variant))


def _candidates(text: str, labels: Labels) -> Iterator[tuple[DataSet, str, str]]:
    for data_set in data_sets(labels):
        if data_set.place_is not in ("nothing", "source"):
            yield data_set, *split_variant(text, data_set.variant_pattern)


def split_variant(text: str, pattern: str) -> tuple[str, str]:
    """Takes PLACE or PLACE:VARIANT apart, where the variant matches a pattern and the whole is no path.

    Returns:
        The place and the variant, which is empty where there is none.
    """
    if pattern and not os.path.exists(os.path.expanduser(text)):
        match = re.fullmatch(f"(.+):({pattern})", text, re.DOTALL)
        if match:
            return match[1], match[2]
    return text, ""


def _checked_variant(text: str, data_set: DataSet, variant: str) -> str:
    if data_set.variants and text.endswith(f":{variant}") and variant not in data_set.variants:
        raise DataError(f"{text}: variant must be one of {', '.join(data_set.variants)}, got {variant!r}")
    return variant


def _no_data_set(text: str, labels: Labels) -> str:
    path = Path(os.path.expanduser(text))
    needs = f"{_NEEDS[labels]} {layouts(labels)}"
    if not os.path.exists(path):
        return f"{path}: no such file or folder; {needs}"
    if path.is_dir():
        return f"{path}: is a folder of another layout; {needs}"
    what = "one cloud without a label" if path.suffix.lower() in EXTENSIONS else f"a file of kind {path.suffix!r}"
    return f"{path}: is {what}; {needs}"
