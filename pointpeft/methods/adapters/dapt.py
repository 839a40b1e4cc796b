"""DAPT: dynamic adapters with internal prompts, and a learned transform of every frozen layer's output."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block, Mlp
from pointpeft.backbones.plain import is_frozen, is_plain
from pointpeft.methods.base import Method, factory_kwargs, register_method
from pointpeft.methods.reparameterized.scale_shift import ScaleShift, fold, is_foldable, mapped, normed, terms
from pointpeft.methods.token_map import TokenMap
from pointpeft.model import PointModel
from pointpeft.ops import AdapterWeights, MlpWeights, NormWeights, adapter, attention, frozen_attention, frozen_mlp
from pointpeft.ops.core.library import autocast_dtype, use_fused_reference
from pointpeft.weights.publication import Publication, YamlModel, modelnet_recipe, scanobjectnn_recipes


class DynamicAdapter(nn.Module):
    """a = s ⊙ W_up Dropout(GELU(W_down u)) with u = LN(x) and a scale per token s = ReLU(w·u + b).

    Source: Zhou et al., "Dynamic adapter meets prompt tuning", CVPR 2024, Eqs. 4-6.
    """

    def __init__(
        self, width: int, rank: int, dropout: float, gate_bias: float = 0.0, *, device: Any = None, dtype: Any = None
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(width, **factory)
        self.scale = nn.Linear(width, 1, **factory)
        self.down = nn.Linear(width, rank, **factory)
        self.up = nn.Linear(rank, width, **factory)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.scale, self.down):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)  # so the adapter starts as zero
        nn.init.constant_(self.scale.bias, gate_bias)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)

    @property
    def weights(self) -> AdapterWeights:
        """Weight and bias of each layer, as the operations take them."""
        layers = (self.norm, self.scale, self.down, self.up)
        return AdapterWeights(*(tensor for layer in layers for tensor in (layer.weight, layer.bias)))

    @property
    def options(self) -> dict[str, Any]:
        """The numbers that the operations take."""
        return {"eps": self.norm.eps, "dropout_p": self.dropout.p, "training": self.dropout.training}

    @property
    def is_fusable(self) -> bool:
        """Whether its layers are those that the operations are written for."""
        maps = all(is_plain(layer, nn.Linear) and layer.bias is not None for layer in (self.scale, self.down, self.up))
        return maps and is_plain(self.norm, nn.LayerNorm) and is_plain(self.dropout, nn.Dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The result a and its prompt, the mean over tokens of GELU(a). [B, T, C] -> [B, T, C], [B, C]"""
        if self.is_fusable:
            a, prompt = adapter(x, self.weights, **self.options, with_prompt=True)
            return a, prompt
        u = self.norm(x)
        a = F.relu(self.scale(u)) * self.up(self.dropout(F.gelu(self.down(u))))
        return a, F.gelu(a).mean(1)


class DAPTBlock(Block):
    """A frozen block with a transform after each layer, an adapter beside its MLP, and a prompt as its by-product.

    Positions are added once, before the first block, although the backbone was pre-trained with them added before each:
    as published. Where the skip connection around the attention carries normalised tokens, which positions do not
    outlive, they are added before each block, as in the pre-training; prompts have none. There the attention has no
    transforms, as in the published code for PointGPT.
    """

    def __init__(self, block: Block, method: "DAPT"):
        self.adopt(block)
        width, hidden, factory = block.width, block.mlp.fc1.out_features, factory_kwargs(block)
        self.published = method.quirks == "published" and self.normed_skips[0]
        self.tfts_1 = ScaleShift(width, **factory)
        self.tfts_qkv: nn.Module = nn.Identity() if self.normed_skips[0] else ScaleShift(3 * width, **factory)
        self.tfts_proj: nn.Module = nn.Identity() if self.normed_skips[0] else ScaleShift(width, **factory)
        self.tfts_2 = ScaleShift(width, **factory)
        self.tfts_fc1 = ScaleShift(hidden, **factory)
        self.tfts_fc2 = ScaleShift(width, **factory)
        self.tfts_3 = ScaleShift(width, **factory)
        self.adapter = DynamicAdapter(width, method.rank, method.dropout, method.gate_bias, **factory)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T + 1, C]: every block leaves one prompt behind the prefix."""
        pos = ctx.pos
        x = add_to_last(x, pos) if self.published and pos is not None else ctx.add_pos(x)
        if self.published or not self.normed_skips[0]:
            ctx.pos = None
        u = normed(self.norm1, self.tfts_1, x, autocast_dtype(x))
        x = self.attention_skip(x, u, ctx)
        y = self.attn(u, mix=self._attend, project=lambda y: mapped(self.attn.proj, self.tfts_proj, y))
        if self.drop_path.drops:
            x = self.drop_path.added(x, y)
            y, prompt = self._adapted_mlp(x)
            x = self.drop_path.added(x, y)
        else:
            x, prompt = self._adapted_mlp(x, branch=y)
        x = ctx.insert_prompts(x, self.tfts_3(prompt)[:, None])  # over all tokens, prompts included
        if self.published:
            ctx.pos = pos
        return x

    def _attend(self, u: Tensor) -> Tensor:
        attn, tfts = self.attn, self.tfts_qkv
        if is_plain(tfts, nn.Identity):
            return attn.mixed(u)
        if not (attn.sees_all and is_plain(tfts, ScaleShift)):
            return attn.attend(tfts(attn.qkv(u)))
        if is_frozen(attn.qkv):
            return frozen_attention(u, attn.qkv.weight, attn.qkv.bias, attn.num_heads, tfts.gamma, tfts.beta)
        return attention(attn.qkv(u), attn.num_heads, tfts.gamma, tfts.beta)

    def _adapted_mlp(self, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """MLP(u) + A(u) with u = LN(x), and the prompt of A; with `branch` also both residuals."""
        if not self._is_fusable or (isinstance(self.tfts_fc1, nn.Identity) and use_fused_reference(x)):
            x = x if branch is None else x + branch
            u = normed(self.norm2, self.tfts_2, x)
            x = self.mlp_skip(x, u)
            a, prompt = self.adapter(u)
            y = self._mlp(x if self.published else u) + a
            return y if branch is None else x + y, prompt
        norm, fc1, fc2 = self.norm2, self.mlp.fc1, self.mlp.fc2
        scales = (*terms(self.tfts_fc1), *terms(self.tfts_fc2))
        return frozen_mlp(
            x,
            MlpWeights(fc1.weight, fc1.bias, fc2.weight, fc2.bias, *scales),
            norm=NormWeights(norm.weight, norm.bias, *terms(self.tfts_2)),
            adapter=self.adapter.weights,
            branch=branch,
            norm_eps=norm.eps,
            **self.adapter.options,
        )

    @property
    def _is_fusable(self) -> bool:
        """Whether the second half of the block is what `frozen_mlp` computes, whose maps are frozen."""
        mlp = self.mlp
        return (
            not (self.published or self.normed_skips[1])
            and is_plain(mlp, Mlp)
            and is_frozen(mlp.fc1)
            and is_frozen(mlp.fc2)
            and mlp.fc1.bias is not None
            and mlp.fc2.bias is not None
            and is_plain(self.norm2, nn.LayerNorm)
            and is_foldable(self.tfts_2)
            and is_foldable(self.tfts_fc1)
            and is_foldable(self.tfts_fc2)
            and is_plain(self.adapter, DynamicAdapter)
            and self.adapter.is_fusable
        )

    def _mlp(self, u: Tensor) -> Tensor:
        """The MLP with the transforms after its maps, by way of its modules. [B, T, C] -> [B, T, C]"""
        if is_plain(self.tfts_fc1, nn.Identity) and is_plain(self.tfts_fc2, nn.Identity):
            return self.mlp(u)
        return self.mlp(
            u,
            first=lambda u: mapped(self.mlp.fc1, self.tfts_fc1, u),
            second=lambda h: mapped(self.mlp.fc2, self.tfts_fc2, h),
        )

    def fold(self) -> None:
        """Folds the transforms into the layers before them; the prompt's stays."""
        self.tfts_1 = fold(self.norm1, self.tfts_1)
        self.tfts_qkv = fold(self.attn.qkv, self.tfts_qkv)
        self.tfts_proj = fold(self.attn.proj, self.tfts_proj)
        self.tfts_2 = fold(self.norm2, self.tfts_2)
        self.tfts_fc1 = fold(self.mlp.fc1, self.tfts_fc1)
        self.tfts_fc2 = fold(self.mlp.fc2, self.tfts_fc2)


def add_to_last(x: Tensor, pos: Tensor) -> Tensor:
    """`x` plus positions on its last tokens, whatever these are. [B, T, C], [B, P, C] with P <= T -> [B, T, C]"""
    first, last = x.split([x.shape[1] - pos.shape[1], pos.shape[1]], 1)
    return torch.cat([first, last + pos], 1)


def _scales(adapter: DynamicAdapter, inputs: tuple[Any, ...], result: Any) -> Tensor:
    """The factor of each token of a cloud: ReLU(W LN(x) + b). -> [T]"""
    return adapter.scale(adapter.norm(inputs[0])).relu().float()[0, :, 0]


SCALE = "dynamic scale"
QUIRKS = ("none", "published")
POINT_GPT = "GPT_Transformer_DAPT"  # the published class that adapts PointGPT
_CONFIGS = "LMD0311/DAPT cfgs/"
_HEAD = ("cls", "prompt_mean", "patch_max")
PUBLICATION = Publication(
    models=(
        YamlModel("PointTransformer_DAPT", keys=("class_token", "prompt_token", "patch_token")),
        YamlModel(POINT_GPT, backbone="point_gpt", keys=("decoder_depth", "loss", "weight_center")),
    ),
    fixed_defects=(
        "on PointGPT the MLP reads the normalised tokens, and positions stay with their tokens; published it reads the "
        "stream, and positions move on to the newest prompts",
    ),
    options={"rank": "rank", "drop_adapter_rate": "dropout"},
    optimizer_parts=("dapt",),
    recipes=(
        *scanobjectnn_recipes(
            _CONFIGS + "finetune_{}_dapt.yaml",
            "scale_translate",
            {
                "scanobjectnn_hardest": {
                    "drop_path": 0.3,
                    "method_options": {"parts": _HEAD, "rank": 64, "dropout": 0.2},
                },
                "scanobjectnn_objbg": {
                    "drop_path": 0.3,
                    "method_options": {"parts": _HEAD, "rank": 64, "dropout": 0.5},
                },
                "scanobjectnn_objonly": {"method_options": {"parts": _HEAD[:2], "rank": 64, "dropout": 0}},
            },
        ),
        modelnet_recipe(
            _CONFIGS + "finetune_modelnet_dapt.yaml",
            method_options={"parts": ("cls", "patch_max"), "rank": 72, "dropout": 0},
        ),
    ),
    markers=("tfts_", ".Adapter_MLP."),
    renames=(
        (r"(\.layers\.\d+)\.tfts_fc1\.(gamma|beta)$", r"\1.tfts_\2_4"),  # on PointGPT
        (r"(\.layers\.\d+)\.tfts_fc2\.(gamma|beta)$", r"\1.tfts_\2_5"),
        (r"(\.layers\.\d+)\.adapter\.norm\.", r"\1.adapt_mlp.adapter_layer_norm_before."),
        (r"(\.layers\.\d+)\.adapter\.scale\.", r"\1.adapt_mlp.scale."),
        (r"(\.layers\.\d+)\.adapter\.(down|up)\.", r"\1.adapt_mlp.\2_proj."),
        (r"^patch_transform\.(gamma|beta)$", r"tfts_\1_1"),
        (r"^token_transform\.(gamma|beta)$", r"tfts_\1_2"),
        (r"\.tfts_(\d)\.(gamma|beta)$", r".tfts_\2_\1"),
        (r"\.tfts_qkv\.(gamma|beta)$", r".attn.tfts_\1_1"),
        (r"\.tfts_proj\.(gamma|beta)$", r".attn.tfts_\1_2"),
        (r"\.tfts_fc1\.(gamma|beta)$", r".mlp.tfts_\1_1"),
        (r"\.tfts_fc2\.(gamma|beta)$", r".mlp.tfts_\1_2"),
        (r"\.adapter\.norm\.", ".Adapter_MLP.adapter_layer_norm_before."),
        (r"\.adapter\.scale\.", ".Adapter_MLP.scale."),
        (r"\.adapter\.(down|up)\.", r".Adapter_MLP.\1_proj."),
    ),
)


@register_method
@dataclass(frozen=True)
class DAPT(Method):
    """Dynamic adapter, task-agnostic feature transform and internal prompts.

    Every block leaves a prompt, the last one too, as published, for a classifier that reads prompts. A dense head reads
    patch tokens alone, and no block follows: there the last block's `tfts_3`, 2C parameters, gets no gradient.

    Attributes:
        rank: R, width of the adapters' bottleneck.
        dropout: Inside the adapters.
        parts: What the head reads: a prefix token's name, or one of `POOLED_PARTS`.
        gate_bias: Initial bias of the adapters' scales. At 0, as published, an adapter whose scales all start negative
            gets no gradient; a small positive value opens them.
        quirks: "none", or "published" for what the released code for PointGPT computes; elsewhere there is none.

    Source: Zhou et al., "Dynamic adapter meets prompt tuning: parameter-efficient transfer learning for point cloud
    analysis", CVPR 2024; the published code for initial values.
    """

    rank: int = 64
    dropout: float = 0.2
    parts: tuple[str, ...] = ("cls", "prompt_mean", "patch_max")
    gate_bias: float = 0.0
    quirks: str = "none"

    needs = ("blocks", "patch_transform", "token_transform")
    trains = (r"^backbone\.(cls_token|cls_pos|norm\.1\.(weight|bias))$",)  # `cls_norm` of PointGPT's files, by its name
    mergeable = True
    publication = PUBLICATION
    token_maps = (
        TokenMap(DynamicAdapter, "forward", _scales, SCALE, "DAPT's scale of each patch token, mean over blocks"),
    )

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if self.quirks not in QUIRKS:
            raise ValueError(f"quirks must be one of {', '.join(QUIRKS)}, got {self.quirks!r}")

    @classmethod
    def published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our options for published weights."""
        if config.get("NAME") == POINT_GPT:
            return {"quirks": "published", "parts": ("cls", "token_max"), "dropout": 0.0}
        return cls.yaml_options(config)

    @classmethod
    def yaml_options(cls, section: Mapping[str, Any]) -> dict[str, Any]:
        """Our options from the `model:` section of a published YAML file."""
        if section.get("NAME") == POINT_GPT:
            return {"parts": ("cls", "token_max"), "dropout": 0.0}
        parts = ["cls"] if section.get("class_token", "use") else []
        for tokens in ("prompt", "patch"):
            reduce = section.get(f"{tokens}_token")
            if reduce in ("mean", "max"):
                parts.append(f"{tokens}_{reduce}")
            elif reduce not in (None, "", "none", "None", False):
                raise ValueError(f"{tokens}_token must be mean, max or none, got {reduce!r}")
        return {"parts": tuple(parts), **super().yaml_options(section)}

    def build(self, model: PointModel) -> None:
        """Puts the transforms and the adapters in."""
        backbone = model.backbone
        width, factory = backbone.config.width, factory_kwargs(backbone)
        if not backbone.blocks[0].normed_skips[0]:
            backbone.patch_transform = ScaleShift(width, **factory)
            backbone.token_transform = ScaleShift(width, **factory)
        for i, block in enumerate(backbone.blocks):
            backbone.blocks[i] = DAPTBlock(block, self)
        model.set_pooling(self.parts)

    def fold(self, model: PointModel) -> None:
        """Folds all transforms but those of the prompts; the patches' only where it keeps the maximum's order."""
        backbone = model.backbone
        for block in backbone.blocks:
            block.fold()
        backbone.token_transform = fold(backbone.last_norm, backbone.token_transform)
        # Where the tokenizer ends in a maximum over points, a scale may pass it only if it is not negative.
        embed = backbone.patch_embed
        transform = backbone.patch_transform
        if is_plain(transform, ScaleShift) and (not embed.ends_in_maximum or bool((transform.gamma >= 0).all())):
            backbone.patch_transform = fold(embed.last_layer, backbone.patch_transform)
