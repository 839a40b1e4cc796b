"""Few-shot folds: W classes with S training clouds each, as published or drawn from any data set."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointpeft.data.dataset import DataError, PointCloudDataset
from pointpeft.data.formats.numpy_pickle import load_arrays
from pointpeft.data.formats.readers import coordinates
from pointpeft.data.transforms import normalize_precisely

PREFIX = "few_shot"
TEST_SHOTS = 20  # test clouds per class, as in the published folds
UP_AXIS = "y"
FORM = f"{PREFIX}:SOURCE:5way10shot:FOLD or {PREFIX}:SOURCE:5way10shot:FOLD@SEED"


def source_of(source: str, ways: int, shots: int, fold: int, seed: int = 0) -> str:
    """The word by which `load_dataset` gives a fold."""
    return f"{PREFIX}:{source}:{ways}way{shots}shot:{fold}@{seed}"


Loader = Callable[..., PointCloudDataset]


def load_word(word: str, split: str, load_source: Loader, up_axis: str | None = None) -> PointCloudDataset:
    """One part of the fold that a word of `source_of`'s form names; arguments as in `load`.

    Raises:
        DataError: Another form, or what `load` raises.
    """
    parts = word.split(":", 1)[-1].rsplit(":", 2)
    try:
        source, setting, place = parts
        ways, shots = (int(text) for text in setting.removesuffix("shot").split("way"))
        fold, _, seed = place.partition("@")
        numbers = ways, shots, int(fold), int(seed or 0)
    except ValueError:
        raise DataError(f"a few-shot fold is {FORM}, got {word!r}") from None
    return load(source, *numbers, split, up_axis, load_source=load_source)


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
) -> PointCloudDataset:
    """One part of a fold.

    Where the source is a folder of published folds (`5way_10shot/0.pkl` or `5way10shot/0.pkl`), the fold is read: its
    pickles are read as numbers alone, no code in them is run. Else the source is any data set, and the fold is drawn
    from it: W of the classes that have at least S training clouds, S clouds of the training part of each, and up to 20
    of its test part. Folds of one seed are drawn independently of each other. What a fold has not drawn is not read,
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

    Raises:
        DataError: The fold is missing or broken, or the data set has too few classes.
        ValueError: A number out of bounds.
    """
    for name, value, least in (("ways", ways, 2), ("shots", shots, 1), ("fold", fold, 0), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    folder = published_folder(Path(source).expanduser(), ways, shots)
    if folder is not None:
        return _published(folder / f"{fold}.pkl", ways, split, up_axis or UP_AXIS)
    train, test = (_whole(load_source, str(source), part, up_axis) for part in ("train", "test"))
    return _drawn(train, test, ways, shots, fold, seed, split)


def published_folder(root: Path, ways: int, shots: int) -> Path | None:
    """Where published folds of this setting lie, under either spelling, or None where the source holds no folds.

    Raises:
        DataError: The source holds folds, but none of this setting.
    """
    if not root.is_dir():
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
def _whole(load_source: Loader, source: str, split: str, up_axis: str | None) -> PointCloudDataset:
    return load_source(source, split, up_axis=up_axis, lazy=True)


def _drawn(
    train: PointCloudDataset, test: PointCloudDataset, ways: int, shots: int, fold: int, seed: int, split: str
) -> PointCloudDataset:
    have = train.labels.bincount(minlength=len(train.classes))
    seen = test.labels.bincount(minlength=len(train.classes))
    fit = ((have >= shots) & (seen > 0)).nonzero().flatten().tolist()
    if len(fit) < ways:
        raise DataError(
            f"{ways}-way {shots}-shot needs {ways} classes with at least {shots} training clouds and a test cloud, "
            f"{len(fit)} of {len(train.classes)} have them"
        )
    draw = np.random.default_rng((seed, ways, shots, fold))
    kinds = sorted(draw.choice(fit, ways, replace=False).tolist())
    chosen: dict[str, list[int]] = {"train": [], "test": []}
    for kind in kinds:
        for part, dataset, count in (("train", train, shots), ("test", test, TEST_SHOTS)):
            own = (dataset.labels == kind).nonzero().flatten().numpy()
            chosen[part] += sorted(draw.choice(own, min(count, len(own)), replace=False).tolist())
    whole = {"train": train, "test": test}[split]
    part = whole.subset(chosen[split])
    return PointCloudDataset(
        partial(_points_of, part),  # no lambda: a data loader sends the set to its workers
        [kinds.index(int(label)) for label in part.labels],
        [train.classes[kind] for kind in kinds],
        part.names,
        up_axis=part.up_axis,
        normalized=part.normalized,
        notes=(*part.notes, f"fold {fold} of {ways}-way {shots}-shot, drawn with seed {seed}"),
        sizes=part.sizes,
    )


def _points_of(part: PointCloudDataset, index: int) -> Tensor:
    return part[index][0]


def _published(path: Path, ways: int, split: str, up_axis: str) -> PointCloudDataset:
    if not path.is_file():
        there = len(list(path.parent.glob("*.pkl")))
        raise DataError(f"{path}: no such file; {path.parent} holds {there} folds")
    content = load_arrays(path)
    if not isinstance(content, dict) or not {"train", "test"} <= set(content):
        raise DataError(f"{path}: must hold a dict of train and test")
    clouds: list[Tensor] = []
    labels: list[int] = []
    kinds: dict[int, str] = {}
    for part in ("train", "test"):
        for i, entry in enumerate(content[part]):
            points, label, kind = _entry(path, part, i, entry)
            if not 0 <= label < ways:
                raise DataError(f"{path}: {part} cloud {i}: label must be 0 to {ways - 1}, got {label}")
            if kinds.setdefault(label, kind) != kind:
                raise DataError(f"{path}: label {label} stands for {kinds[label]} and for {kind}")
            if part == split:
                clouds.append(normalize_precisely(points))
                labels.append(label)
    if len(kinds) < ways or not clouds:
        raise DataError(f"{path}: has {len(clouds)} {split} clouds, of {len(kinds)} classes, where {ways} are needed")
    return PointCloudDataset(
        clouds,
        labels,
        [kinds[label] for label in range(ways)],
        [f"{path.parent.name}/{path.name} {split}[{i}]" for i in range(len(clouds))],
        up_axis=up_axis,
        normalized=True,
    )


def _entry(path: Path, part: str, index: int, entry: Any) -> tuple[Tensor, int, str]:
    """(points, label, name of the class), from (array, label in the fold, label in the whole)."""
    try:
        points, label, kind = entry
        label, kind = (int(np.asarray(number).reshape(())) for number in (label, kind))
        return torch.from_numpy(coordinates(np.asarray(points))), label, f"class {kind}"
    except (TypeError, ValueError) as error:  # a DataError is a ValueError
        raise DataError(f"{path}: {part} cloud {index} must be (points, label, class): {error}") from None
