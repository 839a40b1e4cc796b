"""PointLoRA: low-rank updates of the attention, small shared MLPs, and tokens selected at several scales."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block, linear
from pointpeft.heads import Pool
from pointpeft.methods.base import Method, factory_kwargs, register_method
from pointpeft.model import PointModel
from pointpeft.ops import gather, knn
from pointpeft.weights.publication import Publication, YamlModel, scanobjectnn_recipes

QUIRKS = ("none", "published")


class LowRank(nn.Module):
    """B A x, zero at the start; folds into a linear map beside it."""

    def __init__(self, layer: nn.Linear, rank: int):
        super().__init__()
        factory = factory_kwargs(layer)
        self.a = nn.Parameter(torch.empty(rank, layer.in_features, **factory))
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank, **factory))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C']"""
        return F.linear(F.linear(x, self.a), self.b)

    @torch.no_grad()
    def fold(self, layer: nn.Linear) -> None:
        """Adds B A to the weight of `layer`."""
        layer.weight += self.b @ self.a


class SharedMlps(nn.Module):
    """Four MLPs, the same for all blocks: for patch tokens, selected tokens, and beside both maps of the attention."""

    patches: nn.Sequential
    selected: nn.Sequential
    qkv: nn.Sequential
    proj: nn.Sequential

    def __init__(self, width: int, hidden: int, factory: dict[str, Any]):
        super().__init__()
        for name, out in (("patches", width), ("selected", width), ("qkv", 3 * width), ("proj", width)):
            down, up = nn.Linear(width, hidden, **factory), nn.Linear(hidden, out, **factory)
            for layer in (down, up):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
            self.add_module(name, nn.Sequential(down, nn.GELU(), up))


class TokenSelector(nn.Module):
    """Scores p = σ(MLP(token)) the patches of several scales, and takes the best of each scale for further tokens.

    The first scale has the backbone's own patches, each further one half as many of twice the size. The tokenizer is
    lent by the backbone.
    """

    def __init__(self, method: "PointLoRA", backbone: Any):
        super().__init__()
        width, factory = backbone.config.width, factory_kwargs(backbone)
        self.fc1 = nn.Linear(width, width // 2, **factory)
        self.fc2 = nn.Linear(width // 2, 1, **factory)
        self.method = method
        self._backbone = (backbone,)  # in a tuple, so that its modules have one name only

    def scale(self, x: Tensor, ctx: Context, level: int) -> tuple[Tensor, Tensor]:
        """Tokens and positions of the patches of one scale. [B, G / 2^level, C] each"""
        if level == 0:
            return ctx.split(x)[2], ctx.patch_pos
        backbone = self._backbone[0]
        # Farthest points are picked one by one, so the first half of the centres is what half as many would be.
        centers = ctx.centers[:, : ctx.num_groups >> level]
        idx = knn(centers, ctx.xyz, backbone.config.group_size << level)[1]
        patches = gather(ctx.xyz, idx) - centers[:, :, None]
        scale_ctx = Context(ctx.xyz, centers)
        tokens = backbone.embed(scale_ctx, patches)
        return scale_ctx.split(tokens)[2], scale_ctx.patch_pos

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Puts the selected tokens behind the patches and leaves the selector's loss. [B, T, C] -> [B, T + P, C]"""
        chosen, chosen_pos, loss = [], [], x.new_zeros(())
        for level, share in enumerate(self.method.keep):
            tokens, pos = self.scale(x, ctx, level)
            logit = self.fc2(F.relu(self.fc1(tokens)))[..., 0]  # [B, G]
            count = max(1, round(share * logit.shape[1]))
            best = logit.topk(count, dim=1).indices
            rows = best[..., None].expand(-1, -1, x.shape[-1])
            chosen.append(tokens.gather(1, rows))
            chosen_pos.append(pos.gather(1, rows))
            p = logit.sigmoid()
            entropy = F.binary_cross_entropy_with_logits(logit, p)
            loss = loss + 0.25**level * entropy
        sign = -1 if self.method.quirks == "published" else 1
        ctx.aux_losses["selection"] = sign * self.method.selection_weight * loss
        return ctx.append_suffix(x, torch.cat(chosen, 1), torch.cat(chosen_pos, 1))


class PointLoRABlock(Block):
    """A frozen block whose attention is (W + B A) x + s M(x) in both linear maps, after MLPs on patches and selected.

    The scale s of either map is one and does not train; published files hold it.
    """

    mlp_scale_qkv: Tensor
    mlp_scale_proj: Tensor

    def __init__(self, block: Block, rank: int, mlps: SharedMlps, selector: TokenSelector | None):
        self.adopt(block)
        self.lora_qkv: LowRank | None = LowRank(self.attn.qkv, rank)
        self.lora_proj: LowRank | None = LowRank(self.attn.proj, rank)
        self.register_buffer("mlp_scale_qkv", torch.ones(1, **factory_kwargs(block)))
        self.register_buffer("mlp_scale_proj", torch.ones(1, **factory_kwargs(block)))
        self._shared = (mlps, selector)  # in a tuple, so that shared modules have one name only

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]; the first block puts the selected tokens behind the patches."""
        mlps, selector = self._shared
        if selector is not None:
            x = selector(x, ctx)
        prefix, prompts, patches, selected = ctx.split(ctx.add_pos(x))
        x = torch.cat([prefix, prompts, patches + mlps.patches(patches), selected + mlps.selected(selected)], 1)
        attn, u = self.attn, self.norm1(x)
        y = attn(
            u,
            mix=lambda u: attn.attend(_map(attn.qkv, self.lora_qkv, lambda u: self.mlp_scale_qkv * mlps.qkv(u), u)),
            project=lambda y: _map(attn.proj, self.lora_proj, lambda y: self.mlp_scale_proj * mlps.proj(y), y),
        )
        x = self.attention_skip(x, u, ctx) + self.drop_path(y)
        x, u = self.mlp_inputs(x)
        return x + self.drop_path(self.mlp(u))

    def fold(self) -> None:
        """Adds the low-rank updates to the weights; the MLPs stay."""
        for layer, update in ((self.attn.qkv, self.lora_qkv), (self.attn.proj, self.lora_proj)):
            if update is not None:
                update.fold(layer)
        self.lora_qkv = self.lora_proj = None


def _map(layer: nn.Linear, update: LowRank | None, mlp: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    y = linear(layer, x) + mlp(x)
    return y if update is None else y + update(x)


class PoolWithSelected(Pool):
    """As `Pool`, with the selected tokens among the patches."""

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Tokens [B, T, C] -> features [B, out_dim]."""
        patches = x[:, ctx.num_prefix + ctx.num_prompts :]
        return torch.cat(
            [x[:, ctx.prefix.index(source)] if source in ctx.prefix else patches.amax(1) for source in self.parts], -1
        )


PUBLICATION = Publication(
    models=(YamlModel("PointTransformer_PointLoRA"),),
    optimizer_parts=("pointlora",),
    recipes=scanobjectnn_recipes(
        "songw-zju/PointLoRA cfgs/finetune_{}_pointlora.yaml",
        "scale_translate",
        {"scanobjectnn_hardest": {"drop_path": 0.3}},
    ),
    markers=("lora_mask_predictor.",),
    renames=(
        (r"\.attn\.(qkv|proj)\.(weight|bias)$", r".attn.\1.linear.\2"),
        (r"\.lora_(qkv|proj)\.a$", r".attn.\1.lora_A"),
        (r"\.lora_(qkv|proj)\.b$", r".attn.\1.lora_B"),
        (r"\.mlp_scale_(qkv|proj)$", r".attn.\1.weight"),
        (r"^shared_mlps\.patches\.", "blocks.prompt_mlp."),
        (r"^shared_mlps\.selected\.", "blocks.prompt_pos_mlp."),
        (r"^shared_mlps\.(qkv|proj)\.", r"blocks.prompt_\1_mlp."),
        (r"^selector\.", "lora_mask_predictor."),
    ),
    fixed_defects=("the selection loss has the sign of the text; published the opposite one",),
)


@register_method
@dataclass(frozen=True)
class PointLoRA(Method):
    """Low-rank adaptation with multi-scale token selection.

    The first half of the tokenizer and the position embedding train as well. As released: the updates are those of the
    attention alone, where the paper names the MLP too, and are not scaled by α / r; the selected tokens are not
    weighted by their scores, so that the selection loss alone trains the scores. The released code has fixed numbers of
    patches for its one data set (128 of 32 points, 64 of 64, of which 32 and 8 are kept); here they follow the
    backbone's, with the same outcome at its published size, and the first scale is not computed twice.

    The selection loss is the mean entropy of the scores, a quarter of it at each further scale, so that scores become
    decided as the paper describes. The released code has it with the opposite sign, which makes all scores one half:
    `quirks="published"`.

    Attributes:
        rank: R of the updates.
        hidden: Width inside the shared MLPs.
        keep: Share of the patches that is selected at each scale.
        selection_weight: Of the selection loss.
        quirks: "none", or "published" for the sign of the released code.

    Source: Wang et al., "PointLoRA: low-rank adaptation with token selection for point cloud learning", CVPR 2025, and
    its code.
    """

    rank: int = 8
    hidden: int = 32
    keep: tuple[float, ...] = (0.25, 0.125)
    selection_weight: float = 0.004
    quirks: str = "none"

    name = "point_lora"
    trains = (r"^backbone\.(cls_token|cls_pos)$", r"^backbone\.(patch_embed\.first_conv|pos_embed)\.")
    mergeable = True
    publication = PUBLICATION

    def __post_init__(self) -> None:
        if self.quirks not in QUIRKS:
            raise ValueError(f"quirks must be one of {', '.join(QUIRKS)}, got {self.quirks!r}")
        for name in ("rank", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.keep or any(not 0 < share <= 1 for share in self.keep):
            raise ValueError(f"keep must have a share above 0 and at most 1 for each scale, got {self.keep}")
        if self.selection_weight < 0:
            raise ValueError(f"selection_weight must be at least 0, got {self.selection_weight}")

    @classmethod
    def published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our options for published weights."""
        return {"quirks": "published", **cls.yaml_options(config)}

    def build(self, model: PointModel) -> None:
        """Puts the updates, the MLPs and the selector in."""
        backbone = model.backbone
        config = backbone.config
        if config.num_groups >> len(self.keep) - 1 < 1:
            raise ValueError(f"keep must have fewer scales for {config.num_groups} patches, got {len(self.keep)}")
        backbone.shared_mlps = SharedMlps(config.width, self.hidden, factory_kwargs(backbone))
        backbone.selector = TokenSelector(self, backbone)
        for i, block in enumerate(backbone.blocks):
            selector = backbone.selector if i == 0 else None
            backbone.blocks[i] = PointLoRABlock(block, self.rank, backbone.shared_mlps, selector)
        if not model.dense:
            model.set_pooling(PoolWithSelected(backbone.pooled, config.width, backbone.prefix))

    def fold(self, model: PointModel) -> None:
        """Adds the low-rank updates to the weights."""
        for block in model.backbone.blocks:
            block.fold()
