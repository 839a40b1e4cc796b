"""Houlsby adapters: a residual bottleneck on the output of each sub-layer."""

from dataclasses import dataclass

from torch import Tensor

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.methods.adapters.bottleneck import Bottleneck
from pointpeft.methods.base import PREFIX_TOKENS, Method, factory_kwargs, register_method
from pointpeft.model import PointModel


class HoulsbyBlock(Block):
    """A frozen block; each chosen sub-layer's output z becomes z + A(z) before it is added."""

    def __init__(self, block: Block, rank: int, places: tuple[str, ...]):
        self.adopt(block)
        for place in places:
            self.add_module(f"adapter_{place}", Bottleneck(block.width, rank, **factory_kwargs(block)))
        self.places = places

    def adapt(self, place: str, z: Tensor) -> Tensor:
        """Z + A(z) where there is an adapter at `place`, otherwise z. [B, T, C] -> [B, T, C]"""
        return z + getattr(self, f"adapter_{place}")(z) if place in self.places else z

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        x = self.attention_half(x, ctx, lambda u: self.adapt("attn", self.attn(u)))
        x, u = self.mlp_inputs(x)
        return x + self.drop_path(self.adapt("mlp", self.mlp(u)))


@register_method
@dataclass(frozen=True)
class Houlsby(Method):
    """Adapters after attention and MLP.

    Attributes:
        rank: R, width of the bottleneck.
        places: After which sub-layers: attn, mlp.

    Source: Houlsby et al., "Parameter-efficient transfer learning for NLP", ICML 2019.
    """

    rank: int = 64
    places: tuple[str, ...] = ("attn", "mlp")

    trains = (PREFIX_TOKENS,)

    def __post_init__(self) -> None:
        if not self.places or set(self.places) - {"attn", "mlp"}:
            raise ValueError(f"places must be among attn, mlp, got {self.places}")

    def build(self, model: PointModel) -> None:
        """Puts the adapters in."""
        blocks = model.backbone.blocks
        for i, block in enumerate(blocks):
            blocks[i] = HoulsbyBlock(block, self.rank, self.places)
