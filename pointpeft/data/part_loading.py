"""Any data set of labelled points by its path."""

from pathlib import Path

from pointpeft.data.dataset import DataError
from pointpeft.data.loading import SPLITS
from pointpeft.data.segments import SegmentDataset
from pointpeft.data.sets import part_files, shapenetpart


def load_segments(
    source: str | Path, split: str = "train", *, up_axis: str | None = None, lazy: bool = False
) -> SegmentDataset:
    """Gives one part of a data set whose points are labelled.

    Args:
        source: ShapeNetPart's folder, or a file or folder as `part_files` reads them.
        split: "train" or "test".
        up_axis: The axis that points up, for augmentations and pictures. None: "y".
        lazy: Leave the clouds on disk, and read each as it is asked for.

    Raises:
        DataError: The source is missing or broken.
        ValueError: Another split.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            f"{source}: no such file or folder; part segmentation needs ShapeNetPart's folder "
            f"(with {shapenetpart.CATEGORIES}), or files {' '.join(part_files.SUFFIXES)} with {part_files.FORM}"
        )
    if path.is_dir() and shapenetpart.is_shapenetpart(path):
        return shapenetpart.load(path, split, up_axis or shapenetpart.UP_AXIS)
    return part_files.load(path, split, up_axis or part_files.UP_AXIS, lazy=lazy)
