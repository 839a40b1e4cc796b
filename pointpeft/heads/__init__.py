"""Heads: what turns tokens into the answer of a task."""

from pointpeft.heads.classification import ClassificationHead
from pointpeft.heads.dense import DenseFeatures, DenseHead, tapped_blocks
from pointpeft.heads.pooling import Pool

__all__ = ["ClassificationHead", "DenseFeatures", "DenseHead", "Pool", "tapped_blocks"]
