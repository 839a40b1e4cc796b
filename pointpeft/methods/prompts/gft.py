"""GFT: features of a graph over all tokens, built once, which later blocks read by cross-attention."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.edge_conv import conv, edge_conv, project
from pointpeft.methods.base import Method, factory_kwargs, register_method
from pointpeft.model import PointModel
from pointpeft.weights.publication import Publication, YamlModel, modelnet_recipe, scanobjectnn_recipes

EDGE_WIDTH = 64  # of each edge convolution, as published
NUM_EDGE_CONVS = 4
GRAPH_WIDTH = 256  # C_g


class TokenGraph(nn.Module):
    """Puts the prompts among the tokens, and convolves the graph of all of them, before the blocks.

    x_l = max_j LeakyReLU(BN(W_l [x_j - x_i ; x_i])) over the neighbours j of token i in the feature space of x_{l-1};
    g = LeakyReLU(BN(W [x_1 ; ... ; x_4])).
    """

    def __init__(self, method: "GFT", width: int, factory: dict[str, Any]):
        super().__init__()
        self.k = method.k
        self.prompts = nn.Parameter(torch.randn(1, method.num_prompts, width, **factory))
        widths = [width, *[EDGE_WIDTH] * NUM_EDGE_CONVS]
        self.convs = nn.ModuleList(
            conv(nn.BatchNorm1d(after, **factory), 2 * before, 2, factory) for before, after in pairwise(widths)
        )
        self.last = conv(nn.BatchNorm1d(GRAPH_WIDTH, **factory), EDGE_WIDTH * NUM_EDGE_CONVS, 1, factory)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T + P, C]; leaves g [B, T + P, C_g] in the context."""
        x = ctx.insert_prompts(x, self.prompts)
        h, features = x, []
        convs: Any = self.convs  # torch knows no types of the parts of a container
        for layer in convs:
            h = edge_conv(layer, h, nearest(h, min(self.k, h.shape[1])))
            features.append(h)
        ctx.cache["gft.graph"] = project(self.last, torch.cat(features, -1))
        return x


def nearest(x: Tensor, k: int) -> Tensor:
    """The k nearest tokens of each, itself first, by differences: prompts lie close together beside their norms.

    Args:
        x: [B, T, C]
        k: At most T.

    Returns:
        int64, [B, T, K]
    """
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.topk(k, largest=False).indices


class GraphAttention(nn.Module):
    """x + α GELU(W_o softmax(q kᵀ / √R) v) with q = W_q LN(x), k = W_k LN(g) and v = W_v LN(g)."""

    def __init__(self, method: "GFT", width: int, factory: dict[str, Any]):
        super().__init__()
        self.num_heads, self.share = method.heads, method.share
        self.q_norm, self.kv_norm = nn.LayerNorm(width, **factory), nn.LayerNorm(GRAPH_WIDTH, **factory)
        self.query = nn.Linear(width, method.rank, bias=False, **factory)
        self.key = nn.Linear(GRAPH_WIDTH, method.rank, bias=False, **factory)
        self.value = nn.Linear(GRAPH_WIDTH, method.rank, bias=False, **factory)
        self.proj = nn.Linear(method.rank, width, **factory)
        self.unread = nn.LayerNorm(width, **factory)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """Tokens [B, T, C] look at graph features [B, T', C_g] -> [B, T, C]"""
        g = self.kv_norm(g)
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in (self.query(self.q_norm(x)), self.key(g), self.value(g))
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.share * F.gelu(self.proj(y))


class GraphPromptedBlock(nn.Module):
    """A frozen block of any kind, behind which the tokens look at the graph's features."""

    def __init__(self, block: nn.Module, attention: GraphAttention):
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        return self.attention(self.block(x, ctx), ctx.cache["gft.graph"])


_CONFIGS = "manishdhakal/GFT cfgs/gft/"
_FIXED = {  # keys of YAML files whose only published value is computed here
    "feat_dims": [EDGE_WIDTH] * NUM_EDGE_CONVS,
    "emb_dim": GRAPH_WIDTH,
    "cross_attn_drop_rate": 0,
}
_OPTIONS = {"k": 20, "layers": (0, 3, 6, 9), "heads": 1, "rank": 32, "share": 1.0, "num_prompts": 50}


@register_method
@dataclass(frozen=True)
class GFT(Method):
    """Graph feature tuning.

    Prompts stand among the tokens, without positions. Edge convolutions over all tokens in feature space make a graph's
    features once, before the blocks; behind some blocks, all tokens look at them by a cross-attention of few channels.
    The first half of the tokenizer trains. As published, the start is not the plain backbone. The published
    cross-attention has one norm more, which nothing reads (`unread`); it is here because it counts as trainable there.

    Where tokens see only those before them, as in PointGPT, they see the others by way of the graph.

    Attributes:
        num_prompts: P.
        k: Neighbours of a token in feature space, itself among them; where there are fewer tokens, all of them.
        layers: The blocks behind which the tokens look at the graph, from 0; those that the backbone lacks are left
            out.
        heads: Of the cross-attention.
        rank: R, channels of the cross-attention, a multiple of `heads`.
        share: α, by which its result is multiplied.

    Source: Dhakal et al., "GFT: graph feature tuning for efficient point cloud analysis", WACV 2026, and its code.
    """

    num_prompts: int = 50
    k: int = 20
    layers: tuple[int, ...] = (0, 3, 6, 9)
    heads: int = 1
    rank: int = 32
    share: float = 1.0

    needs = ("blocks", "entry_transform")
    trains = (r"^backbone\.(cls_token|cls_pos)$", r"^backbone\.patch_embed\.first_conv\.")
    dead = (r"\.attention\.unread\.",)
    publication = Publication(
        models=(YamlModel("PointTransformer_GFT", keys=("in_dim", *_FIXED), augment="rotate"),),
        options={
            "k": "k",
            "cross_idx": "layers",
            "cross_attn_heads": "heads",
            "cross_attn_dim": "rank",
            "alpha": "share",
            "prompt_len": "num_prompts",
        },
        optimizer_parts=("gft",),
        markers=("cross_attn_blocks.",),
        recipes=(
            *scanobjectnn_recipes(
                _CONFIGS + "finetune_{}.yaml",
                "rotate",
                {"scanobjectnn_hardest": {"weight_decay": 0.005, "method_options": _OPTIONS}},
            ),
            modelnet_recipe(
                _CONFIGS + "finetune_modelnet.yaml",
                num_groups=128,
                num_points=2048,
                method_options=_OPTIONS | {"heads": 2},
            ),
        ),
    )

    def __post_init__(self) -> None:
        for name in ("num_prompts", "k", "heads", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.rank % self.heads:
            raise ValueError(f"rank must be a multiple of heads = {self.heads}, got {self.rank}")
        if not self.layers or len(set(self.layers)) != len(self.layers) or min(self.layers) < 0:
            raise ValueError(f"layers must be different blocks from 0, at least one, got {self.layers}")

    @classmethod
    def yaml_options(cls, section: Mapping[str, Any]) -> dict[str, Any]:
        """Our options from the `model:` section of a published YAML file.

        Raises:
            ValueError: A width or a dropout that is not the published one.
        """
        for key, value in _FIXED.items():
            if section.get(key, value) != value:
                raise ValueError(f"model.{key} must be {value}, got {section[key]!r}")
        options: dict[str, Any] = super().yaml_options(section)
        return options | ({"layers": tuple(options["layers"])} if "layers" in options else {})

    def present(self, model: PointModel) -> list[int]:
        """The blocks of the model that tokens look at the graph behind."""
        return [i for i in sorted(self.layers) if i < len(model.backbone.blocks)]

    def published_renames(self, model: PointModel) -> tuple[tuple[str, str], ...]:
        """Cross-attentions are numbered apart from their blocks in published names."""
        blocks = r"^blocks\.(?:blocks|layers)\.{}\.attention\."
        attentions = [(blocks.format(i), f"cross_attn_blocks.{j}.") for j, i in enumerate(self.present(model))]
        return (
            (r"^(blocks\.(?:blocks|layers)\.\d+)\.block\.", r"\1."),
            *attentions,
            (r"^(cross_attn_blocks\.\d+)\.unread\.", r"\1.post_norm_layer."),
            (r"^(cross_attn_blocks\.\d+\.proj)\.", r"\1.0."),
            (r"^entry_transform\.prompts$", "prompt"),
            (r"^entry_transform\.convs\.", "edge_conv.conv_blocks."),
            (r"^entry_transform\.last\.", "edge_conv.final_conv."),
        )

    def build(self, model: PointModel) -> None:
        """Puts the prompts and the graph before the blocks, and the attentions behind some of them."""
        backbone = model.backbone
        width, factory = backbone.config.width, factory_kwargs(backbone)
        present = self.present(model)
        if not present:
            raise ValueError(f"layers must name one of the {len(backbone.blocks)} blocks, got {self.layers}")
        backbone.entry_transform = TokenGraph(self, width, factory)
        for i in present:
            backbone.blocks[i] = GraphPromptedBlock(backbone.blocks[i], GraphAttention(self, width, factory))
        model.set_pooling(("cls", "prompt_mean", "patch_max"))
