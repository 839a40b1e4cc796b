"""ScanObjectNN: real scans of 15 kinds of objects, in the three variants that papers report."""

from functools import partial
from pathlib import Path

from torch import Tensor

from pointpeft.data.dataset import DataError, PointCloudDataset, at_most
from pointpeft.data.formats.hdf5 import H5Rows, list_h5, read_h5

UP_AXIS = "y"
CLASSES = (
    *("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door"),
    *("shelf", "table", "bed", "pillow", "sink", "sofa", "toilet"),
)
# Variant -> its folder and the end of its file names.
VARIANTS = {
    "obj_bg": ("main_split", "objectdataset.h5"),
    "obj_only": ("main_split_nobg", "objectdataset.h5"),
    "pb_t50_rs": ("main_split", "objectdataset_augmentedrot_scale75.h5"),
}
HARDEST = "pb_t50_rs"
_PART = {"train": "training", "test": "test"}


def find(root: Path, split: str, variant: str) -> Path:
    """Where the file of a variant lies, or should lie, below a root or its `h5_files`."""
    folder, ending = VARIANTS[variant]
    name = f"{_PART[split]}_{ending}"
    places = [root / folder / name, root / "h5_files" / folder / name]
    if root.name == folder:
        places.append(root / name)
    return next((place for place in places if place.is_file()), places[-1] if root.name == folder else places[0])


def variants(root: Path) -> list[str]:
    """The variants of which at least one file is there."""
    return [v for v in VARIANTS if any(find(root, split, v).is_file() for split in _PART)]


def load(
    root: str | Path,
    split: str,
    variant: str = HARDEST,
    num_points: int | None = None,
    up_axis: str = UP_AXIS,
    *,
    lazy: bool = False,
) -> PointCloudDataset:
    """Reads one part of ScanObjectNN into memory, as it is: published results neither centre nor scale it.

    Args:
        root: The folder that holds `main_split` and `main_split_nobg`, or one of those.
        split: "train" or "test".
        variant: "obj_bg" (with background), "obj_only" (without), "pb_t50_rs" (the hardest: moved, turned, scaled).
        num_points: The most points of a cloud that are kept, drawn with a fixed seed.
        up_axis: The axis that points up; "y" as published.
        lazy: Leave the clouds in the file, and read each as it is asked for.

    Raises:
        DataError: An unknown variant, or a file is missing or broken; says which one.
    """
    if variant not in VARIANTS:
        raise DataError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    path = find(Path(root), split, variant)
    if not path.is_file():
        there = ", ".join(variants(Path(root))) or "none"
        raise DataError(
            f"{path}: no such file; ScanObjectNN is downloaded after filling in the form of its authors "
            f"(variants found below {root}: {there})"
        )
    if lazy:
        (count, size), labels, names = list_h5(path, len(CLASSES))
        clouds = partial(_read_row, H5Rows([path], [count]), num_points)
        sizes = [min(size, num_points or size)] * count
    else:
        points, labels, names = read_h5(path, len(CLASSES))
        clouds, sizes = at_most(points, num_points), None
    if not len(labels):
        raise DataError(f"{path}: has no clouds")
    return PointCloudDataset(clouds, labels, CLASSES, names, up_axis=up_axis, sizes=sizes)


def _read_row(rows: H5Rows, num_points: int | None, index: int) -> Tensor:
    return at_most(rows(index), num_points)
