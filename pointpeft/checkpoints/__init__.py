"""Weights on disk: adapters, pre-trained backbones, and published files read and written."""

from pointpeft.checkpoints import pretrained
from pointpeft.checkpoints.adapter import load_adapter, save_adapter
from pointpeft.checkpoints.files import read_weights
from pointpeft.checkpoints.published import from_published, save_published, to_published

__all__ = [
    "from_published",
    "load_adapter",
    "pretrained",
    "read_weights",
    "save_adapter",
    "save_published",
    "to_published",
]
