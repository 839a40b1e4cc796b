"""Few-shot folds: W classes with S training clouds each, as published or drawn from any data set."""

import os
import re
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointpeft.data.dataset import DataError, PointCloudDataset, at_most
from pointpeft.data.formats.coordinates import CLI_WAY_OUT, coordinates, keep_finite, require_in_range
from pointpeft.data.formats.numpy_pickle import load_arrays
from pointpeft.data.registry import DataSet, DataSource, LoadOptions, parse_source, register_data_set
from pointpeft.data.transforms import normalize_precisely

PREFIX = "few_shot"
TEST_SHOTS = 20  # test clouds per class, as in the published folds
UP_AXIS = "y"
FORM = f"{PREFIX}:SOURCE:5way10shot:FOLD or {PREFIX}:SOURCE:5way10shot:FOLD@SEED"


def source_of(source: str, ways: int, shots: int, fold: int, seed: int = 0) -> str:
    """The word by which `load_dataset` gives a fold."""
    return f"{PREFIX}:{source}:{ways}way{shots}shot:{fold}@{seed}"


Loader = Callable[..., PointCloudDataset]


@register_data_set
class FewShot(DataSet):
    """Folds: few_shot:SOURCE:5way10shot:FOLD or few_shot:SOURCE:5way10shot:FOLD@SEED."""

    name = PREFIX
    title = "few-shot fold"
    layout = f"{PREFIX}:SOURCE:5way10shot:FOLD"
    up_axis = UP_AXIS
    place_is = "source"
    variant_pattern = r"-?\d+way-?\d+(?:shot)?:-?\d+(?:@-?\d+)?"

    def matches(self, path: Path) -> bool:
        """No path: a fold is given by its name."""
        return False

    def load(self, source: DataSource, split: str, options: LoadOptions) -> PointCloudDataset:
        """See the function `load`."""
        numbers = [int(text) for text in re.findall(r"-?\d+", source.variant)]
        if not numbers:
            raise DataError(f"a few-shot fold is {FORM}, got {source.text!r}")
        ways, shots, fold, seed = (*numbers, 0)[:4]
        return load(
            source.place,
            ways,
            shots,
            fold,
            seed,
            split,
            options.up_axis,
            load_source=_load_source,
            num_points=options.num_points,
            drop_non_finite=options.drop_non_finite,
        )

    def can_read_lazily(self, source: DataSource) -> bool:
        """A fold is small and always in memory."""
        return False

    def can_drop_non_finite(self, source: DataSource) -> bool:
        """As the data set that the fold is of."""
        whole = parse_source(source.place)
        return whole.data_set.can_drop_non_finite(whole)


def _load_source(
    source: str,
    split: str,
    *,
    num_points: int | None = None,
    up_axis: str | None = None,
    lazy: bool = False,
    drop_non_finite: bool = False,
) -> PointCloudDataset:
    return parse_source(source).load(split, LoadOptions(num_points, up_axis, lazy, drop_non_finite))


def load(
    source: str | Path,
    ways: int,
    shots: int,
    fold: int,
    seed: int = 0,
    split: str = "train",
    up_axis: str | None = None,
    *,
    load_source: Loader,
    num_points: int | None = None,
    drop_non_finite: bool = False,
) -> PointCloudDataset:
    """One split of a fold.

    Where the source is a folder of published folds (`5way_10shot/0.pkl` or `5way10shot/0.pkl`), the fold is read: its
    pickles are read as numbers alone, no code in them is run. Else the source is any data set, and the fold is drawn
    from it: W of the classes that have at least S training clouds, S clouds of the training split of each, and up to 20
    of its test split. Folds of one seed are drawn independently of each other. What a fold has not drawn is not read,
    where the data set's form allows it.

    Args:
        source: Folder of published folds, or what `load_dataset` takes.
        ways: W, classes.
        shots: S, training clouds per class.
        fold: Number of the fold, from 0.
        seed: Of drawn folds.
        split: "train" or "test".
        up_axis: The axis that points up; None: "y" for published folds, else the data set's own.
        load_source: `load_dataset`, which stands above this file; called for sources that hold no published folds.
        num_points: As in `load_dataset`.
        drop_non_finite: As in `load_dataset`.

    Raises:
        DataError: The fold is missing or broken, or the data set has too few classes.
        ValueError: A number out of bounds.
    """
    for name, value, bound in (("ways", ways, 2), ("shots", shots, 1), ("fold", fold, 0), ("seed", seed, 0)):
        if value < bound:
            raise ValueError(f"{name} must be at least {bound}, got {value}")
    folder = published_folder(Path(source).expanduser(), ways, shots)
    if folder is not None:
        dropped: dict[str, int] | None = {} if drop_non_finite else None
        return _published(folder / f"{fold}.pkl", ways, split, up_axis or UP_AXIS, num_points, dropped)
    if drop_non_finite:  # a set that is shared with other folds would count their points, too
        invariant = {"num_points": num_points, "up_axis": up_axis, "lazy": True, "drop_non_finite": True}
        train, test = (load_source(str(source), half, **invariant) for half in ("train", "test"))
    else:
        train, test = (_whole(load_source, str(source), half, up_axis, num_points) for half in ("train", "test"))
    return _drawn(train, test, ways, shots, fold, seed, split)


def published_folder(root: Path, ways: int, shots: int) -> Path | None:
    """The folder of published folds of this setting, under either spelling, or None where the source holds no folds.

    Raises:
        DataError: The source holds folds, but none of this setting.
    """
    if not os.path.isdir(root):
        return None
    names = (f"{ways}way_{shots}shot", f"{ways}way{shots}shot")
    for place in (*(root / name for name in names), *([root] if root.name in names else [])):
        if any(place.glob("*.pkl")):
            return place
    others = sorted(p.name for p in root.glob("*way*shot") if any(p.glob("*.pkl")))
    if others:
        raise DataError(f"{root}: has no {' or '.join(names)}, only {', '.join(others)}")
    return None


@lru_cache(maxsize=4)  # ten folds and several methods ask for the same two parts
def _whole(
    load_source: Loader, source: str, split: str, up_axis: str | None, num_points: int | None
) -> PointCloudDataset:
    return load_source(source, split, num_points=num_points, up_axis=up_axis, lazy=True)


def _drawn(
    train: PointCloudDataset, test: PointCloudDataset, ways: int, shots: int, fold: int, seed: int, split: str
) -> PointCloudDataset:
    have = train.labels.bincount(minlength=len(train.classes))
    test_counts = test.labels.bincount(minlength=len(train.classes))
    fit = ((have >= shots) & (test_counts > 0)).nonzero().flatten().tolist()
    if len(fit) < ways:
        raise DataError(
            f"{ways}-way {shots}-shot needs {ways} classes with at least {shots} training clouds and a test cloud, "
            f"{len(fit)} of {len(train.classes)} have them"
        )
    draw = np.random.default_rng((seed, ways, shots, fold))
    classes = sorted(draw.choice(fit, ways, replace=False).tolist())
    chosen: dict[str, list[int]] = {"train": [], "test": []}
    for number in classes:
        for part, dataset, count in (("train", train, shots), ("test", test, TEST_SHOTS)):
            members = (dataset.labels == number).nonzero().flatten().numpy()
            chosen[part] += sorted(draw.choice(members, min(count, len(members)), replace=False).tolist())
    whole = {"train": train, "test": test}[split]
    part = whole.subset(chosen[split])
    return PointCloudDataset(
        partial(_points_of, part),  # no lambda: a data loader sends the set to its workers
        [classes.index(int(label)) for label in part.labels],
        [train.classes[number] for number in classes],
        part.names,
        up_axis=part.up_axis,
        normalized=part.normalized,
        notes=(*part.notes, f"fold {fold} of {ways}-way {shots}-shot, drawn with seed {seed}"),
        sizes=part.sizes,
        dropped=part.dropped,
    )


def _points_of(dataset: PointCloudDataset, index: int) -> Tensor:
    return dataset[index][0]


def _published(
    path: Path, ways: int, split: str, up_axis: str, num_points: int | None, dropped: dict[str, int] | None
) -> PointCloudDataset:
    if not path.is_file():
        count = len(list(path.parent.glob("*.pkl")))
        raise DataError(f"{path}: no such file; {path.parent} holds {count} folds")
    content = load_arrays(path)
    if not isinstance(content, dict) or not {"train", "test"} <= set(content):
        raise DataError(f"{path}: must hold a dict of train and test")
    clouds: list[Tensor] = []
    labels: list[int] = []
    classes: dict[int, str] = {}
    # Of both splits points are left out, but those of one are counted.
    counted: dict[str, bool | dict[str, int]] = dict.fromkeys(("train", "test"), dropped is not None)
    if dropped is not None:
        counted[split] = dropped
    for half in ("train", "test"):
        for i, entry in enumerate(content[half]):
            points, label, original = _entry(path, half, i, entry, counted[half])
            if not 0 <= label < ways:
                raise DataError(f"{path}: {half} cloud {i}: label must be 0 to {ways - 1}, got {label}")
            if classes.setdefault(label, original) != original:
                raise DataError(f"{path}: label {label} stands for {classes[label]} and for {original}")
            if half == split:
                clouds.append(normalize_precisely(at_most(points, num_points)))
                labels.append(label)
    if len(classes) < ways or not clouds:
        raise DataError(f"{path}: has {len(clouds)} {split} clouds, of {len(classes)} classes, where {ways} are needed")
    return PointCloudDataset(
        clouds,
        labels,
        [classes[label] for label in range(ways)],
        [f"{path.parent.name}/{path.name} {split}[{i}]" for i in range(len(clouds))],
        up_axis=up_axis,
        normalized=True,
        dropped=dropped,
    )


def _entry(path: Path, half: str, index: int, entry: Any, drop: bool | dict[str, int]) -> tuple[Tensor, int, str]:
    """(points, label, name of the class), from (array, label in the fold, label in the whole)."""
    try:
        points, label, original = entry
        label, original = (int(np.asarray(number).reshape(())) for number in (label, original))
        table = coordinates(np.asarray(points), finite=False)
        table, _ = keep_finite(table, drop, f"{path} {half}[{index}]", CLI_WAY_OUT)
        require_in_range(table)
        return torch.from_numpy(table), label, f"class {original}"
    except (TypeError, ValueError) as error:  # a DataError is a ValueError
        raise DataError(f"{path}: {half} cloud {index} must be (points, label, class): {error}") from None
