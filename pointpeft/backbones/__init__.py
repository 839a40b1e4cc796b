"""Backbones: transformers over patches of a point cloud, by name. Every file of this folder is imported."""

from importlib import import_module
from pkgutil import iter_modules

from pointpeft.backbones.context import Context
from pointpeft.backbones.registry import (
    backbone_config,
    backbone_families,
    backbone_names,
    backbone_publications,
    create_backbone,
    register_backbone,
)

__all__ = [
    "Context",
    "backbone_config",
    "backbone_families",
    "backbone_names",
    "backbone_publications",
    "create_backbone",
    "register_backbone",
]


def import_every_file() -> None:
    """Imports each file of this folder, which registers the backbones in it."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


import_every_file()
