"""Point clouds: reading, data sets, splits, augmentations."""

from pointpeft.data.dataset import DataError, PointCloudDataset
from pointpeft.data.splits import split_validation
from pointpeft.data.transforms import normalize

__all__ = ["DataError", "PointCloudDataset", "normalize", "split_validation"]
