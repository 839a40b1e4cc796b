"""PeterRec: small residual networks, "model patches", grafted onto each sub-layer in series or in parallel."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.methods.base import PREFIX_TOKENS, Method, factory_kwargs, register_method
from pointpeft.model import PointModel


class ModelPatch(nn.Module):
    """ψ(x) = x + W_up GELU(W_down x), near the identity at the start.

    The published cardinality (paths that share no hidden channel, as in ResNeXt) needs no option: with two linear maps
    the sum of the paths is one bottleneck of all their channels.

    Args:
        width: C.
        rank: R, hidden channels.
        residual: Whether ψ contains its input.
    """

    def __init__(self, width: int, rank: int, residual: bool = True, *, device: Any = None, dtype: Any = None):
        super().__init__()
        self.down = nn.Linear(width, rank, device=device, dtype=dtype)
        self.up = nn.Linear(rank, width, device=device, dtype=dtype)
        self.residual = residual
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        patch = self.up(F.gelu(self.down(x)))
        return x + patch if self.residual else patch


class PeterRecBlock(Block):
    """A frozen block with a patch at attention and one at the MLP.

    In series c ← ψ(c) on the sub-layer's output c; in parallel c ← c + ψ(u) with u the sub-layer's input.
    """

    def __init__(self, block: Block, rank: int, insertion: str, residual: bool):
        self.adopt(block)
        self.patch_attn = ModelPatch(block.width, rank, residual, **factory_kwargs(block))
        self.patch_mlp = ModelPatch(block.width, rank, residual, **factory_kwargs(block))
        self.serial = insertion == "serial"

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        x = self.attention_half(x, ctx, lambda u: self.patched(self.patch_attn, u, self.attn(u)))
        x, u = self.mlp_inputs(x)
        return x + self.drop_path(self.patched(self.patch_mlp, u, self.mlp(u)))

    def patched(self, patch: nn.Module, u: Tensor, c: Tensor) -> Tensor:
        """ψ(c), or c + ψ(u) in parallel. [B, T, C] each"""
        return patch(c) if self.serial else c + patch(u)


@register_method
@dataclass(frozen=True)
class PeterRec(Method):
    """Grafted model patches.

    Attributes:
        rank: R, hidden channels of a patch; None for a quarter of the width, as published.
        insertion: "serial" or "parallel".
        residual: Whether a patch contains its input. Parallel patches with it, as published, add the input to the
            frozen output at the start, which shifts the pre-trained function.
        train_norm2: Also trains the second norm of each block, as the published code does, which says that it is not
            very necessary.

    Source: Yuan et al., "Parameter-efficient transfer from sequential behaviors for user modeling and
    recommendation", SIGIR 2020, §3.3. Its convolutions are mapped to the output maps of attention and MLP.
    """

    rank: int | None = None
    insertion: str = "serial"
    residual: bool = True
    train_norm2: bool = False

    trains = (PREFIX_TOKENS,)

    def __post_init__(self) -> None:
        if self.insertion not in ("serial", "parallel"):
            raise ValueError(f"insertion must be serial or parallel, got {self.insertion!r}")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.insertion == "serial" and not self.residual:
            raise ValueError("residual must be True for insertion='serial', or nothing of the frozen output is left")

    def build(self, model: PointModel) -> None:
        """Puts the patches in."""
        backbone = model.backbone
        rank = self.rank or max(1, backbone.config.width // 4)
        for i, block in enumerate(backbone.blocks):
            if self.train_norm2:
                block.norm2.requires_grad_(True)
            backbone.blocks[i] = PeterRecBlock(block, rank, self.insertion, self.residual)
