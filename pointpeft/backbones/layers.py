"""The layers that all backbones share: attention, MLP, stochastic depth and the pre-norm block."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointpeft.backbones.context import Context
from pointpeft.backbones.plain import is_frozen
from pointpeft.ops import MlpWeights, attention, frozen_attention, frozen_linear, frozen_mlp
from pointpeft.ops.frozen.attention import heads


def linear(layer: Any, x: Tensor) -> Tensor:
    """`layer(x)`, by `frozen_linear` where the layer is a plain one and frozen."""
    return frozen_linear(x, layer.weight, layer.bias) if is_frozen(layer) else layer(x)


class Attention(nn.Module):
    """Multi-head self-attention over tokens, in three steps that a method can act between: `qkv`, `attend`, `proj`."""

    def __init__(self, width: int, num_heads: int, qkv_bias: bool = False, *, device: Any = None, dtype: Any = None):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width must be a multiple of num_heads = {num_heads}, got {width}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = nn.Linear(width, width, device=device, dtype=dtype)

    def visible(self, qkv: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Which token (row) may attend to which token (column): `mask`, restricted further by the type of attention.

        Args:
            qkv: [B, T, 3C]
            mask: bool, [T, T]; None for everywhere.

        Returns:
            bool, [T, T]; None for everywhere.
        """
        return mask

    def attend(self, qkv: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mixes the values of all tokens, head by head.

        Args:
            qkv: Queries, keys and values side by side. [B, T, 3C]
            mask: True where a token (row) may look at a token (column); None for everywhere. bool, [T, T]

        Returns:
            [B, T, C]
        """
        visible = self.visible(qkv, mask)
        if visible is None:
            return attention(qkv, self.num_heads)
        batch, tokens, width = qkv.shape
        y = F.scaled_dot_product_attention(*heads(qkv, self.num_heads), visible)
        return y.transpose(1, 2).reshape(batch, tokens, width // 3)

    def attend_with_prefix(self, qkv: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention over the tokens and, before them, a prefix that has keys and values but no queries.

        Args:
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
        q, k, v = (t.view(batch, -1, self.num_heads, width // 3 // self.num_heads).transpose(1, 2) for t in (q, k, v))
        visible = self.visible(qkv)
        if visible is not None:  # every token looks at the prefix
            visible = F.pad(visible, (keys.shape[1], 0), value=True)
        return F.scaled_dot_product_attention(q, k, v, visible).transpose(1, 2).reshape(batch, tokens, width // 3)

    def mixed(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`attend` of `qkv`, in one operation where all tokens see each other and the map is frozen.

        Args:
            x: [B, T, C]
            mask: As in `attend`.

        Returns:
            [B, T, C]
        """
        if self.sees_all and mask is None and is_frozen(self.qkv):
            return frozen_attention(x, self.qkv.weight, self.qkv.bias, self.num_heads)
        return self.attend(linear(self.qkv, x), mask)

    @property
    def sees_all(self) -> bool:
        """Whether `attend` without a mask is `pointpeft.ops.attention`: nothing has taken its or `visible`'s place."""
        is_plain = "attend" not in self.__dict__ and "visible" not in self.__dict__
        return is_plain and type(self).attend is Attention.attend and type(self).visible is Attention.visible

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        mix: Callable[[Tensor], Tensor] | None = None,
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Self-attention.

        A method that changes a step hands its own over, so that the attention is called as a module, whose hooks hear
        the call.

        Args:
            x: [B, T, C]
            mask: As in `attend`.
            mix: Stands in for `mixed`, queries, keys and values and what attends to them. [B, T, C] -> [B, T, C]
            project: Stands in for `proj`. [B, T, C] -> [B, T, C]

        Returns:
            [B, T, C]
        """
        y = self.mixed(x, mask) if mix is None else mix(x)
        return linear(self.proj, y) if project is None else project(y)


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int, *, device: Any = None, dtype: Any = None):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, width, device=device, dtype=dtype)

    def forward(
        self,
        x: Tensor,
        *,
        first: Callable[[Tensor], Tensor] | None = None,
        second: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Both maps with GELU between them.

        Args:
            x: [B, T, C]
            first: Stands in for `fc1`, as a method changes it. [B, T, C] -> [B, T, H]
            second: Stands in for `fc2`. [B, T, H] -> [B, T, C]

        Returns:
            [B, T, C]
        """
        fc1, fc2 = self.fc1, self.fc2
        if first is None and second is None and is_frozen(fc1) and is_frozen(fc2):
            if fc1.bias is not None and fc2.bias is not None:
                return frozen_mlp(x, MlpWeights(fc1.weight, fc1.bias, fc2.weight, fc2.bias))
        hidden = F.gelu(linear(fc1, x) if first is None else first(x))
        return linear(fc2, hidden) if second is None else second(hidden)


class DropPath(nn.Module):
    """Stochastic depth: in training leaves a branch out for some clouds, and scales it up for the others.

    Source: Huang et al., "Deep networks with stochastic depth", ECCV 2016.
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path must be at least 0 and below 1, got {rate}")
        self.rate = float(rate)

    @property
    def drops(self) -> bool:
        """Whether anything is left out now."""
        return self.training and self.rate > 0

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]"""
        return x * self._factor(x) if self.drops else x

    def added(self, x: Tensor, branch: Tensor) -> Tensor:
        """`x + self(branch)` in one pass. [B, ...]"""
        return torch.addcmul(x, branch, self._factor(branch)) if self.drops else x + branch

    def _factor(self, x: Tensor) -> Tensor:
        size = [x.shape[0]] + [1] * (x.dim() - 1)
        return torch.empty(size, dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate).div_(1 - self.rate)

    def extra_repr(self) -> str:
        """The rate, for printing."""
        return f"rate={self.rate:g}"


class Block(nn.Module):
    """Pre-norm transformer block that adds the positions to its input itself.

    A method derives from it, takes the frozen parts over with `adopt`, and writes its own `forward`, of which
    `attention_half` and `mlp_inputs` know where the residuals of this kind of block start.

    Attributes:
        normed_skips: Whether the skip connections around the attention and around the MLP carry the normalised tokens,
            u + f(u) with u = LN(x), instead of x + f(u).
    """

    norm1: nn.LayerNorm
    attn: Attention
    norm2: nn.LayerNorm
    mlp: Mlp
    drop_path: DropPath
    normed_skips: tuple[bool, bool] = (False, False)

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        *,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, device=device, dtype=dtype)
        self.attn = Attention(width, num_heads, device=device, dtype=dtype)
        self.norm2 = nn.LayerNorm(width, device=device, dtype=dtype)
        self.mlp = Mlp(width, int(width * mlp_ratio), device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path)

    @property
    def width(self) -> int:
        """C, the width of the tokens."""
        return self.attn.proj.out_features

    def adopt(self, block: "Block") -> None:
        """Takes over the parts of `block` under their names, and its `normed_skips`, instead of `Block.__init__`."""
        nn.Module.__init__(self)
        self.normed_skips = block.normed_skips
        for name, child in block.named_children():
            self.add_module(name, child)
        self.train(block.training)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """[B, T, C] -> [B, T, C]"""
        x = self.attention_half(x, ctx)
        x, u = self.mlp_inputs(x)
        return self.drop_path.added(x, self.mlp(u))

    def attention_half(self, x: Tensor, ctx: Context, attn: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The first half: x + Attn(u) with u = LN1(x), or u + Attn(u) where `normed_skips` says so; x with positions.

        Args:
            x: [B, T, C]
            ctx: Of this pass.
            attn: Stands in for the attention, as a method changes it. [B, T, C] -> [B, T, C]

        Returns:
            [B, T, C]
        """
        x = ctx.add_pos(x)
        u = self.norm1(x)
        x = self.attention_skip(x, u, ctx)
        return self.drop_path.added(x, self.attn(u) if attn is None else attn(u))

    def attention_skip(self, x: Tensor, u: Tensor, ctx: Context) -> Tensor:
        """What the attention's output is added to: x, or u, which the attention reads; `ctx` keeps u. [B, T, C]"""
        ctx.attended = u
        return u if self.normed_skips[0] else x

    def mlp_inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the MLP's output is added to, x or u, and what the MLP reads, u = LN2(x). [B, T, C] each"""
        u = self.norm2(x)
        return self.mlp_skip(x, u), u

    def mlp_skip(self, x: Tensor, u: Tensor) -> Tensor:
        """What the MLP's output is added to: x, or u = LN2(x). [B, T, C]"""
        return u if self.normed_skips[1] else x


def init_weights(module: nn.Module) -> None:
    """Initial weights of a backbone: truncated normal of deviation 0.02, zero biases, identity norms.

    Source: the published code of Point-MAE.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
