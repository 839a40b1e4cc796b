"""Point clouds: reading, data sets, splits, augmentations."""

from pointpeft.data.dataset import DataError, PointCloudDataset

__all__ = ["DataError", "PointCloudDataset"]
