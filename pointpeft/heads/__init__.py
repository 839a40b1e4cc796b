"""Heads: what turns tokens into the answer of a task."""

from pointpeft.heads.classification import ClassificationHead
from pointpeft.heads.dense import DenseFeatures, DenseHead, dense_widths, tapped_blocks
from pointpeft.heads.kernel import KernelHead
from pointpeft.heads.pooling import LevelPool, Pool
from pointpeft.heads.upsampling import UpsamplingHead

__all__ = [
    "ClassificationHead",
    "DenseFeatures",
    "DenseHead",
    "KernelHead",
    "LevelPool",
    "Pool",
    "UpsamplingHead",
    "dense_widths",
    "tapped_blocks",
]
