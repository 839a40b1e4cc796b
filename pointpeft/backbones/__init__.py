"""Backbones: transformers over patches of a point cloud, by name."""

from pointpeft.backbones import act as _act  # noqa: F401  each registers its names
from pointpeft.backbones import point_bert as _point_bert  # noqa: F401
from pointpeft.backbones import point_gpt as _point_gpt  # noqa: F401
from pointpeft.backbones import point_mae as _point_mae  # noqa: F401
from pointpeft.backbones import recon as _recon  # noqa: F401
from pointpeft.backbones.context import Context
from pointpeft.backbones.registry import (
    backbone_config,
    backbone_families,
    backbone_names,
    create_backbone,
    register_backbone,
)

__all__ = ["Context", "backbone_config", "backbone_families", "backbone_names", "create_backbone", "register_backbone"]
