"""Point clouds: reading, data sets, splits, augmentations."""

from pointpeft.data import sets  # noqa: F401  # registers them
from pointpeft.data.check import CheckReport, check
from pointpeft.data.dataset import DataError, PointCloudDataset
from pointpeft.data.formats.readers import EXTENSIONS, read_points
from pointpeft.data.loading import load_dataset
from pointpeft.data.sets import part_files
from pointpeft.data.splits import split_validation
from pointpeft.data.transforms import normalize

__all__ = [
    "EXTENSIONS",
    "CheckReport",
    "DataError",
    "PointCloudDataset",
    "check",
    "load_dataset",
    "normalize",
    "part_files",
    "read_points",
    "split_validation",
]
