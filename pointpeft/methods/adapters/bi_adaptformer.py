"""Binary AdaptFormer: a bottleneck beside the MLP whose weights take two values each."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.methods.base import PREFIX_TOKENS, Method, factory_kwargs, register_method
from pointpeft.model import PointModel

EPS = 1e-5  # beside the deviation of the weights, as published


@cache
def codebook(bits: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The 2^bits values that a standard normal variable is rounded to, and the borders between their cells.

    Each value is the median of its cell and each border lies midway between two values, which makes the expected
    distance least; for one bit the values are ±0.6745.
    """
    values = torch.linspace(-1, 1, 2**bits, dtype=torch.float64)
    for _ in range(500):
        borders = (values[1:] + values[:-1]) / 2
        edges = torch.cat([torch.zeros(1, dtype=torch.float64), torch.special.ndtr(borders), torch.ones(1).double()])
        values = torch.special.ndtri((edges[1:] + edges[:-1]) / 2)
    return tuple(values.tolist()), tuple(((values[1:] + values[:-1]) / 2).tolist())


class QuantizedLinear(nn.Module):
    """y = (σ q(ŵ) + μ) x with ŵ = (w - μ) / σ standardised over the matrix, and gradients that pass q as if it were ŵ.

    Only w is trained and saved, in full precision; what it is rounded to takes `bits` per weight, μ and σ.
    """

    def __init__(self, inputs: int, outputs: int, bits: int, *, device: Any = None, dtype: Any = None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.values, self.borders = codebook(bits)

    def quantized(self) -> Tensor:
        """The weight that is used. [outputs, inputs]"""
        mean, deviation = self.weight.mean(), self.weight.std()
        standard = (self.weight - mean) / (deviation + EPS)
        code = torch.full_like(standard, self.values[0])
        for border, below, above in zip(self.borders, self.values, self.values[1:], strict=False):
            code = code + (above - below) * (standard.detach() > border)
        return ((code - standard).detach() + standard) * deviation + mean

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]"""
        return F.linear(x, self.quantized())


class BiAdaptFormerBlock(Block):
    """x ← x + MLP(LN2 x) + s · W_up Dropout(ReLU(W_down x)), without biases, both W rounded to few values."""

    def __init__(self, block: Block, method: "BiAdaptFormer"):
        self.adopt(block)
        self.down = QuantizedLinear(block.width, method.rank, method.bits, **factory_kwargs(block))
        self.up = QuantizedLinear(method.rank, block.width, method.bits, **factory_kwargs(block))
        nn.init.trunc_normal_(self.up.weight, std=0.001, a=-0.002, b=0.002)
        self.dropout = nn.Dropout(method.dropout)
        self.scale = method.scale

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        x = self.attention_half(x, ctx)
        x, u = self.mlp_inputs(x)
        a = self.up(self.dropout(F.relu(self.down(x))))
        return x + self.drop_path(self.mlp(u)) + self.scale * a


@register_method
@dataclass(frozen=True)
class BiAdaptFormer(Method):
    """AdaptFormer with weights of one bit: 36 KiB beside the head at the published size.

    Near the backbone at the start, but not the same: no weight can be rounded to zero. An adapter on disk holds the
    full weights, four bytes each, so that training can go on from it; their signs, means and deviations are all that
    inference needs.

    Attributes:
        rank: R, width of the bottleneck.
        bits: Per weight.
        scale: s; the publication looks for it between 0.01 and 100 for each data set.
        dropout: Inside the adapters.

    Source: Jie et al., "Revisiting the parameter efficiency of adapters from the perspective of precision redundancy",
    ICCV 2023, and its code.
    """

    rank: int = 32
    bits: int = 1
    scale: float = 1.0
    dropout: float = 0.1

    name = "bi_adaptformer"
    trains = (PREFIX_TOKENS,)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be between 1 and 8, got {self.bits}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    def build(self, model: PointModel) -> None:
        """Puts the adapters in."""
        blocks = model.backbone.blocks
        for i, block in enumerate(blocks):
            blocks[i] = BiAdaptFormerBlock(block, self)
