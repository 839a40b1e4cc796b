"""ScanObjectNN: real scans of 15 kinds of objects, in the three variants that papers report."""

from functools import partial
from pathlib import Path

from torch import Tensor

from pointpeft.data.dataset import DataError, PointCloudDataset, at_most, dropped_note
from pointpeft.data.findings import Findings
from pointpeft.data.formats.hdf5 import H5Rows, list_h5, read_h5
from pointpeft.data.registry import SPLITS, DataSet, DataSource, LoadOptions, register_data_set
from pointpeft.data.transforms import move_to_origin

UP_AXIS = "y"
CLASSES = (
    *("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door"),
    *("shelf", "table", "bed", "pillow", "sink", "sofa", "toilet"),
)
# Variant -> its folder and the end of its file names.
VARIANTS: dict[str, tuple[str, str]] = {
    "obj_bg": ("main_split", "objectdataset.h5"),
    "obj_only": ("main_split_nobg", "objectdataset.h5"),
    "pb_t50_rs": ("main_split", "objectdataset_augmentedrot_scale75.h5"),
}
HARDEST = "pb_t50_rs"
_PART = {"train": "training", "test": "test"}


@register_data_set
class ScanObjectNN(DataSet):
    """ScanObjectNN: PATH, scanobjectnn:PATH or scanobjectnn:PATH:VARIANT."""

    name = "scanobjectnn"
    title = "ScanObjectNN"
    layout = "scanobjectnn:PATH[:VARIANT]"
    up_axis = UP_AXIS
    variant_pattern = r"[^/\\]*"
    variants = tuple(VARIANTS)

    def matches(self, path: Path) -> bool:
        """A folder with at least one file of a variant."""
        return path.is_dir() and bool(variants(path))

    def load(self, source: DataSource, split: str, options: LoadOptions) -> PointCloudDataset:
        """See the function `load`; without a variant the hardest is taken."""
        return load(
            source.path,
            split,
            source.variant or HARDEST,
            options.num_points,
            options.up_axis or UP_AXIS,
            lazy=options.lazy,
            drop_non_finite=options.drop_non_finite,
        )

    def check(self, source: DataSource, findings: Findings, *, drop_non_finite: bool = False) -> None:
        """Checks the variant that the source names, or all variants in the folder."""
        chosen = [source.variant] if source.variant else variants(source.path)
        if not chosen:
            find_existing(source.path, "train", HARDEST)  # says what is missing
        dropped: dict[str, int] | None = {} if drop_non_finite else None
        for variant in chosen:
            findings.lines.append(f"{self.title} {variant}, up axis {UP_AXIS}")
            for split in SPLITS:
                path = find(source.path, split, variant)
                findings.hdf5(f"{variant} {split}", [path], CLASSES, dropped)
        findings.notes(dropped_note(dropped))


def find(root: Path, split: str, variant: str) -> Path:
    """The path of a variant's file below a root or its `h5_files`."""
    folder, ending = VARIANTS[variant]
    name = f"{_PART[split]}_{ending}"
    places = [root / folder / name, root / "h5_files" / folder / name]
    if root.name == folder:
        places.append(root / name)
    return next((place for place in places if place.is_file()), places[-1] if root.name == folder else places[0])


def variants(root: Path) -> list[str]:
    """The variants with at least one file."""
    return [v for v in VARIANTS if any(find(root, split, v).is_file() for split in _PART)]


def load(
    root: str | Path,
    split: str,
    variant: str = HARDEST,
    num_points: int | None = None,
    up_axis: str = UP_AXIS,
    *,
    lazy: bool = False,
    drop_non_finite: bool = False,
) -> PointCloudDataset:
    """Reads one split of ScanObjectNN into memory, as it is: published results neither centre nor scale it.

    A cloud far from the origin, as in map coordinates, is moved there before it is rounded to float32.

    Args:
        root: The folder that holds `main_split` and `main_split_nobg`, or one of those.
        split: "train" or "test".
        variant: "obj_bg" (with background), "obj_only" (without), "pb_t50_rs" (the hardest: moved, turned, scaled).
        num_points: The most points of a cloud that are kept, drawn with a fixed seed.
        up_axis: The axis that points up; "y" as published.
        lazy: Leave the clouds in the file, and read each when it is needed.
        drop_non_finite: Leave points out that are not finite; `notes` say how many, of the clouds read so far.

    Raises:
        DataError: An unknown variant, or a file is missing or broken; says which one.
    """
    if variant not in VARIANTS:
        raise DataError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    path = find_existing(Path(root), split, variant)
    if not lazy and not drop_non_finite:
        points, labels, names = read_h5(path, len(CLASSES), as_is=True)
        clouds, sizes, dropped = move_to_origin(at_most(points, num_points)), None, None
    else:
        (count, size), labels, names = list_h5(path, len(CLASSES))
        dropped = {} if drop_non_finite else None
        clouds = partial(_read_row, H5Rows([path], [count], as_is=True, dropped=dropped), num_points)
        sizes = None if drop_non_finite else [min(size, num_points or size)] * count
    if not len(labels):
        raise DataError(f"{path}: has no clouds")
    return PointCloudDataset(clouds, labels, CLASSES, names, up_axis=up_axis, sizes=sizes, dropped=dropped)


def find_existing(root: Path, split: str, variant: str) -> Path:
    """The file of a variant.

    Raises:
        DataError: It is not there; says which variants are.
    """
    path = find(root, split, variant)
    if not path.is_file():
        present = ", ".join(variants(root)) or "none"
        raise DataError(
            f"{path}: no such file; ScanObjectNN is downloaded after filling in the form of its authors "
            f"(variants found below {root}: {present})"
        )
    return path


def _read_row(rows: H5Rows, num_points: int | None, index: int) -> Tensor:
    return move_to_origin(at_most(rows(index), num_points))
