"""Point-FEMAE's transformer: Point-MAE's blocks, each followed by a convolution over neighbouring patches."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.edge_conv import conv, edge_conv, project
from pointpeft.backbones.layers import DropPath
from pointpeft.backbones.point_mae import PointMAE, PointMAEConfig
from pointpeft.backbones.registry import register_backbone
from pointpeft.ops import knn


@dataclass(frozen=True)
class PointFEMAEConfig(PointMAEConfig):
    """Fields of a `PointFEMAE`.

    Attributes:
        local_neighbors: K, patches that a local module looks at, itself among them; all where there are fewer.
    """

    local_neighbors: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local_neighbors < 1:
            raise ValueError(f"local_neighbors must be at least 1, got {self.local_neighbors}")


class LocalModule(nn.Module):
    """x_i + P(EdgeConv(u)_i) with u = LN(x), over the patches whose centres are nearest; prompts pass by."""

    def __init__(self, width: int, drop_path: float, *, device: Any = None, dtype: Any = None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(width, **factory)
        self.conv1 = conv(nn.BatchNorm1d(width, **factory), 2 * width, 2, factory)
        self.conv2 = conv(nn.BatchNorm1d(width, **factory), width, 1, factory)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, idx: Tensor) -> Tensor:
        """Patch tokens [B, G, C] and the neighbours of each patch, int64 [B, G, K] -> [B, G, C]"""
        return self.drop_path.added(x, project(self.conv2, edge_conv(self.conv1, self.norm(x), idx)))


class PointFEMAE(PointMAE):
    """The encoder of Point-FEMAE, as it is fine-tuned: no class token, and 27.4 million parameters.

    `blocks` are those that methods adapt; the local module behind each stands in `local_modules`.

    Source: Zha et al., "Towards compact 3D representations via point feature enhancement masked autoencoders", AAAI
    2024, and its published code.
    """

    family = "point_femae"
    prefix = ()
    pooled = ("patch_mean", "patch_max")
    published_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^backbone\.local_modules\.(\d+)\.norm\.", r"blocks.blocks.\1.cls_norm."),
        (r"^backbone\.local_modules\.(\d+)\.conv(\d)\.0\.", r"blocks.blocks.\1.cls.conv\2.0."),
        (r"^backbone\.local_modules\.(\d+)\.conv(\d)\.1\.", r"blocks.blocks.\1.cls.bn\2."),
        *PointMAE.published_renames,
    )
    published_copies = ((r"\.cls\.bn(\d)\.", r".cls.conv\1.1."),)
    published_markers = ("blocks.blocks.0.cls_norm.",)

    def __init__(self, config: Any, *, device: Any = None, dtype: Any = None):
        super().__init__(config, device=device, dtype=dtype)
        self.local_neighbors: int = config.local_neighbors
        self.local_modules = nn.ModuleList(
            LocalModule(config.width, rate, device=device, dtype=dtype) for rate in self.drop_path_rates(config)
        )

    def run_blocks(self, x: Tensor, ctx: Context) -> Tensor:
        """The blocks, and after each its local module. [B, T, C] -> [B, T, C]"""
        idx = knn(ctx.centers, ctx.centers, min(self.local_neighbors, ctx.num_groups))[1]
        for i, (block, local) in enumerate(zip(self.blocks, self.local_modules, strict=True)):
            prefix, prompts, patches, suffix = ctx.split(block(x, ctx))
            patches = local(patches, idx)
            x = torch.cat([prefix, prompts, patches, suffix], 1)
            if i in ctx.taps:
                ctx.hidden[i] = patches
        return x

    @classmethod
    def published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our fields from the `model:` section of a published YAML file.

        Raises:
            ValueError: A key asks for something this backbone is not.
        """
        fields = super().published_config(config)
        if config.get("downrate", 1) != 1:
            raise ValueError(f"downrate must be 1, got {config['downrate']!r}")
        blocks = list(range(fields["depth"]))
        if config.get("ad_layers", blocks) != blocks:
            raise ValueError(f"ad_layers must name all {len(blocks)} blocks, got {config['ad_layers']!r}")
        return fields | {"local_neighbors": int(config.get("gcn_k", 20))}


PointFEMAEConfig.backbone_type = PointFEMAE


@register_backbone
def point_femae() -> PointFEMAEConfig:
    """The published size: 12 blocks of width 384, 27.4 million parameters."""
    return PointFEMAEConfig()


@register_backbone
def point_femae_tiny() -> PointFEMAEConfig:
    """6 blocks of width 96, 64 patches of 32 points; small enough to train without a GPU."""
    return PointFEMAEConfig(width=96, depth=6, num_heads=3, num_groups=64, embed_width=32, drop_path=0.0)
