"""Adapter-X: one library of adapters shared by all blocks and tokens, with block-specific norms and prompts."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.methods.base import PREFIX_TOKENS, Method, factory_kwargs, register_method
from pointpeft.methods.reparameterized.scale_shift import ScaleShift
from pointpeft.model import PointModel


class SharedMixtureOfAdapters(nn.Module):
    """Each token is cut into H sub-tokens; a router sends each sub-token to one of N bottleneck adapters.

    z = W_r h, p = softmax(cos(z, e_i) / τ), y = p_max · A_argmax(h). Dynamic adapters scale their output sub-token by
    sub-token: A_i(h) = ReLU(w_i·h + b_i) · (W_up GELU(W_down h)).

    Args:
        width: C.
        heads: H, sub-tokens per token.
        experts: N.
        rank: R of an expert's bottleneck.
        router_width: Width of the router's space.
        dynamic: Whether the adapters are dynamic.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        experts: int,
        rank: int,
        router_width: int,
        dynamic: bool = False,
        *,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide the width {width}, got {heads}")
        factory = {"device": device, "dtype": dtype}
        head_width = width // heads
        self.heads = heads
        self.router = nn.Linear(head_width, router_width, bias=False, **factory)
        self.embeddings = nn.Parameter(torch.empty(experts, router_width, **factory))
        self.log_temperature = nn.Parameter(torch.empty((), **factory))
        self.down = nn.Parameter(torch.empty(experts, head_width, rank, **factory))
        self.down_bias = nn.Parameter(torch.empty(experts, rank, **factory))
        self.up = nn.Parameter(torch.empty(experts, rank, head_width, **factory))
        self.up_bias = nn.Parameter(torch.empty(experts, head_width, **factory))
        nn.init.normal_(self.embeddings)
        nn.init.constant_(self.log_temperature, math.log(0.07))
        bound = 1 / math.sqrt(head_width)
        nn.init.uniform_(self.down, -bound, bound)
        for parameter in (self.down_bias, self.up, self.up_bias):
            nn.init.zeros_(parameter)
        self.scale: nn.Linear | None = None
        if dynamic:
            self.scale = nn.Linear(head_width, experts, **factory)
            nn.init.zeros_(self.scale.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, C] -> adapted [B, T, C], and the router's probabilities. [B, T·H, N]"""
        batch, tokens, width = x.shape
        h = x.reshape(batch, tokens * self.heads, width // self.heads)
        score = F.normalize(self.router(h), dim=-1) @ F.normalize(self.embeddings, dim=-1).T
        p = torch.softmax(score / self.log_temperature.exp(), -1)
        weight, chosen = p.max(-1)
        # All N experts on all sub-tokens, then the chosen one: their ranks together are still a small product.
        hidden = F.gelu(torch.einsum("bsc,ncr->bsnr", h, self.down) + self.down_bias)
        mine = F.one_hot(chosen, p.shape[-1]).to(x.dtype)
        y = torch.einsum("bsnr,nrc->bsc", hidden * mine.unsqueeze(-1), self.up) + mine @ self.up_bias
        if self.scale is not None:
            y = (F.relu(self.scale(h)) * mine).sum(-1, keepdim=True) * y
        return (weight.unsqueeze(-1) * y).reshape(batch, tokens, width), p


def balance_loss(p: Tensor) -> Tensor:
    """N · Σ_i (share of sub-tokens sent to i) · (mean probability of i); 1 when all experts are used alike.

    Source: Fedus et al., "Switch transformers", JMLR 2022, Eq. 4.
    """
    experts = p.shape[-1]
    share = F.one_hot(p.argmax(-1), experts).to(p.dtype).mean((0, 1))
    return experts * (share * p.mean((0, 1))).sum()


class AdapterXBlock(Block):
    """x ← x + MLP(n) + SMoA(n) with n = LN2(x) trained; the adapters' mean becomes a prompt."""

    def __init__(self, block: Block, mixture: SharedMixtureOfAdapters, balance: float):
        self.adopt(block)
        self.norm2.requires_grad_(True)
        self.mixture_of_all = [mixture]  # in a list: it belongs to the backbone, not to this block
        self.balance = balance
        self.prompt_generator = ScaleShift(block.width, **factory_kwargs(block))
        nn.init.ones_(self.prompt_generator.gamma)
        nn.init.zeros_(self.prompt_generator.beta)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T + 1, C]"""
        x = self.attention_half(x, ctx)
        x, n = self.mlp_inputs(x)
        a, p = self.mixture_of_all[0](n)
        ctx.aux_losses["balance"] = ctx.aux_losses.get("balance", 0.0) + self.balance * balance_loss(p)
        x = x + self.drop_path(self.mlp(n) + a)
        return ctx.insert_prompts(x, self.prompt_generator(a.mean(1, keepdim=True)))


@register_method
@dataclass(frozen=True)
class AdapterX(Method):
    """Shared mixture of adapters, block-specific norm and prompt generator.

    The publication released no code and its readable parts leave open the number of experts and heads, both ranks and
    the balance loss. The defaults are a choice: with them 416 720 parameters train at the published size and 15
    classes, 1.89 % of 22.1 million, beside the published 1.88 %.

    Attributes:
        heads: H, sub-tokens per token (a choice).
        experts: N, adapters in the library (a choice).
        rank: R of their bottlenecks (a choice).
        router_width: Of the router's space (a choice).
        balance: Weight of the balance loss, averaged over the blocks (a choice).
        parts: What the head reads.
        dynamic: Gives each adapter a scale per sub-token, as DAPT's have one per token; the publication names its model
            for clouds DAPT-X for it (772 parameters more at the published size; where they stand is a choice).

    Source: "Adapter-X: a novel general parameter-efficient fine-tuning framework for vision", 2024.
    """

    heads: int = 2
    experts: int = 4
    rank: int = 16
    router_width: int = 32
    balance: float = 0.01
    parts: tuple[str, ...] = ("cls", "prompt_mean", "patch_max")
    dynamic: bool = False

    name = "adapter_x"
    trains = (PREFIX_TOKENS,)

    def __post_init__(self) -> None:
        for name in ("heads", "experts", "rank", "router_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def build(self, model: PointModel) -> None:
        """Puts the library beside the blocks and gives every block its norm and prompt generator."""
        backbone = model.backbone
        width, factory = backbone.config.width, factory_kwargs(backbone)
        backbone.mixture = SharedMixtureOfAdapters(
            width, self.heads, self.experts, self.rank, self.router_width, self.dynamic, **factory
        )
        for i, block in enumerate(backbone.blocks):
            backbone.blocks[i] = AdapterXBlock(block, backbone.mixture, self.balance / len(backbone.blocks))
        model.set_pooling(self.parts)
