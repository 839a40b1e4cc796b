"""ReCon's transformer: patches attend to each other, and three global tokens to the patches by layers of their own."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block, DropPath, Mlp, init_weights
from pointpeft.backbones.point_mae import PointMAE, PointMAEConfig
from pointpeft.backbones.registry import register_backbone
from pointpeft.weights.publication import Publication, YamlModel, modelnet_recipe, scanobjectnn_recipes

# Tensors of a pre-training beside the student's: the image and text teachers, and projections to them.
TEACHERS = (r"^(img|text)_(encoder|proj)\.", r"^cls_proj\.")
_CONFIGS = "qizekun/ReCon cfgs/full/"
PUBLICATION = Publication(
    models=(
        YamlModel(
            "PointTransformer",
            keys=("type",),
            is_shown_by=lambda section: "type" in section,
            augment="rotate",
            augmented=("scanobjectnn", "few_shot"),  # its code turns all that is not ModelNet40
        ),
    ),
    recipes=(
        *scanobjectnn_recipes(
            _CONFIGS + "finetune_{}.yaml", "rotate", under="recon/", drop_path=0.2, backbone="recon", lr=2e-5
        ),
        modelnet_recipe(_CONFIGS + "finetune_modelnet.yaml", under="recon/", drop_path=0.2, backbone="recon", lr=1e-5),
    ),
)


@dataclass(frozen=True)
class ReConConfig(PointMAEConfig):
    """Fields of a `ReCon`: those of a `PointMAE`."""


@dataclass(frozen=True)
class ReConPlainConfig(PointMAEConfig):
    """Fields of a `ReConPlain`: those of a `PointMAE`."""


class CrossAttention(nn.Module):
    """Multi-head attention of some tokens to others."""

    def __init__(self, width: int, num_heads: int, *, device: Any = None, dtype: Any = None):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width, bias=False, device=device, dtype=dtype)
        self.kv = nn.Linear(width, 2 * width, bias=False, device=device, dtype=dtype)
        self.proj = nn.Linear(width, width, device=device, dtype=dtype)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Tokens x [B, T, C] look at tokens y [B, M, C] -> [B, T, C]"""
        batch, tokens, width = x.shape
        split = (self.num_heads, width // self.num_heads)
        q = self.q(x).view(batch, tokens, *split).transpose(1, 2)
        k, v = self.kv(y).view(batch, y.shape[1], 2, *split).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


class GlobalBlock(nn.Module):
    """Global tokens look at the patches: v = LN(g); v = v + CrossAttn(v, u); w = LN(v); w + MLP(w)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        *,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, device=device, dtype=dtype)
        self.attn = CrossAttention(width, num_heads, device=device, dtype=dtype)
        self.norm2 = nn.LayerNorm(width, device=device, dtype=dtype)
        self.mlp = Mlp(width, int(width * mlp_ratio), device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path)

    def forward(self, g: Tensor, u: Tensor) -> Tensor:
        """Global tokens with their positions [B, 3, C], and the patches normalised [B, T, C] -> [B, 3, C]"""
        v = self.norm1(g)
        v = self.norm2(v + self.drop_path(self.attn(v, u)))
        return v + self.drop_path(self.mlp(v))


class ReConBlock(Block):
    """u = LN(x); u = u + Attn(u); w = LN(u); w + MLP(w): both residuals start from the normalised tokens."""

    normed_skips = (True, True)


class ReCon(PointMAE):
    """The encoder of ReCon with its class, image and text tokens, as it is fine-tuned: 43.6 million parameters.

    The three global tokens run beside the patches, in layers of their own, and read what the patches' attention reads;
    no patch reads them. `blocks` are those of the patches, which methods adapt; prompts count as patches.

    Source: Qi et al., "Contrast with reconstruct: contrastive 3D representation learning guided by generative
    pretraining", ICML 2023, and its published code for the residuals.
    """

    family = "recon"
    publication = PUBLICATION
    block_type = ReConBlock
    prefix = ("cls", "img", "text")
    dense_prefix = True
    dense_whole = True
    pooled = ("cls", "img", "text", "patch_max")
    published_renames = (
        (r"^backbone\.global_blocks\.(\d+)\.(\w+)\.", r"blocks.blocks.\1.\2_contrast."),
        *PointMAE.published_renames,
    )
    published_prefixes = ("MAE_encoder.",)
    published_markers = ("_contrast.", "img_token", "text_token")
    ignored_keys = (*TEACHERS, *PointMAE.ignored_keys)

    def __init__(self, config: Any, *, device: Any = None, dtype: Any = None):
        super().__init__(config, device=device, dtype=dtype)
        factory, rates = {"device": device, "dtype": dtype}, self.drop_path_rates(config)
        self.global_blocks = nn.ModuleList(
            GlobalBlock(config.width, config.num_heads, config.mlp_ratio, rate, **factory) for rate in rates
        )
        init_weights(self.global_blocks)

    def run_blocks(self, x: Tensor, ctx: Context) -> Tensor:
        """The blocks of the patches, and after each the block of the global tokens. [B, T, C] -> [B, T, C]"""
        names, count = ctx.prefix, ctx.num_prefix
        pos: Any = ctx.pos  # which `embed` has set
        g, g_pos = x[:, :count], pos[:, :count]
        x, ctx.pos, ctx.prefix = x[:, count:], pos[:, count:], ()
        for i, (block, global_block) in enumerate(zip(self.blocks, self.global_blocks, strict=True)):
            x = block(x, ctx)
            g = global_block(g + g_pos, ctx.attended)
            if i in ctx.taps:
                ctx.hidden[i] = ctx.split(x)[2]
        ctx.prefix = names
        if ctx.pos is not None:
            ctx.pos = torch.cat([g_pos, ctx.pos], 1)
        return torch.cat([g, x], 1)

    @classmethod
    def published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our fields from the `model:` section of a published YAML file, whose `type` must be full, if given."""
        if config.get("type", "full") != "full":
            raise ValueError(f"type must be full, whose head has three layers, got {config['type']!r}")
        return super().published_config(config)


class ReConPlain(PointMAE):
    """The patch branch of ReCon's weights in Point-MAE's network: what adaptation methods publish as ReCon.

    Not what ReCon computes: its residuals start from the normalised tokens, and its global tokens have layers of their
    own, which are left out here.

    Source: the published code of DAPT (CVPR 2024) and PointGST.
    """

    family = "recon_plain"
    ignored_keys = (
        r"^blocks\.blocks\.\d+\.\w+_contrast\.",
        r"^(img|text)_(token|pos)$",
        *TEACHERS,
        *PointMAE.ignored_keys,
    )


ReConConfig.backbone_type = ReCon
ReConPlainConfig.backbone_type = ReConPlain


@register_backbone
def recon() -> ReConConfig:
    """The published size: 12 blocks of width 384 with two branches, 43.6 million parameters."""
    return ReConConfig(drop_path=0.2)


@register_backbone
def recon_tiny() -> ReConConfig:
    """6 blocks of width 96, 64 patches of 32 points; small enough to train without a GPU."""
    return ReConConfig(width=96, depth=6, num_heads=3, num_groups=64, embed_width=32, drop_path=0.0)


@register_backbone
def recon_plain() -> ReConPlainConfig:
    """The published size: 12 blocks of width 384, 22 million parameters."""
    return ReConPlainConfig()


@register_backbone
def recon_plain_tiny() -> ReConPlainConfig:
    """6 blocks of width 96, 64 patches of 32 points; small enough to train without a GPU."""
    return ReConPlainConfig(width=96, depth=6, num_heads=3, num_groups=64, embed_width=32, drop_path=0.0)
