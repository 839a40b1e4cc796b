"""Loading of any data set of labelled points by its path: parts of objects, and scenes."""

from pathlib import Path

from pointpeft.data.registry import SPLITS, LoadOptions, parse_source
from pointpeft.data.segments import SceneDataset, SegmentDataset


def load_segments(
    source: str | Path,
    split: str = "train",
    *,
    up_axis: str | None = None,
    lazy: bool = False,
    drop_non_finite: bool = False,
) -> SegmentDataset:
    """Gives one split of a data set of objects whose points have parts.

    Args:
        source: ShapeNetPart's folder, or a file or folder as `part_files` reads them.
        split: "train" or "test".
        up_axis: The axis that points up, for augmentations and pictures. None: "y".
        lazy: Leave the clouds on disk, and read each when it is needed.
        drop_non_finite: Leave points out that are not finite, with their parts; `notes` say how many, of the clouds
            read so far.

    Raises:
        DataError: The source is missing or broken.
        ValueError: Another split.
    """
    _require_split(split)
    options = LoadOptions(up_axis=up_axis, lazy=lazy, drop_non_finite=drop_non_finite)
    return parse_source(source, "parts").load(split, options)


def load_scenes(
    source: str | Path, split: str = "train", *, up_axis: str | None = None, drop_non_finite: bool = False
) -> SceneDataset:
    """Gives one split of a data set of scenes, which are read one by one when they are needed.

    Args:
        source: S3DIS's folder of rooms, PATH or PATH:AREA.
        split: "train" or "test".
        up_axis: The axis that points up; None for the data set's own.
        drop_non_finite: Leave points out that are not finite, with their classes; `notes` say how many, of the scenes
            read so far.

    Raises:
        DataError: The source is missing or broken.
        ValueError: Another split or axis.
    """
    _require_split(split)
    options = LoadOptions(up_axis=up_axis, lazy=True, drop_non_finite=drop_non_finite)
    return parse_source(source, "scenes").load(split, options)


def _require_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f'split must be "train" or "test", got {split!r}')
