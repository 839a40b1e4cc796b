"""DyT: tokens that a dispatcher does not pick skip the MLP; an adapter sees them all."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.methods.adapters.bottleneck import Bottleneck
from pointpeft.methods.base import PREFIX_TOKENS, Method, factory_kwargs, register_method
from pointpeft.methods.token_map import TokenMap
from pointpeft.model import PointModel

KEPT = "kept by DyT"  # the map that `pointpeft show` draws


class MixtureOfAdapters(nn.Module):
    """N bottlenecks merged per cloud before use: W = Σ_i α_i W_i with α = softmax(W_r mean(x)).

    The FLOPs are those of one adapter, but for the merging itself.
    """

    def __init__(self, width: int, rank: int, experts: int, dropout: float, *, device: Any = None, dtype: Any = None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.router = nn.Linear(width, experts, **factory)
        self.down = nn.Parameter(torch.empty(experts, width, rank, **factory))
        self.down_bias = nn.Parameter(torch.zeros(experts, rank, **factory))
        self.up = nn.Parameter(torch.zeros(experts, rank, width, **factory))
        self.up_bias = nn.Parameter(torch.zeros(experts, width, **factory))
        self.dropout = nn.Dropout(dropout)
        bound = 1 / math.sqrt(width)
        nn.init.uniform_(self.down, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        alpha = torch.softmax(self.router(x.mean(1)), -1)  # [B, N]
        down = torch.einsum("bn,ncr->bcr", alpha, self.down)
        up = torch.einsum("bn,nrc->brc", alpha, self.up)
        h = F.relu(x @ down + (alpha @ self.down_bias).unsqueeze(1))
        return self.dropout(h) @ up + (alpha @ self.up_bias).unsqueeze(1)


class DyTBlock(Block):
    """x ← x + M ⊙ MLP(LN2 x) + s·A(x), with M the dispatcher's choice of patch tokens; all others are always kept.

    Training: y = σ((ℓ + G₁ − G₂) / τ) with Gumbel noise, M = 1[y > 0.5], gradients straight through to y.
    Evaluation: M = 1[ℓ > 0], and skipped tokens are really left out of the MLP.
    """

    def __init__(self, block: Block, adapter: nn.Module, method: "DyT"):
        self.adopt(block)
        self.dispatcher = nn.Linear(block.width, 1, **factory_kwargs(block))
        self.adapter = adapter
        self.scale, self.temperature = method.scale, method.temperature
        self.keep, self.rate_weight = method.keep, method.rate_weight
        self.full = False  # whether no token skips, in the pass that `DyT.losses` adds

    def choose(self, x: Tensor, ctx: Context) -> Tensor:
        """M: 1 where a token passes through the MLP. [B, T, C] -> [B, T, 1]"""
        logit = self.dispatcher(x)
        if self.training:
            # The difference of two Gumbel variables is a logistic one.
            noise = torch.rand_like(logit).clamp(1e-6, 1 - 1e-6)
            y = torch.sigmoid((logit + noise.logit()) / self.temperature)
            mask = (y > 0.5).to(x.dtype) - y.detach() + y
        else:
            mask = (logit > 0).to(x.dtype)
        prefix, prompts, patches, suffix = ctx.split(mask)
        kept = ctx.cached("kept", list)
        kept.append(patches.mean())
        ctx.aux_losses["rate"] = self.rate_weight * (torch.stack(kept).mean() - self.keep).square()
        return torch.cat([torch.ones_like(prefix), torch.ones_like(prompts), patches, torch.ones_like(suffix)], 1)

    def dispatched_mlp(self, u: Tensor, mask: Tensor) -> Tensor:
        """M ⊙ MLP(u) with u = LN2 x; in evaluation computed for the kept tokens alone. [B, T, C] -> [B, T, C]"""
        if self.training or torch.compiler.is_compiling():
            return mask * self.mlp(u)
        flat = u.reshape(-1, u.shape[-1])
        kept = mask.reshape(-1).nonzero().squeeze(-1)
        out = torch.zeros_like(flat)
        return out.index_copy(0, kept, self.mlp(flat[kept])).view_as(u)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        x = self.attention_half(x, ctx)
        x, u = self.mlp_inputs(x)
        adapted = self.scale * self.adapter(x)
        if self.full:
            return x + self.drop_path(self.mlp(u)) + adapted
        return x + self.drop_path(self.dispatched_mlp(u, self.choose(x, ctx))) + adapted


@register_method
@dataclass(frozen=True)
class DyT(Method):
    """Dynamic tuning: parameter-efficient, and cheaper at inference.

    Attributes:
        rank: R of the adapters.
        scale: s, their constant multiplier.
        dropout: Inside them.
        keep: r, the share of patch tokens that should pass through the MLPs.
        temperature: τ of the Gumbel relaxation.
        rate_weight: Of (kept share − r)².
        distill: Adds a second forward pass in which no token skips: its cross entropy, and the divergence of the
            dispatched logits from its own. The first version of the paper has neither.
        experts: N > 1 puts a mixture of adapters, merged per cloud, instead of each adapter (its exact form is not
            in the published code: a choice).

    Source: Zhao et al., "Dynamic tuning towards parameter and inference efficiency for ViT adaptation", NeurIPS 2024,
    and its code.
    """

    rank: int = 64
    scale: float = 0.1
    dropout: float = 0.1
    keep: float = 0.5
    temperature: float = 5.0
    rate_weight: float = 2.0
    distill: bool = True
    experts: int = 1

    trains = (PREFIX_TOKENS,)
    reruns_blocks = True
    token_maps = (
        TokenMap(
            DyTBlock,
            "choose",
            lambda block, inputs, mask: mask[0, :, 0],
            KEPT,
            "share of the blocks whose MLP DyT lets the patch pass through",
        ),
    )

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1, got {self.keep}")
        if self.experts < 1:
            raise ValueError(f"experts must be at least 1, got {self.experts}")

    def build(self, model: PointModel) -> None:
        """Puts dispatchers and adapters in."""
        blocks = model.backbone.blocks
        for i, block in enumerate(blocks):
            factory = factory_kwargs(block)
            adapter: nn.Module = (
                Bottleneck(block.width, self.rank, "relu", self.dropout, **factory)
                if self.experts == 1
                else MixtureOfAdapters(block.width, self.rank, self.experts, self.dropout, **factory)
            )
            blocks[i] = DyTBlock(block, adapter, self)

    def losses(
        self,
        model: PointModel,
        xyz: Tensor,
        labels: Tensor,
        logits: Tensor,
        class_weights: Tensor | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """The rate loss of the last forward and, under `distill`, both terms of the full pass.

        Its cross-entropy weighs the classes as the task's does; the divergence knows no classes.
        """
        losses = model.aux_losses()
        if self.distill:
            full = self.full_pass(model, xyz, **inputs).flatten(0, -2)
            losses["full"] = F.cross_entropy(full, labels.flatten(), class_weights)
            losses["distill"] = F.kl_div(
                F.log_softmax(logits.flatten(0, -2), -1),
                F.log_softmax(full.detach(), -1),
                reduction="batchmean",
                log_target=True,
            )
        return losses

    def full_pass(self, model: PointModel, xyz: Tensor, **inputs: Tensor) -> Tensor:
        """Logits with no token skipping. [B, N, 3] -> [..., num_classes]"""
        blocks = list(model.backbone.blocks)
        try:
            for block in blocks:
                block.full = True
            return model(xyz, **inputs)
        finally:
            for block in blocks:
                block.full = False
