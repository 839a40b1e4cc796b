"""Prefix tuning: learned keys and values that every token can attend to, in every block."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Attention, Block
from pointpeft.methods.base import PREFIX_TOKENS, Method, register_method, where
from pointpeft.model import PointModel


def attend_with_prefix(attn: Attention, qkv: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention over the tokens and, before them, a prefix that has keys and values but no queries.

    Args:
        attn: Gives the number of heads.
        qkv: Queries, keys and values side by side. [B, T, 3C]
        keys: [B or 1, P, C]
        values: [B or 1, P, C]

    Returns:
        [B, T, C]
    """
    batch, tokens, width = qkv.shape
    q, k, v = qkv.chunk(3, -1)
    k = torch.cat([keys.expand(batch, -1, -1), k], 1)
    v = torch.cat([values.expand(batch, -1, -1), v], 1)
    q, k, v = (t.view(batch, -1, attn.num_heads, width // 3 // attn.num_heads).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width // 3)


class PrefixBlock(Block):
    """A frozen block whose attention also reads P learned keys and values."""

    def __init__(self, block: Block, num_prompts: int):
        self.adopt(block)
        self.keys = nn.Parameter(torch.empty(1, num_prompts, block.width, **where(block)))
        self.values = nn.Parameter(torch.empty(1, num_prompts, block.width, **where(block)))
        for parameter in (self.keys, self.values):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        x = ctx.add_pos(x)
        y = attend_with_prefix(self.attn, self.attn.qkv(self.norm1(x)), self.keys, self.values)
        x = x + self.drop_path(self.attn.proj(y))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@register_method
@dataclass(frozen=True)
class Prefix(Method):
    """Prefix tuning without re-parameterisation.

    Attributes:
        num_prompts: P, learned keys and values per block.

    Source: Li and Liang, "Prefix-tuning", ACL 2021.
    """

    num_prompts: int = 10

    trains = (PREFIX_TOKENS,)

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise ValueError(f"num_prompts must be at least 1, got {self.num_prompts}")

    def build(self, model: PointModel) -> None:
        """Puts the keys and values in."""
        blocks = model.backbone.blocks
        for i, block in enumerate(blocks):
            blocks[i] = PrefixBlock(block, self.num_prompts)
