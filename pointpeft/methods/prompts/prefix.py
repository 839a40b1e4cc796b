"""Prefix tuning: learned keys and values that every token can attend to, in every block."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.methods.base import PREFIX_TOKENS, Method, factory_kwargs, register_method
from pointpeft.model import PointModel


class PrefixEncoder(nn.Module):
    """Keys and values of all blocks from one embedding: Linear, tanh, Linear."""

    def __init__(self, width: int, depth: int, num_prompts: int, hidden: int, *, device: Any = None, dtype: Any = None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.depth = depth
        self.embedding = nn.Parameter(torch.empty(num_prompts, width, **factory))
        self.hidden = nn.Linear(width, hidden, **factory)
        self.out = nn.Linear(hidden, 2 * depth * width, **factory)
        nn.init.normal_(self.embedding, std=0.02)

    def forward(self) -> Tensor:
        """Keys and values of every block. [L, 2, P, C]"""
        both = self.out(torch.tanh(self.hidden(self.embedding)))
        return both.view(both.shape[0], self.depth, 2, -1).permute(1, 2, 0, 3)


class PrefixBlock(Block):
    """A frozen block whose attention also reads P learned keys and values, its own or those of an encoder."""

    def __init__(self, block: Block, index: int, num_prompts: int, encoder: PrefixEncoder | None):
        self.adopt(block)
        self.index = index
        self.encoder_of_all = [encoder]  # in a list: it belongs to the backbone, not to this block
        if encoder is None:
            self.keys = nn.Parameter(torch.empty(1, num_prompts, block.width, **factory_kwargs(block)))
            self.values = nn.Parameter(torch.empty(1, num_prompts, block.width, **factory_kwargs(block)))
            for parameter in (self.keys, self.values):
                nn.init.normal_(parameter, std=0.02)

    def prefix(self, ctx: Context) -> tuple[Tensor, Tensor]:
        """Keys and values. [1, P, C] each"""
        encoder = self.encoder_of_all[0]
        if encoder is None:
            return self.keys, self.values
        keys, values = ctx.cached("prefix", encoder)[self.index]
        return keys[None], values[None]

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        attn = self.attn
        x = self.attention_half(
            x, ctx, lambda u: attn(u, mix=lambda u: attn.attend_with_prefix(attn.qkv(u), *self.prefix(ctx)))
        )
        x, u = self.mlp_inputs(x)
        return x + self.drop_path(self.mlp(u))


@register_method
@dataclass(frozen=True)
class Prefix(Method):
    """Prefix tuning: learned keys and values in the attention of every block.

    Attributes:
        num_prompts: P, learned keys and values per block.
        hidden: Width of the network that makes the keys and values of all blocks from one embedding, which the
            publication trains in their place because it found them unstable alone (with 512); 0 to train them
            themselves.

    Source: Li and Liang, "Prefix-tuning", ACL 2021.
    """

    num_prompts: int = 10
    hidden: int = 0

    trains = (PREFIX_TOKENS,)

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise ValueError(f"num_prompts must be at least 1, got {self.num_prompts}")
        if self.hidden < 0:
            raise ValueError(f"hidden must be at least 0, got {self.hidden}")

    def build(self, model: PointModel) -> None:
        """Puts the keys and values in, or what makes them beside the blocks."""
        backbone, blocks = model.backbone, model.backbone.blocks
        encoder = None
        if self.hidden:
            size = (backbone.config.width, len(blocks), self.num_prompts, self.hidden)
            encoder = backbone.prefix_encoder = PrefixEncoder(*size, **factory_kwargs(backbone))
        for i, block in enumerate(blocks):
            blocks[i] = PrefixBlock(block, i, self.num_prompts, encoder)
