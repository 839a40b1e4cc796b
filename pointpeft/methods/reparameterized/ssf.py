"""SSF: a scale and a shift after every frozen layer, folded away for inference."""

from dataclasses import dataclass

from torch import Tensor

from pointpeft.backbones.context import Context
from pointpeft.backbones.layers import Block
from pointpeft.methods.base import PREFIX_TOKENS, Method, factory_kwargs, register_method
from pointpeft.methods.reparameterized.scale_shift import ScaleShift, fold
from pointpeft.model import PointModel


class SSFBlock(Block):
    """A frozen block with y = γ ⊙ x + β after both norms and all four linear maps."""

    def __init__(self, block: Block):
        self.adopt(block)
        width, hidden, factory = block.width, block.mlp.fc1.out_features, factory_kwargs(block)
        self.ssf_norm1, self.ssf_norm2 = ScaleShift(width, **factory), ScaleShift(width, **factory)
        self.ssf_qkv, self.ssf_proj = ScaleShift(3 * width, **factory), ScaleShift(width, **factory)
        self.ssf_fc1, self.ssf_fc2 = ScaleShift(hidden, **factory), ScaleShift(width, **factory)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        x = ctx.add_pos(x)
        attn, mlp = self.attn, self.mlp
        u = self.ssf_norm1(self.norm1(x))
        y = attn(
            u,
            mix=lambda u: attn.attend(self.ssf_qkv(attn.qkv(u))),
            project=lambda y: self.ssf_proj(attn.proj(y)),
        )
        x = self.attention_skip(x, u, ctx) + self.drop_path(y)
        u = self.ssf_norm2(self.norm2(x))
        y = mlp(
            u,
            first=lambda u: self.ssf_fc1(mlp.fc1(u)),
            second=lambda h: self.ssf_fc2(mlp.fc2(h)),
        )
        return self.mlp_skip(x, u) + self.drop_path(y)

    def fold(self) -> None:
        """Folds every pair into the layer before it."""
        self.ssf_norm1, self.ssf_norm2 = fold(self.norm1, self.ssf_norm1), fold(self.norm2, self.ssf_norm2)
        self.ssf_qkv, self.ssf_proj = fold(self.attn.qkv, self.ssf_qkv), fold(self.attn.proj, self.ssf_proj)
        self.ssf_fc1, self.ssf_fc2 = fold(self.mlp.fc1, self.ssf_fc1), fold(self.mlp.fc2, self.ssf_fc2)


@register_method
@dataclass(frozen=True)
class SSF(Method):
    """Scaling and shifting of every layer's features; not the identity at the start, as published.

    Source: Lian et al., "Scaling & shifting your features", NeurIPS 2022.
    """

    needs = ("blocks", "patch_transform", "token_transform")
    trains = (PREFIX_TOKENS,)
    mergeable = True

    def build(self, model: PointModel) -> None:
        """Puts the pairs in."""
        backbone = model.backbone
        for i, block in enumerate(backbone.blocks):
            backbone.blocks[i] = SSFBlock(block)
        backbone.patch_transform = ScaleShift(backbone.config.width, **factory_kwargs(backbone))
        backbone.token_transform = ScaleShift(backbone.config.width, **factory_kwargs(backbone))

    def fold(self, model: PointModel) -> None:
        """Folds all pairs; that of the patches only where it keeps the order of the maximum before it."""
        backbone = model.backbone
        for block in backbone.blocks:
            block.fold()
        backbone.token_transform = fold(backbone.last_norm, backbone.token_transform)
        if not backbone.patch_embed.ends_in_maximum or bool((backbone.patch_transform.gamma >= 0).all()):
            backbone.patch_transform = fold(backbone.patch_embed.last_layer, backbone.patch_transform)
