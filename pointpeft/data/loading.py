"""Loading of any data set of labelled clouds by its name or path."""

from pathlib import Path

from pointpeft.data.dataset import PointCloudDataset
from pointpeft.data.registry import EMBEDDED, SPLITS, LoadOptions, parse_source

__all__ = ["EMBEDDED", "SPLITS", "load_dataset"]


def load_dataset(
    source: str | Path | None = None,
    split: str = "train",
    *,
    num_points: int | None = None,
    up_axis: str | None = None,
    lazy: bool = False,
    drop_non_finite: bool = False,
) -> PointCloudDataset:
    """Gives one split of a data set.

    Args:
        source: None or "furniture" for the embedded one; "modelnet40:PATH"; "scanobjectnn:PATH" or, with a variant,
            "scanobjectnn:PATH:obj_bg"; or a path, whose layout is found out: one of these, a folder with one sub-folder
            per class, a CSV file, or shards (see `shards`). A folder of the name furniture is "./furniture".
            "few_shot:SOURCE:5way10shot:FOLD" is a fold of few clouds, see `few_shot.load`. Any registered data set can
            be given as NAME:PATH, see `registry`.
        split: "train" or "test".
        num_points: Points drawn on surfaces, and the most that are kept of a cloud. None: 8192, and all.
        up_axis: The axis that points up, for augmentations and pictures; no cloud is turned. None: "y" for ModelNet40
            and ScanObjectNN, "z" for folders, CSV files and shards, the embedded data set's own.
        lazy: Leave the clouds on disk and read each when it is needed: HDF5 files and shards, which are read into
            memory otherwise. Folders and CSV files are always read so; the embedded set and pickles never.
        drop_non_finite: Leave points out that are not finite, as depth cameras mark what they did not see; `notes` say
            how many, of the clouds read so far. The embedded set has none.

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
    options = LoadOptions(num_points, up_axis, lazy, drop_non_finite)
    return parse_source(source).load(split, options)
