"""ACT's transformer: Point-MAE's network, pre-trained by a cross-modal teacher, under its own names."""

from dataclasses import dataclass

from pointpeft.backbones.point_mae import PointMAE, PointMAEConfig
from pointpeft.backbones.registry import register_backbone


@dataclass(frozen=True)
class ACTConfig(PointMAEConfig):
    """Fields of an `ACT`: those of a `PointMAE`."""


class ACT(PointMAE):
    """The student of ACT, as it is fine-tuned.

    Its pre-training holds the class token too. A fine-tuned file has Point-MAE's names and nothing of its own, so that
    it is read as a `point_mae` unless the family is named; the logits are the same.

    Source: Dong et al., "Autoencoders as cross-modal teachers: can pretrained 2D image transformers help 3D
    representation learning?", ICLR 2023.
    """

    family = "act"
    published_prefixes = ("ACT_encoder.",)
    published_markers = ("ACT_encoder.",)


ACTConfig.backbone_type = ACT


@register_backbone
def act() -> ACTConfig:
    """The published size: 12 blocks of width 384, 22 million parameters."""
    return ACTConfig()


@register_backbone
def act_tiny() -> ACTConfig:
    """6 blocks of width 96, 64 patches of 32 points; small enough to train without a GPU."""
    return ACTConfig(width=96, depth=6, num_heads=3, num_groups=64, embed_width=32, drop_path=0.0)
