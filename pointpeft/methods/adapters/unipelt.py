"""UniPELT: LoRA, prefix and adapter in every block, each behind a gate that the input opens."""

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
from pointpeft.methods.prompts.prefix import PrefixEncoder
from pointpeft.model import PointModel

PREFIX_HIDDEN = 512  # of the re-parameterisation, as published
PARTS = ("adapter", "prefix", "lora")


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


class CentralGate(nn.Module):
    """[G_lora, G_prefix] = softmax of the means over tokens of ReLU(W h + b): what one gets, the other loses."""

    def __init__(self, width: int, *, device: Any = None, dtype: Any = None):
        super().__init__()
        self.linear = nn.Linear(width, 2, device=device, dtype=dtype)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, C] -> [B, 1, 1] each"""
        lora, prefix = torch.softmax(F.relu(self.linear(h)).mean(1, keepdim=True), -1).split(1, -1)
        return lora, prefix


class LoRA(nn.Module):
    """G · x Aᵀ Bᵀ; the gate replaces α / r, as in the published code."""

    def __init__(self, width: int, rank: int, gated: bool, *, device: Any = None, dtype: Any = None):
        super().__init__()
        self.a = nn.Linear(width, rank, bias=False, device=device, dtype=dtype)
        self.b = nn.Linear(rank, width, bias=False, device=device, dtype=dtype)
        self.gate = Gate(width, device=device, dtype=dtype) if gated else None
        nn.init.kaiming_uniform_(self.a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """[B, T, C], and the gate [B, 1, 1] where the layer has none of its own -> [B, T, C]"""
        return (gate if self.gate is None else self.gate(x)) * self.b(self.a(x))


class UniPELTBlock(Block):
    """A frozen block with gated LoRA on queries and values, a gated prefix, and a gated adapter after the MLP."""

    def __init__(self, block: Block, index: int, encoder: PrefixEncoder | None, rank: int, method: "UniPELT"):
        self.adopt(block)
        width, factory, parts = block.width, factory_kwargs(block), method.parts
        self.index = index
        self.encoder_of_all = [encoder]  # in a list: it belongs to the backbone, not to this block
        gated = not method.central_gate
        self.central_gate = CentralGate(width, **factory) if method.central_gate else None
        self.lora_q = LoRA(width, method.lora_rank, gated, **factory) if "lora" in parts else None
        self.lora_v = LoRA(width, method.lora_rank, gated, **factory) if "lora" in parts else None
        self.prefix_gate = Gate(width, **factory) if "prefix" in parts and gated else None
        self.adapter = Bottleneck(width, rank, "relu", **factory) if "adapter" in parts else None
        self.adapter_gate = Gate(width, **factory) if "adapter" in parts else None
        self.prompts: nn.Parameter | None = None
        if index == 0 and method.soft_prompts:
            self.prompts = nn.Parameter(torch.empty(1, method.soft_prompts, width, **factory))
            nn.init.normal_(self.prompts, std=0.02)

    def attend(self, u: Tensor, ctx: Context) -> Tensor:
        """Attention with LoRA and the prefix, before the output map. [B, T, C] -> [B, T, C]"""
        lora_gate = prefix_gate = None
        if self.central_gate is not None:
            lora_gate, prefix_gate = self.central_gate(u)
        qkv = self.attn.qkv(u)
        if self.lora_q is not None and self.lora_v is not None:
            q, k, v = qkv.chunk(3, -1)
            qkv = torch.cat([q + self.lora_q(u, lora_gate), k, v + self.lora_v(u, lora_gate)], -1)
        if self.encoder_of_all[0] is None:
            return self.attn.attend(qkv)
        keys, values = ctx.cached("unipelt_prefix", self.encoder_of_all[0])[self.index]
        gate = prefix_gate if self.prefix_gate is None else self.prefix_gate(u)
        return self.attn.attend_with_prefix(qkv, gate * keys, gate * values)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]; the first block adds the soft prompts to T."""
        if self.prompts is not None:
            x = ctx.insert_prompts(x, self.prompts)
        x = self.attention_half(x, ctx, lambda u: self.attn(u, mix=lambda u: self.attend(u, ctx)))
        x, u = self.mlp_inputs(x)
        z = self.mlp(u)
        if self.adapter is not None and self.adapter_gate is not None:
            z = z + self.adapter_gate(z) * self.adapter(z)
        return x + self.drop_path(z)


@register_method
@dataclass(frozen=True)
class UniPELT(Method):
    """Gated LoRA, prefix and adapter; not mergeable, because the gates depend on the input.

    The paper's AP is `parts=("adapter", "prefix")`, its APL the default, and its APLB adds `bitfit=True`. In the
    published code the gate of LoRA overwrites α / r, so that its scale lies between 0 and 1 and α has no effect: so
    here. "Parameter-efficient fine-tuning with adapters" (2024) adds soft prompts before the first block to it; it has
    no code, and their number is a choice.

    Attributes:
        rank: R of the adapters; None for a sixteenth of the width, as published.
        lora_rank: R of LoRA.
        num_prompts: P, length of the prefix.
        parts: What a block gets: adapter, prefix, lora.
        bitfit: Also trains every bias of the blocks, without a gate.
        central_gate: One gate divides a weight of 1 between LoRA and prefix, instead of their own gates.
        soft_prompts: Learned tokens behind the prefix tokens, from the first block on; 0 for none.

    Source: Mao et al., "UniPELT: a unified framework for parameter-efficient language model tuning", ACL 2022, and its
    code. Its post-norm adapters are mapped to the output of the MLP.
    """

    rank: int | None = None
    lora_rank: int = 8
    num_prompts: int = 10
    parts: tuple[str, ...] = PARTS
    bitfit: bool = False
    central_gate: bool = False
    soft_prompts: int = 0

    trains = (PREFIX_TOKENS,)

    def __post_init__(self) -> None:
        for name in ("rank", "lora_rank", "num_prompts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.soft_prompts < 0:
            raise ValueError(f"soft_prompts must be at least 0, got {self.soft_prompts}")
        if not self.parts or set(self.parts) - set(PARTS):
            raise ValueError(f"parts must be among {', '.join(PARTS)}, got {self.parts}")
        if self.central_gate and not {"lora", "prefix"} <= set(self.parts):
            raise ValueError(f"parts must have lora and prefix for central_gate=True, got {self.parts}")

    def build(self, model: PointModel) -> None:
        """Puts the parts in, and the encoder of all prefixes beside the blocks."""
        backbone = model.backbone
        width, depth = backbone.config.width, len(backbone.blocks)
        rank = self.rank or max(1, width // 16)
        encoder = None
        if "prefix" in self.parts:
            encoder = PrefixEncoder(width, depth, self.num_prompts, PREFIX_HIDDEN, **factory_kwargs(backbone))
            backbone.prefix_encoder = encoder
        for i, block in enumerate(backbone.blocks):
            if self.bitfit:
                for name, parameter in block.named_parameters():
                    parameter.requires_grad_(name.endswith("bias"))
            backbone.blocks[i] = UniPELTBlock(block, i, encoder, rank, self)
