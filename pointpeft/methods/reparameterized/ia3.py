"""(IA)³: learned vectors rescale keys, values and the hidden activations of the MLP."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.methods.base import PREFIX_TOKENS, Method, factory_kwargs, register_method
from pointpeft.model import PointModel


class IA3Block(Block):
    """A frozen block with k ← l_k ⊙ k, v ← l_v ⊙ v and h ← l_ff ⊙ GELU(W₁ x)."""

    def __init__(self, block: Block):
        self.adopt(block)
        factory = factory_kwargs(block)
        self.l_k = nn.Parameter(torch.ones(block.width, **factory))
        self.l_v = nn.Parameter(torch.ones(block.width, **factory))
        self.l_ff = nn.Parameter(torch.ones(block.mlp.fc1.out_features, **factory))
        self.folded = False

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        if self.folded:
            return super().forward(x, ctx)
        x = self.attention_half(x, ctx, lambda u: self.attn(u, mix=self._attend))
        x, u = self.mlp_inputs(x)
        return x + self.drop_path(self.mlp(u, second=lambda h: self.mlp.fc2(self.l_ff * h)))

    def _attend(self, u: Tensor) -> Tensor:
        q, k, v = self.attn.qkv(u).chunk(3, -1)
        return self.attn.attend(torch.cat([q, self.l_k * k, self.l_v * v], -1))

    @torch.no_grad()
    def fold(self) -> None:
        """Scales the rows of keys and values, and the columns of the MLP's second map."""
        rows = torch.cat([torch.ones_like(self.l_k), self.l_k, self.l_v])
        qkv, fc2 = self.attn.qkv, self.mlp.fc2
        qkv.weight = nn.Parameter(rows[:, None] * qkv.weight, requires_grad=False)
        if qkv.bias is not None:
            qkv.bias = nn.Parameter(rows * qkv.bias, requires_grad=False)
        fc2.weight = nn.Parameter(fc2.weight * self.l_ff, requires_grad=False)
        self.folded = True


@register_method
@dataclass(frozen=True)
class IA3(Method):
    """Three vectors per block, all ones at the start: the identity.

    Source: Liu et al., "Few-shot parameter-efficient fine-tuning is better and cheaper than in-context learning"
    (T-Few), NeurIPS 2022, Eq. 1. Its losses for ranking text choices (unlikelihood, length normalisation) have no
    counterpart in classification, where the cross entropy over classes already compares all choices.
    """

    trains = (PREFIX_TOKENS,)
    mergeable = True

    def build(self, model: PointModel) -> None:
        """Puts the vectors in."""
        blocks = model.backbone.blocks
        for i, block in enumerate(blocks):
            blocks[i] = IA3Block(block)

    def fold(self, model: PointModel) -> None:
        """Folds all vectors into the weights."""
        for block in model.backbone.blocks:
            block.fold()
