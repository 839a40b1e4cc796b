"""Point clouds: reading, data sets, splits, augmentations."""

from pointpeft.data.dataset import DataError, PointCloudDataset
from pointpeft.data.readers import read_points
from pointpeft.data.splits import split_validation
from pointpeft.data.transforms import normalize

__all__ = ["DataError", "PointCloudDataset", "normalize", "read_points", "split_validation"]
