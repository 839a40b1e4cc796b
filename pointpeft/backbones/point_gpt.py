"""PointGPT's transformer: patches in a greedy order, each looking only at those before it."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Attention, Block
from pointpeft.backbones.patch_embed import PatchEmbed
from pointpeft.backbones.point_mae import PointMAE, PointMAEConfig
from pointpeft.backbones.registry import register_backbone
from pointpeft.weights.publication import Publication, YamlModel

LARGE_HIDDEN = 256  # first width of the large tokenizer
DENSE_HIDDEN = (2048, 1024, 512)  # widths of the dense head of PointGPT-B, which PointGPT-L shares
PUBLISHED_DENSE_BLOCKS = (3, 7, 11)  # at every depth
ADAPTED_CLASS = "GPT_Transformer_"  # starts the names of published classes that adapt it, which have no generator


@dataclass(frozen=True)
class PointGPTConfig(PointMAEConfig):
    """Fields of a `PointGPT`. Its blocks have no stochastic depth, so `drop_path` must be 0.

    Attributes:
        large_tokenizer: Three layers before the first maximum instead of two; `embed_width` is the first one's.
        generator_depth: Layers of the pre-training's generator to keep. No logit depends on them; published fine-tuned
            files hold them, and are written again with them.
        dense_blocks: Three blocks whose outputs a dense head reads, () for the last of each third. The published code
            reads 3, 7 and 11 at every depth, so that no logit depends on the later half of PointGPT-L's 24.
    """

    drop_path: float = 0.0
    large_tokenizer: bool = False
    generator_depth: int = 0
    dense_blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop_path != 0:
            raise ValueError(f"drop_path must be 0 for a PointGPT, got {self.drop_path}")
        if self.generator_depth < 0:
            raise ValueError(f"generator_depth must be at least 0, got {self.generator_depth}")
        blocks = tuple(self.dense_blocks)  # a list after JSON
        object.__setattr__(self, "dense_blocks", blocks)
        if blocks and (len(blocks) != 3 or any(not 0 <= block < self.depth for block in blocks)):
            raise ValueError(f"dense_blocks must be three of the {self.depth} blocks, from 0, or empty, got {blocks}")


class CausalAttention(Attention):
    """Self-attention of each token to itself and those before it."""

    def visible(self, qkv: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, 3C] -> bool [T, T]; a further `mask` takes away from what is causal."""
        tokens = qkv.shape[1]
        causal = torch.ones(tokens, tokens, dtype=torch.bool, device=qkv.device).tril()
        return causal if mask is None else causal & mask


class GPTBlock(Block):
    """u = LN(x); y = u + Attn(u); y + MLP(LN(y)): the first residual starts from the normalised tokens."""

    normed_skips = (True, False)

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
        super().__init__(width, num_heads, mlp_ratio, drop_path, device=device, dtype=dtype)
        self.attn = CausalAttention(width, num_heads, qkv_bias=True, device=device, dtype=dtype)


class LargePatchEmbed(PatchEmbed):
    """The tokenizer of the larger sizes: H, 2H and 4H before the first maximum, 8H after it."""

    def __init__(self, width: int, hidden: int = LARGE_HIDDEN, *, device: Any = None, dtype: Any = None):
        nn.Module.__init__(self)
        factory = {"device": device, "dtype": dtype}
        self.width = width
        self.hidden = hidden
        self.published_order = False  # there is only one order here, the published one
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, hidden, 1, **factory),
            nn.BatchNorm1d(hidden, **factory),
            nn.ReLU(),
            nn.Conv1d(hidden, 2 * hidden, 1, **factory),
            nn.BatchNorm1d(2 * hidden, **factory),
            nn.ReLU(),
            nn.Conv1d(2 * hidden, 4 * hidden, 1, **factory),
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(8 * hidden, 8 * hidden, 1, **factory),
            nn.BatchNorm1d(8 * hidden, **factory),
            nn.ReLU(),
            nn.Conv1d(8 * hidden, width, 1, **factory),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """[B, G, S, 3] -> [B, G, C]"""
        batch, groups, size, _ = patches.shape
        x = self.first_conv(patches.reshape(-1, size, 3).transpose(1, 2))  # [BG, 4H, S]
        x = torch.cat([x.amax(2, keepdim=True).expand_as(x), x], 1)
        return self.second_conv(x).max(2).values.view(batch, groups, self.width)


class SinCosPosition(nn.Module):
    """Positions without parameters: sin and cos of 2π times each coordinate, in turn, padded with zeros to C.

    The published temperature of 1 gives all channels of a coordinate the same frequency.
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.pairs = width // 3 // 2  # per coordinate

    def forward(self, xyz: Tensor) -> Tensor:
        """[B, M, 3] -> [B, M, C]"""
        angle = 2 * math.pi * xyz
        waves = torch.stack([angle.sin(), angle.cos()], -1)  # [B, M, 3, 2]
        waves = waves.repeat(1, 1, 1, self.pairs).flatten(2)
        return F.pad(waves, (0, self.width - waves.shape[-1]))


class Generator(nn.Module):
    """The part of the pre-training that draws the next patch; kept for its tensors, never run."""

    def __init__(self, config: Any, *, device: Any = None, dtype: Any = None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        width, points = config.width, 3 * config.group_size
        self.sos = nn.Parameter(torch.randn(width, **factory))
        self.layers = nn.ModuleList(
            GPTBlock(width, config.num_heads, config.mlp_ratio, **factory) for _ in range(config.generator_depth)
        )
        self.ln_f = nn.LayerNorm(width, **factory)
        self.increase_dim = nn.Sequential(nn.Conv1d(width, points, 1, **factory))
        self.extractor_dim = nn.Sequential(nn.Conv1d(width, points, 1, **factory))
        self.norm = nn.LayerNorm(width, **factory)


def greedy_order(centers: Tensor) -> Tensor:
    """A path through all centres from the first one, each time to the nearest that is left; ties to the lowest index.

    Args:
        centers: [B, G, 3]

    Returns:
        Indices into G in the order of the path, int64. [B, G]

    Source: the published code of PointGPT, which calls it simplified Morton sorting.
    """
    batch, groups, _ = centers.shape
    distance = (centers[:, :, None] - centers[:, None]).square().sum(-1)  # [B, G, G]
    rows = torch.arange(batch, device=centers.device)
    last = torch.zeros(batch, dtype=torch.int64, device=centers.device)
    is_taken = torch.zeros(batch, groups, dtype=torch.bool, device=centers.device)
    order = [last]
    for _ in range(groups - 1):
        is_taken[rows, last] = True
        last = distance[rows, last].masked_fill(is_taken, float("inf")).argmin(-1)
        order.append(last)
    return torch.stack(order, 1)


class PointGPT(PointMAE):
    """The extractor of PointGPT, as it is fine-tuned: a start token, the class token, then the patches, causally.

    `cls_pos` and `sos_pos` are named as in published files, where by the order of their making `cls_pos` lands on the
    start token and `sos_pos` on the class token.

    Source: Chen et al., "PointGPT: auto-regressively generative pre-training from point clouds", NeurIPS 2023, and its
    published code.
    """

    family = "point_gpt"
    publication = Publication(
        models=(
            YamlModel(
                "PointTransformer",
                keys=("decoder_depth", "loss", "weight_center"),
                is_shown_by=lambda section: "decoder_depth" in section,
            ),
        )
    )
    block_type = GPTBlock
    prefix = ("sos", "cls")
    dense_prefix = True
    published_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^backbone\.patch_embed\.", "encoder."),
        (r"^backbone\.sos_token$", "blocks.sos"),
        (r"^backbone\.norm\.0\.", "blocks.ln_f."),
        (r"^backbone\.norm\.1\.", "blocks.cls_norm."),
        (r"^backbone\.generator\.norm\.", "norm."),
        (r"^backbone\.generator\.extractor_norm\.", "blocks.ln_f."),
        (r"^backbone\.generator\.extractor_dim\.", "blocks.increase_dim."),
        (r"^backbone\.generator\.", "generator_blocks."),
        (r"^backbone\.blocks\.", "blocks.layers."),
        (r"\.layers\.(\d+)\.norm([12])\.", r".layers.\1.ln_\2."),
        (r"\.layers\.(\d+)\.attn\.qkv\.(weight|bias)$", r".layers.\1.attn.in_proj_\2"),
        (r"\.layers\.(\d+)\.attn\.proj\.", r".layers.\1.attn.out_proj."),
        (r"\.layers\.(\d+)\.mlp\.fc1\.", r".layers.\1.mlp.0."),
        (r"\.layers\.(\d+)\.mlp\.fc2\.", r".layers.\1.mlp.2."),
        (r"^backbone\.", ""),
        (r"^head\.layers\.", "blocks.cls_head_finetune."),
    )
    published_prefixes = ("GPT_Transformer.",)
    published_markers = ("blocks.sos", "generator_blocks.")
    optional_keys = (r"(cls_token|cls_pos)$", r"norm\.1\.")
    ignored_keys = (r"^generator_blocks\.", r"^blocks\.(increase_dim|cls_head_finetune)\.", r"^norm\.")
    unread_keys = (r"^blocks\.increase_dim\.", r"^norm\.")  # left of the generator in files of adapted models

    def __init__(self, config: Any, *, device: Any = None, dtype: Any = None):
        super().__init__(config, device=device, dtype=dtype)
        self.sos_token = nn.Parameter(torch.randn(config.width, device=device, dtype=dtype))  # of this shape in files
        if config.generator_depth:
            self.generator = Generator(config, device=device, dtype=dtype)

    def make_patch_embed(self, config: Any, *, device: Any = None, dtype: Any = None) -> nn.Module:
        """The tokenizer: [B, G, S, 3] -> [B, G, C]."""
        tokenizer = LargePatchEmbed if config.large_tokenizer else PatchEmbed
        return tokenizer(config.width, config.embed_width, device=device, dtype=dtype)

    def make_pos_embed(self, config: Any, *, device: Any = None, dtype: Any = None) -> nn.Module:
        """The module that embeds centres as positions: [B, G, 3] -> [B, G, C]."""
        return SinCosPosition(config.width)

    def make_norm(self, config: Any, *, device: Any = None, dtype: Any = None) -> nn.Module:
        """The pre-training's last norm, and the classifier's: [B, T, C] -> [B, T, C]."""
        return nn.Sequential(*(nn.LayerNorm(config.width, device=device, dtype=dtype) for _ in range(2)))

    def for_points(self) -> None:
        """Normalises by one layer that no pre-training trains, as published, where clouds are classified by two.

        The pre-training's last norm leads to the generator alone there, and is kept with it.
        """
        model: Any = self
        last = model.norm[0]
        self.norm = nn.LayerNorm(self.config.width, device=last.weight.device, dtype=last.weight.dtype)
        if model.config.generator_depth:
            del model.generator.norm
            model.generator.extractor_norm = last

    @property
    def dense_blocks(self) -> tuple[int, ...]:
        """The blocks whose outputs a dense head reads; empty for the last of each third."""
        config: Any = self.config
        return config.dense_blocks

    @property
    def dense_hidden(self) -> tuple[int, int, int] | None:
        """Hidden widths of its dense head, None for those of 384 channels in proportion."""
        return DENSE_HIDDEN if self.config.width > 768 else None

    @classmethod
    def published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our fields from the `model:` section of a published YAML file."""
        fields = super().published_config(config)
        fields["drop_path"] = 0.0  # named there, but its blocks have none
        adapted = str(config.get("NAME", "")).startswith(ADAPTED_CLASS)
        fields["generator_depth"] = 0 if adapted else int(config.get("decoder_depth", 0))
        if fields["depth"] > PUBLISHED_DENSE_BLOCKS[-1] + 1:  # at 12, and in our smaller ones, by thirds
            fields["dense_blocks"] = PUBLISHED_DENSE_BLOCKS
        return fields

    @classmethod
    def yaml_fields(cls, section: dict[str, Any]) -> dict[str, Any]:
        """Our fields for training anew by a YAML file: without the generator, and with a dense head's usual blocks."""
        return super().yaml_fields(section) | {"generator_depth": 0, "dense_blocks": ()}

    @classmethod
    def yaml_differences(cls, section: dict[str, Any]) -> tuple[str, ...]:
        """Differences between training by a YAML file here and the published training."""
        loss = "the loss is the cross-entropy; published adds 3 times that of the generator's reconstruction"
        if not section.get("drop_path_rate"):
            return (loss,)
        return loss, "the file's drop_path_rate is not used; published PointGPT has none when it classifies"

    @classmethod
    def published_tokenizer(cls, config: dict[str, Any], width: int) -> dict[str, Any]:
        """Width 384 has the small tokenizer, the others have the large one."""
        fields = super().published_tokenizer(config, width)
        return fields if width == 384 else {**fields, "large_tokenizer": True, "embed_width": LARGE_HIDDEN}

    def group(self, xyz: Tensor, num_groups: int = 0, group_size: int = 0) -> tuple[Tensor, Tensor]:
        """Patches (B, G, S, 3) relative to their centres, and the centres (B, G, 3), both in the greedy order."""
        patches, centers = super().group(xyz, num_groups, group_size)
        order = greedy_order(centers)
        rows = torch.arange(order.shape[0], device=order.device)[:, None]
        return patches[rows, order], centers[rows, order]

    def embed(self, ctx: Context, patches: Tensor) -> Tensor:
        """Tokens of the patches with the prefix before them; sets the positions and the layout of `ctx`."""
        tokens = self.patch_transform(self.patch_embed(patches))
        batch = tokens.shape[0]
        ctx.prefix = self.prefix
        module: Any = self  # the prefix tokens are attributes by name
        first, second = module.cls_pos.expand(batch, -1, -1), module.sos_pos.expand(batch, -1, -1)
        ctx.pos = torch.cat([first, second, self.pos_embed(ctx.centers)], 1)
        return torch.cat([module.sos_token.expand(batch, 1, -1), module.cls_token.expand(batch, -1, -1), tokens], 1)


PointGPTConfig.backbone_type = PointGPT


@register_backbone
def point_gpt() -> PointGPTConfig:
    """PointGPT-S: 12 blocks of width 384."""
    return PointGPTConfig()


@register_backbone
def point_gpt_base() -> PointGPTConfig:
    """PointGPT-B: 12 blocks of width 768, and the large tokenizer."""
    return PointGPTConfig(width=768, num_heads=12, large_tokenizer=True, embed_width=LARGE_HIDDEN)


@register_backbone
def point_gpt_large() -> PointGPTConfig:
    """PointGPT-L: 24 blocks of width 1024, and the large tokenizer."""
    return PointGPTConfig(width=1024, depth=24, num_heads=16, large_tokenizer=True, embed_width=LARGE_HIDDEN)


@register_backbone
def point_gpt_tiny() -> PointGPTConfig:
    """6 blocks of width 96, 64 patches of 32 points; small enough to train without a GPU."""
    return PointGPTConfig(width=96, depth=6, num_heads=3, num_groups=64, embed_width=32)
