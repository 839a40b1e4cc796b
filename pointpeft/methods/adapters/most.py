"""MoST: a Monarch matrix beside the attention, between two smoothings over neighbouring patches."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.heads.dense import tapped_blocks
from pointpeft.heads.pooling import Pool
from pointpeft.methods.base import Method, factory_kwargs, register_method
from pointpeft.model import PointModel
from pointpeft.ops import aggregate_neighbors, knn
from pointpeft.weights.publication import Publication

DISTANCE_EPS = 0.05  # added to distances, as published
RMS_EPS = 1e-6
PUBLISHED_FUSED = (7, 15, 23)
QUIRKS = ("none", "published")


class Smoothing(nn.Module):
    """f_i + λ ⊙ s_i with s_i = Σ_j w_ij (f_j - f_i) over the nearest patches j, w_ij ~ 1 / (d_ij + 0.05).

    As published: f_i + c_i + λ ⊙ s_i / RMS(s_i), where c_i is the mean of the attention's output over the cloud's
    patches and, patch by patch, over the clouds of the batch.
    """

    def __init__(self, width: int, published: bool, factory: dict[str, Any]):
        super().__init__()
        self.published = published
        self.share = nn.Parameter(torch.zeros(width, **factory))  # λ
        if published:  # counted in the publication, and never read
            self.unread = nn.LayerNorm(width, **factory)

    def forward(self, f: Tensor, attended: Tensor, idx: Tensor, weights: Tensor) -> Tensor:
        """Patches [B, G, C], the attention's output there, neighbours int64 [B, G, K] and weights -> [B, G, C]"""
        if idx.shape[2]:
            s = aggregate_neighbors(f, idx, "weighted", weights) - f
        else:
            s = torch.zeros_like(f)
        if not self.published:
            return f + self.share * s
        s = s * (s.square().mean(-1, keepdim=True) + RMS_EPS).rsqrt()
        return f + attended.mean(1, keepdim=True) + attended.mean(0) + self.share * s


class PointMonarch(nn.Module):
    """M(u, a) = K P L Pᵀ R K u with block-diagonal R and L, a permutation P, and smoothings K over patches."""

    def __init__(self, width: int, method: "MoST", factory: dict[str, Any]):
        super().__init__()
        size, published = width // method.num_blocks, method.quirks == "published"
        self.smooth_in = Smoothing(width, published, factory)
        self.smooth_out = Smoothing(width, published, factory)
        self.first = nn.Parameter(torch.zeros(method.num_blocks, size, size, **factory))  # R
        self.second = nn.Parameter(torch.zeros(method.num_blocks, size, size, **factory))  # L
        self.bias = nn.Parameter(torch.zeros(width, **factory))
        if not published:
            nn.init.uniform_(self.first, -1 / math.sqrt(size), 1 / math.sqrt(size))

    def multiplied(self, x: Tensor) -> Tensor:
        """P L Pᵀ R x + b. [B, T, C] -> [B, T, C]"""
        blocks, size = self.first.shape[:2]
        x = torch.einsum("btkp,kqp->btkq", x.unflatten(-1, (blocks, size)), self.first).flatten(2)
        x = torch.einsum("btrl,lsr->btsl", x.unflatten(-1, (size, blocks)), self.second).flatten(2)
        return x + self.bias

    def forward(self, u: Tensor, a: Tensor, ctx: Context, idx: Tensor, weights: Tensor) -> Tensor:
        """Tokens that the attention reads, and what it makes of them. [B, T, C] each -> [B, T, C]"""
        attended = ctx.split(a)[2]

        def smoothed(smoothing: nn.Module, x: Tensor) -> Tensor:
            prefix, prompts, patches, suffix = ctx.split(x)
            return torch.cat([prefix, prompts, smoothing(patches, attended, idx, weights), suffix], 1)

        return smoothed(self.smooth_out, self.multiplied(smoothed(self.smooth_in, u)))


class MoSTBlock(Block):
    """A frozen block with the Monarch matrix beside its attention: y = x + Attn(u) + M(u, Attn(u)) with u = LN(x)."""

    def __init__(self, block: Block, method: "MoST", index: int, fused: bool):
        self.adopt(block)
        self.k, self.index, self.fused = method.k, index, fused
        self.monarch = PointMonarch(block.width, method, factory_kwargs(block))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        idx, weights = ctx.cached("most.near", lambda: neighbors(ctx.centers, self.k))
        x = ctx.add_pos(x)
        u = self.norm1(x)
        x, a = self.attention_skip(x, u, ctx), self.attn(u)
        x = self.drop_path.added(x, a + self.monarch(u, a, ctx, idx, weights))
        skip, u = self.mlp_inputs(x)
        x = self.drop_path.added(skip, self.mlp(u))
        if self.fused:
            ctx.cache["most.fused", self.index] = ctx.split(x)[2]
        return x


def neighbors(centers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest other centres of each, all where there are fewer, and their weights. int64 [B, G, K], [B, G, K]"""
    square, idx = knn(centers.detach(), centers.detach(), min(k + 1, centers.shape[1]))
    weights = 1 / (square[:, :, 1:].clamp_min(0).sqrt() + DISTANCE_EPS)
    return idx[:, :, 1:].contiguous(), weights / weights.sum(-1, keepdim=True)


class FusedPool(nn.Module):
    """[class token, maximum over patches + LN(Σ_i 2^i (max + mean over the patches behind the i-th fused block))]."""

    def __init__(self, width: int, prefix: tuple[str, ...], fused: tuple[int, ...], norm: nn.Module):
        super().__init__()
        self.tokens = Pool(("cls" if "cls" in prefix else "patch_mean", "patch_max"), width, prefix)
        self.out_dim, self.fused = self.tokens.out_dim, fused
        self._norm = (norm,)  # in a tuple, so that it has one name only

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, 2C]"""
        patches = [ctx.cache["most.fused", i] for i in self.fused]
        fused = sum(2**i * (p.amax(1) + p.mean(1)) for i, p in enumerate(patches))
        first, second = self.tokens(x, ctx).chunk(2, -1)
        return torch.cat([first, second + self._norm[0](fused)], -1)


@register_method
@dataclass(frozen=True)
class MoST(Method):
    """Monarch sparse tuning, in the paper's form: a structured matrix between two smoothings over neighbouring patches.

    The start is the backbone: the matrix's second factor and both smoothings start as zero, its first factor does not.
    The head reads the outputs of three blocks beside the last one's. Smoothings depend on the cloud, so that nothing
    folds into the frozen weights.

    What the released code for PointGPT does otherwise, which `quirks="published"` repeats:
        - Both factors of the matrix start as zero, so that neither ever gets a gradient: they stay zero in training,
          and the released results are not those of a Monarch matrix. It is for loading such files, not for training.
        - The smoothings add the mean of the attention's output, over the patches of a cloud and over the clouds of a
          batch: a cloud's logits depend on the batch. They normalise what they smooth. A norm in each is never read.
        - The layers of PointGPT's generator have matrices, too, which count as trained and get no gradient.

    Attributes:
        num_blocks: Diagonal blocks of each factor; the width must be a multiple.
        k: Neighbours of a patch, without itself; where a cloud has fewer, all of them.
        fused: Blocks whose outputs the head reads, from 0; empty for the last of each third.
        quirks: "none", or "published" for what the released code computes.

    Source: Han et al., "MoST: efficient Monarch sparse tuning for 3D representation learning", CVPR 2025, and its code.
    """

    num_blocks: int = 8
    k: int = 4
    fused: tuple[int, ...] = ()
    quirks: str = "none"

    name = "most"
    trains = (r"^backbone\.(cls_token|cls_pos|norm\.1\.(weight|bias))$",)
    dead = (r"\.unread\.", r"\.generator\.")
    publication = Publication(
        options={"monarch_nblocks": "num_blocks"},
        fixed_defects=(
            "the factors of the matrix can learn; published both start as zero and stay there",
            "the smoothings add no mean of the attention over the batch",
        ),
        markers=(".point_monarch.",),
        renames=(
            (r"\.monarch\.smooth_(in|out)\.share$", r".point_monarch.spatial_smooth_\1.knorm.weight"),
            (r"\.monarch\.smooth_(in|out)\.unread\.", r".point_monarch.spatial_smooth_\1.ln."),
            (r"\.monarch\.first$", ".point_monarch.monarch_linear.blkdiag1"),
            (r"\.monarch\.second$", ".point_monarch.monarch_linear.blkdiag2"),
            (r"\.monarch\.bias$", ".point_monarch.monarch_linear.bias"),
            (r"^fused_norm\.", "blocks.cls_token_norm."),
        ),
    )

    def __post_init__(self) -> None:
        if self.quirks not in QUIRKS:
            raise ValueError(f"quirks must be one of {', '.join(QUIRKS)}, got {self.quirks!r}")
        for name in ("num_blocks", "k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if list(self.fused) != sorted(set(self.fused)) or min(self.fused, default=0) < 0:
            raise ValueError(f"fused must be different blocks from 0 in order, got {self.fused}")

    @classmethod
    def published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our options for published weights.

        Raises:
            ValueError: A depth at which the released code leaves the last blocks out, or another fusion.
        """
        fused = tuple(i for i in PUBLISHED_FUSED if i < int(config["depth"]))
        if not fused or fused[-1] != int(config["depth"]) - 1:
            raise ValueError(f"depth must be 8, 16 or 24 for published MoST, got {config['depth']!r}")
        if config.get("fusion_layer", 3) != 3:
            raise ValueError(f"fusion_layer must be 3, got {config['fusion_layer']!r}")
        return {"quirks": "published", "fused": fused, **cls.yaml_options(config)}

    def build(self, model: PointModel) -> None:
        """Puts the matrices beside the attentions, and what the head reads behind the blocks."""
        backbone = model.backbone
        width, depth, factory = backbone.config.width, len(backbone.blocks), factory_kwargs(backbone)
        if width % self.num_blocks:
            raise ValueError(f"num_blocks must divide the width {width}, got {self.num_blocks}")
        fused = () if model.dense else self.fused or tuple(sorted(set(tapped_blocks(depth))))
        if fused and fused[-1] >= depth:
            raise ValueError(f"fused must name blocks below the depth {depth}, got {self.fused}")
        for i, block in enumerate(backbone.blocks):
            backbone.blocks[i] = MoSTBlock(block, self, i, i in fused)
        if self.quirks == "published" and hasattr(backbone, "generator"):
            for layer in backbone.generator.layers:
                layer.monarch = PointMonarch(width, self, factory)
        if fused:
            backbone.fused_norm = nn.LayerNorm(width, **factory)
            model.set_pooling(FusedPool(width, backbone.prefix, fused, backbone.fused_norm))
