"""Weights on disk: adapters, pre-trained backbones, and published files read and written."""

from pointpeft.checkpoints.adapter import load_adapter, save_adapter
from pointpeft.checkpoints.published import from_published, save_published, to_published
from pointpeft.files import read_weights
from pointpeft.weights import pretrained

__all__ = [
    "from_published",
    "load_adapter",
    "pretrained",
    "read_weights",
    "save_adapter",
    "save_published",
    "to_published",
]
