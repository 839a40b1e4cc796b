"""AdaptFormer: a scaled bottleneck beside the MLP."""

from dataclasses import dataclass

from torch import Tensor

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.methods.adapters.bottleneck import Bottleneck
from pointpeft.methods.base import PREFIX_TOKENS, Method, factory_kwargs, register_method
from pointpeft.model import PointModel


class AdaptFormerBlock(Block):
    """x ← x + MLP(LN2 x) + s·A(x); the adapter reads what the second norm reads."""

    def __init__(self, block: Block, rank: int, scale: float, dropout: float):
        self.adopt(block)
        self.adapter = Bottleneck(block.width, rank, "relu", dropout, **factory_kwargs(block))
        self.scale = scale

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        x = self.attention_half(x, ctx)
        x, u = self.mlp_inputs(x)
        return x + self.drop_path(self.mlp(u)) + self.scale * self.adapter(x)


@register_method
@dataclass(frozen=True)
class AdaptFormer(Method):
    """A bottleneck adapter parallel to every MLP.

    Attributes:
        rank: R, width of the bottleneck.
        scale: s, the constant multiplier.
        dropout: Inside the adapters.

    Source: Chen et al., "AdaptFormer", NeurIPS 2022, Eq. 3.
    """

    rank: int = 64
    scale: float = 0.1
    dropout: float = 0.1

    trains = (PREFIX_TOKENS,)

    def build(self, model: PointModel) -> None:
        """Puts the adapters in."""
        blocks = model.backbone.blocks
        for i, block in enumerate(blocks):
            blocks[i] = AdaptFormerBlock(block, self.rank, self.scale, self.dropout)
