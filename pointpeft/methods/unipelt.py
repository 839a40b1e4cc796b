"""UniPELT: LoRA, prefix and adapter in every block, each behind a gate that the input opens."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.methods.base import PREFIX_TOKENS, Method, register_method, where
from pointpeft.methods.bottleneck import Bottleneck
from pointpeft.methods.prefix import attend_with_prefix
from pointpeft.model import PointModel

PREFIX_HIDDEN = 512  # of the re-parameterisation, as published


class Gate(nn.Module):
    """G = mean over tokens of σ(w·h + b), one number a cloud."""

    def __init__(self, width: int, *, device: Any = None, dtype: Any = None):
        super().__init__()
        self.linear = nn.Linear(width, 1, device=device, dtype=dtype)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, h: Tensor) -> Tensor:
        """[B, T, C] -> [B, 1, 1]"""
        return torch.sigmoid(self.linear(h)).mean(1, keepdim=True)


class PrefixEncoder(nn.Module):
    """Keys and values of all blocks from one embedding: Linear, tanh, Linear."""

    def __init__(self, width: int, depth: int, num_prompts: int, *, device: Any = None, dtype: Any = None):
        super().__init__()
        at = {"device": device, "dtype": dtype}
        self.depth = depth
        self.embedding = nn.Parameter(torch.empty(num_prompts, width, **at))
        self.hidden = nn.Linear(width, PREFIX_HIDDEN, **at)
        self.out = nn.Linear(PREFIX_HIDDEN, 2 * depth * width, **at)
        nn.init.normal_(self.embedding, std=0.02)

    def forward(self) -> Tensor:
        """Keys and values of every block. [L, 2, P, C]"""
        both = self.out(torch.tanh(self.hidden(self.embedding)))
        return both.view(both.shape[0], self.depth, 2, -1).permute(1, 2, 0, 3)


class GatedLoRA(nn.Module):
    """Δ = G · x Aᵀ Bᵀ; the gate stands in the place of α/r, as in the published code."""

    def __init__(self, width: int, rank: int, *, device: Any = None, dtype: Any = None):
        super().__init__()
        self.a = nn.Linear(width, rank, bias=False, device=device, dtype=dtype)
        self.b = nn.Linear(rank, width, bias=False, device=device, dtype=dtype)
        self.gate = Gate(width, device=device, dtype=dtype)
        nn.init.kaiming_uniform_(self.a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        return self.gate(x) * self.b(self.a(x))


class UniPELTBlock(Block):
    """A frozen block with gated LoRA on queries and values, a gated prefix, and a gated adapter after the MLP."""

    def __init__(self, block: Block, index: int, encoder: PrefixEncoder, rank: int, lora_rank: int):
        self.adopt(block)
        at = where(block)
        self.index = index
        self.encoder_of_all = [encoder]  # in a list: it belongs to the backbone, not to this block
        self.lora_q, self.lora_v = GatedLoRA(block.width, lora_rank, **at), GatedLoRA(block.width, lora_rank, **at)
        self.prefix_gate = Gate(block.width, **at)
        self.adapter = Bottleneck(block.width, rank, "relu", **at)
        self.adapter_gate = Gate(block.width, **at)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        x = ctx.add_pos(x)
        u = self.norm1(x)
        q, k, v = self.attn.qkv(u).chunk(3, -1)
        qkv = torch.cat([q + self.lora_q(u), k, v + self.lora_v(u)], -1)
        keys, values = ctx.cached("unipelt_prefix", self.encoder_of_all[0])[self.index]
        gate = self.prefix_gate(u)
        y = attend_with_prefix(self.attn, qkv, gate * keys, gate * values)
        x = x + self.drop_path(self.attn.proj(y))
        z = self.mlp(self.norm2(x))
        return x + self.drop_path(z + self.adapter_gate(z) * self.adapter(z))


@register_method
@dataclass(frozen=True)
class UniPELT(Method):
    """Gated LoRA, prefix and adapter; not mergeable, because the gates depend on the input.

    Attributes:
        rank: R of the adapters; None for a sixteenth of the width, as published.
        lora_rank: R of LoRA.
        num_prompts: P, length of the prefix.

    Source: Mao et al., "UniPELT: a unified framework for parameter-efficient language model tuning", ACL 2022, and its
    code. Its post-norm adapters are mapped to the output of the MLP.
    """

    rank: int | None = None
    lora_rank: int = 8
    num_prompts: int = 10

    trains = (PREFIX_TOKENS,)

    def __post_init__(self) -> None:
        for name in ("rank", "lora_rank", "num_prompts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def build(self, model: PointModel) -> None:
        """Puts the three in, and the encoder of all prefixes beside the blocks."""
        backbone = model.backbone
        width, depth = backbone.config.width, len(backbone.blocks)
        rank = self.rank or max(1, width // 16)
        backbone.prefix_encoder = PrefixEncoder(width, depth, self.num_prompts, **where(backbone))
        for i, block in enumerate(backbone.blocks):
            backbone.blocks[i] = UniPELTBlock(block, i, backbone.prefix_encoder, rank, self.lora_rank)
