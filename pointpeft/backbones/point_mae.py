"""Point-MAE's transformer: groups of points become tokens, a plain pre-norm transformer follows."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block, init_weights
from pointpeft.backbones.patch_embed import PUBLISHED_WIDTH, PatchEmbed
from pointpeft.backbones.registry import register_backbone
from pointpeft.ops import sample_and_group
from pointpeft.weights.publication import Publication, YamlModel, modelnet_recipe, scanobjectnn_recipes

POS_HIDDEN = 128  # width inside the position embedding, as published

_CONFIGS = "Pang-Yatian/Point-MAE cfgs/"
PUBLICATION = Publication(
    models=(YamlModel("PointTransformer"),),
    recipes=(
        *scanobjectnn_recipes(_CONFIGS + "finetune_{}.yaml", "scale_translate"),
        modelnet_recipe(_CONFIGS + "finetune_modelnet.yaml"),
        modelnet_recipe(_CONFIGS + "finetune_modelnet_8k.yaml", "modelnet_8k", num_groups=512, num_points=8192),
        modelnet_recipe(_CONFIGS + "fewshot.yaml", "fewshot"),
    ),
)


@dataclass(frozen=True)
class PointMAEConfig:
    """Fields of a `PointMAE`.

    Attributes:
        width: C, channels of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        num_groups: G, patches per cloud.
        group_size: S, points per patch.
        mlp_ratio: Hidden width of the MLP over C.
        embed_width: Width of the tokenizer's first layer.
        drop_path: Stochastic depth of the last block; it grows linearly from 0 at the first.
        min_sq_norm: Points with ‖p‖² at or below it are never chosen as centres; published checkpoints were trained
            with 1e-3.
    """

    width: int = 384
    depth: int = 12
    num_heads: int = 6
    num_groups: int = 128
    group_size: int = 32
    mlp_ratio: float = 4.0
    embed_width: int = PUBLISHED_WIDTH
    drop_path: float = 0.1
    min_sq_norm: float = 0.0

    backbone_type: ClassVar[type]

    def __post_init__(self) -> None:
        for name in ("width", "depth", "num_heads", "num_groups", "group_size", "embed_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def build(self, *, device: Any = None, dtype: Any = None) -> "PointMAE":
        """The backbone with fresh weights."""
        return self.backbone_type(self, device=device, dtype=dtype)


class PointMAE(nn.Module):
    """The encoder of Point-MAE with a class token, as it is fine-tuned.

    Its parts can be replaced by a method: `cloud_transform` (before the groups), `patch_embed`, `patch_transform`
    (after it), `entry_transform` (before the blocks), the blocks, `norm`, `token_transform` (after it). A derived
    backbone changes `embed`, or the class attributes below.

    Source: Pang et al., "Masked autoencoders for point cloud self-supervised learning", ECCV 2022.
    """

    # The registered name of the published size.
    family: ClassVar[str] = "point_mae"
    # The class of its blocks.
    block_type: ClassVar[type[Block]] = Block
    # Names of the tokens before the patches; `<name>_token` and `<name>_pos` hold them.
    prefix: ClassVar[tuple[str, ...]] = ("cls",)
    # Tokens that the published classifier pools, see heads.pooling.
    pooled: ClassVar[tuple[str, ...]] = ("cls", "patch_max")
    # Whether the tokens before the patches stay where every point is classified; in Point-MAE's published code not.
    dense_prefix: ClassVar[bool] = False
    # Whether a dense head reads the maximum of those tokens after the last block, before the norm.
    dense_whole: ClassVar[bool] = False
    # Whether points are classified by Point-BERT's upsampling instead of Point-MAE's pooling.
    dense_upsampling: ClassVar[bool] = False
    # How its published classifier differs from `ClassificationHead`'s defaults.
    head_options: ClassVar[dict[str, Any]] = {}
    # Its own publication, which fine-tunes all of it; a derived class sets its own, if it has one.
    publication: ClassVar[Publication] = PUBLICATION
    # Layout of published files: substitutions that turn our names into theirs, in order ...
    published_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^backbone\.patch_embed\.", "encoder."),
        (r"^backbone\.blocks\.", "blocks.blocks."),
        (r"^backbone\.", ""),
        (r"^head\.layers\.", "cls_head_finetune."),
    )
    # ... substitutions that turn one of their names into a second one for the same tensor ...
    published_copies: ClassVar[tuple[tuple[str, str], ...]] = ()
    # ... prefixes that a file may put before them, strings that only keys of this backbone contain ...
    published_prefixes: ClassVar[tuple[str, ...]] = ("MAE_encoder.", "ACT_encoder.")
    published_markers: ClassVar[tuple[str, ...]] = ()
    # ... our names that a pre-training may lack, its names that adaptation does not need, and names in fine-tuned files
    # that no forward reads.
    optional_keys: ClassVar[tuple[str, ...]] = (r"(cls_token|cls_pos)$",)
    ignored_keys: ClassVar[tuple[str, ...]] = (
        r"^(MAE|ACT)_decoder\.",
        r"^decoder_pos_embed\.",
        r"^mask_token$",
        r"^increase_dim\.",
        r"^(lm_head|cls_head)\.",
        r"^cls_head_finetune\.",
    )
    unread_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: PointMAEConfig, *, device: Any = None, dtype: Any = None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.config = config
        width = config.width
        for name in self.prefix:
            self.register_parameter(f"{name}_token", nn.Parameter(torch.empty(1, 1, width, **factory)))
            self.register_parameter(f"{name}_pos", nn.Parameter(torch.empty(1, 1, width, **factory)))
        # What a method does to the clouds before they are grouped, (xyz [B, N, 3], ctx) -> [B, N', 3], and to the
        # tokens before the blocks, (x [B, T, C], ctx) -> [B, T', C]; None for nothing.
        self.cloud_transform: nn.Module | None = None
        self.entry_transform: nn.Module | None = None
        self.patch_embed: nn.Module = self.make_patch_embed(config, **factory)
        self.patch_transform: nn.Module = nn.Identity()
        self.pos_embed: nn.Module = self.make_pos_embed(config, **factory)
        self.blocks = nn.ModuleList(
            self.block_type(width, config.num_heads, config.mlp_ratio, rate, **factory)
            for rate in self.drop_path_rates(config)
        )
        self.norm: nn.Module = self.make_norm(config, **factory)
        self.token_transform: nn.Module = nn.Identity()
        init_weights(self)
        for name in self.prefix:
            nn.init.trunc_normal_(getattr(self, f"{name}_token"), std=0.02)
            nn.init.trunc_normal_(getattr(self, f"{name}_pos"), std=0.02)

    @staticmethod
    def drop_path_rates(config: PointMAEConfig) -> list[float]:
        """Rate of stochastic depth of each block: from 0 up to `drop_path`."""
        return [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]

    def make_patch_embed(self, config: PointMAEConfig, *, device: Any = None, dtype: Any = None) -> nn.Module:
        """The tokenizer: [B, G, S, 3] -> [B, G, C]."""
        return PatchEmbed(config.width, config.embed_width, device=device, dtype=dtype)

    def make_pos_embed(self, config: PointMAEConfig, *, device: Any = None, dtype: Any = None) -> nn.Module:
        """The module that embeds centres as positions: [B, G, 3] -> [B, G, C]."""
        factory = {"device": device, "dtype": dtype}
        return nn.Sequential(
            nn.Linear(3, POS_HIDDEN, **factory), nn.GELU(), nn.Linear(POS_HIDDEN, config.width, **factory)
        )

    def make_norm(self, config: PointMAEConfig, *, device: Any = None, dtype: Any = None) -> nn.Module:
        """The norm after the last block: [B, T, C] -> [B, T, C]."""
        return nn.LayerNorm(config.width, device=device, dtype=dtype)

    @property
    def last_norm(self) -> nn.LayerNorm:
        """The layer that ends `norm`."""
        layer: Any = self.norm[-1] if isinstance(self.norm, nn.Sequential) else self.norm
        return layer

    @classmethod
    def shown_by(cls, state: dict[str, Tensor]) -> str | None:
        """What in a published file shows this backbone and no other; None where nothing does."""
        return next((marker for marker in cls.published_markers if any(marker in key for key in state)), None)

    @classmethod
    def published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our fields from the `model:` section of a published YAML file.

        Raises:
            ValueError: A key is missing, or asks for something this backbone is not.
        """
        names = {
            "width": ("trans_dim", "embed_dim"),
            "depth": ("depth",),
            "num_heads": ("num_heads",),
            "num_groups": ("num_group",),
            "group_size": ("group_size",),
        }
        fields: dict[str, Any] = {}
        for ours, theirs in names.items():
            values = [config[key] for key in theirs if key in config]
            if not values:
                raise ValueError(f"config must have {' or '.join(theirs)}, got {sorted(config)}")
            fields[ours] = int(values[0])
        fields |= cls.published_tokenizer(config, fields["width"])
        fields["drop_path"] = float(config.get("drop_path_rate", 0.0))
        fields["min_sq_norm"] = 1e-3  # pointnet2_ops, with which every published file was trained
        return fields

    @classmethod
    def yaml_fields(cls, section: dict[str, Any]) -> dict[str, Any]:
        """Our fields for training anew by a YAML file, without what published code chooses beside the file."""
        return cls.published_config(section) | {"min_sq_norm": 0.0}

    @classmethod
    def yaml_differences(cls, section: dict[str, Any]) -> tuple[str, ...]:
        """Differences between training by a YAML file here and the published training, a clause each."""
        return ()

    @classmethod
    def published_tokenizer(cls, config: dict[str, Any], width: int) -> dict[str, Any]:
        """Our fields of the tokenizer from the same section, for tokens of `width` channels."""
        if config.get("encoder_dims", width) != width:
            raise ValueError(
                f"encoder_dims must equal the width {width} for {cls.__name__}, got {config['encoder_dims']}"
            )
        return {}

    def for_points(self) -> None:
        """Takes out what does not stay where every point is classified: the tokens before the patches, by default."""
        if self.dense_prefix:
            return
        for name in self.prefix:
            delattr(self, f"{name}_token")
            delattr(self, f"{name}_pos")
        self.prefix = ()  # type: ignore[misc]

    @property
    def dense_blocks(self) -> tuple[int, ...]:
        """The blocks whose outputs a dense head reads; empty for the last of each third."""
        return ()

    @property
    def dense_hidden(self) -> tuple[int, int, int] | None:
        """Hidden widths of its dense head, None for those of 384 channels in proportion."""
        return None

    def group(self, xyz: Tensor, num_groups: int = 0, group_size: int = 0) -> tuple[Tensor, Tensor]:
        """Patches (B, G, S, 3) relative to their centres, and the centres (B, G, 3), of clouds (B, N, 3).

        A method that reads a cloud a second time gives other `num_groups` and `group_size`; 0 for the backbone's own.
        """
        config = self.config
        sizes = (num_groups or config.num_groups, group_size or config.group_size)
        grouped = sample_and_group(xyz, *sizes, min_sq_norm=config.min_sq_norm)
        return grouped.patches, grouped.centers

    def embed(self, ctx: Context, patches: Tensor) -> Tensor:
        """Tokens of the patches with the prefix before them; sets the positions and the layout of `ctx`."""
        tokens = self.patch_transform(self.patch_embed(patches))
        batch = tokens.shape[0]
        prefix = [getattr(self, f"{name}_token").expand(batch, -1, -1) for name in self.prefix]
        prefix_pos = [getattr(self, f"{name}_pos").expand(batch, -1, -1) for name in self.prefix]
        ctx.prefix = self.prefix
        ctx.pos = torch.cat([*prefix_pos, self.pos_embed(ctx.centers)], 1)
        return torch.cat([*prefix, tokens], 1)

    def forward(
        self, xyz: Tensor, inputs: dict[str, Tensor] | None = None, taps: tuple[int, ...] = ()
    ) -> tuple[Tensor, Context]:
        """Encodes clouds.

        Args:
            xyz: Coordinates. [B, N, 3]
            inputs: Further inputs that a method asks for, by name.
            taps: Blocks whose output patch tokens are to be kept in `Context.hidden`.

        Returns:
            Tokens after the last norm [B, T, C], and the context that tells their layout.
        """
        ctx = Context(xyz, xyz[:, :0], inputs=inputs or {}, taps=taps)  # no groups yet
        patches, ctx.centers = self.group(xyz if self.cloud_transform is None else self.cloud_transform(xyz, ctx))
        x = self.embed(ctx, patches)
        x = self.run_blocks(x if self.entry_transform is None else self.entry_transform(x, ctx), ctx)
        if taps and self.dense_whole:
            ctx.whole = x[:, : ctx.num_prefix].amax(1)
        return self.token_transform(self.norm(x)), ctx

    def run_blocks(self, x: Tensor, ctx: Context) -> Tensor:
        """All blocks, one after the other; keeps what `ctx.taps` names. [B, T, C] -> [B, T, C]"""
        for i, block in enumerate(self.blocks):
            x = block(x, ctx)
            if i in ctx.taps:
                ctx.hidden[i] = ctx.split(x)[2]
        return x


PointMAEConfig.backbone_type = PointMAE


@register_backbone
def point_mae() -> PointMAEConfig:
    """The published size: 12 blocks of width 384, 22 million parameters."""
    return PointMAEConfig()


@register_backbone
def point_mae_small() -> PointMAEConfig:
    """8 blocks of width 192, 64 patches of 32 points."""
    return PointMAEConfig(width=192, depth=8, num_heads=6, num_groups=64, embed_width=64)


@register_backbone
def point_mae_tiny() -> PointMAEConfig:
    """6 blocks of width 96, 64 patches of 32 points; small enough to train without a GPU."""
    return PointMAEConfig(width=96, depth=6, num_heads=3, num_groups=64, embed_width=32, drop_path=0.0)
