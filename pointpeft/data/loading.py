"""Any data set by one word or path."""

from functools import partial
from pathlib import Path

from torch import Tensor

from pointpeft.data.dataset import DataError, PointCloudDataset, at_most, require_axis
from pointpeft.data.detect import detect
from pointpeft.data.sets import few_shot, folder, modelnet40, scanobjectnn, shards

EMBEDDED = "furniture"
SPLITS = ("train", "test")


def load_dataset(
    source: str | Path | None = None,
    split: str = "train",
    *,
    num_points: int | None = None,
    up_axis: str | None = None,
    lazy: bool = False,
    drop_non_finite: bool = False,
) -> PointCloudDataset:
    """Gives one part of a data set.

    Args:
        source: None or "furniture" for the embedded one; "modelnet40:PATH"; "scanobjectnn:PATH" or, with a variant,
            "scanobjectnn:PATH:obj_bg"; or a path, whose layout is found out: one of these, a folder with one sub-folder
            per class, a CSV file, or shards (see `shards`). A folder of the name furniture is "./furniture".
            "few_shot:SOURCE:5way10shot:FOLD" is a fold of few clouds, see `few_shot.load`.
        split: "train" or "test".
        num_points: Points drawn on surfaces, and the most that are kept of a cloud. None: 8192, and all.
        up_axis: The axis that points up, for augmentations and pictures; no cloud is turned. None: "y" for ModelNet40
            and ScanObjectNN, "z" for folders, CSV files and shards, the embedded data set's own.
        lazy: Leave the clouds on disk and read each as it is asked for: HDF5 files and shards, which are read into
            memory otherwise. Folders and CSV files are always read so; the embedded set and pickles never.
        drop_non_finite: Leave points out that are not finite, as depth cameras mark what they did not see; `notes` say
            how many, of the clouds read so far. Of folders and CSV files alone.

    Returns:
        The clouds, centred and scaled to the unit sphere (`normalized`), but for ScanObjectNN, which published results
        take as it is.

    Raises:
        DataError: The source is unknown, missing or broken.
        ValueError: Another argument is out of bounds.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    if num_points is not None and num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}")
    is_fold = str(source).startswith(f"{few_shot.PREFIX}:")
    if drop_non_finite and (is_fold or resolve(source)[0] not in ("folder", "csv")):
        raise ValueError(f"drop_non_finite is for folders and CSV files of clouds, got {source}")
    if is_fold:
        return few_shot.load_word(str(source), split, load_dataset, up_axis)
    layout, path, variant = resolve(source)
    if layout == EMBEDDED:
        return _embedded(split, num_points, up_axis)
    if layout == "modelnet40":
        return modelnet40.load(path, split, num_points, up_axis or modelnet40.UP_AXIS, lazy=lazy)
    if layout == "scanobjectnn":
        return scanobjectnn.load(path, split, variant, num_points, up_axis or scanobjectnn.UP_AXIS, lazy=lazy)
    if layout == "shards":
        return shards.load(path, split, num_points, up_axis or shards.UP_AXIS, lazy=lazy)
    return folder.load(path, split, num_points, up_axis or folder.UP_AXIS, drop_non_finite=drop_non_finite)


def resolve(source: str | Path | None) -> tuple[str, Path, str]:
    """Takes a source apart.

    Returns:
        The layout ("furniture", "modelnet40", "scanobjectnn", "shards", "csv" or "folder"), the path, the variant.

    Raises:
        DataError: The source is empty or nothing is there.
    """
    if source is None or source == EMBEDDED:
        return EMBEDDED, Path(), ""
    text = str(source)
    if not text.strip():
        raise DataError("the data set has an empty name")
    prefix, colon, rest = text.partition(":")
    variant = scanobjectnn.HARDEST
    if colon and prefix in ("modelnet40", "scanobjectnn"):
        if prefix == "scanobjectnn":
            before, _, last = rest.rpartition(":")
            # A path may hold a colon of its own, so that only what looks like a variant is one.
            if before and "/" not in last and "\\" not in last:
                rest, variant = before, last
        path = Path(rest).expanduser()
        if not rest or not path.is_dir():
            raise DataError(f"{rest or text}: no such folder; {prefix} is given as {prefix}:PATH")
        if variant not in scanobjectnn.VARIANTS:
            raise DataError(f"{text}: variant must be one of {', '.join(scanobjectnn.VARIANTS)}, got {variant!r}")
        return prefix, path, variant
    path = Path(text).expanduser()
    return detect(path), path, variant


def _embedded(split: str, num_points: int | None, up_axis: str | None) -> PointCloudDataset:
    from pointpeft.data.sets import furniture  # the file is opened when it is asked for

    dataset = furniture.load(split)
    if num_points is not None:
        dataset = PointCloudDataset(
            partial(_cut_cloud, dataset, num_points),
            dataset.labels,
            dataset.classes,
            dataset.names,
            up_axis=dataset.up_axis,
            normalized=dataset.normalized,
            notes=dataset.notes,
        )
    if up_axis is not None:
        dataset.up_axis = require_axis(up_axis)
    return dataset


def _cut_cloud(dataset: PointCloudDataset, num_points: int, index: int) -> Tensor:
    return at_most(dataset[index][0], num_points)
